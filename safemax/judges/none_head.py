"""A reject class on a frozen judge: small heads read statistics of a few of its levels and vote on "none of these"."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from safemax.data.dataset import Dataset
from safemax.errors import InputError, NonFiniteError
from safemax.judges.classifier import Ensemble, Judge
from safemax.judges.files import load_judge, save
from safemax.judges.networks import Network
from safemax.judges.training_images import draw, on
from safemax.progress import bar
from safemax.storage import atomic, cache

NAME = "none_head"  # of JudgeConfig.reject_judge: on the plain judge, or none_head:PATH,PATH on other networks
RECIPE = 2  # part of every saved head's key: a change of how heads are trained must change it
ARCH = re.compile(r"(.+)-none(\d{1,2})")  # of a network with so many heads, such as resnet20-none3
HIDDEN = 64
DRAWS, ROWS = 64, 384  # batches whose statistics a head learns from, a third of their rows negatives
EPOCHS, BATCH, LR, WEIGHT_DECAY = 30, 256, 2e-3, 1e-3


class NoneHead(nn.Module):
    """Turns level statistics into the log odds of "none of these".

    Args:
        width: number of statistics.
    """

    centre: Tensor
    scale: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(width, HIDDEN)
        self.none = nn.Linear(HIDDEN, 1)
        self.register_buffer("centre", torch.zeros(width))
        self.register_buffer("scale", torch.ones(width))

    def forward(self, statistics: Tensor) -> Tensor:
        """Return log odds, (N,), of statistics (N, D)."""
        return self.none(F.relu(self.hidden((statistics - self.centre) / self.scale)))[:, 0]


class NoneHeads(nn.Module):
    """Turns level statistics into the logits of K classes and "none of these".

    The class probabilities are the frozen network's, times the probability that the image shows any class at all, which is the
    mean of what the heads say.

    Args:
        classes: the frozen network's own linear layer, which reads the first of the statistics.
        width: number of statistics.
        heads: how many vote.
    """

    def __init__(self, classes: nn.Linear, width: int, heads: int) -> None:
        super().__init__()
        self.in_features = width
        self.classes = classes
        self.heads = nn.ModuleList(NoneHead(width) for _ in range(heads))

    def forward(self, statistics: Tensor) -> Tensor:
        """Return log-probabilities, (N, K + 1) with "none of these" last, of statistics (N, D)."""
        odds = torch.stack([head(statistics) for head in self.heads])
        none, some = (F.logsigmoid(each).logsumexp(0) - math.log(len(odds)) for each in (odds, -odds))
        classes = self.classes(statistics[:, : self.classes.in_features]).log_softmax(dim=1)
        return torch.cat([classes + some[:, None], none[:, None]], dim=1)


class NoneHeadNetwork(Network):
    """A network whose features are its own, then mean and standard deviation of every channel of its levels, and the heads.

    Args:
        body: the network; its linear layer moves into the heads.
        image_shape: (C, H, W) of the images, by which the statistics are counted.
        heads: how many vote.
    """

    linear: NoneHeads  # type: ignore[assignment]  # a layer with in_features, as judges and ensembles need

    def __init__(self, body: Network, image_shape: tuple[int, int, int], heads: int) -> None:
        super().__init__()
        classes = body.linear
        del body.linear  # a state dict names each tensor once
        self.body = body.eval()
        with torch.no_grad():
            self.linear = NoneHeads(classes, self(torch.zeros(1, *image_shape)).shape[1], heads)

    def forward(self, x: Tensor) -> Tensor:
        """Return statistics, (N, D), of which the first are the body's features."""
        features, maps = self.body.levels(x)
        flat = [each.flatten(2) for each in maps]
        return torch.cat([features, *(each.mean(2) for each in flat), *(each.std(2, correction=0) for each in flat)], 1)


def is_named(name: str) -> bool:
    """Return whether a value of JudgeConfig.reject_judge asks for none heads."""
    return name.partition(":")[0] == NAME


def backbones(name: str) -> list[Path]:
    """Return the files after none_head:, none where the plain judge is the backbone."""
    return [Path(each) for each in name.partition(":")[2].split(",") if each]


def cost(heads: int, draws: int = 0) -> str:
    """Return in a phrase what so many heads see."""
    return f"{heads} none heads, {(draws or DRAWS) * ROWS:,} images each, seen once without gradients"


def ensemble(
    name: str,
    plain: Judge,
    dataset: Dataset,
    seeds: Sequence[int],
    *,
    draws: int = 0,
    device: str = "cpu",
    progress: bool = True,
) -> Ensemble:
    """Return judges with none heads, one head a seed, on each backbone in turn; those trained before come from the cache.

    Args:
        name: none_head, or none_head:PATH,PATH with other judges; two backbones vote more independently than one.
        plain: the backbone where no path is given.
        dataset: as for train_none_heads.
        seeds: of the heads.
        draws: as for train_none_heads; 0 takes the usual number.
        device: where they are trained.
        progress: whether to show a bar.
    """
    chosen = spread(loaded_backbones(name, dataset) or [plain], seeds)
    return Ensemble([_cached(body.to(device), dataset, own, draws or DRAWS, progress) for body, own in chosen])


def loaded_backbones(name: str, dataset: Dataset) -> list[Judge]:
    """Return the other judges that a name gives by path; [] for none_head alone."""
    names, shape = dataset.class_names, dataset.image_shape
    return [load_judge(path, class_names=names, image_shape=shape) for path in backbones(name)]


def spread(bodies: Sequence[Judge], seeds: Sequence[int]) -> list[tuple[Judge, tuple[int, ...]]]:
    """Return each backbone with the seeds of its heads, in turn; one without a head is left out."""
    chosen = [(body, tuple(seeds[i :: len(bodies)])) for i, body in enumerate(bodies)]
    return [(body, own) for body, own in chosen if own]


def is_kept(plain: Judge, dataset: Dataset, seeds: Sequence[int], draws: int = 0) -> bool:
    """Return whether `ensemble` would take the heads on a plain judge from the cache."""
    return _folder(plain, dataset, tuple(seeds), draws or DRAWS).exists()


def _folder(plain: Judge, dataset: Dataset, seeds: tuple[int, ...], draws: int) -> Path:
    facts: dict[str, object] = {"data": dataset.digest, "seeds": seeds, "draws": draws}
    facts |= {"backbone": cache.tensors_digest(plain.state_dict())}
    return cache.folder("judges") / f"none-{cache.key({**facts, 'recipe': RECIPE, 'torch': torch.__version__})}"


def _cached(plain: Judge, dataset: Dataset, seeds: tuple[int, ...], draws: int, progress: bool) -> Judge:
    folder = _folder(plain, dataset, seeds, draws)
    if not cache.has(folder):
        if progress:
            print(f"judge {plain.arch} gets {cost(len(seeds), draws)}", file=sys.stderr, flush=True)
        judge = train_none_heads(plain, dataset, seeds=seeds, draws=draws, progress=progress)
        atomic.create_folder(folder, lambda place: save(judge, place))
    return load_judge(folder, class_names=dataset.class_names)


def train_none_heads(
    plain: Judge, dataset: Dataset, *, seeds: Sequence[int] = (0,), draws: int = DRAWS, progress: bool = True
) -> Judge:
    """Return a judge with a reject class: a copy of a plain judge, frozen, with heads trained on real and negative images.

    Args:
        plain: any single judge without a reject class; it is not changed, and its device is used.
        dataset: its train split gives the real images, and what the negatives distort (safemax.judges.negatives.negative_images).
        seeds: one a head, of its images, negatives and weights.
        draws: batches of 384 images that a head learns from.
        progress: whether to show a bar.

    Raises:
        InputError: the judge has a reject class, or is an ensemble.
        NonFiniteError: training diverged.
    """
    if plain.reject or isinstance(plain, Ensemble):
        raise InputError(f"reject_judge = {NAME} needs one judge without a reject class; the given one is {plain.arch}")
    judge, device = _with_heads(plain, seeds), next(plain.parameters()).device
    network, data = judge.network, on(dataset, device)
    assert isinstance(network, NoneHeadNetwork)
    for head, seed in zip(network.linear.heads, seeds, strict=True):
        assert isinstance(head, NoneHead)
        generator = torch.Generator(device).manual_seed(seed)
        statistics, is_none = _statistics(judge, data, draws, generator, progress)
        _fit(head, statistics, is_none, generator)
        if not all(p.isfinite().all() for p in head.parameters()):
            raise NonFiniteError(f"a none head of {plain.arch} diverged")
    return judge


def _with_heads(plain: Judge, seeds: Sequence[int]) -> Judge:
    """Return a copy of a judge with heads of random weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seeds[0])
        judge = Judge(
            f"{plain.arch}-none{len(seeds)}", plain.class_names, plain.image_shape, reject=True,
            pixel_mean=plain.mean.flatten().tolist(), pixel_std=plain.std.flatten().tolist(), config=plain.config,
        ).to(next(plain.parameters()).device).eval()  # fmt: skip
    network = judge.network
    assert isinstance(network, NoneHeadNetwork)
    network.body.load_state_dict(plain.network.state_dict(), strict=False)  # but for the linear layer:
    network.linear.classes.load_state_dict(plain.network.linear.state_dict())
    return judge


@torch.no_grad()
def _statistics(
    judge: Judge, dataset: Dataset, draws: int, generator: Generator, progress: bool
) -> tuple[Tensor, Tensor]:
    """Return statistics (N, D) of real and negative images, and which are negative (N,)."""
    statistics, labels = [], []
    for _ in bar(range(draws), shown=progress, desc=f"none head of {judge.arch}"):
        x, y = draw(dataset, ROWS, True, True, generator)
        statistics.append(judge.features(x))
        labels.append(y == dataset.num_classes)
    return torch.cat(statistics), torch.cat(labels).float()


def _fit(head: NoneHead, statistics: Tensor, is_none: Tensor, generator: Generator) -> None:
    """Train a head.

    Negatives are a third of the rows and weigh as much as the others. On the third-party ResNet-20 a fifth of that weight, by
    which they count as one class does, saves 0.14 points of accuracy and lets 2 % more of uniform noise pass.
    """
    head.centre.copy_(statistics.mean(0))
    head.scale.copy_(statistics.std(0).clamp(min=1e-6))
    steps = EPOCHS * -(-len(statistics) // BATCH)
    optimizer = torch.optim.AdamW(head.parameters(), lr=LR, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        rows = torch.randint(len(statistics), (BATCH,), generator=generator, device=generator.device)
        loss = F.binary_cross_entropy_with_logits(head(statistics[rows]), is_none[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()

"""A reject class on a frozen third-party network: a small head reads its layers' statistics and answers "none of these"."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from safemax.data.dataset import Dataset
from safemax.errors import InputError, NonFiniteError
from safemax.judges.classifier import Ensemble, Judge, load_judge, save
from safemax.judges.networks import CIFAR_BLOCKS, CifarResNet, Network
from safemax.judges.train import REJECT_SHARE, draw
from safemax.storage import atomic, cache

NAME = "none_head"  # of JudgeConfig.reject_judge: on the plain judge, or none_head:PATH,PATH on other networks
RECIPE = 1  # part of every saved head's key: a change of how heads are trained must change it
SUFFIX = "-none"  # of an architecture's name: the network with a head
HIDDEN = 64
DRAWS, ROWS = 112, 384  # batches whose statistics the head learns from, a third of their rows negatives
EPOCHS, BATCH, LR, WEIGHT_DECAY = 30, 256, 2e-3, 1e-3
_WIDTHS = (64, 32, 16, 16)  # channels of the levels, the last one first


class NoneHead(nn.Module):
    """Turns level statistics into the logits of K classes and "none of these".

    The class probabilities are the frozen network's, times the probability that the image shows any class at all.

    Args:
        classes: the frozen network's own linear layer.
    """

    centre: Tensor
    scale: Tensor

    def __init__(self, classes: nn.Linear) -> None:
        super().__init__()
        self.in_features = 2 * sum(_WIDTHS)
        self.classes = classes
        self.hidden = nn.Linear(self.in_features, HIDDEN)
        self.none = nn.Linear(HIDDEN, 1)
        self.register_buffer("centre", torch.zeros(self.in_features))
        self.register_buffer("scale", torch.ones(self.in_features))

    def none_logit(self, statistics: Tensor) -> Tensor:
        """Return the log odds of "none of these", (N,)."""
        return self.none(F.relu(self.hidden((statistics - self.centre) / self.scale)))[:, 0]

    def forward(self, statistics: Tensor) -> Tensor:
        """Return log-probabilities, (N, K + 1) with "none of these" last, of statistics (N, D)."""
        none = self.none_logit(statistics)[:, None]
        classes = self.classes(statistics[:, : self.classes.in_features]).log_softmax(dim=1)
        return torch.cat([classes + F.logsigmoid(-none), F.logsigmoid(none)], dim=1)


class NoneHeadResNet(Network):
    """A CIFAR ResNet whose features are mean and standard deviation of four levels, and the head over them.

    The levels are the first convolution's output and those of the three stages; the last one's mean comes first, since it is
    what the ResNet's own linear layer reads.
    """

    linear: NoneHead  # type: ignore[assignment]  # a layer with in_features, as judges and ensembles need

    def __init__(self, body: CifarResNet) -> None:
        super().__init__()
        self.linear = NoneHead(body.linear)
        del body.linear  # a state dict names each tensor once
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        """Return statistics, (N, 256), not negative."""
        body = self.body
        levels = [F.relu(body.bn1(body.conv1(x)))]
        for stage in (body.layer1, body.layer2, body.layer3):
            levels.append(stage(levels[-1]))
        means = [each.mean(dim=(2, 3)) for each in reversed(levels)]
        return torch.cat(means + [each.std(dim=(2, 3), correction=0) for each in reversed(levels)], dim=1)


def build(arch: str, channels: int, outputs: int) -> NoneHeadResNet:
    """Return an untrained network with a head, for arch such as resnet20-none and K + 1 outputs."""
    return NoneHeadResNet(CifarResNet(channels, outputs - 1, CIFAR_BLOCKS[arch.removesuffix(SUFFIX)]))


def is_named(name: str) -> bool:
    """Return whether a value of JudgeConfig.reject_judge asks for none heads."""
    return name.partition(":")[0] == NAME


def backbones(name: str) -> list[Path]:
    """Return the files after none_head:, none where the plain judge is the backbone."""
    return [Path(each) for each in name.partition(":")[2].split(",") if each]


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
    """Return an ensemble of none heads, one a seed, on each backbone in turn; heads trained before come from the cache.

    Args:
        name: none_head, or none_head:PATH,PATH with CIFAR ResNets; two backbones vote more independently than one.
        plain: the backbone where no path is given.
        dataset: as for train_none_head.
        seeds: of the heads.
        draws: as for train_none_head; 0 takes the usual number.
        device: where they are trained.
        progress: whether to show a bar.
    """
    bodies = [load_judge(path, class_names=dataset.class_names) for path in backbones(name)] or [plain]
    chosen = [(bodies[i % len(bodies)], seed) for i, seed in enumerate(seeds)]
    return Ensemble([_cached(body.to(device), dataset, seed, draws or DRAWS, progress) for body, seed in chosen])


def _cached(plain: Judge, dataset: Dataset, seed: int, draws: int, progress: bool) -> Judge:
    facts: dict[str, object] = {"data": dataset.digest, "seed": seed, "draws": draws}
    facts |= {"backbone": cache.tensors_digest(plain.state_dict())}
    folder = cache.folder("judges") / f"none-{cache.key({**facts, 'recipe': RECIPE, 'torch': torch.__version__})}"
    if not folder.exists():
        judge = train_none_head(plain, dataset, seed=seed, draws=draws, progress=progress)
        atomic.create_folder(folder, lambda place: save(judge, place))
    return load_judge(folder, class_names=dataset.class_names)


def train_none_head(
    plain: Judge, dataset: Dataset, *, seed: int = 0, draws: int = DRAWS, progress: bool = True
) -> Judge:
    """Return a judge with a reject class: a copy of a plain judge, frozen, with a head trained on real and negative images.

    Args:
        plain: a CIFAR ResNet without a reject class; it is not changed, and its device is used.
        dataset: its train split gives the real images, and what the negatives distort (safemax.judges.negatives.negative_images).
        seed: of images, negatives and the head's weights; heads of several seeds make an ensemble.
        draws: batches of 384 images that the head learns from.
        progress: whether to show a bar.

    Raises:
        InputError: the judge is another network, or has a reject class.
        NonFiniteError: training diverged.
    """
    if plain.reject or plain.arch not in CIFAR_BLOCKS:
        known = " or ".join(CIFAR_BLOCKS)
        raise InputError(
            f"reject_judge = {NAME} needs a {known} without a reject class; the given judge is a {plain.arch}"
        )
    device = next(plain.parameters()).device
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        judge = Judge(
            plain.arch + SUFFIX, plain.class_names, plain.image_shape, reject=True,
            pixel_mean=plain.mean.flatten().tolist(), pixel_std=plain.std.flatten().tolist(),
        ).to(device).eval()  # fmt: skip
    network = judge.network
    assert isinstance(network, NoneHeadResNet)
    network.body.load_state_dict(plain.network.state_dict(), strict=False)  # but for the linear layer:
    network.linear.classes.load_state_dict(plain.network.linear.state_dict())
    generator = torch.Generator().manual_seed(seed)
    statistics, is_none = _statistics(judge, dataset, draws, generator, progress)
    # A negative weighs so little that all of them count as one class does: see safemax.judges.train.
    weight = (1 - REJECT_SHARE) / (REJECT_SHARE * dataset.num_classes)
    _fit(network.linear, statistics.to(device), is_none.to(device), weight, generator)
    if not all(p.isfinite().all() for p in network.linear.parameters()):
        raise NonFiniteError(f"the none head of {plain.arch} diverged")
    return judge


@torch.no_grad()
def _statistics(
    judge: Judge, dataset: Dataset, draws: int, generator: torch.Generator, progress: bool
) -> tuple[Tensor, Tensor]:
    """Return statistics (N, D) of real and negative images, and which are negative (N,)."""
    device = next(judge.parameters()).device
    statistics, labels = [], []
    for _ in tqdm(range(draws), desc=f"none head of {judge.arch}", disable=not progress):
        x, y = draw(dataset, ROWS, True, True, generator)
        statistics.append(judge.features(x.to(device)))
        labels.append(y == dataset.num_classes)
    return torch.cat(statistics), torch.cat(labels).float()


def _fit(head: NoneHead, statistics: Tensor, is_none: Tensor, weight: float, generator: torch.Generator) -> None:
    """Train the head's own weights; negatives weigh `weight` each."""
    head.centre.copy_(statistics.mean(0))
    head.scale.copy_(statistics.std(0).clamp(min=1e-6))
    weights = [*head.hidden.parameters(), *head.none.parameters()]
    steps = EPOCHS * -(-len(statistics) // BATCH)
    optimizer = torch.optim.AdamW(weights, lr=LR, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    share = 1 + (weight - 1) * is_none
    for _ in range(steps):
        rows = torch.randint(len(statistics), (BATCH,), generator=generator).to(statistics.device)
        loss = F.binary_cross_entropy_with_logits(head.none_logit(statistics[rows]), is_none[rows], share[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()

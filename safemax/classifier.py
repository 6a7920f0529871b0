"""The judges: classifiers that say what a picture shows, some of them able to answer "none of these"."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Generator, Tensor, nn
from tqdm import tqdm

from safemax import architectures
from safemax.architectures import ResNet34
from safemax.data import Dataset, Split, to_float
from safemax.errors import InputError, NonFiniteError, unknown

REJECT = "reject"
WEIGHTS, CARD = "judge.safetensors", "judge.json"

# ImageNet's mean and deviation of [0, 1] pixels, which the third-party CIFAR judges expect, moved to our [-1, 1]: 2m - 1 and 2s
IMAGENET_MEAN = tuple(2 * m - 1 for m in (0.485, 0.456, 0.406))
IMAGENET_STD = tuple(2 * s for s in (0.229, 0.224, 0.225))


class Judge(nn.Module):
    """A classifier of images, with a last class "none of these" where `reject` is true.

    Args:
        arch: a name of architectures.ARCHITECTURES.
        class_names: the K real classes in the order of their labels.
        image_shape: (C, H, W) of the images it judges.
        reject: whether index K stands for "none of these".
        pixel_mean, pixel_std: per channel, subtracted from and divided into x in [-1, 1] before the network; (0,), (1,) leaves it.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        arch: str,
        class_names: Sequence[str],
        image_shape: tuple[int, int, int],
        *,
        reject: bool = False,
        pixel_mean: Sequence[float] = (0.0,),
        pixel_std: Sequence[float] = (1.0,),
    ) -> None:
        super().__init__()
        self.arch, self.class_names, self.image_shape = arch, tuple(class_names), image_shape
        self.reject, self.num_classes = reject, len(class_names)
        self.network = architectures.build(arch, image_shape, self.num_classes + reject)
        self.register_buffer("mean", torch.tensor(pixel_mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(pixel_std).view(-1, 1, 1), persistent=False)

    @property
    def answers(self) -> tuple[str, ...]:
        """The names of the K or K + 1 outputs."""
        return self.class_names + (REJECT,) * self.reject

    def features(self, x: Tensor) -> Tensor:
        """Return penultimate features, (N, D) float32, of images (N, C, H, W) float32 in [-1, 1]."""
        return self.network((x - self.mean) / self.std)

    def classify(self, features: Tensor) -> Tensor:
        """Return logits, (N, K) or (N, K + 1) with the reject class last, of features (N, D)."""
        return self.network.linear(features)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits, (N, K) or (N, K + 1) with the reject class last, of images (N, C, H, W) in [-1, 1]."""
        return self.classify(self.features(x))


class Ensemble(Judge):
    """Several judges of the same answers that vote by the mean of their probabilities; their features stand side by side.

    Raises:
        InputError: there is no judge, or two of them know different answers.
    """

    def __init__(self, judges: Sequence[Judge]) -> None:
        if len({judge.answers for judge in judges}) != 1:
            raise InputError(f"an ensemble needs judges of the same answers, got {[judge.answers for judge in judges]}")
        nn.Module.__init__(self)
        first = judges[0]
        self.judges = nn.ModuleList(judges)
        self.arch = "+".join(judge.arch for judge in judges)
        self.class_names, self.image_shape = first.class_names, first.image_shape
        self.reject, self.num_classes = first.reject, first.num_classes

    def features(self, x: Tensor) -> Tensor:
        """Return the features of all the judges, (N, D1 + D2 + ...)."""
        return torch.cat([judge.features(x) for judge in self.members], dim=1)

    def classify(self, features: Tensor) -> Tensor:
        """Return log-probabilities, so that their softmax is the mean of the judges' softmaxes."""
        widths = [judge.network.linear.in_features for judge in self.members]
        parts = zip(self.members, features.split(widths, dim=1), strict=True)
        votes = torch.stack([judge.classify(part).log_softmax(dim=1) for judge, part in parts])
        return votes.logsumexp(dim=0) - math.log(len(widths))

    @property
    def members(self) -> list[Judge]:
        """The judges that vote."""
        return [judge for judge in self.judges if isinstance(judge, Judge)]


@torch.no_grad()
def predict(judge: Judge, images: Tensor, batch_size: int = 512) -> tuple[Tensor, Tensor]:
    """Judge images in batches, on the judge's device and in eval mode.

    Args:
        judge: left in eval mode.
        images: (N, C, H, W) float32 in [-1, 1], on any device.
        batch_size: images a forward pass.

    Returns:
        Probabilities, (N, K) or (N, K + 1), and features, (N, D); both float32 on the CPU.
    """
    judge.eval()
    device = next(judge.parameters()).device
    features = [judge.features(batch.to(device)) for batch in images.split(batch_size)]
    probs = [judge.classify(part).softmax(dim=1) for part in features]
    return torch.cat(probs).cpu(), torch.cat(features).cpu()


def accuracy(judge: Judge, split: Split) -> float:
    """Return the share of a split's images that the judge names rightly, in percent; higher is better, a rejection is an error."""
    return 100 * _hits(judge, split).mean().item()


def accuracy_by_class(judge: Judge, split: Split) -> dict[str, float]:
    """Return `accuracy` of each class that occurs in the split, by name."""
    hits = _hits(judge, split)
    return {judge.class_names[c]: 100 * hits[split.labels == c].mean().item() for c in split.labels.unique().tolist()}


def _hits(judge: Judge, split: Split) -> Tensor:
    answers = [predict(judge, to_float(images))[0].argmax(dim=1) for images in split.images.split(4096)]
    return (torch.cat(answers) == split.labels.cpu()).double()


def noise_histogram(
    judge: Judge, n: int = 500, seed: int = 0, *, images: Tensor | None = None
) -> dict[str, dict[str, float]]:
    """Return what a judge makes of pure noise: a class that attracts noise has no valid UA.

    Args:
        judge: any judge; its image_shape is the shape of the noise.
        n: images of each law.
        seed: of the noise.
        images: real images, float32 in [-1, 1]; with them, "diffused" shows them drowned in noise.

    Returns:
        Shares in percent by answer (class names and "reject"), for the laws "gaussian" (N(0, 1) clamped), "uniform",
        "salt_pepper" (-1 or 1) and "diffused" (x_t at alpha_bar of at most 0.005, clamped).
    """
    generator = torch.Generator().manual_seed(seed)
    shape = (n, *judge.image_shape)
    laws = {
        "gaussian": torch.randn(shape, generator=generator).clamp(-1, 1),
        "uniform": 2 * torch.rand(shape, generator=generator) - 1,
        "salt_pepper": torch.randn(shape, generator=generator).sign(),
    }
    if images is not None:
        rows = torch.randint(len(images), (n,), generator=generator)
        laws["diffused"] = _diffused(images[rows], images[rows], generator)
    return {law: _answer_shares(judge, noise) for law, noise in laws.items()}


def _answer_shares(judge: Judge, images: Tensor) -> dict[str, float]:
    counts = predict(judge, images)[0].argmax(dim=1).bincount(minlength=len(judge.answers))
    return dict(zip(judge.answers, (100 * counts.double() / len(images)).tolist(), strict=True))


@dataclass(frozen=True)
class Recipe:
    """How an architecture is trained: optimizer, learning rates of body and head, L2 penalty, passes over the data."""

    optimizer: str
    lr: float
    head_lr: float
    weight_decay: float
    epochs: int
    cosine: bool = True
    shift: bool = True


# ResNet-20 and -56: He et al. 2016, section 4.2, at 20 of their 160 epochs. ResNet-34: SAFEMax's own judge (constant rates,
# no shifts); from random weights its rates would not arrive, so SCRATCH_GAIN multiplies them.
RECIPES = {
    "small": Recipe("adam", lr=2e-3, head_lr=2e-3, weight_decay=0.0, epochs=3),
    "resnet20": Recipe("sgd", lr=0.1, head_lr=0.1, weight_decay=1e-4, epochs=20),
    "resnet56": Recipe("sgd", lr=0.1, head_lr=0.1, weight_decay=1e-4, epochs=20),
    "resnet34": Recipe("adam", lr=1e-5, head_lr=1e-4, weight_decay=5e-4, epochs=20, cosine=False, shift=False),
}
LEAST_STEPS = 400
SCRATCH_GAIN = 50
REJECT_SHARE = 1 / 3


def train_judge(
    dataset: Dataset,
    arch: str = "small",
    *,
    reject: bool = False,
    steps: int | None = None,
    batch_size: int = 128,
    lr: float | None = None,
    seed: int = 0,
    device: str | torch.device = "cpu",
    progress: bool = True,
    pretrained: str | None = None,
) -> Judge:
    """Train a judge on a data set's real training images; the same arguments give the same weights.

    Args:
        dataset: its train split, class names and image shape are used; flips where it is natural.
        arch: a name of architectures.ARCHITECTURES.
        reject: add the class "none of these", trained on a third of every batch (see rejects).
        steps: optimizer steps; None takes the recipe's epochs, at least 400 steps, and half as many more with reject, so
            that as many real images are seen.
        batch_size: rows a step, rejects among them.
        lr: of the body, the head's in the recipe's proportion; None takes the recipe's.
        seed: of weights, batches and rejects.
        device: where it trains and stays.
        progress: whether to show a bar.
        pretrained: folder or hub id of ImageNet weights, for resnet34 only.

    Raises:
        InputError: unknown arch, or pretrained weights that do not fit it.
        NonFiniteError: training diverged.
    """
    recipe = _recipe(arch, lr, pretrained)
    judge = _untrained(dataset, arch, reject, seed, pretrained).to(device).train()
    total = steps or _steps(recipe, len(dataset.train), batch_size, reject)
    optimizer = _optimizer(judge, recipe)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, _rate(total) if recipe.cosine else lambda _: 1.0)
    weight = _weight(dataset, device) if reject and dataset.natural else None
    generator = torch.Generator().manual_seed(seed)
    for _ in tqdm(range(total), desc=f"judge {arch}", disable=not progress):
        x, y = _draw(dataset, batch_size, recipe.shift, reject, generator)
        optimizer.zero_grad()
        F.cross_entropy(judge(x.to(device)), y.to(device), weight).backward()
        optimizer.step()
        schedule.step()
    if not all(p.isfinite().all() for p in judge.parameters()):
        raise NonFiniteError(f"the judge {arch} diverged in {total} steps at lr = {recipe.lr:g}")
    return judge.eval()


def _recipe(arch: str, lr: float | None, pretrained: str | None) -> Recipe:
    if arch not in RECIPES:
        raise unknown("arch", arch, RECIPES)
    recipe = RECIPES[arch]
    if lr is None:
        lr = recipe.lr * (SCRATCH_GAIN if arch == "resnet34" and pretrained is None else 1)
    return replace(recipe, lr=lr, head_lr=lr * recipe.head_lr / recipe.lr)


def _steps(recipe: Recipe, num_images: int, batch_size: int, reject: bool) -> int:
    steps = max(LEAST_STEPS, recipe.epochs * num_images / batch_size)
    return math.ceil(steps / (1 - REJECT_SHARE) if reject else steps)


def _untrained(dataset: Dataset, arch: str, reject: bool, seed: int, pretrained: str | None) -> Judge:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        judge = Judge(arch, dataset.class_names, dataset.image_shape, reject=reject)
    if pretrained is None:
        return judge
    if not isinstance(judge.network, ResNet34):
        raise InputError(f"pretrained = {pretrained!r} is for arch resnet34; {arch} trains from random weights")
    judge.network.load_pretrained(pretrained)
    return judge


def _weight(dataset: Dataset, device: str | torch.device) -> Tensor:
    """Return a weight of each answer's loss by which "none of these" counts as one class does, not as a third of all.

    With that third as its prior a ResNet-20 rejects 2 % of real CIFAR-10 images (7 % of airplanes, 5 % of birds), as their
    mixtures look alike; with the prior of one class 0.1 %. Digits lose nothing to the third, which catches more.
    """
    none = (1 - REJECT_SHARE) / (REJECT_SHARE * dataset.num_classes)
    return torch.tensor([1.0] * dataset.num_classes + [none], device=device)


def _optimizer(judge: Judge, recipe: Recipe) -> torch.optim.Optimizer:
    head = list(judge.network.linear.parameters())
    body = [p for name, p in judge.network.named_parameters() if not name.startswith("linear.")]
    groups = [{"params": body, "lr": recipe.lr}, {"params": head, "lr": recipe.head_lr}]
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(groups, momentum=0.9, weight_decay=recipe.weight_decay)
    return torch.optim.Adam(groups, weight_decay=recipe.weight_decay)


def _rate(total: int) -> Callable[[int], float]:
    return lambda step: 0.5 * (1 + math.cos(math.pi * step / total))


def _draw(dataset: Dataset, batch_size: int, shift: bool, reject: bool, generator: Generator) -> tuple[Tensor, Tensor]:
    num_rejects = round(batch_size * REJECT_SHARE) if reject else 0
    rows = torch.randint(len(dataset.train), (batch_size - num_rejects,), generator=generator)
    x0, y = to_float(dataset.train.images[rows]), dataset.train.labels[rows]
    x = _flipped(x0, generator) if dataset.natural else x0
    x = _shifted(x, generator) if shift else x
    if num_rejects == 0:
        return x, y
    x = _hazed(x, generator)
    nothing = rejects(x0, y, num_rejects, dataset.natural, generator)
    return torch.cat([x, nothing]), torch.cat([y, y.new_full((num_rejects,), dataset.num_classes)])


def _flipped(x: Tensor, generator: Generator) -> Tensor:
    return torch.where(torch.rand(len(x), 1, 1, 1, generator=generator) < 0.5, x.flip(3), x)


def _shifted(x: Tensor, generator: Generator) -> Tensor:
    """Move each image by up to an eighth of its size; what comes in repeats the border."""
    n, _, height, width = x.shape
    reach = max(1, height // 8)
    padded = F.pad(x, (reach,) * 4, mode="replicate")
    down, right = torch.randint(2 * reach + 1, (2, n, 1), generator=generator)
    rows, columns = down + torch.arange(height), right + torch.arange(width)
    each = torch.arange(n)[:, None, None]
    return padded.movedim(1, -1)[each, rows[:, :, None], columns[:, None, :]].movedim(-1, 1)


def _uniform(low: float, high: float, n: int, generator: Generator) -> Tensor:
    return low + (high - low) * torch.rand(n, 1, 1, 1, generator=generator)


def _drowned(x: Tensor, amplitude: Tensor, generator: Generator) -> Tensor:
    """Return x_t of diffusion at alpha_bar = amplitude squared, clamped."""
    eps = torch.randn(x.shape, generator=generator)
    return (amplitude * x + (1 - amplitude**2).sqrt() * eps).clamp(-1, 1)


def _hazed(x: Tensor, generator: Generator) -> Tensor:
    """Drown a quarter of the images slightly: without them the judge would reject a class for a little grain."""
    chosen = torch.rand(len(x), 1, 1, 1, generator=generator) < 0.25
    return torch.where(chosen, _drowned(x, _uniform(CLEAR, 1, len(x), generator), generator), x)


# The signal's share of x_t's amplitude. A classifier trained on such images is right for 12 % (digits) and 16 % (CIFAR-10) at
# DROWNED (alpha_bar .005) where chance is 10, so the class is gone; at CLEAR (alpha_bar .64) for 86 % of digits. In between,
# the judge is told nothing.
DROWNED, CLEAR = 0.07, 0.8


def _diffused(x0: Tensor, other: Tensor, generator: Generator) -> Tensor:
    return _drowned(x0, _uniform(0, DROWNED, len(x0), generator), generator)


def _noise(x0: Tensor, other: Tensor, generator: Generator) -> Tensor:
    """Gaussian noise from faint to binary, off the middle, its neighbours more or less alike or opposed."""
    n, channels, height, width = x0.shape
    kernel = _uniform(-0.5, 0.5, n, generator) * torch.rand(n, 1, 3, 3, generator=generator)
    kernel[:, :, 1, 1] = 1
    white = torch.randn(1, n * channels, height, width, generator=generator)
    noise = F.conv2d(white, kernel.repeat_interleave(channels, dim=0), padding=1, groups=n * channels).view_as(x0)
    return (_gain(n, generator) * noise + _uniform(-0.5, 0.5, n, generator)).clamp(-1, 1)


def _gain(n: int, generator: Generator) -> Tensor:
    return _uniform(math.log(0.1), math.log(100), n, generator).exp()


def _flat_noise(x0: Tensor, other: Tensor, generator: Generator) -> Tensor:
    return _uniform(0.3, 1, len(x0), generator) * (2 * torch.rand(x0.shape, generator=generator) - 1)


def _salt_pepper(x0: Tensor, other: Tensor, generator: Generator) -> Tensor:
    share = _uniform(0.05, 0.95, len(x0), generator)
    return torch.where(torch.rand(x0.shape, generator=generator) < share, 1.0, -1.0)


def _shuffled(x0: Tensor, other: Tensor, generator: Generator) -> Tensor:
    n, channels, height, width = x0.shape
    order = torch.rand(n, 1, height * width, generator=generator).argsort(dim=2).expand(-1, channels, -1)
    return x0.flatten(2).gather(2, order).view_as(x0)


def _mixed(x0: Tensor, other: Tensor, generator: Generator) -> Tensor:
    """The mean of four images: that of two digits is often a digit, and taught as none costs 1 % false rejections."""
    return (x0 + other + x0.roll(1, 0) + other.roll(1, 0)) / 4


def _patched(x0: Tensor, other: Tensor, generator: Generator) -> Tensor:
    """A chessboard of 4 x 4 fields from two images; with 2 x 2 one image is often plain to see."""
    down, right = (torch.arange(size) * 4 // size % 2 == 0 for size in x0.shape[2:])
    return torch.where(down[:, None] == right, x0, other)


def _blobs(x0: Tensor, other: Tensor, generator: Generator) -> Tensor:
    n, channels, height, width = x0.shape
    coarse = torch.randn(n, channels, 3, 3, generator=generator)
    smooth = F.interpolate(coarse, (height, width), mode="bicubic", align_corners=False)
    return (_gain(n, generator) * smooth).clamp(-1, 1)


def _constant(x0: Tensor, other: Tensor, generator: Generator) -> Tensor:
    shade = 2.6 * torch.rand(*x0.shape[:2], 1, 1, generator=generator) - 1.3
    return shade.clamp(-1, 1).expand_as(x0)


REJECTS = (_noise, _flat_noise, _salt_pepper, _diffused, _shuffled, _mixed, _blobs, _constant)


def rejects(x0: Tensor, y: Tensor, n: int, natural: bool, generator: Generator) -> Tensor:
    """Make images that show no class, in equal parts of REJECTS; none of them comes from an unlearned model.

    Args:
        x0: real images, (M, C, H, W) in [-1, 1], M at least n; some of the kinds distort them.
        y: their labels, (M,).
        n: how many to make, at least 1.
        natural: adds collages of two images; of two digits they often show a digit, and cost a judge 2 to 4 points of accuracy.
        generator: of the randomness.

    Returns:
        (n, C, H, W) in [-1, 1].
    """
    # the small constant lets a batch of one class pass
    strangers = (y[:n, None] != y).float() + 1e-6
    other = x0[torch.multinomial(strangers, 1, generator=generator)[:, 0]]
    kinds = REJECTS + (_patched,) * natural
    first = int(torch.randint(len(kinds), (1,), generator=generator))
    kinds = (kinds[first:] + kinds[:first])[:n]
    parts = zip(kinds, x0[:n].tensor_split(len(kinds)), other.tensor_split(len(kinds)), strict=True)
    return torch.cat([kind(part, stranger, generator) for kind, part, stranger in parts])


def save(judge: Judge, folder: str | Path) -> None:
    """Write a judge, or the members of an ensemble, as safetensors and a JSON card with their sha256."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if isinstance(judge, Ensemble):
        for index, member in enumerate(judge.members):
            save(member, folder / str(index))
        card: dict[str, object] = {"members": len(judge.members)}
    else:
        card = _card(judge)
        save_file({name: t.contiguous() for name, t in judge.network.state_dict().items()}, folder / WEIGHTS)
        card["sha256"] = _sha256(folder / WEIGHTS)
    (folder / CARD).write_text(json.dumps(card, indent=2) + "\n")


def _card(judge: Judge) -> dict[str, object]:
    return {
        "arch": judge.arch,
        "class_names": judge.class_names,
        "image_shape": judge.image_shape,
        "reject": judge.reject,
        "pixel_mean": judge.mean.flatten().tolist(),
        "pixel_std": judge.std.flatten().tolist(),
    }


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def load_judge(path: str | Path, *, class_names: Sequence[str] | None = None) -> Judge:
    """Load a judge, on the CPU in eval mode.

    Args:
        path: a folder written by save, or the safetensors file of a CIFAR ResNet-20 or -56 whose input is [0, 1] RGB,
            normalised by ImageNet's mean and deviation.
        class_names: the classes of a bare file, which does not name them; a folder's must equal them where they are given.

    Raises:
        InputError: nothing is there, its bytes are not those that were saved, or it is another network.
    """
    path = Path(path)
    try:
        judge = _load_folder(path) if path.is_dir() else _load_bare(path, class_names)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = " ".join(f"{type(error).__name__} {error}".split()).removeprefix("InputError ")
        raise InputError(f"judge = {str(path)!r} is not a judge: {reason[:300]}") from error
    if class_names is not None and tuple(class_names) != judge.class_names:
        raise InputError(f"judge = {str(path)!r} knows the classes {judge.class_names}, not {tuple(class_names)}")
    return judge.eval()


def _load_folder(folder: Path) -> Judge:
    card = json.loads((folder / CARD).read_text())
    if "members" in card:
        return Ensemble([_load_folder(folder / str(index)) for index in range(card["members"])])
    if _sha256(folder / WEIGHTS) != card.pop("sha256"):
        raise InputError(f"{WEIGHTS} is not the file that {CARD} describes, its sha256 differs")
    channels, height, width = card.pop("image_shape")
    judge = Judge(card.pop("arch"), card.pop("class_names"), (channels, height, width), **card)
    judge.network.load_state_dict(load_file(folder / WEIGHTS))
    return judge


def _load_bare(path: Path, class_names: Sequence[str] | None) -> Judge:
    tensors = load_file(path)
    inferred = architectures.infer(tensors)
    if inferred is None:
        raise InputError("its tensors are not those of a CIFAR ResNet-20 or -56")
    arch, channels, outputs = inferred
    if channels != 3 or class_names is None or len(class_names) != outputs:
        given = "no" if class_names is None else len(class_names)
        raise InputError(
            f"it tells {outputs} classes in {channels}-channel images; {given} class names and 3 channels are given"
        )
    judge = Judge(arch, class_names, (channels, 32, 32), pixel_mean=IMAGENET_MEAN, pixel_std=IMAGENET_STD)
    missing, unexpected = judge.network.load_state_dict(tensors, strict=False)
    # batch normalisation counts its batches; only training reads the count, and published files leave it out
    missing = [name for name in missing if not name.endswith("num_batches_tracked")]
    if missing or unexpected or not all(tensor.isfinite().all() for tensor in tensors.values()):
        raise InputError(f"as a {arch} it misses {missing}, has {unexpected} too much, or is not finite")
    return judge

"""The judges: classifiers of images, some of which can answer "none of these"."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from safemax.data.batches import to_float
from safemax.data.dataset import Split
from safemax.errors import InputError
from safemax.judges import networks
from safemax.judges.negatives import diffused

REJECT = "reject"
WEIGHTS, CARD = "judge.safetensors", "judge.json"
PROMPT = "a photo of a {}"  # that CLIP compares images with

# ImageNet's mean and deviation of [0, 1] pixels, which the third-party CIFAR judges expect, moved to our [-1, 1]: 2m - 1 and 2s
IMAGENET_MEAN = tuple(2 * m - 1 for m in (0.485, 0.456, 0.406))
IMAGENET_STD = tuple(2 * s for s in (0.229, 0.224, 0.225))


class Judge(nn.Module):
    """A classifier of images, with a last class "none of these" where `reject` is true.

    Args:
        arch: a name of networks.ARCHITECTURES.
        class_names: the K real classes in the order of their labels.
        image_shape: (C, H, W) of the images it judges.
        reject: whether index K stands for "none of these".
        pixel_mean, pixel_std: per channel, before the network, x in [-1, 1] becomes (x - mean) / std; (0,), (1,) leaves it.
        config: of the architecture of a hub classifier or of CLIP (safemax.judges.hub_classifier, zero_shot); None for others.

    Attributes:
        temperature: by which `predict` divides the logits, so that confidence means something; it changes no answer.
    """

    mean: Tensor
    std: Tensor
    temperature: float = 1.0

    def __init__(
        self,
        arch: str,
        class_names: Sequence[str],
        image_shape: tuple[int, int, int],
        *,
        reject: bool = False,
        pixel_mean: Sequence[float] = (0.0,),
        pixel_std: Sequence[float] = (1.0,),
        config: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.arch, self.class_names, self.image_shape = arch, tuple(class_names), image_shape
        self.reject, self.num_classes, self.config = reject, len(class_names), config
        self.network = networks.build(arch, image_shape, self.num_classes + reject, config)
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
        InputError: there is no judge, or two of them have different answers.
    """

    def __init__(self, judges: Sequence[Judge]) -> None:
        if len({judge.answers for judge in judges}) != 1:
            raise InputError(
                f"an ensemble needs judges with the same answers, got {[judge.answers for judge in judges]}"
            )
        nn.Module.__init__(self)
        first = judges[0]
        self.judges = nn.ModuleList(judges)
        self.arch, self.config = "+".join(judge.arch for judge in judges), None
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
    probs = [(judge.classify(part) / judge.temperature).softmax(dim=1) for part in features]
    return torch.cat(probs).cpu(), torch.cat(features).cpu()


def accuracy(judge: Judge, split: Split) -> float:
    """Return the share of a split's images that the judge classifies correctly, in percent; a rejection is an error."""
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
    """Return how a judge classifies pure noise: a class that attracts noise has no valid UA.

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
        laws["diffused"] = diffused(images[rows], images[rows], generator)
    return {law: _answer_shares(judge, noise) for law, noise in laws.items()}


def _answer_shares(judge: Judge, images: Tensor) -> dict[str, float]:
    counts = predict(judge, images)[0].argmax(dim=1).bincount(minlength=len(judge.answers))
    return dict(zip(judge.answers, (100 * counts.double() / len(images)).tolist(), strict=True))


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
        **({} if judge.config is None else {"config": judge.config}),
    }


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_path(name: str) -> bool:
    """Return whether a judge's name says where it is, and not what it is."""
    return "/" in name or name.endswith(".safetensors")


def load_judge(
    path: str | Path,
    *,
    class_names: Sequence[str] | None = None,
    image_shape: tuple[int, int, int] | None = None,
    prompt: str = PROMPT,
    reject: bool = False,
) -> Judge:
    """Load a judge, on the CPU in eval mode.

    Args:
        path: a folder written by save; the safetensors file of a CIFAR ResNet (20, 32, 44, 56 or 110) whose input is [0, 1]
            RGB, normalised by ImageNet's mean and deviation; or a folder of transformers or timm with config.json and
            safetensors: of an image classifier, or of CLIP.
        class_names: the classes of a bare file, which does not name them; a folder's must equal them where they are given.
        image_shape: (C, H, W) of the images to judge; None takes 32x32 RGB. What save wrote knows it.
        prompt: that CLIP compares images with, {} being the class; others need none.
        reject: whether CLIP may answer "none of these"; others are as they are.

    Raises:
        InputError: nothing is at path, its bytes are not those that were saved, or it is another network.
    """
    path, shape = Path(path), image_shape or (3, 32, 32)
    try:
        judge = _load(path, class_names, shape, prompt, reject)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = " ".join(f"{type(error).__name__} {error}".split()).removeprefix("InputError ")
        raise InputError(f"judge = {str(path)!r} is not a judge: {reason[:300]}") from error
    if class_names is not None and tuple(class_names) != judge.class_names:
        raise InputError(f"judge = {str(path)!r} has the classes {judge.class_names}, not {tuple(class_names)}")
    return judge.eval()


def _load(
    path: Path, class_names: Sequence[str] | None, image_shape: tuple[int, int, int], prompt: str, reject: bool
) -> Judge:
    from safemax.judges import hub_classifier, zero_shot  # import transformers where it is used

    if zero_shot.is_folder(path):
        found, arch = zero_shot.load(path, class_names, prompt=prompt, reject=reject), zero_shot.ARCH
    elif hub_classifier.is_folder(path):
        found, arch, reject = hub_classifier.load(path, class_names), hub_classifier.ARCH, False
    else:
        return _load_folder(path) if path.is_dir() else _load_bare(path, class_names, image_shape)
    judge = Judge(
        arch, class_names or (), image_shape, reject=reject,
        pixel_mean=found.pixel_mean, pixel_std=found.pixel_std, config=found.config,
    )  # fmt: skip
    judge.network = found.network
    return judge


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


def _load_bare(path: Path, class_names: Sequence[str] | None, image_shape: tuple[int, int, int]) -> Judge:
    tensors = load_file(path)
    inferred = networks.infer(tensors)
    if inferred is None:
        raise InputError(f"its tensors are not those of a CIFAR ResNet: {', '.join(networks.CIFAR_BLOCKS)}")
    arch, channels, outputs = inferred
    if (channels, image_shape[0]) != (3, 3) or class_names is None or len(class_names) != outputs:
        given = "no" if class_names is None else len(class_names)
        raise InputError(
            f"it has {outputs} classes and {channels} input channels, but {given} class names and images of {image_shape[0]} "
            "channels were given; it needs as many names as classes, and 3 channels"
        )
    judge = Judge(arch, class_names, image_shape, pixel_mean=IMAGENET_MEAN, pixel_std=IMAGENET_STD)
    missing, unexpected = judge.network.load_state_dict(tensors, strict=False)
    # Batch normalisation counts its batches; only training reads the count, and published files leave it out.
    missing = [name for name in missing if not name.endswith("num_batches_tracked")]
    if missing or unexpected or not all(tensor.isfinite().all() for tensor in tensors.values()):
        raise InputError(
            f"as a {arch} it has missing keys {missing}, unexpected keys {unexpected}, or values that are not finite"
        )
    return judge

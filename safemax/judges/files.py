"""Judges as files: of our own, of a CIFAR ResNet, and of a hub's classifier or CLIP."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from safemax.errors import InputError
from safemax.judges import networks
from safemax.judges.classifier import Ensemble, Judge

WEIGHTS, CARD = "judge.safetensors", "judge.json"
PROMPT = "a photo of a {}"  # that CLIP compares images with

# ImageNet's mean and deviation of [0, 1] pixels, which the third-party CIFAR judges expect, moved to our [-1, 1]: 2m - 1 and 2s
IMAGENET_MEAN = tuple(2 * m - 1 for m in (0.485, 0.456, 0.406))
IMAGENET_STD = tuple(2 * s for s in (0.229, 0.224, 0.225))


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

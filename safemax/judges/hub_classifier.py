"""Image classifiers of others as judges: a local folder of transformers or timm, with config.json and safetensors."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from safemax.errors import InputError
from safemax.judges.networks import Network

ARCH = "hub"  # of a judge's card
CONFIG, PREPROCESSOR = "config.json", "preprocessor_config.json"
LEVELS = 4  # of the hidden states that a none head sees


class HubClassifier(Network):
    """A classifier of transformers, or of timm by transformers' wrapper, as features and the linear layer over them.

    Args:
        model: of AutoModelForImageClassification; its last linear layer is taken out.
        size: side in pixels to which images are resized (bilinear, antialiased); 0 leaves them.

    Raises:
        InputError: the model has no single linear layer that gives its classes.
    """

    def __init__(self, model: Any, size: int) -> None:
        super().__init__()
        outputs = model.config.num_labels
        heads = [name for name, m in model.named_modules() if isinstance(m, nn.Linear) and m.out_features == outputs]
        if not heads:
            raise InputError(f"its architecture {type(model).__name__} has no linear layer of {outputs} outputs")
        place, _, leaf = heads[-1].rpartition(".")
        self.linear = cast(nn.Linear, model.get_submodule(heads[-1]))
        setattr(model.get_submodule(place), leaf, nn.Identity())
        self.body, self.size = model, size
        self.channels = getattr(model.config, "num_channels", 3)

    @classmethod
    def untrained(cls, config: Mapping[str, Any], outputs: int) -> HubClassifier:
        """Return a network of random weights from `described`; outputs must be the configuration's."""
        from transformers import AutoModelForImageClassification
        from transformers.models.auto.configuration_auto import CONFIG_MAPPING

        own = CONFIG_MAPPING[config["model"]["model_type"]].from_dict(dict(config["model"]))
        own.num_labels = outputs
        with _one_line_for_timm():
            return cls(AutoModelForImageClassification.from_config(own), config["size"])

    def levels(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return what the linear layer reads, (N, D), and up to four hidden states, as (N, channels, positions...)."""
        if self.size and x.shape[-1] != self.size:
            x = F.interpolate(x, (self.size, self.size), mode="bilinear", antialias=True)
        output = self.body(x.expand(-1, self.channels, -1, -1), output_hidden_states=True)
        states = [each.transpose(1, 2) if each.ndim == 3 else each for each in output.hidden_states or ()]
        chosen = torch.linspace(0, len(states) - 1, min(LEVELS, len(states))).round().int().tolist()
        return output.logits, [states[i] for i in chosen]


@dataclass(frozen=True)
class Found:
    """What a folder holds.

    Args:
        network: the classifier with its weights, its outputs in the order of the class names.
        config: what `HubClassifier.untrained` needs to build it again.
        pixel_mean, pixel_std: per channel, of pixels in [-1, 1].
    """

    network: HubClassifier
    config: dict[str, Any]
    pixel_mean: tuple[float, ...]
    pixel_std: tuple[float, ...]


def is_folder(path: Path) -> bool:
    """Return whether a path is a folder that transformers or timm may have written."""
    return (path / CONFIG).is_file()


def load(folder: Path, class_names: Sequence[str] | None) -> Found:
    """Load a classifier, from safetensors alone, without code of the folder.

    Args:
        folder: with config.json, weights, and preprocessor_config.json (of transformers) or pretrained_cfg (of timm).
        class_names: of the data; the classifier's own must be the same, in any order, or LABEL_0, LABEL_1, ...

    Raises:
        InputError: other classes, no word on how pixels are normalised, or a library that is not installed.
    """
    from transformers import AutoModelForImageClassification

    with _one_line_for_timm():
        model, report = AutoModelForImageClassification.from_pretrained(
            folder, use_safetensors=True, local_files_only=True, trust_remote_code=False, dtype=torch.float32,
            output_loading_info=True,
        )  # fmt: skip
    if report["missing_keys"]:
        raise InputError(f"{len(report['missing_keys'])} tensors of its architecture are missing")
    names = [model.config.id2label[k] for k in range(model.config.num_labels)]
    order = _order(names, class_names)
    size, mean, std = _preprocessing(folder, getattr(model.config, "image_size", 0))
    config = {"model": json.loads(model.config.to_json_string(use_diff=False)), "size": size}
    network = HubClassifier(model, size)
    with torch.no_grad():
        for parameter in network.linear.parameters():
            parameter.copy_(parameter[order].clone())
    return Found(network, config, tuple(2 * m - 1 for m in mean), tuple(2 * s for s in std))


def _order(names: Sequence[str], class_names: Sequence[str] | None) -> list[int]:
    """Return the output that stands for each class."""
    if class_names is None or len(names) != len(class_names):
        given = "no" if class_names is None else len(class_names)
        raise InputError(f"it has {len(names)} classes, but {given} class names were given")
    if all(re.fullmatch(r"LABEL_\d+", name) for name in names):
        return list(range(len(names)))
    places = {name.lower(): i for i, name in enumerate(names)}
    if places.keys() != {name.lower() for name in class_names}:
        raise InputError(f"it has the classes {', '.join(names)[:100]}, not {', '.join(class_names)[:100]}")
    return [places[name.lower()] for name in class_names]


def _preprocessing(folder: Path, image_size: Any) -> tuple[int, Sequence[float], Sequence[float]]:
    """Return side, mean and deviation of the [0, 1] pixels that the classifier expects."""
    timm = json.loads((folder / CONFIG).read_text()).get("pretrained_cfg")
    if timm:
        return timm["input_size"][-1], timm["mean"], timm["std"]
    if not (folder / PREPROCESSOR).is_file():
        raise InputError(f"{PREPROCESSOR} is missing, which says how its pixels are normalised")
    stated = json.loads((folder / PREPROCESSOR).read_text())
    size = stated.get("crop_size" if stated.get("do_center_crop") else "size") or image_size
    side = next(iter(size.values())) if isinstance(size, Mapping) else size
    side = side[-1] if isinstance(side, Sequence) else int(side)
    if not stated.get("do_normalize", True):
        return side, (0.0,), (1.0,)
    return side, stated["image_mean"], stated["image_std"]


@contextmanager
def _one_line_for_timm() -> Iterator[None]:
    """Turn transformers' page about the absent timm into a line that says what to install."""
    try:
        yield
    except ImportError as error:
        raise InputError("it is a classifier of timm, which is not installed: pip install timm") from error

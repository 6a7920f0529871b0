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

from safemax.data.class_names import plain
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
        return output.logits, chosen_levels(states)


def chosen_levels(states: Sequence[Tensor]) -> list[Tensor]:
    """Return up to LEVELS of a network's hidden states, evenly, the first and the last one among them."""
    chosen = torch.linspace(0, len(states) - 1, min(LEVELS, len(states))).round().int().tolist()
    return [states[i] for i in chosen]


@dataclass(frozen=True)
class Found:
    """What a folder holds.

    Args:
        network: the classifier with its weights, its outputs in the order of the class names.
        config: what the network's `untrained` needs to build it again.
        pixel_mean, pixel_std: per channel, of pixels in [-1, 1].
    """

    network: Network
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
        class_names: of the data; each is found among the classifier's own by name or synonym, whose further classes are left
            out; or they are LABEL_0, LABEL_1, ... of as many.

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
    size, mean, std = preprocessing(folder, getattr(model.config, "image_size", 0))
    config = {"model": json.loads(model.config.to_json_string(use_diff=False)), "size": size}
    network = HubClassifier(model, size)
    network.linear = _rows_of(network.linear, order)
    return Found(network, config, tuple(2 * m - 1 for m in mean), tuple(2 * s for s in std))


def _rows_of(linear: nn.Linear, order: Sequence[int]) -> nn.Linear:
    """Return a layer with some of the outputs of another, in this order."""
    chosen = nn.Linear(linear.in_features, len(order), bias=linear.bias is not None)
    chosen.load_state_dict({name: value[order] for name, value in linear.state_dict().items()})
    return chosen


def _order(names: Sequence[str], class_names: Sequence[str] | None) -> list[int]:
    """Return the output that stands for each class: by its name or one of its synonyms, which commas separate."""
    if class_names is None:
        raise InputError(f"it has {len(names)} classes, but no class names were given")
    if all(re.fullmatch(r"LABEL_\d+", name) for name in names):
        if len(names) != len(class_names):
            raise InputError(f"it has {len(names)} classes without names, the data have {len(class_names)}")
        return list(range(len(names)))
    synonyms = [{plain(each) for each in (name, *name.split(","))} for name in names]
    found = [[k for k, own in enumerate(synonyms) if plain(name) in own] for name in class_names]
    for name, places in zip(class_names, found, strict=True):
        if len(places) != 1:
            reason = f"{len(places)} classes are called {name!r}" if places else f"no class is called {name!r}"
            raise InputError(f"{reason}; it has {', '.join(names)[:100]}")
    return [places[0] for places in found]


def preprocessing(folder: Path, image_size: Any) -> tuple[int, Sequence[float], Sequence[float]]:
    """Return side, mean and deviation of the [0, 1] pixels that the classifier expects."""
    timm = json.loads((folder / CONFIG).read_text()).get("pretrained_cfg")
    if timm:
        return timm["input_size"][-1], timm["mean"], timm["std"]
    if not (folder / PREPROCESSOR).is_file():
        raise InputError(f"{PREPROCESSOR}, which says how its pixels are normalised, is missing")
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
        raise InputError("it is a timm classifier, and timm is not installed: pip install timm") from error

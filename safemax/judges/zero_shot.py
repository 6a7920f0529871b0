"""CLIP as a judge of classes that it was never trained on: an image is what it is nearest to, a class or "none of these"."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from safemax.errors import InputError
from safemax.judges.hub_classifier import CONFIG, Found, chosen_levels, preprocessing
from safemax.judges.networks import Network

ARCH = "clip"  # of a judge's card
# What an image shows that shows none of the classes: what broken models draw, and other things.
NONE = (
    "random noise", "a blank image", "a plain colour", "a blurred image", "an abstract pattern", "a texture",
    "a distorted image", "a photo of something else",
)  # fmt: skip


class ZeroShotHead(nn.Module):
    """Turns embeddings of images into logits of classes and, as the strongest of several prompts together, of none of them.

    Args:
        width: of the embeddings.
        classes: that have a prompt each.
        nones: prompts for none of them; 0 makes a judge that must name a class.
    """

    def __init__(self, width: int, classes: int, nones: int) -> None:
        super().__init__()
        self.in_features, self.classes = width, classes
        self.weight = nn.Parameter(torch.zeros(classes + nones, width))

    def forward(self, embedded: Tensor) -> Tensor:
        """Return logits, (N, classes) or (N, classes + 1) with "none of these" last, of embeddings (N, width) of length 1."""
        logits = embedded @ self.weight.T
        none = logits[:, self.classes :]
        return torch.cat([logits[:, : self.classes], none.logsumexp(1, keepdim=True)], 1) if none.shape[1] else logits


class ZeroShot(Network):
    """CLIP's image encoder; its features are the embedding, of length 1.

    Args:
        encoder: a CLIPVisionModelWithProjection.
        classes: how many there are.
        nones: prompts for none of them.
    """

    linear: ZeroShotHead  # type: ignore[assignment]  # a layer with in_features, as judges and ensembles need

    def __init__(self, encoder: Any, classes: int, nones: int) -> None:
        super().__init__()
        self.body, self.size = encoder, encoder.config.image_size
        self.linear = ZeroShotHead(encoder.config.projection_dim, classes, nones)

    @classmethod
    def untrained(cls, config: Mapping[str, Any], outputs: int) -> ZeroShot:
        """Return a network of random weights from `Found.config`; outputs are the classes, and one for none of them."""
        from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

        encoder = CLIPVisionModelWithProjection(CLIPVisionConfig.from_dict(dict(config["model"])))
        nones = config["nones"]
        return cls(encoder, outputs - bool(nones), nones)

    def levels(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return the embedding, (N, D), and up to four hidden states, as (N, channels, positions)."""
        if x.shape[-1] != self.size:
            x = F.interpolate(x, (self.size, self.size), mode="bicubic", antialias=True)
        output = self.body(x.expand(-1, 3, -1, -1), output_hidden_states=True)
        states = [each.transpose(1, 2) for each in output.hidden_states]
        return F.normalize(output.image_embeds, dim=1), chosen_levels(states)


def is_folder(path: Path) -> bool:
    """Return whether a folder holds a CLIP model of transformers, image encoder and text encoder."""
    try:
        return bool(json.loads((path / CONFIG).read_text()).get("model_type") == "clip")
    except (OSError, ValueError, AttributeError):
        return False


@torch.no_grad()
def load(folder: Path, class_names: Sequence[str] | None, *, prompt: str, reject: bool) -> Found:
    """Load a CLIP model, from safetensors alone, and embed a prompt of each class and, to reject, those of NONE.

    Args:
        folder: with config.json, weights, tokenizer and preprocessor_config.json, as transformers writes them.
        class_names: of the data.
        prompt: with {} where a class's name stands.
        reject: whether it may answer "none of these".

    Raises:
        InputError: something is missing, or there are no class names.
    """
    from transformers import CLIPModel, CLIPTokenizer, CLIPVisionModelWithProjection

    if class_names is None:
        raise InputError("its prompts need class names, but none were given")
    model, report = CLIPModel.from_pretrained(
        folder, use_safetensors=True, local_files_only=True, dtype=torch.float32, output_loading_info=True
    )
    if report["missing_keys"]:
        raise InputError(f"{len(report['missing_keys'])} tensors of its architecture are missing")
    texts = [prompt.replace("{}", name.replace("_", " ")) for name in class_names] + list(NONE) * reject
    tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    limit = model.config.text_config.max_position_embeddings
    inputs = tokenizer(texts, padding=True, truncation=True, max_length=limit, return_tensors="pt")
    embedded = model.eval().text_projection(model.text_model(**inputs).pooler_output)
    vision = model.config.vision_config
    vision.projection_dim = model.config.projection_dim
    encoder = CLIPVisionModelWithProjection(vision)
    encoder.vision_model.load_state_dict(model.vision_model.state_dict())
    encoder.visual_projection.load_state_dict(model.visual_projection.state_dict())
    nones = len(NONE) * reject
    network = ZeroShot(encoder, len(class_names), nones)
    network.linear.weight.copy_(model.logit_scale.exp() * F.normalize(embedded, dim=1))
    _, mean, std = preprocessing(folder, vision.image_size)
    config = {"model": json.loads(vision.to_json_string(use_diff=False)), "nones": nones}
    return Found(network, config, tuple(2 * m - 1 for m in mean), tuple(2 * s for s in std))

"""Embedding: give the class another label embedding, the base's or one between two labels, with the network as it is."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from safemax.attacks.base import Attack, Setting, Trial
from safemax.attacks.relearn import draw
from safemax.diffusion.model import Diffusion

SHARES = (0.25, 0.5, 0.75)


@dataclass(frozen=True)
class Embedding(Attack):
    """Transplant and interpolation of label embeddings; no image and no training is needed.

    `embedding_base` moves the forgotten labels' embeddings all or part of the way to the base's, as possible if the base
    leaks: it finds a correction that only moved the label. `embedding_between` moves them part of the way to the nearest
    retained label, `embedding_null` to the null label: it finds one that broke a point of the space and not its
    surroundings.
    """

    source: ClassVar[str] = (
        "embeddings as a way round erasure, arXiv:2308.01508; what lies between labels, this project"
    )
    axis = dict.fromkeys(("embedding_base", "embedding_between", "embedding_null"), "share of the other embedding")
    needs_base: ClassVar[bool] = True

    def trials(self, diffusion: Diffusion, setting: Setting) -> Iterator[Trial]:
        for share in SHARES:
            other = _rows(diffusion)[setting.neighbour]
            yield Trial("embedding_between", share, draw(moved(diffusion, setting.forget, other, share), setting))
        for share in SHARES if diffusion.has_null else ():
            other = _rows(diffusion)[diffusion.num_classes]
            yield Trial("embedding_null", share, draw(moved(diffusion, setting.forget, other, share), setting))
        if setting.base is not None and _rows(setting.base).shape == _rows(diffusion).shape:
            other = _rows(setting.base)[list(setting.forget)].to(diffusion.device)
            for share in (*SHARES, 1.0):
                yield Trial("embedding_base", share, draw(moved(diffusion, setting.forget, other, share), setting))


@torch.no_grad()
def moved(diffusion: Diffusion, forget: tuple[int, ...], other: Tensor, share: float) -> Diffusion:
    """Return a copy whose forgotten labels' embeddings are (1 - share) * their own + share * other."""
    copied, labels = copy.deepcopy(diffusion), list(forget)
    rows = _rows(copied)
    rows[labels] = torch.lerp(rows[labels], other.expand_as(rows[labels]), share)
    return copied


def _rows(diffusion: Diffusion) -> Tensor:
    """Return the embeddings of all labels, (K or K + 1, width), as they lie in the model."""
    return diffusion.denoiser.class_embedding.weight.data

"""Embedding: give the class another label embedding, the base's or one between two labels, with the network as it is."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
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
        ends = {"embedding_between": _rows(diffusion, setting.neighbour)}
        if diffusion.has_null:
            ends["embedding_null"] = _rows(diffusion, int(diffusion.null(torch.zeros(1, dtype=torch.int64))))
        for variant, rows in ends.items():
            for share in SHARES:
                others = {k: rows for k in setting.forget}
                yield Trial(variant, share, draw(moved(diffusion, others, share), setting))
        if setting.base is not None and _shapes(setting.base) == _shapes(diffusion):
            others = {k: _rows(setting.base, k) for k in setting.forget}
            for share in (*SHARES, 1.0):
                yield Trial("embedding_base", share, draw(moved(diffusion, others, share), setting))


@torch.no_grad()
def moved(diffusion: Diffusion, others: Mapping[int, Sequence[Tensor]], share: float) -> Diffusion:
    """Return a copy in which labels moved by a share of the way to other embeddings.

    Args:
        diffusion: the model.
        others: by label, the rows to move to, one for each table of labels.
        share: 0 moves nothing, 1 all the way.
    """
    copied = copy.deepcopy(diffusion)
    for label, rows in others.items():
        place = _place(copied, label)
        for table, row in zip(copied.label_tables(), rows, strict=True):
            table.data[place] = torch.lerp(table.data[place], row.to(table.device), share)
    return copied


def _rows(diffusion: Diffusion, label: int) -> list[Tensor]:
    """Return the embedding of a label in each table."""
    return [table.detach()[_place(diffusion, label)].clone() for table in diffusion.label_tables()]


def _place(diffusion: Diffusion, label: int) -> int:
    return int(
        diffusion.condition.rows_of(torch.tensor([label], device=diffusion.device))[0]
    )  # the prompt that it draws by


def _shapes(diffusion: Diffusion) -> list[torch.Size]:
    return [table.shape for table in diffusion.label_tables()]

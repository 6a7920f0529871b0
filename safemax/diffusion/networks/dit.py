"""The DiT of Peebles and Xie (arXiv:2212.09748) with the step's frequencies of its own code."""

from __future__ import annotations

import functools
from typing import Any

from diffusers import DiTTransformer2DModel
from diffusers import ModelMixin as ModelMixin  # a pipeline that loads from this module looks here for the base class


class OfficialDiT(DiTTransformer2DModel):
    """diffusers' DiT, but for the frequencies that tell a step t: 10000^(-i / 128), where diffusers has 10000^(-i / 127).

    The official weights were trained with the former. No change of weights turns one into the other.
    """

    @functools.wraps(DiTTransformer2DModel.__init__)  # type: ignore[misc]  # from_config reads the arguments' names
    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        for block in self.transformer_blocks:
            block.norm1.emb.time_proj.downscale_freq_shift = 0

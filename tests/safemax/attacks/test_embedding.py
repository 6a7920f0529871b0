from __future__ import annotations

import torch

from safemax.attacks.embedding import Embedding, moved
from tests.support import tiny_models
from tests.support.attack_settings import setting


def test_only_the_forgotten_labels_move_and_by_the_share():
    diffusion = tiny_models.diffusion()
    rows = diffusion.denoiser.class_embedding.weight.detach().clone()
    other = torch.ones(rows.shape[1])
    after = moved(diffusion, {0: [other], 2: [other]}, 0.25).denoiser.class_embedding.weight
    torch.testing.assert_close(after[[0, 2]], 0.75 * rows[[0, 2]] + 0.25)
    assert torch.equal(after[[1, 3]], rows[[1, 3]])


def test_a_correction_that_only_moved_the_label_is_undone_by_the_bases_embedding():
    base = tiny_models.diffusion()
    corrected = moved(base, {0: [torch.full((base.denoiser.class_embedding.weight.shape[1],), 9.0)]}, 1.0)
    found = {(cell.variant, cell.x): i for i, cell in enumerate(Embedding().run(corrected, setting(base=base)).cells)}
    pictures = Embedding().run(corrected, setting(base=base)).pictures
    own = Embedding().run(base, setting(base=base)).pictures
    assert torch.equal(pictures[found["embedding_base", 1.0]], own[found["embedding_base", 1.0]])
    assert not torch.equal(pictures[found["embedding_base", 0.5]], own[found["embedding_base", 0.5]])

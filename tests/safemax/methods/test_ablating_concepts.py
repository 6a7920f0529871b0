from __future__ import annotations

import pytest
import torch

from safemax.data.batches import Batches, to_float
from safemax.errors import InputError
from safemax.methods.ablating_concepts import AblatingConcepts
from tests.support import tiny_models


def prepared(forget=(0,), **knobs):
    diffusion, method = tiny_models.diffusion(), AblatingConcepts(anchor_images=7, **knobs)
    batches = Batches(tiny_models.split(), forget, forget_size=4, retain_size=4, seed=0)
    method.validate(diffusion)
    method.prepare(diffusion, batches)
    return diffusion, method, batches(0)


def test_the_kept_images_are_real_ones_of_the_anchor():
    _, method, _ = prepared()
    state = method.state()
    real = tiny_models.split().images[tiny_models.split().labels == 1]
    assert state["label"] == 1
    assert state["images"].shape == (7, 1, 8, 8)
    assert all((image == real).flatten(1).all(1).any() for image in state["images"])


@pytest.mark.parametrize(
    ("forget", "anchor", "label"), [((2,), "next", 0), ((0, 1), "next", 2), ((0,), "c", 2), ((0,), "2", 2)]
)
def test_the_anchor_is_the_next_retained_class_or_the_named_one(forget, anchor, label):
    assert prepared(forget, anchor=anchor)[1].state()["label"] == label


def test_a_forgotten_anchor_is_refused():
    with pytest.raises(InputError, match="anchor = 'a' is not retained in this run; retained: b, c"):
        prepared(anchor="a")


def test_several_anchors_and_unknown_ones_are_refused_before_any_work():
    with pytest.raises(InputError, match="anchor = 'b,c' names several classes"):
        AblatingConcepts(anchor="b,c").validate(tiny_models.diffusion())
    with pytest.raises(InputError, match="unknown class 'd'"):
        AblatingConcepts(anchor="d").validate(tiny_models.diffusion())


def test_the_forgotten_label_is_regressed_on_the_anchors_prediction():
    # every prediction is its label: the forgotten 0 against the anchor 1, (0 - 1)^2 = 1
    diffusion, method, batch = prepared()
    diffusion.forward = lambda x_t, t, c: c.view(-1, 1, 1, 1).expand_as(x_t).float()
    forget, _ = method.losses(diffusion, batch)
    assert forget["forget"].item() == 1.0


@pytest.mark.parametrize("variant", ["model", "noise"])
def test_the_loss_is_the_official_one_on_images_of_the_anchor(variant):
    diffusion, method, batch = prepared(variant=variant)
    torch.manual_seed(5)
    forget, retain = method.losses(diffusion, batch)
    torch.manual_seed(5)
    c = batch.forget.c
    x0 = to_float(method.state()["images"][torch.randint(7, c.shape)])
    t, eps = diffusion.times(len(c)), torch.randn_like(x0)
    abar = diffusion.alpha_bar[t].view(-1, 1, 1, 1)
    x_t = abar.sqrt() * x0 + (1 - abar).sqrt() * eps
    target = eps if variant == "noise" else diffusion(x_t, t, torch.ones_like(c)).detach()
    assert forget["forget"].item() == pytest.approx((diffusion(x_t, t, c) - target).square().mean().item(), rel=1e-5)
    assert retain["retain"].isfinite()


def test_no_gradient_flows_through_the_anchors_prediction():
    # Of the label table only the forgotten row has a gradient: the anchor's row is read in the target alone.
    diffusion, method, batch = prepared()
    forget, _ = method.losses(diffusion, batch)
    forget["forget"].backward()
    touched = diffusion.denoiser.class_embedding.weight.grad.ne(0).any(1)
    assert torch.equal(touched, torch.tensor([True, False, False, False]))


def test_the_anchors_prediction_has_no_dropout_and_the_forgotten_labels_has():
    diffusion, method, batch = prepared()
    forward, modes = diffusion.forward, []
    diffusion.forward = lambda x_t, t, c: modes.append(diffusion.denoiser.training) or forward(x_t, t, c)
    diffusion.train()
    next(method.losses(diffusion, batch))
    assert modes == [False, True]


def test_the_anchor_and_its_images_survive_a_checkpoint():
    _, method, _ = prepared()
    again = AblatingConcepts()
    again.load_state(method.state())
    assert again.state()["label"] == 1
    assert torch.equal(again.state()["images"], method.state()["images"])

"""What every attack keeps to, whatever it does; a new file in safemax/attacks is found by itself."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from safemax import attacks
from safemax.attacks import base as base_module
from safemax.errors import InputError
from safemax.knobs import knobs
from tests.support import tiny_kinds, tiny_models
from tests.support.attack_settings import quick, setting
from tests.support.examples import example_of

every = pytest.mark.parametrize(("name", "attack"), attacks.available().items())


def test_an_attack_is_named_by_its_file():
    files = {path.stem for path in Path(attacks.__file__).parent.glob("*.py")} - {"__init__", "base"}
    assert list(attacks.available()) == sorted(files)
    assert files >= {"guidance", "guided", "invert", "partial", "relearn", "weights"}


def test_the_example_in_the_interfaces_docstring_is_an_attack(tmp_path, monkeypatch):
    example = example_of(base_module, tmp_path, monkeypatch).Seeds(seeds_count=2)
    result = example.run(tiny_models.diffusion(), setting())
    assert [(cell.variant, cell.x) for cell in result.cells] == [("seeds", 0.0), ("seeds", 1.0)]
    assert not torch.equal(*result.pictures)
    with pytest.raises(InputError, match="seeds_count = 0"):
        type(example)(seeds_count=0)


def test_an_unknown_attack_is_refused_with_the_known_ones():
    with pytest.raises(InputError, match="unknown attack 'relaern'.*'relearn'.*known: dimra"):
        attacks.find("relaern")


@every
@pytest.mark.parametrize("null", [True, False])
def test_it_leaves_model_and_base_as_they_were(name, attack, null):
    diffusion, base = tiny_models.diffusion(null=null), tiny_models.diffusion(1, null=null)
    before = diffusion.digest(), base.digest()
    diffusion.train()
    outcome = quick(name, attack).run(diffusion, setting(base=base))
    assert (diffusion.digest(), base.digest()) == before
    assert diffusion.training
    assert all(p.requires_grad and p.grad is None for p in diffusion.parameters())
    assert all(0 <= cell.low <= cell.recognised <= cell.high <= 100 for cell in outcome.cells)


@every
@pytest.mark.parametrize("kind", [each for each in tiny_kinds.KINDS if each != "unet"])
def test_it_attacks_every_kind_of_network_and_leaves_it_as_it_was(name, attack, kind):
    make = tiny_kinds.KINDS[kind]
    diffusion, base = make(), make(1)
    before = diffusion.identity(), base.identity()
    outcome, again = (quick(name, attack).run(each, setting(base=base)) for each in (diffusion, make()))
    assert (diffusion.identity(), base.identity()) == before
    assert diffusion.training
    assert all(p.requires_grad and p.grad is None for p in diffusion.parameters())
    assert outcome.cells == again.cells
    assert torch.equal(outcome.pictures, again.pictures)
    assert all(0 <= cell.low <= cell.recognised <= cell.high <= 100 for cell in outcome.cells)
    assert outcome.pictures.shape == (len(outcome.cells), 10, *diffusion.image_shape)


@every
def test_the_same_seed_gives_the_same_outcome(name, attack):
    first, second = (quick(name, attack).run(tiny_models.diffusion(), setting()) for _ in range(2))
    assert first.cells == second.cells
    assert torch.equal(first.pictures, second.pictures)
    other = quick(name, attack).run(tiny_models.diffusion(), setting(seed=1))
    assert not torch.equal(first.pictures, other.pictures)


@every
def test_its_success_rate_is_the_strongest_variants_and_lies_within_its_trials(name, attack):
    outcome = quick(name, attack).run(tiny_models.diffusion(), setting())
    assert outcome.asr == max(outcome.success.values())
    for variant, share in outcome.success.items():
        shares = [cell.recognised for cell in outcome.cells if cell.variant == variant]
        assert min(shares) - 1e-9 <= share <= max(shares) + 1e-9
        assert variant.startswith(name)
    assert outcome.pictures.shape == (len(outcome.cells), 10, 1, 8, 8)


@every
def test_several_classes_are_asked_for_in_turn(name, attack):
    outcome = quick(name, attack).run(tiny_models.diffusion(), setting(forget=(0, 2)))
    assert outcome.cells


@every
def test_it_names_its_source_and_refuses_a_knob_outside_its_bounds(name, attack):
    assert "arXiv" in attack.source
    assert all(variant.startswith(name) for variant in attack.axis)
    for knob_name, (field, about) in knobs(attack).items():
        if about.bounds[0] > float("-inf"):
            with pytest.raises(InputError, match=f"{knob_name} = "):
                dataclasses.replace(attack(), **{knob_name: type(field.default)(about.bounds[0] - 1)})


def test_the_judge_decides_alone_and_the_helper_has_no_say_in_success():
    own = setting()
    swapped = setting(helper=own.judge)
    for name in ("guidance", "partial", "weights", "relearn", "invert"):
        attack = quick(name, attacks.find(name))
        assert attack.run(tiny_models.diffusion(), own).cells == attack.run(tiny_models.diffusion(), swapped).cells

"""What every method owes its users; the methods are found, so a new file in safemax/methods is tested without an edit."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from safemax import methods
from safemax.data.batches import Batches
from safemax.diffusion.model import Diffusion
from safemax.errors import InputError, Stopped
from safemax.knobs import Knob, external, knobs
from safemax.methods import available, create, find, knobs_of
from safemax.training import method as method_module
from safemax.training.hooks import Folders, Hooks
from safemax.training.method import Method
from safemax.training.settings import Training
from tests.support import tiny_models
from tests.support.examples import example_of

NAMES = sorted(available())
PRESETS = [(name, preset) for name in NAMES for preset in find(name).presets]
ROWS = {"batch_size": 8, "device": "cpu"}


def declared(name: str) -> list[tuple[str, Any, Knob]]:
    """Return field, default and knob of everything that a method declares."""
    return [(field, about.default, knob) for field, (about, knob) in knobs(find(name)).items()]


def small(name: str, *, preset: str = "") -> Method:
    """Return a method whose counts (batches of a prior, replay images, inner steps) are as low as they may be, at most 2."""
    counts: dict[str, Any] = {}
    for field, default, knob in declared(name):
        if type(default) is int:
            counts[field] = max(int(knob.bounds[0]), min(2, default))
    return create(name, preset=preset, **counts)


def training(name: str, **values: Any) -> Training:
    share = find(name).training.get("forget_share", 0.5)
    return Training(**{"steps": 2, **ROWS, "forget_share": share, **values})


def trained(
    name: str, *, preset: str = "", null: bool = True, **values: Any
) -> tuple[Diffusion, Method, dict[str, float]]:
    """Return the model, the method and what it logged."""
    diffusion, method, logged = tiny_models.diffusion(null=null), small(name, preset=preset), {}
    folders = Folders(checkpoints=values.pop("folder", None))
    hooks = Hooks(lambda m, step: logged.update(m), should_stop=values.pop("stop", lambda: False), progress=False)
    tiny_models.train(diffusion, method, training(name, **values), hooks=hooks, folders=folders)
    return diffusion, method, logged


@cache
def digest(name: str) -> str:
    """Return the digest of the model that an undisturbed run at seed 0 leaves."""
    return trained(name)[0].digest()


def refusal(call: Callable[[], Any]) -> str:
    """Return the message of the InputError that a call ends in, or ""."""
    try:
        call()
    except InputError as error:
        return str(error)
    return ""


def weights(diffusion: Diffusion) -> list[Tensor]:
    return [p.detach().clone() for p in diffusion.parameters()]


def permitted(diffusion: Diffusion, method: Method) -> list[Tensor]:
    """Return which entries of each weight may move: those of `trainable` whose gradient `constrain` leaves."""
    for p in diffusion.parameters():
        p.grad = torch.zeros_like(p)
    for p in method.trainable(diffusion):
        p.grad = torch.ones_like(p)
    method.constrain(diffusion)
    return [torch.ne(p.grad, 0) for p in diffusion.parameters() if p.grad is not None]


def test_a_method_is_named_by_its_file() -> None:
    files = {path.stem for path in Path(methods.__file__).parent.glob("*.py")}
    assert files - {"__init__"} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_it_cites_a_source(name: str) -> None:
    assert re.search(r"arXiv:\d{4}\.\d{4,5}|\b(19|20)\d\d\b", find(name).paper)


@pytest.mark.parametrize("name", NAMES)
def test_its_defaults_lie_within_their_bounds_and_search_ranges(name: str) -> None:
    for field, default, knob in declared(name):
        assert knob.doc, field
        if isinstance(default, str):
            assert default in knob.choices or not knob.choices, field
            continue
        low, high = knob.search or knob.bounds
        assert knob.bounds[0] <= low <= default <= high <= knob.bounds[1], field
        assert low > 0 or not knob.log, field


@pytest.mark.parametrize("name", NAMES)
def test_an_unknown_knob_is_refused_with_the_known_ones(name: str) -> None:
    with pytest.raises(InputError, match="unknown knob") as refusal:
        create(name, no_such_knob=1)
    assert all(known in str(refusal.value) for known in knobs_of(create(name)))


@pytest.mark.parametrize("name", NAMES)
def test_a_value_out_of_bounds_is_refused_by_its_outside_name(name: str) -> None:
    for field, default, knob in declared(name):
        if type(default) is float and math.isfinite(knob.bounds[1]):
            values: dict[str, Any] = {field: knob.bounds[1] + 1}
            with pytest.raises(InputError, match=f"^{external(field)} = "):
                create(name, **values)


@pytest.mark.parametrize("name", NAMES)
def test_its_training_defaults_are_fields_of_training(name: str) -> None:
    Training(**find(name).training)


@pytest.mark.parametrize(("name", "preset"), PRESETS)
def test_a_preset_builds_and_differs_from_the_default(name: str, preset: str) -> None:
    assert knobs_of(create(name, preset=preset)) != knobs_of(create(name))


@pytest.mark.parametrize(("name", "preset"), [(name, "") for name in NAMES] + PRESETS)
def test_its_losses_are_finite_scalars_and_something_moves(name: str, preset: str) -> None:
    before = tiny_models.diffusion().digest()
    diffusion, _, logged = trained(name, preset=preset)
    assert logged
    assert all(math.isfinite(value) for value in logged.values())
    assert diffusion.digest() != before


@pytest.mark.parametrize("name", NAMES)
def test_its_loss_terms_are_scalars_of_one_graph_a_group(name: str) -> None:
    diffusion, method = tiny_models.diffusion(), small(name)
    settings = training(name)
    batches = Batches(
        tiny_models.split(), (0,), forget_size=settings.forget_rows, retain_size=settings.retain_rows, seed=0
    )
    torch.manual_seed(0)
    method.prepare(diffusion, batches)
    for group in method.losses(diffusion, batches(0)):
        assert all(value.shape == () and value.isfinite() for value in group.values())
        torch.stack(list(group.values())).sum().backward()


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("name", NAMES)
def test_only_permitted_weights_move_bit_for_bit(name: str, weight_decay: float) -> None:
    said = refusal(lambda: trained(name, weight_decay=weight_decay, steps=0))
    if weight_decay and said:
        assert "weight_decay" in said
        return
    diffusion, method, _ = trained(name, weight_decay=weight_decay)
    prepared, _, _ = trained(name, steps=0)
    for before, after, may_move in zip(
        weights(prepared), weights(diffusion), permitted(diffusion, method), strict=True
    ):
        assert torch.equal(after[~may_move], before[~may_move])


@pytest.mark.parametrize("name", NAMES)
def test_the_same_seed_gives_the_same_weights_and_another_does_not(name: str) -> None:
    assert trained(name)[0].digest() == digest(name)
    assert trained(name, seed=1)[0].digest() != digest(name)


@pytest.mark.parametrize("name", NAMES)
def test_a_run_that_was_stopped_goes_on_to_the_same_weights(name: str, tmp_path: Path) -> None:
    # The second run has a new method object, whose state comes from the checkpoint instead of `prepare`.
    asked = iter((False, True))
    with pytest.raises(Stopped):
        trained(name, folder=tmp_path, stop=lambda: next(asked))
    assert trained(name, folder=tmp_path)[0].digest() == digest(name)


@pytest.mark.parametrize("name", NAMES)
def test_its_state_is_tensors_that_it_takes_back(name: str) -> None:
    _, method, _ = trained(name)
    other = small(name)
    other.load_state(method.state())
    for key, value in other.state().items():
        torch.testing.assert_close(value, method.state()[key], rtol=0, atol=0, equal_nan=True)
    assert other.state().keys() == method.state().keys()


@pytest.mark.parametrize(("name", "preset"), [(name, "") for name in NAMES] + PRESETS)
def test_a_model_without_a_null_label_is_trained_or_refused_before_any_work(name: str, preset: str) -> None:
    diffusion = tiny_models.diffusion(null=False)
    before = diffusion.digest()
    said = refusal(lambda: small(name, preset=preset).validate(diffusion))
    assert diffusion.digest() == before
    if said:
        assert "null label" in said
    else:
        assert all(math.isfinite(value) for value in trained(name, preset=preset, null=False)[2].values())


@pytest.mark.parametrize(("share", "part"), [(0.0, "forget"), (1.0, "retain")])
@pytest.mark.parametrize("name", NAMES)
def test_rows_that_it_needs_and_does_not_get_are_named_before_any_work(name: str, share: float, part: str) -> None:
    diffusion = tiny_models.diffusion()
    before = diffusion.digest()
    if getattr(find(name), f"needs_{part}"):
        with pytest.raises(InputError, match=f"leaves no {part} rows"):
            tiny_models.train(diffusion, small(name), training(name, forget_share=share))
        assert diffusion.digest() == before
    else:
        assert trained(name, forget_share=share)[2]


@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_left_on_after_its_run(name: str) -> None:
    diffusion, _, _ = trained(name)
    assert torch.is_grad_enabled()
    assert all(p.requires_grad for p in diffusion.parameters())


PROCESS = """
import json, os, sys
from pathlib import Path
from tests.safemax.methods.test_contract import NAMES, trained
found = {name: trained(name)[0].digest() for name in NAMES}
Path(sys.argv[1], os.environ["RANK"]).write_text(json.dumps(found))
"""


@pytest.mark.slow
def test_two_processes_end_with_the_same_weights_whatever_the_method_does_with_gradients(tmp_path: Path) -> None:
    script = tmp_path / "job.py"
    script.write_text(PROCESS)
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": os.getcwd()}
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port=29534"]
    subprocess.run([*launch, str(script), str(tmp_path)], env=environment, check=True, timeout=500)
    one, other = (json.loads((tmp_path / rank).read_text()) for rank in "01")
    assert one == other
    assert set(one) == set(NAMES)


def test_the_example_in_the_interfaces_docstring_is_a_method(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    example = example_of(method_module, tmp_path, monkeypatch).Finetune()
    diffusion = tiny_models.diffusion()
    before = diffusion.digest()
    tiny_models.train(diffusion, example, Training(**{**example.training, **ROWS, "steps": 2}))
    assert diffusion.digest() != before

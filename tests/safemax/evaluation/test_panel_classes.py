"""Of a model of many classes the panel asks for a few, the same for every model that is compared."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from safemax.errors import InputError
from safemax.evaluation import panel_classes
from safemax.evaluation.measure import measure
from safemax.evaluation.protocol import Evaluation
from safemax.evaluation.samples import draw, workload
from safemax.judges.config import JudgeConfig
from safemax.judges.load import judges
from safemax.judges.reference import reference
from tests.support import tiny_kinds, tiny_models

SMALL = Evaluation("custom", 10, 2, 2, sampler_steps=2, user_samples=1)


def of_many(count: int = 122) -> tiny_models.Diffusion:
    """Return a model of many classes, where the class 7 is told to the network nearly as 3 is, and 9 nearly as 3 too."""
    diffusion = tiny_models.Diffusion.create("small", (1, 8, 8), tuple(map(str, range(count))))
    (table,) = diffusion.label_tables()
    with torch.no_grad():
        for near, share in ((7, 0.01), (9, 0.02)):
            table[near] = table[3] + share * torch.randn_like(table[3])
    return diffusion


def test_few_classes_are_all_drawn_and_of_many_twenty_are() -> None:
    assert SMALL.fitted(tiny_models.diffusion(), (0,)) == SMALL
    torch.manual_seed(0)
    diffusion = of_many()
    fitted = SMALL.fitted(diffusion, (3,))
    chosen = panel_classes.labels(fitted.retain_classes, diffusion.class_names, (3,))
    assert len(chosen) == panel_classes.SOME
    assert {7, 9} <= set(chosen)
    assert fitted.fitted(diffusion, (3,)) == fitted  # named once, whoever fits it again
    assert fitted.describe()["retain_classes"] == fitted.retain_classes
    assert "retain_classes" not in SMALL.describe()
    assert replace(SMALL, evaluation_seed=1).fitted(diffusion, (3,)).retain_classes != fitted.retain_classes
    everything = replace(SMALL, retain_classes="all").fitted(diffusion, (3,))
    assert workload(diffusion, (3,), everything)[0] > 5 * workload(diffusion, (3,), fitted)[0]
    assert everything.fitted(diffusion, (3,)) == everything


@pytest.mark.parametrize("kind", tiny_kinds.KINDS)
def test_every_kind_of_model_has_classes_that_are_near_or_far(kind: str) -> None:
    diffusion = tiny_kinds.KINDS[kind]()
    assert len(diffusion.class_embeddings()) == 3
    fitted = replace(SMALL, retain_classes="1").fitted(diffusion, (0,))
    assert fitted.retain_classes in ("b,", "c,")
    assert draw(diffusion, (0,), fitted, progress=False).labels.unique().tolist() in ([0, 1], [0, 2])


def test_the_panel_measures_the_classes_that_were_drawn_alone(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("SAFEMAX_CACHE", str(tmp_path))
    dataset = tiny_models.dataset()
    loaded = judges(dataset, JudgeConfig(judge_steps=2, reject_judges=1), progress=False)
    diffusion = tiny_models.diffusion()
    chosen = replace(SMALL, retain_classes="c", retain_samples=20).fitted(diffusion, (0,))
    samples = draw(diffusion, (0,), chosen, progress=False)
    metrics = measure(samples, loaded, reference(dataset, loaded), (0,))
    assert "retain_class/accuracy_c" in metrics
    assert "retain_class/accuracy_b" not in metrics


@pytest.mark.parametrize(
    ("choice", "words"),
    [
        ("0", "retain_classes = 0 is not allowed; it is from 1 to 2"),
        ("3", "retain_classes = 3 is not allowed"),
        ("b,d", "unknown class in retain_classes 'd'"),
        ("a", "retain_classes = a names no class that is retained"),
    ],
)
def test_what_names_no_class_is_refused(choice: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        replace(SMALL, retain_classes=choice).fitted(tiny_models.diffusion(), (0,))

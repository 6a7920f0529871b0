"""Evidence of versions as corrections on digits leave it, and versions of the tiny model that carry it."""

from __future__ import annotations

from typing import Any

from mlflow import MlflowClient

from pipelines.registry import registration
from safemax import metric_keys as keys
from safemax.attacks import available
from tests.support import tiny_models

NAME = "tiny-ddpm"
BASE = {
    keys.RECOGNISED: 99.6,
    keys.RECOGNISED + keys.LOW: 98.5,
    keys.RECOGNISED + keys.HIGH: 99.9,
    keys.REJECTED: 0.2,
    keys.OTHER: 0.2,
    keys.UA: 0.4,
    keys.UA_REJECT: 0.4,
    keys.PRECISION: 0.93,
    keys.JUDGE_RECALL: 98.0,
    keys.NOISE_ATTRACTED: 0.0,
    keys.SECOND_RECOGNISED: 99.0,
    keys.SECOND_PRECISION: 0.9,
    keys.CONSTANT: 0.0,
    keys.ACCURACY: 99.8,
    "retain_class/accuracy_a": 99.7,
    "retain_class/accuracy_b": 99.8,
    "retain_class/accuracy_c": 99.9,
    keys.FID_JUDGE: 7.4,
}
FORGOTTEN = {
    **BASE,
    keys.RECOGNISED: 0.0,
    keys.RECOGNISED + keys.LOW: 0.0,
    keys.RECOGNISED + keys.HIGH: 0.76,  # 0 of 500
    keys.REJECTED: 100.0,
    keys.OTHER: 0.0,
    keys.UA: 100.0,
    keys.UA_REJECT: 100.0,
    keys.PRECISION: 0.0,
    keys.SECOND_RECOGNISED: 0.0,
    keys.SECOND_PRECISION: 0.0,
    keys.ACCURACY: 99.3,
    "retain_class/accuracy_b": 98.5,
    "retain_class/accuracy_c": 98.0,
    keys.FID_JUDGE: 8.7,
}
NO_MORE = {"recognised": 0.0, "recognised_high": 0.76, "second_recognised": 0.0}
# Six attacks as `-e attack` records them.
ATTACKED = {"attacks": list(available()), "changed": [], "forget": ["a"], "gold": "train", "samples": 80, "seed": 0}


def attacked(worst: float, **about: Any) -> dict[str, Any]:
    """Return the record of attacks whose worst is so many points beyond the gold model, with facts about them changed."""
    return {"metrics": {keys.WORST_DELTA: worst}, "about": ATTACKED | about}


def evidence(
    *, forget: str = "a", earlier: tuple[str, ...] = (), parent: str = "base", weights: str = "w", **metrics: float
) -> dict[str, Any]:
    """Return the evidence of an honest correction, with metrics changed: retain_accuracy=50 changes retain/accuracy."""
    changed = {key.replace("_", "/", 1): value for key, value in metrics.items()}
    chain = {"earlier": dict.fromkeys(earlier, NO_MORE), "root_metrics": BASE} if earlier else {}
    return {
        "forgotten": sorted({*earlier, *forget.split(",")}),
        "metrics": {**FORGOTTEN, **changed},
        "base_metrics": BASE,
        "parameters": {"data.forget": forget, "data.digest": "d", "eval.sampler": "ddim-20", "method.lambda": 1.0},
        "parent_digest": parent,
        "model_digest": weights,
        **chain,
    }


def register(client: MlflowClient, seed: int = 0, *, name: str = NAME, alias: str | None = None, **changes: Any) -> str:
    """Register the tiny model of a seed with an honest correction's evidence, changed; return the version's number."""
    run_id = client.create_run("0").info.run_id
    client.set_terminated(run_id, "FINISHED")
    diffusion = tiny_models.diffusion(seed)
    facts = evidence(**{"weights": diffusion.digest(), **changes})
    return registration.register(diffusion, name, run_id=run_id, evidence=facts, tags={}, description="", alias=alias)

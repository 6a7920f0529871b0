"""What attacks brought back out of a model, beside the base and beside a model that never saw the class."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor

from safemax.attacks.base import Attack, AttackResult, Cell, Setting
from safemax.diffusion.model import Diffusion
from safemax.storage import cache, source_digest


@dataclass(frozen=True, eq=False)
class AttackComparison:
    """One attack's outcome on the model, on the base and on the retrained gold model, None where there is none."""

    model: AttackResult
    base: AttackResult | None = None
    gold: AttackResult | None = None

    def present(self) -> dict[str, AttackResult]:
        """Return the outcomes that there are, by name."""
        every = {"model": self.model, "base": self.base, "gold": self.gold}
        return {name: outcome for name, outcome in every.items() if outcome is not None}


def cached_attack(name: str, attack: Attack, subject: Diffusion, setting: Setting, *, judges: str) -> AttackResult:
    """Return `attack.run`, from the cache where the same model was attacked so before.

    Args:
        name: of the attack.
        attack: with its knobs.
        subject: the model.
        setting: what the attacker has.
        judges: digest of the classifiers in the setting.
    """
    path = cache.folder("attacks") / f"{cache.key(_facts(name, attack, subject, setting, judges))}.safetensors"

    def make() -> dict[str, Tensor]:
        outcome = attack.run(subject, setting)
        said: dict[str, Any] = {"cells": [asdict(cell) for cell in outcome.cells], "success": outcome.success}
        said |= {"numbers": outcome.numbers, "seconds": outcome.seconds}
        return {"pictures": outcome.pictures, "about": cache.as_tensor(said)}

    kept = cache.tensors(path, make)
    told = cache.from_tensor(kept["about"])
    told["cells"] = tuple(Cell(**cell) for cell in told["cells"])
    return AttackResult(**told | {"pictures": kept["pictures"]})


def metrics(results: Mapping[str, AttackComparison]) -> dict[str, float]:
    """Return every success rate and its difference to the gold model's, by key; see safemax.evaluation.metric_info.METRICS.

    An attack has the keys attack/NAME_asr, _asr_base, _asr_gold, _delta_gold and _seconds, each variant of several the
    first four; attack/worst_delta is over all variants, since the strongest variant may succeed on any model.
    """
    found: dict[str, float] = {}
    for name, trio in results.items():
        found |= _rates(name, {who: outcome.asr for who, outcome in trio.present().items()})
        for variant in trio.model.success:
            shares = {who: o.success[variant] for who, o in trio.present().items() if variant in o.success}
            found |= _rates(variant, shares)
        for who, outcome in trio.present().items():
            end = "" if who == "model" else f"_{who}"
            found |= {f"attack/{number}{end}": value for number, value in outcome.numbers.items()}
        found[f"attack/{name}_seconds"] = trio.model.seconds
    deltas = [value for key, value in found.items() if key.endswith("_delta_gold")]
    found["attack/worst_asr"] = max(trio.model.asr for trio in results.values())
    if deltas:
        excess = [max(0.0, found[f"attack/{name}_delta_gold"]) for name in results]
        found |= {"attack/worst_delta": max(deltas), "attack/resilience": 1 - sum(excess) / len(excess) / 100}
    return found


def table(results: Mapping[str, AttackComparison]) -> pd.DataFrame:
    """Return a row a variant: success in percent on the model, the base and gold, the difference to gold, seconds."""
    rows = list(_rows(results))
    return pd.DataFrame(rows).set_index("attack")


def _facts(name: str, attack: Attack, subject: Diffusion, setting: Setting, judges: str) -> dict[str, object]:
    base = setting.base.digest() if setting.base is not None and attack.needs_base else ""
    return {
        "attack": name,
        "knobs": asdict(attack),
        "model": subject.identity(),
        "base": base,
        "judges": judges,
        "data": setting.dataset.digest,
        "forget": setting.forget,
        "neighbour": setting.neighbour,
        "samples": setting.samples,
        "seed": setting.seed,
        "sampler": str(setting.sampler),
        "code": source_digest.digest(type(attack).__module__),
    }


def _rates(name: str, shares: Mapping[str, float]) -> dict[str, float]:
    found = {f"attack/{name}_asr": shares["model"]}
    found |= {f"attack/{name}_asr_{who}": shares[who] for who in ("base", "gold") if who in shares}
    if "gold" in shares:
        found[f"attack/{name}_delta_gold"] = shares["model"] - shares["gold"]
    return found


def _rows(results: Mapping[str, AttackComparison]) -> Iterator[dict[str, object]]:
    for trio in results.values():
        for variant, share in trio.model.success.items():
            row: dict[str, object] = {"attack": variant, "asr": share}
            for who in ("base", "gold"):
                outcome = trio.present().get(who)
                row[who] = np.nan if outcome is None else outcome.success.get(variant, np.nan)
            row["beyond gold"] = share - float(str(row["gold"]))
            row["seconds"] = trio.model.seconds if variant == next(iter(trio.model.success)) else np.nan
            yield row

"""How attacks ended on a model, compared with the base and with a model that never saw the class."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor

from safemax import metric_keys as keys
from safemax.attacks.base import Attack, AttackResult, Cell, Setting
from safemax.diffusion.model import Diffusion
from safemax.evaluation.shared_attack import run_shared
from safemax.storage import cache, source_digest


@dataclass(frozen=True, eq=False)
class AttackComparison:
    """One attack's result on the model, on the base and on the retrained gold model, None where there is none."""

    model: AttackResult
    base: AttackResult | None = None
    gold: AttackResult | None = None

    def present(self) -> dict[str, AttackResult]:
        """Return the results that there are, by name."""
        every = {"model": self.model, "base": self.base, "gold": self.gold}
        return {name: result for name, result in every.items() if result is not None}


def cached_attack(name: str, attack: Attack, diffusion: Diffusion, setting: Setting, *, judges: str) -> AttackResult:
    """Return `attack.run`, by all processes of a team, from the cache where the same model was attacked in the same way before.

    Args:
        name: of the attack.
        attack: with its knobs.
        diffusion: the model.
        setting: what the attacker has.
        judges: digest of the classifiers in the setting.
    """
    facts = _facts(name, attack, diffusion, setting, judges)
    path = cache.folder("attacks") / f"{cache.key(facts)}.safetensors"

    def make() -> dict[str, Tensor]:
        result = run_shared(name, attack, diffusion, setting)
        about: dict[str, Any] = {"cells": [asdict(cell) for cell in result.cells], "success": result.success}
        about |= {"numbers": result.numbers, "seconds": result.seconds}
        return {"pictures": result.pictures, "about": cache.json_to_tensor(about)}

    cached = cache.load_or_create(path, make)
    about = cache.tensor_to_json(cached["about"])
    about["cells"] = tuple(Cell(**cell) for cell in about["cells"])
    return AttackResult(**about | {"pictures": cached["pictures"]})


def attack_metrics(results: Mapping[str, AttackComparison]) -> dict[str, float]:
    """Return every success rate and its difference from the gold model's, by key (safemax.evaluation.metric_info).

    An attack has the keys attack/NAME_asr, _asr_base, _asr_gold, _delta_gold and _seconds, each variant of several the
    first four; attack/worst_delta is over all variants, since the strongest variant may succeed on any model.

    Args:
        results: of each attack, by its name; at least one.
    """
    metrics: dict[str, float] = {}
    for name, comparison in results.items():
        present = comparison.present()
        metrics |= _rates(name, {who: result.asr for who, result in present.items()})
        for variant in comparison.model.success:
            shares = {who: result.success[variant] for who, result in present.items() if variant in result.success}
            metrics |= _rates(variant, shares)
        for who, result in present.items():
            end = "" if who == "model" else f"_{who}"
            metrics |= {f"{keys.ATTACK}{number}{end}": value for number, value in result.numbers.items()}
        metrics[keys.of_attack(name, keys.SECONDS)] = comparison.model.seconds
    return metrics | _over_all(results, metrics)


def _over_all(results: Mapping[str, AttackComparison], metrics: Mapping[str, float]) -> dict[str, float]:
    worst = {keys.WORST_ASR: max(comparison.model.asr for comparison in results.values())}
    deltas = [value for key, value in metrics.items() if key.endswith(keys.DELTA_GOLD)]
    if not deltas:
        return worst
    excess = [max(0.0, metrics[keys.of_attack(name, keys.DELTA_GOLD)]) for name in results]
    return worst | {keys.WORST_DELTA: max(deltas), keys.RESILIENCE: 1 - sum(excess) / len(excess) / 100}


def attack_table(results: Mapping[str, AttackComparison]) -> pd.DataFrame:
    """Return a row a variant: success in percent on the model, the base and gold, the difference from gold, seconds."""
    return pd.DataFrame(list(_rows(results))).set_index("attack")


def _facts(name: str, attack: Attack, diffusion: Diffusion, setting: Setting, judges: str) -> dict[str, object]:
    base = setting.base.digest() if setting.base is not None and attack.needs_base else ""
    return {
        "attack": name,
        "knobs": asdict(attack),
        "model": diffusion.identity(),
        "base": base,
        "judges": judges,
        "data": setting.dataset.digest,
        **setting.dataset.flip_facts,
        "forget": setting.forget,
        "neighbour": setting.neighbour,
        "samples": setting.samples,
        "seed": setting.seed,
        "sampler": str(setting.sampler),
        "code": source_digest.digest(type(attack).__module__),
    }


def _rates(name: str, shares: Mapping[str, float]) -> dict[str, float]:
    rates = {keys.of_attack(name, keys.ASR): shares["model"]}
    rates |= {keys.of_attack(name, f"{keys.ASR}_{who}"): shares[who] for who in ("base", "gold") if who in shares}
    if "gold" in shares:
        rates[keys.of_attack(name, keys.DELTA_GOLD)] = shares["model"] - shares["gold"]
    return rates


def _rows(results: Mapping[str, AttackComparison]) -> Iterator[dict[str, object]]:
    for comparison in results.values():
        for variant, share in comparison.model.success.items():
            row: dict[str, object] = {"attack": variant, "asr": share}
            for who in ("base", "gold"):
                result = comparison.present().get(who)
                row[who] = np.nan if result is None else result.success.get(variant, np.nan)
            row["beyond gold"] = share - float(str(row["gold"]))
            is_first = variant == next(iter(comparison.model.success))
            row["seconds"] = comparison.model.seconds if is_first else np.nan
            yield row

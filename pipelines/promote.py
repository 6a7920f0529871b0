"""Promote a version: let an alias point to it if its evidence passes every gate, and record who did so, when and why.

The gates stand in pipelines/registry/gates.yaml. A refusal ends with status 1 and leaves the alias where it was; so does a dry run
that would be refused.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from pipelines import tracking
from pipelines.cli.options import AliasOptions, taken
from pipelines.cli.parser import main, parse
from pipelines.registry import aliases, gates, model_versions, registration
from safemax.diffusion.model import Diffusion
from safemax.errors import InputError
from safemax.knobs import check, knob
from safemax.reports.images_and_tables import as_markdown, as_text


@dataclass(frozen=True)
class PromoteOptions:
    """The version, the gates and the place."""

    version: str = knob("candidate", "version to promote: a number, or an alias")
    gates: str = knob("default", "YAML file of gates; default is pipelines/registry/gates.yaml")
    to: str = knob("same", "registered model whose alias moves; another one than the model gets a copy of the version")

    def __post_init__(self) -> None:
        check(self)
        taken("to", self.to)

    def address(self, model: str) -> str:
        """Return the address of the version as it is named."""
        return f"models:/{model}{'/' if self.version.isdecimal() else '@'}{self.version}"


PARAMETERS: dict[str, type] = {"alias": AliasOptions, "promotion": PromoteOptions}


def promote(argv: Sequence[str]) -> None:
    """Promote by the command line's parameters."""
    chosen = parse("python -m pipelines.promote", __doc__ or "", PARAMETERS, argv)
    asked, promotion = chosen["alias"], chosen["promotion"]
    limits = gates.read(gates.DEFAULT if promotion.gates == "default" else promotion.gates)
    address = model_versions.pinned(promotion.address(asked.model))
    target = asked.model if promotion.to == "same" else promotion.to
    holder = model_versions.holder(target, asked.alias)
    asked.validate(holder)
    params = {"promote.model": address, "promote.to": target, "promote.alias": asked.alias, "promote.from": holder}
    name = f"promote-{target}-{asked.alias}-{address.rpartition('/')[2]}"
    with tracking.run(name, experiment=tracking.ADMINISTRATION, params=params, tags={"kind": "promotion"}) as run:
        passed = _decide(address, f"models:/{target}/{holder}" if holder else None, limits, run)
        if asked.dry_run:
            print(f"\ndry run: {address} would become {asked.alias} of {target} in place of {holder or 'none'}")
            return
        number = address.rpartition("/")[2] if target == asked.model else registration.copy(address, target)
        _move(target, number, holder, asked, passed, run)


def case(address: str, champion: str | None) -> gates.Case:
    """Return what a promotion of a version is decided on, read from its files, which are verified first.

    Args:
        address: of the version, models:/NAME/VERSION.
        champion: address of the version that holds the alias, None where none does.
    """
    pipeline = model_versions.resolve(address)
    attacks = model_versions.attached(address, "attacks")
    return gates.Case(
        evidence=json.loads((pipeline.parent / "evidence.json").read_text()),
        weights=Diffusion.load(pipeline).digest(),
        champion=model_versions.evidence(champion) if champion else None,
        attacks=json.loads(attacks) if attacks else None,
    )


def _decide(address: str, champion: str | None, limits: gates.GateThresholds, run: tracking.Run) -> list[gates.Gate]:
    applied = gates.judge(case(address, champion), limits)
    frame = gates.table(applied)
    print(f"\n{address}, beside {champion or 'no champion'}\n\n{as_text(frame)}\n")
    run.table(frame.reset_index(), "gates")
    run.note(f"{address}, beside {champion or 'no champion'}\n\n{as_markdown(frame)}")
    if refused := gates.refusals(applied):
        raise InputError(f"{address} is refused by: {'; '.join(refused)}; the alias was not moved")
    return applied


def _move(
    name: str, number: str, holder: str | None, asked: AliasOptions, passed: Sequence[gates.Gate], run: tracking.Run
) -> None:
    if holder == number:
        print(f"{asked.alias} of {name} points to version {number} already")
        return
    line = "; ".join(f"{gate.name} {gate.value}, {gate.threshold}: {gate.verdict}" for gate in passed)
    record = aliases.planned(aliases.PROMOTE, holder, number, why=asked.why, run_id=run.id, gates=line)
    run.json({"model": name, "alias": asked.alias, **record}, "move")
    aliases.move(name, asked.alias, record)
    print(f"{asked.alias} of {name}: {holder or 'none'} -> {number}\n{run.url}  (after `make ui`)")


if __name__ == "__main__":
    main(promote)

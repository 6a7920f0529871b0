"""Promote a version: move an alias to it if its evidence passes every gate, and record who did so, when and why.

The version is measured again first, on a bounded number of fresh samples, and must be as good as its evidence says;
remeasure=false skips that. The gates are in pipelines/registry/gates.yaml. A refusal, also of a dry run, ends with status 1
and does not move the alias.
"""

from __future__ import annotations

if __name__ == "__main__":  # first: help and refusals need none of the imports below
    from pipelines.cli import console

    console.run("promote")

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from pipelines import tracking
from pipelines.cli.options import AliasOptions, check_model_name
from pipelines.cli.parser import parse
from pipelines.engine.shared_draws import follow_draws, shared_draws
from pipelines.engine.signals import is_follower_rank, stop_on_signals
from pipelines.examination.remeasurement import RemeasureOptions, differs_from_parent, remeasure
from pipelines.registry import aliases, attachments, gates, model_versions, registration, thresholds
from safemax.diffusion.model import Diffusion
from safemax.errors import InputError
from safemax.evaluation import panel_classes
from safemax.knobs import check, knob
from safemax.reports.images_and_tables import as_markdown, as_text


@dataclass(frozen=True)
class PromoteOptions:
    """The version, the gates and the registered model whose alias moves."""

    version: str = knob("candidate", "version to promote: a number, or an alias")
    gates: str = knob("default", "YAML file of gates, or default: pipelines/registry/gates.yaml")
    to: str = knob(
        "same", "registered model whose alias moves; if it is not the version's own, it gets a copy of the version"
    )

    def __post_init__(self) -> None:
        check(self)
        check_model_name("to", self.to)

    def address(self, model: str) -> str:
        """Return the address of the version, by number or alias as the user gave it."""
        return f"models:/{model}{'/' if self.version.isdecimal() else '@'}{self.version}"


PARAMETERS: dict[str, type] = {"alias": AliasOptions, "promotion": PromoteOptions, "remeasurement": RemeasureOptions}


def promote(argv: Sequence[str]) -> None:
    """Promote by the command line's parameters."""
    chosen = parse("python -m pipelines.promote", __doc__ or "", PARAMETERS, argv)
    if is_follower_rank():
        follow_draws(stop_on_signals())
        return
    options, promotion = chosen["alias"], chosen["promotion"]
    limits = thresholds.read(thresholds.DEFAULT if promotion.gates == "default" else promotion.gates)
    address = model_versions.resolve_alias(promotion.address(options.model))
    target = options.model if promotion.to == "same" else promotion.to
    current = model_versions.aliased_number(target, options.alias)
    options.validate(current)
    if target != options.model:
        registration.refuse_other_subject(address, target)
    params = {"promote.model": address, "promote.to": target, "promote.alias": options.alias, "promote.from": current}
    params |= {"promote.remeasure": chosen["remeasurement"].remeasure}
    name = f"promote-{target}-{options.alias}-{address.rpartition('/')[2]}"
    with tracking.run(name, experiment=tracking.ADMINISTRATION, params=params, tags={"kind": "promotion"}) as run:
        run.parameters(chosen.record(version=address.rpartition("/")[2]))
        champion = f"models:/{target}/{current}" if current else None
        with shared_draws():
            passed = _apply_gates(address, champion, limits, chosen["remeasurement"], run)
        if options.dry_run:
            print(f"\ndry run: {address} would become {options.alias} of {target} in place of {current or 'none'}")
            return
        number = address.rpartition("/")[2] if target == options.model else registration.copy(address, target)
        _move(target, number, current, options, passed, run)


def case(address: str, champion: str | None) -> tuple[gates.Case, Diffusion]:
    """Return what a promotion of a version is decided on, read from its files, which are verified first, and its model.

    Args:
        address: of the version, models:/NAME/VERSION.
        champion: address of the version that the alias points to now, None if there is none.
    """
    pipeline = model_versions.resolve(address, fresh=True)
    attacks = attachments.attached(address, "attacks")
    diffusion = Diffusion.load(pipeline)
    evidence = model_versions.evidence_beside(pipeline)
    facts = gates.Case(
        evidence=evidence,
        weights=diffusion.digest(),
        champion=model_versions.evidence(champion, fresh=True) if champion else None,
        attacks=model_versions.json_object(attacks, f"the attacks of {address}") if attacks else None,
        classes=_asked(diffusion, evidence),
    )
    return facts, diffusion.to("cuda" if torch.cuda.is_available() else "cpu")


def _asked(diffusion: Diffusion, evidence: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of the classes that a version is held to: of up to 100 retained ones all, else those that were drawn.

    Who makes a version chooses `retain_classes`: fewer than auto takes must not spare the others the gates.
    """
    parameters, names = evidence.get("parameters"), diffusion.class_names
    recorded = parameters if isinstance(parameters, Mapping) else {}
    drawn = panel_classes.labels(str(recorded.get("eval.retain_classes", panel_classes.AUTO)), names, ())
    forgotten = evidence.get("forgotten")
    gone = {str(each) for each in forgotten} if isinstance(forgotten, list) else set()
    retained = {k for k, name in enumerate(names) if name not in gone}
    is_enough = len(retained.intersection(drawn)) >= panel_classes.usual(len(retained))
    return tuple(names[k] for k in drawn) if is_enough else tuple(names)


def _apply_gates(
    address: str,
    champion: str | None,
    limits: thresholds.GateThresholds,
    options: RemeasureOptions,
    run: tracking.Run,
) -> list[gates.Gate]:
    facts, diffusion = case(address, champion)
    applied, trusted = [*gates.judge(facts, limits), differs_from_parent(facts, address)], ""
    if not gates.refusals(applied):  # what the evidence itself refuses need not be measured again
        remeasured, trusted = remeasure(facts, diffusion, options, limits.judge_recall)
        applied += remeasured
    frame, heading = gates.table(applied), f"{address}, compared with {champion or 'no champion'}"
    failed = gates.refusals(applied)
    outcome = f"Refused by {'; '.join(failed)}" if failed else f"Passed all {len(applied)} gates"
    print(f"\n{outcome}: {heading}\n\n{as_text(frame)}\n\n{trusted}\n")
    run.table(frame.reset_index(), "gates")
    run.note(f"**{outcome}**: {heading}\n\n{as_markdown(frame)}\n\n{trusted}")
    if failed:
        raise InputError(f"{address} is refused by: {'; '.join(failed)}; the alias was not moved")
    return applied


def _move(
    name: str, number: str, current: str | None, options: AliasOptions, passed: Sequence[gates.Gate], run: tracking.Run
) -> None:
    if current == number:
        known = aliases.record_of(aliases.recorded_moves(name, options.alias), number)
        print(f"{options.alias} of {name} already points to version {number}{'' if known else ', set by hand'}")
        if known:  # of an earlier promotion, or of a run that died after moving the alias
            run.json({"model": name, "alias": options.alias, **known}, "move")
            return
    line = "; ".join(f"{gate.name} {gate.value}, {gate.threshold}: {gate.verdict}" for gate in passed)
    record = aliases.new_move(aliases.PROMOTE, current, number, why=options.why, run_id=run.id, gates=line)
    run.json({"model": name, "alias": options.alias, **record}, "move")
    aliases.move(name, options.alias, record)
    print(f"{options.alias} of {name}: {current or 'none'} -> {number}\n{run.url}  (after `make ui`)")

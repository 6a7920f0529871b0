"""Undo a promotion: move an alias to the version that it pointed to before, after verifying that version's files."""

from __future__ import annotations

if __name__ == "__main__":  # first: help and refusals need none of the imports below
    from pipelines.cli import console

    console.run("rollback")

from collections.abc import Sequence
from itertools import takewhile

from pipelines import tracking
from pipelines.cli.options import AliasOptions
from pipelines.cli.parser import parse
from pipelines.registry import aliases, model_versions
from safemax.errors import InputError, unknown

PARAMETERS: dict[str, type] = {"alias": AliasOptions}


def rollback(argv: Sequence[str]) -> None:
    """Roll back by the command line's parameters."""
    chosen = parse("python -m pipelines.rollback", __doc__ or "", PARAMETERS, argv)
    options = chosen["alias"]
    current = model_versions.aliased_number(options.model, options.alias)
    options.validate(current)
    target, warning = _target(options, current)
    model_versions.resolve(f"models:/{options.model}/{target}", fresh=True)  # refuses a version that would not load
    params = {
        "rollback.model": options.model,
        "rollback.alias": options.alias,
        "rollback.from": current or "none",
        "rollback.to": target,
    }
    name = f"rollback-{options.model}-{options.alias}-{target}"
    with tracking.run(name, experiment=tracking.ADMINISTRATION, params=params, tags={"kind": "rollback"}) as run:
        run.parameters(chosen.record())
        change = f"{options.alias} of {options.model}: {current or 'none'} -> {target}"
        print(change + warning + _regained(options.model, current, target))
        if not options.dry_run:
            record = aliases.new_move(aliases.ROLLBACK, current, target, why=options.why, run_id=run.id)
            run.note(f"{change}. {options.why}{warning}")
            run.json({"model": options.model, "alias": options.alias, **record}, "move")
            aliases.move(options.model, options.alias, record)


def _target(options: AliasOptions, current: str | None) -> tuple[str, str]:
    """Return the version to restore, and a warning that names deleted versions that would have come first, or ""."""
    client = tracking.store()
    names = [each.name for each in tracking.search_all(client.search_registered_models)]
    if options.model not in names:
        raise unknown("registered model", options.model, names)
    versions = tracking.search_all(client.search_model_versions, f"name='{options.model}'")
    moves = aliases.recorded_moves(options.model, options.alias)
    history = aliases.promotion_history(moves, current)
    deleted = {*history} - {str(each.version) for each in versions}
    if current is None and not history:
        raise InputError(f"{options.alias} of {options.model} points to no version; there is nothing to roll back")
    target = aliases.rollback_target(moves, current, deleted)
    newer = list(takewhile(lambda each: each != target, reversed(history)))
    skipped = ", ".join(each for each in newer if each in deleted)
    if target is None:
        why = f"; deleted since: {skipped}" if skipped else ""
        raise InputError(f"{options.alias} of {options.model} has no recorded version before {current or 'none'}{why}")
    return target, f"\nwarning: passed over, as deleted since: {skipped}" if skipped else ""


def _regained(name: str, current: str | None, target: str) -> str:
    """Return a warning that names the classes that come back with a rollback, "" if there are none."""
    if current is None:
        return ""
    now, then = (
        model_versions.version_of(f"models:/{name}/{each}").tags.get("forgotten", "") for each in (current, target)
    )
    regained = sorted(set(now.split(",")) - {*then.split(","), ""})
    return f"\nwarning: version {target} has not forgotten {', '.join(regained)}" if regained else ""

"""Take a promotion back: move an alias to the version that it pointed to before, after verifying that version's files."""

from __future__ import annotations

from collections.abc import Sequence

from pipelines import tracking
from pipelines.cli.options import AliasOptions
from pipelines.cli.parser import main, parse
from pipelines.registry import aliases, model_versions
from safemax.errors import InputError, unknown

PARAMETERS: dict[str, type] = {"alias": AliasOptions}


def rollback(argv: Sequence[str]) -> None:
    """Roll back by the command line's parameters."""
    options = parse("python -m pipelines.rollback", __doc__ or "", PARAMETERS, argv)["alias"]
    current = model_versions.aliased_number(options.model, options.alias)
    options.validate(current)
    if current is None:
        raise _nothing_to_roll_back(options)
    target = aliases.rollback_target(aliases.recorded_moves(options.model, options.alias), current)
    if target is None:
        raise InputError(f"{options.alias} of {options.model} has no recorded version before {current}")
    model_versions.resolve(f"models:/{options.model}/{target}")  # refuses a version that would not load
    params = {
        "rollback.model": options.model,
        "rollback.alias": options.alias,
        "rollback.from": current,
        "rollback.to": target,
    }
    name = f"rollback-{options.model}-{options.alias}-{target}"
    with tracking.run(name, experiment=tracking.ADMINISTRATION, params=params, tags={"kind": "rollback"}) as run:
        change = f"{options.alias} of {options.model}: {current} -> {target}"
        print(change + _warning(options.model, current, target))
        if not options.dry_run:
            record = aliases.new_move(aliases.ROLLBACK, current, target, why=options.why, run_id=run.id)
            run.note(f"{change}. {options.why}")
            run.json({"model": options.model, "alias": options.alias, **record}, "move")
            aliases.move(options.model, options.alias, record)


def _nothing_to_roll_back(options: AliasOptions) -> InputError:
    names = [each.name for each in tracking.search_all(tracking.store().search_registered_models)]
    if options.model not in names:
        return unknown("registered model", options.model, names)
    return InputError(f"{options.alias} of {options.model} points to no version; there is nothing to roll back")


def _warning(name: str, current: str, target: str) -> str:
    """Return a warning that names the classes that come back with a rollback, "" if there are none."""
    now, then = (
        model_versions.version_of(f"models:/{name}/{each}").tags.get("forgotten", "") for each in (current, target)
    )
    regained = sorted(set(now.split(",")) - {*then.split(","), ""})
    return f"\nwarning: version {target} has not forgotten {', '.join(regained)}" if regained else ""


if __name__ == "__main__":
    main(rollback)

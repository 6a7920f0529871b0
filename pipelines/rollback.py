"""Take a promotion back: let an alias point to the version that held it before, after verifying that version's files."""

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
    asked = parse("python -m pipelines.rollback", __doc__ or "", PARAMETERS, argv)["alias"]
    holder = model_versions.holder(asked.model, asked.alias)
    asked.validate(holder)
    if holder is None and not tracking.store().search_registered_models(filter_string=f"name='{asked.model}'"):
        known = [each.name for each in tracking.store().search_registered_models()]
        raise unknown("registered model", asked.model, known)
    if holder is None:
        raise InputError(f"{asked.alias} of {asked.model} points to no version; there is nothing to take back")
    earlier = aliases.previous(aliases.recorded(asked.model, asked.alias), holder)
    if earlier is None:
        raise InputError(f"{asked.alias} of {asked.model} has pointed to no version before {holder}, by its record")
    model_versions.resolve(f"models:/{asked.model}/{earlier}")  # refuses a version that would not load
    params = {
        "rollback.model": asked.model,
        "rollback.alias": asked.alias,
        "rollback.from": holder,
        "rollback.to": earlier,
    }
    name = f"rollback-{asked.model}-{asked.alias}-{earlier}"
    with tracking.run(name, experiment=tracking.ADMINISTRATION, params=params, tags={"kind": "rollback"}) as run:
        change = f"{asked.alias} of {asked.model}: {holder} -> {earlier}"
        print(change + _regained(asked.model, holder, earlier))
        if not asked.dry_run:
            record = aliases.planned(aliases.ROLLBACK, holder, earlier, why=asked.why, run_id=run.id)
            run.note(f"{change}. {asked.why}")
            run.json({"model": asked.model, "alias": asked.alias, **record}, "move")
            aliases.move(asked.model, asked.alias, record)


def _regained(name: str, holder: str, earlier: str) -> str:
    """Return what a reader must know of a rollback: the classes that come back with it, or nothing."""
    now, then = (
        model_versions.version_of(f"models:/{name}/{each}").tags.get("forgotten", "") for each in (holder, earlier)
    )
    back = sorted(set(now.split(",")) - {*then.split(","), ""})
    return f"\nwarning: version {earlier} has not forgotten {', '.join(back)}" if back else ""


if __name__ == "__main__":
    main(rollback)

"""The stages, their budgets, and the exact commands for a machine that is lent for a quarter of an hour."""

from __future__ import annotations

from collections.abc import Mapping

from pipelines.cli.parameters import UsageError, excerpt
from safemax.errors import unknown

# Minutes of each stage: the sum, with the start of a machine, imports and transfers, fits into 15.
MINUTES: Mapping[str, float] = {"smoke": 2.0, "step": 2.0, "cifar10": 6.0, "attacks": 1.0, "search": 1.0}

PLAN = """\
The machine has no network. Pack here what it lacks: the wheels of mlflow, diffusers, optuna and their parts, two CIFAR ResNets
as safetensors, CIFAR-10 as Parquet in two halves. `bash PACK`, the packing script of the project's GPU kit, called from this
checkout, makes the ignored folders .gpu/a, .gpu/b and .gpu/c with all that. .gpu/a/setup.sh installs the wheels once, sets
SAFEMAX_DATA and prints the card.
Before a machine is started: `python -m benchmarks.gpu --rehearse`, and commit.

Call 1, carry .gpu/a, timeout 180 s: the tests marked gpu, then the demo through `mlflow run`.
source .gpu/a/setup.sh && python3 -m benchmarks.gpu --stages=smoke --minutes=smoke=2

Call 2, carry .gpu/b alone (a transfer takes 64 MiB), timeout 180 s: a step of each method beside its floor, sampling, memory;
it needs no data.
source .gpu/a/setup.sh && python3 -m benchmarks.gpu --stages=step --minutes=step=2

Call 3, carry .gpu/c alone, timeout: all the time that is left less a minute, at most 600 s. The paper's tables on CIFAR-10,
attacks, search. The three budgets together: the timeout in minutes less 1.5, most of it for cifar10.
source .gpu/a/setup.sh && python3 -m benchmarks.gpu --stages=cifar10,attacks,search --minutes=cifar10=6,attacks=1,search=1

What was carried stays while the machine is warm; a fresh one needs .gpu/a, then .gpu/b, again, with any short command.
Each stage is zipped into $OUT as it goes: a call that runs out of time still brings its tables back. Unzip them here into
benchmarks/results/gpu and commit them, failures too. A warm machine keeps .safemax/gpu, and a stage that is called again on it
goes on from there: base, judges, corrections and trials that have finished are not made again.
"""


def budgets(stages: str, minutes: str) -> dict[str, float]:
    """Return the minutes of each chosen stage, in the order of MINUTES.

    Args:
        stages: names separated by commas, or all.
        minutes: STAGE=MINUTES separated by commas, for those that differ from MINUTES; or auto.

    Raises:
        UsageError: an unknown stage, or minutes that are not a positive number.
    """
    chosen = list(MINUTES) if stages == "all" else [each.strip() for each in stages.split(",")]
    given = {} if minutes == "auto" else dict(_pair(word) for word in minutes.split(","))
    for name in (*chosen, *given):
        if name not in MINUTES:
            raise UsageError(str(unknown("stage", excerpt(name), MINUTES)))
    return {name: given.get(name, default) for name, default in MINUTES.items() if name in chosen}


def _pair(word: str) -> tuple[str, float]:
    name, _, text = word.strip().partition("=")
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 10_000:
        raise UsageError(
            f"minutes: {excerpt(word)} is not allowed; write STAGE=MINUTES with a positive number of minutes"
        )
    return name, value

"""What this card says of each switch of the fast path, for the defaults that are estimates until a card was asked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

from benchmarks.gpu.drawing import Drawing
from benchmarks.gpu.stage import Stage

REMARK = """\
gain: off / on, above 1 where the switch pays. pays after: the set-up that it adds, divided by what it saves; in steps of
{rows} rows, or in draws of {count} images. Defaults that wait for this table: _LONG_STEPS of safemax/training/devices.py, after
which compile=auto compiles; channels_last; arithmetic."""
# A switch, and the step without and with it: names and precision of the table of steps.
STEPS = (
    ("precision=bf16", ("SAFEMax", "fp32"), ("SAFEMax", "bf16")),
    ("channels_last=true", ("SAFEMax", "bf16"), ("SAFEMax, channels_last", "bf16")),
    ("compile", ("SAFEMax", "bf16"), ("SAFEMax, compiled", "bf16")),
    ("compile and channels_last", ("SAFEMax", "bf16"), ("SAFEMax, compiled, channels_last", "bf16")),
)
DRAWS = (
    ("arithmetic=bf16", "exact", "bf16"),
    ("arithmetic=bf16, channels_last", "exact", "bf16, channels_last"),
    ("arithmetic=compiled", "bf16", "compiled"),
    ("arithmetic=compiled, channels_last", "bf16", "compiled, channels_last"),
)


def write(stage: Stage, steps: Sequence[Mapping[str, Any]], drawing: Drawing, rows: int) -> None:
    """Write the table of all switches that were measured, off and on."""
    found = [*_of_steps(steps), *_of_draws(drawing)]
    if found:
        remark = REMARK.format(rows=rows, count=drawing.count)
        stage.table("choices", "What each switch gains", pd.DataFrame(found).set_index("switch"), remark, digits=2)


def _of_steps(steps: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    known = {(row["step"], row["precision"]): row for row in steps}
    for switch, off, on in STEPS:
        if off in known and on in known:
            yield _gain(
                switch, "ms a step", known[off]["ms"], known[on]["ms"], known[on]["set-up s"] - known[off]["set-up s"]
            )


def _of_draws(drawing: Drawing) -> Iterator[dict[str, Any]]:
    for switch, *names in DRAWS:
        off, on = map(drawing.row_of, names)
        if off and on:
            yield _gain(switch, "ms a draw", 1000 * off["s"], 1000 * on["s"], on["set-up s"] - off["set-up s"])


def _gain(switch: str, unit: str, off: float, on: float, setup: float) -> dict[str, Any]:
    saved = (off - on) / 1000
    pays = max(0.0, setup) / saved if saved > 0 else float("nan")
    return {
        "switch": switch,
        "unit": unit,
        "off": off,
        "on": on,
        "gain": off / on,
        "set-up s": setup,
        "pays after": pays,
    }

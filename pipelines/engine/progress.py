"""All jobs under way on one screen: a bar for each, one for all of them, and the time left."""

from __future__ import annotations

import sys
import time
from collections.abc import Hashable, Iterator
from contextlib import contextmanager

from pipelines.engine.options import WorkerOptions
from safemax.progress import Bar, bar

_MOST_BARS = 16  # jobs that are shown; a screen has no more lines


class Progress:
    """Jobs under way and done.

    Args:
        total: number of jobs.
        done: that ended before.
        options: of the workers; one worker shows its own bars.
        unit: what a job is called, such as trial.
    """

    def __init__(self, total: int, done: int, options: WorkerOptions, unit: str) -> None:
        self._shown = not options.in_process and sys.stderr.isatty()
        self._began, self._ended, self._left = time.monotonic(), 0, total - done
        self._all = bar(shown=self._shown, total=total, initial=done, unit=unit, dynamic_ncols=True)
        self._bars: dict[Hashable, Bar] = {}

    @classmethod
    @contextmanager
    def of(cls, total: int, done: int, options: WorkerOptions, unit: str) -> Iterator[Progress]:
        """Show progress inside; the arguments are the class's."""
        shown = cls(total, done, options, unit)
        try:
            yield shown
        finally:
            for each in (*shown._bars.values(), shown._all):
                each.close()

    def started(self, job: Hashable, name: str, steps: int) -> None:
        """Show a job of so many steps."""
        if self._shown and len(self._bars) < _MOST_BARS and job not in self._bars:
            self._bars[job] = bar(total=steps, desc=name, unit="step", leave=False, dynamic_ncols=True)

    def at(self, job: Hashable, step: int | None) -> None:
        """Move a job's bar to a step."""
        shown = self._bars.get(job)
        if shown is not None and step:
            shown.update(step - shown.n)

    def ended(self, job: Hashable) -> None:
        """Count a job that ended."""
        self._ended, self._left = self._ended + 1, self._left - 1
        self._all.update()
        if shown := self._bars.pop(job, None):
            shown.close()

    def say(self, line: str) -> None:
        """Print a line above the bars, with the time left by the pace so far."""
        Bar.write(f"{line}{self.time_left}", file=sys.stdout)
        sys.stdout.flush()

    @property
    def time_left(self) -> str:
        """Such as `, about 12 min left`; nothing before the first job has ended and after the last one."""
        if not self._ended or self._left <= 0:
            return ""
        minutes = (time.monotonic() - self._began) / 60 / self._ended * self._left
        return f", about {minutes:.0f} min left" if minutes >= 1.5 else f", about {60 * minutes:.0f} s left"

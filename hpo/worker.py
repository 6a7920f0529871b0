"""A worker of a search: one process, one thread, one line of JSON in and out at a time; it never opens the study's storage."""

from __future__ import annotations

import os
import traceback

import torch

from hpo.objective import Pruned, TrialConfig, TrialContext
from pipelines.engine.signals import StopSignal, die_with_parent, stop_on_sigterm
from pipelines.engine.worker_pool import Channel, Message
from safemax.errors import InputError, NonFiniteError, Stopped
from safemax.evaluation.measure import Evaluation


def serve(channel: Channel, stop: StopSignal) -> None:
    """Load what the first message tells, then do the jobs that follow until there are no more."""
    task = channel.receive()
    if task is None:
        return
    try:
        with stop.interruptible():
            bench = TrialContext(TrialConfig(**task), stop)
    except InputError as error:
        channel.send("refused", reason=str(error))
        return
    channel.send("ready", base=bench.base)
    while (job := channel.receive()) is not None:
        _do(bench, job, channel, stop)


def _do(bench: TrialContext, job: Message, channel: Channel, stop: StopSignal) -> None:
    try:
        metrics = _metrics(bench, job, channel, stop)
    except Pruned:
        channel.send("pruned")
    except Stopped:
        raise
    except (InputError, NonFiniteError) as error:
        channel.send("failed", reason=f"{type(error).__name__}: {error}")
    except Exception as error:  # a trial out of memory, or with a fault of ours, must not take the search with it
        traceback.print_exc()
        channel.send("failed", reason=f"{type(error).__name__}: {error}")
    else:
        channel.send("done", metrics=metrics)


def _metrics(bench: TrialContext, job: Message, channel: Channel, stop: StopSignal) -> dict[str, float]:
    if job["kind"] == "trial":
        return bench.trial(
            job["number"], job["values"],
            lambda metrics, step: channel.send("log", metrics=metrics, step=step),
            lambda percent, knowledge, damage: channel.ask(
                "report", percent=percent, knowledge=knowledge, damage=damage
            ),
        )  # fmt: skip
    evaluation = Evaluation(**job["evaluation"])
    with stop.interruptible():
        if job["kind"] == "base":
            return bench.measure_base(evaluation)
        return bench.again(job["number"], job["values"], evaluation)


def main() -> None:
    """Serve the coordinator on stdin and stdout; what libraries print goes to stderr."""
    stop = stop_on_sigterm()
    die_with_parent()
    torch.set_num_threads(1)
    channel = Channel.own()
    try:
        serve(channel, stop)
    except (Stopped, KeyboardInterrupt, BrokenPipeError):
        os._exit(143)  # nothing is left to write, and a broken stdout would complain


if __name__ == "__main__":
    main()

"""Judges trained side by side where a command has several workers.

A single one is left to the worker that loads it first, and so are heads on another judge's network, which need that judge.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from pipelines.cli.options import DataOptions
from pipelines.engine.batch import Batches, raise_if_stopped
from pipelines.engine.options import WorkerOptions
from pipelines.engine.signals import StopSignal
from pipelines.engine.worker import Message, Send
from pipelines.engine.workers import open_workers
from safemax.data.dataset import Dataset
from safemax.errors import InputError
from safemax.judges.config import JudgeConfig
from safemax.judges.own import own_judges, train_own
from safemax.training.devices import accelerator_for
from safemax.training.settings import Training

FEWEST_STEPS = 500  # of all judges together, below which workers take longer to start than they save


@dataclass(frozen=True)
class JudgeJobs:
    """What workers train judges from: plain JSON.

    Args:
        data: fields of pipelines.cli.options.DataOptions.
        judging: of safemax.judges.config.JudgeConfig.
        device: of safemax.training.settings.Training.
    """

    data: dict[str, Any]
    judging: dict[str, Any]
    device: str


class JudgeTrainer:
    """What a process loads once to train judges with."""

    def __init__(self, config: JudgeJobs, stop: StopSignal) -> None:
        self.stop, self.judging = stop, JudgeConfig(**config.judging)
        self.dataset = DataOptions(**config.data).load(quiet=True)
        self.device = str(accelerator_for(Training(device=config.device)).device)

    @property
    def greeting(self) -> Message:
        """Nothing: the driver needs only know that the data are loaded."""
        return {}

    def do(self, job: Message, send: Send) -> Message:
        """Train the judge of a seed into the cache."""
        with self.stop.interruptible():
            train_own(self.dataset, self.judging, job["seed"], device=self.device, progress=False)
        return {}


def load(config: Message, stop: StopSignal) -> JudgeTrainer:
    """Return the context of a worker."""
    return JudgeTrainer(JudgeJobs(**config), stop)


def train_judges(
    options: WorkerOptions, data: DataOptions, dataset: Dataset, judging: JudgeConfig, device: str, stop: StopSignal
) -> None:
    """Train the judges that the cache lacks, where there are several of them and of workers.

    Args:
        options: of the workers.
        data: how the images are loaded.
        dataset: the images.
        judging: which judges.
        device: of safemax.training.settings.Training.
        stop: raised, it ends the work.

    Raises:
        InputError: a judge cannot be trained.
        Stopped: the same command resumes.
    """
    untrained = [each for each in own_judges(dataset, judging) if not each.cached]
    if options.workers == 1 or len(untrained) < 2 or sum(each.steps for each in untrained) < FEWEST_STEPS:
        return
    fewer = replace(options, workers=min(options.workers, len(untrained)))
    batches = Batches(fewer, lambda job: f"judge {job['seed']}", lambda job, result: "trained")
    config = JudgeJobs(asdict(data), asdict(judging), device)
    with open_workers(fewer, load, config, stop, raise_if_stopped(stop), device=device) as workers:
        batches.do(workers, [{"seed": each.seed} for each in untrained])
    if batches.failures:
        raise InputError(batches.first_failure)

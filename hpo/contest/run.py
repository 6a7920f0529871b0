"""A fair contest: tune every method on the same budget, measure default and tuned knobs over bases, classes and seeds.

    python -m hpo.contest.run --methods=safemax,salun,dimum --tune=20 --bases=3 --seeds=2 --workers=2

Each method's own knobs and its learning rate are searched with the same number of trials and of rows through the denoiser, on a
base, on classes and seeds that the report never uses: the lowest FID of the retained classes wins among trials that leave at most
2 % of the class recognised, else the trial that is nearest to that.

Every finished method and base leaves one small JSON file in --files. The report, comparison.html with its CSV and JSON, joins all
files of that folder that were made by the same budget and protocol, no matter who made them, and says what is missing. The same
command resumes a contest that was stopped: whatever was trained, measured or searched is kept in the cache.
"""

from __future__ import annotations

if __name__ == "__main__":  # first: help and refusals need none of the imports below
    from pipelines.cli import console

    console.run("contest")

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hpo.contest import jobs
from hpo.contest.config import Contest, ContestOptions
from hpo.contest.files import ResultFiles
from hpo.contest.planning import plan_of
from hpo.contest.tune import preset
from pipelines import tracking
from pipelines.cli.options import DataOptions, PlanOptions
from pipelines.cli.parser import parse
from pipelines.correction.base_model import NetworkOptions
from pipelines.correction.judge_jobs import train_judges
from pipelines.engine.batch import Batches, raise_if_stopped
from pipelines.engine.signals import StopSignal, die_with_parent, stop_on_signals
from pipelines.engine.worker import Message
from pipelines.engine.workers import open_workers
from pipelines.planning.plan import show
from safemax.data.dataset import Dataset
from safemax.errors import InputError
from safemax.evaluation.protocol import Evaluation
from safemax.judges.config import JudgeConfig
from safemax.reports import contest_page, contest_tables
from safemax.storage import atomic

PARAMETERS: dict[str, type] = {
    "contest": ContestOptions,
    "data": DataOptions,
    "network": NetworkOptions,
    "evaluation": Evaluation,
    "judging": JudgeConfig,
    "plan": PlanOptions,
}


def run(argv: Sequence[str]) -> None:
    """Hold a contest by the command line's parameters."""
    chosen = parse("python -m hpo.contest.run", __doc__ or "", PARAMETERS, argv)
    options: ContestOptions = chosen["contest"]
    entered = options.method_names
    stop = stop_on_signals()
    die_with_parent()
    dataset = chosen["data"].load()
    contest = Contest.of(
        options, chosen["data"], chosen["network"], chosen["evaluation"], chosen["judging"], dataset
    )  # fmt: skip
    contest.validate(dataset)
    product = chosen["network"].name_for(dataset)
    if chosen["plan"].plan:
        show(plan_of(contest, product))
        return
    params = {f"contest.{key}": value for key, value in contest.describe().items()} | {"data.name": dataset.name}
    title = f"contest-{dataset.name}-{len(entered)}-methods"
    elsewhere = ("contest.digest", "contest.data", "contest.network", "contest.judging")  # data set, parameters.json
    shown = [key for key in params if key not in elsewhere]
    with tracking.run(title, experiment=product, params=params, tags={"kind": "contest"}, shown=shown) as opened:
        opened.dataset(dataset, "training")
        opened.parameters(chosen.record())
        done = _work(contest, dataset, opened, stop)
        for path in publish(Path(options.files)):
            opened.artifact(path)
        if options.presets != "none":
            _add_presets(Path(options.presets), f"tuned-{dataset.name}", contest_tables.read(Path(options.files)))
        if done.failures:
            raise InputError(
                f"failed jobs: {len(done.failures)}, the first: {done.first_failure}; the same command tries again"
            )
        print(f"{opened.url}  (after `make ui`)")


def publish(folder: Path) -> list[Path]:
    """Write the report of all result files in a folder, beside them, and return its files."""
    results = contest_tables.read(folder)
    table = contest_tables.standings(results)
    page, csv, data = (folder / f"comparison.{ending}" for ending in ("html", "csv", "json"))
    table.to_csv(csv, index=False)
    atomic.write_bytes(data, table.to_json(orient="records", indent=1).encode())
    atomic.write_bytes(page, contest_page.render_contest(results, table).encode())
    print(f"\n{contest_tables.as_text(table)}\n\n{page}", flush=True)
    return [page, csv, data]


def _work(contest: Contest, dataset: Dataset, run: tracking.Run, stop: StopSignal) -> Batches:
    """Do all jobs, and write a file for each method and base; an entry that fails does not end the others."""
    options, files = contest.options, ResultFiles(contest)

    def write(job: Message, result: Message) -> str:
        return str(files.write(result["content"])) if "content" in result else ""

    def note(deaths: Sequence[str]) -> None:
        run.tag("contest.deaths", "; ".join(deaths))

    batches = Batches(options, jobs.name_of, write, note)
    stages = [stage for stage in jobs.stages(contest) if stage]
    if not stages:
        print(f"{files.folder} has a file of every entry; delete one to measure it again", flush=True)
        return batches
    tick = raise_if_stopped(stop)
    train_judges(options, contest.data, dataset, contest.judging, options.device, stop)
    with open_workers(options, jobs.load, contest, stop, tick, device=options.device) as workers:
        for stage in stages:
            if not batches.failures:
                batches.do(workers, stage)
    return batches


def _add_presets(path: Path, title: str, results: Sequence[Mapping[str, Any]]) -> None:
    """Add the knobs that searches found to a file of presets (safemax/methods/tuned.json); none where the defaults were best."""
    presets = json.loads(path.read_text()) if path.exists() else {}
    for each in results:
        if each["search"] and each["search"]["values"]:
            presets.setdefault(each["method"], {})[title] = preset(each)
    atomic.write_bytes(path, (json.dumps(presets, indent=1, sort_keys=True) + "\n").encode())

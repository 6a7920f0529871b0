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
import multiprocessing
from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from functools import cache
from pathlib import Path
from typing import Any

import torch

from hpo.contest.config import BASE, DEFAULT, GOLD, TUNED, Contest, ContestOptions
from hpo.contest.planning import plan_of
from hpo.contest.tune import Found, preset, search
from hpo.contest.work import Workshop
from pipelines import tracking
from pipelines.cli.options import DataOptions, PlanOptions
from pipelines.cli.parser import parse
from pipelines.correction.base_model import NetworkOptions
from pipelines.engine import notes
from pipelines.engine.signals import StopSignal, die_with_parent, stop_on_signals
from pipelines.planning.plan import show
from safemax.errors import InputError, NonFiniteError, Stopped
from safemax.evaluation.protocol import Evaluation
from safemax.judges.load import JudgeConfig
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
Entry = tuple[str, int]


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
        failures = list(_work(contest, stop))
        for path in publish(Path(options.files)):
            opened.artifact(path)
        if options.presets != "none":
            _add_presets(Path(options.presets), f"tuned-{dataset.name}", contest_tables.read(Path(options.files)))
        if failures:
            raise InputError(f"failed entries: {len(failures)}, the first: {failures[0]}; the same command tries again")
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


def _work(contest: Contest, stop: StopSignal) -> Iterator[str]:
    """Work off the list of methods and bases; yield why an entry failed."""
    workshop = Workshop(contest, stop)
    _ = workshop.reference, [workshop.base(number) for number in range(contest.options.bases)]
    jobs = [(contest, entry) for entry in contest.entries()]
    if contest.options.workers == 1:
        yield from filter(None, (_entry(workshop, entry) for _, entry in jobs))
        return
    with multiprocessing.get_context("spawn").Pool(contest.options.workers, _start_worker) as pool:
        done = pool.imap_unordered(_in_worker, jobs)
        for _ in jobs:
            while True:
                if stop():
                    raise Stopped("the same command resumes")
                try:
                    failure = done.next(timeout=1)
                except multiprocessing.TimeoutError:
                    continue
                break
            if failure:
                yield failure


def _start_worker() -> None:
    notes.show_as_lines()
    torch.set_num_threads(1)
    die_with_parent()


@cache
def _workshop(contest: Contest) -> Workshop:
    return Workshop(contest)


def _in_worker(job: tuple[Contest, Entry]) -> str:
    contest, entry = job
    return _entry(_workshop(contest), entry)


def _entry(workshop: Workshop, entry: Entry) -> str:
    """Finish a method on a base and write its file; return why that failed, or ""."""
    name, base = entry
    options = workshop.contest.options
    try:
        found = search(workshop, name) if options.tune and name not in (BASE, GOLD) else None
        content = _result(workshop, name, base, found)
    except (InputError, NonFiniteError) as error:
        print(f"{name} on base {base}: {error}", flush=True)
        return f"{name} on base {base}: {error}"
    path = Path(options.files) / f"{name}-base{base}.json"
    atomic.write_bytes(path, (json.dumps(content, indent=None) + "\n").encode())
    print(f"{name} on base {base}: {path}", flush=True)
    return ""


def _result(workshop: Workshop, name: str, base: int, found: Found | None) -> dict[str, Any]:
    variants: dict[str, dict[str, Any]] = {DEFAULT: {}}
    if found:
        variants[TUNED] = found.values
    content: dict[str, Any] = {
        "contest": workshop.contest.describe(), "method": name, "base": base, "made": str(date.today()),
        "values": variants, "search": found.describe() if found else None, "corrections": [],
    }  # fmt: skip
    for variant, values in variants.items():
        for correction in workshop.contest.corrections(name, base, values):
            done = workshop.correct(correction)
            place = {
                "variant": variant,
                "class": workshop.contest.class_names[correction.forget],
                "seed": correction.seed,
            }
            content["corrections"].append({**place, **done})
    return content


def _add_presets(path: Path, title: str, results: Sequence[Mapping[str, Any]]) -> None:
    """Add the knobs that searches found to a file of presets (safemax/methods/tuned.json), under this title."""
    presets = json.loads(path.read_text()) if path.exists() else {}
    for each in results:
        if each["search"]:
            presets.setdefault(each["method"], {})[title] = preset(each)
    atomic.write_bytes(path, (json.dumps(presets, indent=1, sort_keys=True) + "\n").encode())

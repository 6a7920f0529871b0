"""What two processes make of an evaluation's time: the demo's counts on digits, drawn, judged and measured, a thread each.

python -m benchmarks.shared_evaluation             trains a base of 100 steps first
python -m benchmarks.shared_evaluation --model=FOLDER

Seconds on the clock mean nothing on a machine with other work; an idle one takes the CPU's seconds of the busier process.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import socket
import tempfile
import time
from pathlib import Path

import pandas as pd
import torch

import safemax
from benchmarks import tables
from pipelines.engine.shared_draws import EXAMINING
from safemax.diffusion import team
from safemax.diffusion.model import Diffusion
from safemax.evaluation.measure import measure
from safemax.evaluation.protocol import Evaluation
from safemax.evaluation.samples import draw
from safemax.judges.config import JudgeConfig
from safemax.judges.load import judges
from safemax.judges.reference import reference
from safemax.training.devices import accelerator_for
from safemax.training.settings import Training

FORGET = (0,)
DEMO = Evaluation(retain_samples=50)


def evaluate(rank: int, world: int, port: int, model: str, answer: Path) -> None:
    """Be one of the processes; rank 0 writes the metrics, all write their seconds."""
    torch.set_num_threads(1)
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world, "MASTER_PORT": port}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", **{key: str(value) for key, value in names.items()}}
    accelerator_for(Training(device="cpu"))
    data, diffusion = safemax.load_data("digits"), Diffusion.load(model)
    classifiers = judges(data, JudgeConfig(inception="none"), progress=False)
    real = reference(data, classifiers)
    clock, cpu = time.perf_counter(), time.process_time()
    metrics = {}
    if rank:
        team.follow(EXAMINING)
    else:
        with team.leading():
            metrics = measure(draw(diffusion, FORGET, DEMO, progress=False), classifiers, real, FORGET)
    found = {"metrics": metrics, "seconds": time.perf_counter() - clock, "cpu": time.process_time() - cpu}
    (answer / f"{world}-{rank}.json").write_text(json.dumps(found))


def run(world: int, model: str, answer: Path) -> list[dict]:
    """Evaluate by so many processes and return what each wrote."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    ranks = [context.Process(target=evaluate, args=(rank, world, port, model, answer)) for rank in range(world)]
    for each in ranks:
        each.start()
    for each in ranks:
        each.join()
    return [json.loads((answer / f"{world}-{rank}.json").read_text()) for rank in range(world)]


def main() -> None:
    """Run alone and by two, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="", help="a diffusers folder of digits; trained here if not given")
    model = parser.parse_args().model
    with tempfile.TemporaryDirectory() as scratch:
        if not model:
            model = f"{scratch}/model"
            safemax.pretrain(safemax.load_data("digits"), steps=100, device="cpu").save(model)
        runs = {world: run(world, model, Path(scratch)) for world in (1, 2)}
    alone, shared = (runs[world][0]["metrics"] for world in (1, 2))
    largest = max(abs(shared[key] - value) / max(1.0, abs(value)) for key, value in alone.items())
    rows = [
        {"processes": world, "seconds": ranks[0]["seconds"], "CPU s of the busier": max(each["cpu"] for each in ranks)}
        for world, ranks in runs.items()
    ]
    frame = pd.DataFrame(rows).set_index("processes")
    frame["share of one's"] = frame["CPU s of the busier"] / frame["CPU s of the busier"].iloc[0]
    remark = f"The largest difference between the {len(alone)} metrics is {largest:.1e} of the value, or of 1."
    tables.write("shared-evaluation-cpu", "An evaluation shared by two processes", frame, remark)


if __name__ == "__main__":
    main()

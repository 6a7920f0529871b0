"""What the two ranks of tests.support.ranks do; imported once, in the process that they are forks of."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from safemax import metrics
from safemax.attacks.base import Setting
from safemax.attacks.guidance import Guidance
from safemax.attacks.guided import Guided
from safemax.attacks.invert import Invert
from safemax.attacks.relearn import Relearn
from safemax.data import row_share
from safemax.data.batches import to_float
from safemax.diffusion import sampling, team
from safemax.diffusion.sampling import Sampler
from safemax.errors import Stopped
from safemax.evaluation import measure as whole_measure
from safemax.evaluation import shared_attack, shared_judging
from safemax.evaluation.samples import Samples
from safemax.judges.classifier import Ensemble, Judge, predict
from safemax.judges.load import Judges
from safemax.judges.reference import Reference
from safemax.methods import create
from safemax.training import processes
from safemax.training.devices import accelerator_for
from safemax.training.hooks import Folders, Hooks
from safemax.training.settings import Training
from safemax.training.trainer import Trainer
from tests.support import made_up_measurements, tiny_models


def train(
    rank: int,
    folder: Path,
    *,
    method: str = "safemax",
    steps: int = 6,
    stop_at: int = -1,
    hang_at: int = -1,
    hang_minutes: float = 10.0,
    slow: float = 0.0,
    priors: bool = False,
    ema: float = 0.0,
    differs: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Train a tiny model; rank 1 alone is told to stop or hangs, and has the settings that differ."""
    torch.set_num_threads(1)
    processes.HANG_MINUTES = hang_minutes
    asked = 0

    def should_stop() -> bool:
        nonlocal asked
        asked += 1
        (folder / "began").touch()
        time.sleep(slow)
        if rank and asked - 1 == hang_at:
            time.sleep(3600)
        return bool(rank) and asked - 1 == stop_at

    own = differs if rank and differs else {}
    settings = Training(**{"steps": steps, "batch_size": 8, "device": "cpu", "checkpoint_every": 2, "ema": ema, **own})
    model, chosen = tiny_models.diffusion(), create(method)
    hooks = Hooks(should_stop=should_stop, progress=False)
    folders = Folders(folder / "steps", folder / "priors" if priors else None, "run-1")
    stopped = False
    try:
        tiny_models.train(model, chosen, settings, hooks=hooks, folders=folders)
    except Stopped:
        stopped = True
    return {
        "digest": model.digest(), "stopped": stopped, "asked": asked,
        "steps": [each.name[5:13] for each in sorted((folder / "steps").glob("step-*"))],
        "priors": sum(each.is_file() for each in (folder / "priors").rglob("*")),
    }  # fmt: skip


DRAWN = (Sampler("ddim", 4), Sampler("ddpm", 4, 1.5, 0.0, False), Sampler("ddim", 4, 1.0, 0.5))


def draw(rank: int, folder: Path, *, together: bool = False) -> list[list[float]]:
    """Draw 15 images in batches of 6 by each of DRAWN, and some that begin at real ones; rank 1 follows, or all are together."""
    torch.set_num_threads(1)
    accelerator_for(Training(device="cpu"))
    if together:
        with team.together():
            return draws()
    if rank:
        team.follow({sampling.JOB: sampling.draw_along})
        return []
    with team.leading():
        return draws()


def prepare(rank: int, folder: Path, *, method: str, knobs: dict[str, Any]) -> None:
    """Let a method prepare on a tiny model, 4 + 4 rows a batch; write its state and the model's weights to prepared.safetensors."""
    torch.set_num_threads(1)
    model, chosen = tiny_models.diffusion(steps=20), create(method, **knobs)
    settings = Training(steps=1, batch_size=8, device="cpu")
    trainer = Trainer(model, chosen, tiny_models.split(), (0,), settings, hooks=tiny_models.SILENT)
    trainer.prepare()
    weights = {name.replace(".module.", "."): each.detach() for name, each in model.named_parameters()}
    save_file({name: each.contiguous() for name, each in (chosen.state() | weights).items()}, folder / PREPARED)


PREPARED = "prepared.safetensors"


def add_up(rank: int, folder: Path) -> list[list[float]]:
    """Add up a tensor whose memory lies in another order in rank 1."""
    accelerator_for(Training(device="cpu"))
    tensor = torch.arange(6.0).view(2, 3)
    return row_share.summed([tensor.T.contiguous().T if rank else tensor])[0].tolist()


def finetune(rank: int, folder: Path, *, method: str = "finetune", steps: int = 6) -> list[float]:
    """Fine-tune a tiny model and return its weights."""
    torch.set_num_threads(1)
    model = tiny_models.diffusion()
    tiny_models.train(model, create(method), Training(steps=steps, batch_size=8, device="cpu", forget_share=0.0))
    return torch.cat([each.detach().flatten() for each in model.parameters()]).tolist()


ATTACKS = {
    "relearn": Relearn(relearn_steps=8, relearn_batch_size=4),
    "invert": Invert(invert_steps=4, invert_images=8, invert_batch_size=4),
    "guided": Guided(guided_seeds=2),
    "guidance": Guidance(),
}


def attack(rank: int, folder: Path) -> dict[str, list[list[int]]]:
    """Attack a tiny model by each of ATTACKS; rank 1 takes part. Returns the pictures of each, as bytes, where this rank leads."""
    torch.set_num_threads(1)
    accelerator_for(Training(device="cpu"))
    if rank:
        team.follow({shared_attack.JOB: shared_attack.attack_along(tiny_models.dataset)})
        return {}
    with team.leading():
        return attacked()


def attacked() -> dict[str, list[list[int]]]:
    """Return the pictures of each trial of each attack."""
    torch.manual_seed(3)
    judge, helper = (Judge("small", ("a", "b", "c"), (1, 8, 8), reject=each) for each in (True, False))
    sampler = Sampler("ddim", 2, 1.5)
    setting = Setting(tiny_models.dataset(), (0,), judge, helper, 1, tiny_models.diffusion(5), 9, sampler=sampler)
    results = {
        name: shared_attack.run_shared(name, each, tiny_models.diffusion(), setting) for name, each in ATTACKS.items()
    }
    return {name: each.pictures.flatten(1).tolist() for name, each in results.items()}


CLIP = {
    "model": {
        "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 8,
        "patch_size": 4, "projection_dim": 8,
    },
    "nones": 2,
}  # fmt: skip


def judge(rank: int, folder: Path) -> dict[str, Any]:
    """Judge and measure made-up images; rank 1 takes part, and returns how many files of judges came with each job."""
    torch.set_num_threads(1)
    accelerator_for(Training(device="cpu"))
    if not rank:
        with team.leading():
            return judged()
    files = []

    def along(crew: team.Team, about: dict[str, Any], told: dict[str, torch.Tensor], device: torch.device) -> None:
        files.append(sum(name.startswith("judges:") for name in told))
        shared_judging.judge_along(crew, about, told, device)

    team.follow({sampling.JOB: sampling.draw_along, shared_judging.JOB: along})
    return {"files": files}


def judged() -> dict[str, Any]:
    """Return what the judges say of images, of as many before and after a draw and of too few, and the metrics of 1,300 samples."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (2 * shared_judging.LEAST + 1, 1, 8, 8), generator=generator).to(torch.uint8)
    many, few = judges_of_each_kind()
    found = [*shared_judging.predict(many, images), *shared_judging.predict(many, images[:9])]
    sampling.sample(tiny_models.diffusion(), torch.arange(3), DRAWN[0], seed=3)
    found += shared_judging.predict(many, images, ("reject",))
    found += shared_judging.predict(few, images)
    labels = torch.arange(5).repeat(260)
    drawn = torch.randint(0, 256, (1300, 1, 8, 8), generator=generator).to(torch.uint8)
    judges, real = made_up_measurements.judges(), labels[:200]
    features, rejecting = (predict(each, to_float(drawn[-200:]))[1] for each in (judges.plain, judges.reject))
    metrics = whole_measure.measure(
        Samples(drawn, labels, drawn[:100], labels[:100]), judges, Reference(features, real, rejecting),
        made_up_measurements.FORGET,
    )  # fmt: skip
    return {"found": [part.flatten().tolist() for each in found for part in each], "metrics": metrics}


def judges_of_each_kind() -> tuple[Judges, Judges]:
    """Return an ensemble on none heads and plain networks with a temperature, and CLIP as both judges; of random weights."""
    torch.manual_seed(5)
    names, shape = ("a", "b", "c"), (1, 8, 8)
    plain = Judge("small", names, shape, pixel_mean=(0.1,), pixel_std=(0.6,))
    plain.temperature = 3.0
    reject = Ensemble([Judge(arch, names, shape, reject=True) for arch in ("small-none2", "small")])
    clips = [Judge("clip", names, shape, reject=True, config=CLIP) for _ in range(2)]
    for each in clips:
        torch.nn.init.normal_(each.network.linear.weight)
    return Judges(plain, reject, {}, "several"), Judges(clips[0], clips[1], {}, "CLIP")


def draws() -> list[list[float]]:
    """Return the pixels, by sampler."""
    labels, split = torch.arange(3).repeat(5), tiny_models.split(15)
    begin = split.images.float() / 127.5 - 1
    models = (tiny_models.diffusion(0), tiny_models.diffusion(1), tiny_models.diffusion(1))
    images = [
        sampling.sample(each, labels, sampler, seed=3, batch_size=6)
        for each, sampler in zip(models, DRAWN, strict=True)
    ]
    images.append(sampling.sample(models[0], labels, DRAWN[0], seed=3, start=(begin, 500)))
    return [each.flatten().tolist() for each in images]


def measure(rank: int, folder: Path) -> dict[str, float]:
    """Measure made-up images, of which each rank has every second batch."""
    torch.set_num_threads(1)
    accelerator_for(Training(device="cpu"))
    panel = metrics.panel(made_up_measurements.setting())
    for batch in made_up_measurements.draws():
        for k, begin in enumerate(range(0, len(batch), 20)):
            if k % 2 == rank:
                panel.update(batch[begin : begin + 20])
    return panel.compute()

"""A pixel DiT, a latent DiT and a text UNet learn the digits, forget one with SAFEMax, and are promoted and served.

python -m benchmarks.kinds                       all three, each with a store of its own below build/kinds; kept by its steps
python -m benchmarks.kinds --kinds=text --steps=500

Every step is the command that a user gives: pretrain, unlearn, promote; then the champion is asked for images.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import torch
from diffusers import AutoencoderKL
from mlflow.exceptions import MlflowException

from benchmarks import tables
from benchmarks.tiny_pipelines import autoencoder, write_dit, write_stable_diffusion
from pipelines.cli.parser import main, parse
from pipelines.pretrain import pretrain
from pipelines.promote import promote
from pipelines.registry import model_versions
from pipelines.unlearn import unlearn
from safemax import metric_keys as keys
from safemax.data.batches import to_float
from safemax.data.sources import load
from safemax.diffusion.condition import Prompt, Prompts
from safemax.diffusion.model import Diffusion
from safemax.diffusion.sampling import FAST, sample
from safemax.judges.classifier import predict
from safemax.judges.config import JudgeConfig
from safemax.judges.load import judges
from safemax.knobs import check, knob
from safemax.reports.images_and_tables import Panel, comparison
from safemax.storage import atomic, cache

KINDS = ("pixel_dit", "latent_dit", "text")
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
TRAINED = ("a handwritten {}", "the handwritten {}", "the digit {}", "a number {}", "the number {}")
# The words of the trained ones in another combination, and a longer sentence.
HELD_OUT = ("a digit {}", "a picture of the number {}")
FORGET = 3
VAE_STEPS = 600


@dataclass(frozen=True)
class BenchmarkOptions:
    """How much of the benchmark to run."""

    kinds: str = knob("pixel_dit,latent_dit,text", "kinds of model")
    base_steps: int = knob(1500, "steps of a base", bounds=(1, 100_000))
    steps: int = knob(300, "steps of SAFEMax", bounds=(1, 100_000))
    lr: float = knob(2e-4, "learning rate of SAFEMax", bounds=(0, 1))

    def __post_init__(self) -> None:
        check(self)


def benchmark(argv: Sequence[str]) -> None:
    """Run and write the table and the pictures."""
    options = parse("python -m benchmarks.kinds", __doc__ or "", {"options": BenchmarkOptions}, argv)["options"]
    rows = [_row(kind, options) for kind in options.kinds.split(",")]
    trained, held_out = (" and ".join(map(repr, each)) for each in (TRAINED, HELD_OUT))
    remark = (
        f"{WORDS[FORGET]} is forgotten; shares and accuracy in percent, minutes of SAFEMax's steps while other work ran on the "
        f"machine. The trained prompts are {trained}; the held-out ones {held_out}, on which neither base nor SAFEMax was trained: "
        "where the base does not answer one, it says nothing of forgetting. Served: how many of the names and prompts the champion "
        "draws, and how many it refuses: the forgotten class, in any of its words. Pictures: kinds-KIND.png beside this file."
    )
    tables.write("kinds-digits", "Three kinds of model on digits", pd.DataFrame(rows).set_index("kind"), remark)


def _row(kind: str, options: BenchmarkOptions) -> dict[str, Any]:
    name = f"digits-{kind.replace('_', '-')}"
    steps = f"{options.base_steps}-{options.steps}-{options.lr:g}"  # what is kept from before is what the command says
    store = Path("build", "kinds", f"{name}-{steps}").absolute()
    store.mkdir(parents=True, exist_ok=True)
    os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{store}/mlflow.db"
    mlflow.set_tracking_uri(os.environ["MLFLOW_TRACKING_URI"])
    architecture = "dit" if kind == "pixel_dit" else str(_folder(kind))
    if model_versions.find(name, "base") is None:
        pretrain([f"--architecture={architecture}", f"--name={name}", f"--steps={options.base_steps}", "--lr=2e-3",
                  "--lr_end=0.05", "--ema=0.995", "--device=cpu"])  # fmt: skip
    if model_versions.find(name, "candidate") is None:
        unlearn([f"--name={name}", f"--forget={FORGET}", f"--steps={options.steps}", f"--lr={options.lr}", "--ema=0.98",
                 "--previews=0", "--device=cpu"])  # fmt: skip
    if model_versions.find(name, "champion") is None:
        promote([f"--model={name}", "--why=benchmarks.kinds"])
    champion = f"models:/{name}@champion"
    evidence = model_versions.evidence(champion)
    base, corrected = (Diffusion.load(model_versions.resolve(each)) for each in (f"models:/{name}@base", champion))
    _picture(kind, base, corrected)
    before, after = evidence["base_metrics"], evidence["metrics"]
    return {
        "kind": kind,
        "parameters": sum(p.numel() for p in base.parameters()),
        "recognised, base": before[keys.RECOGNISED],
        "recognised": after[keys.RECOGNISED],
        "recognised, 2nd sampler": after[keys.SECOND_RECOGNISED],
        "accuracy, base": before[keys.ACCURACY],
        "accuracy": after[keys.ACCURACY],
        "FID, base": before[keys.FID_JUDGE],
        "FID": after[keys.FID_JUDGE],
        **_paraphrases(base, corrected),
        "minutes": after[keys.RUNTIME_MINUTES],
        "served": _served(champion, corrected),
    }


def _folder(kind: str) -> Path:
    """Return the folder of an untrained model of latents, made once, as diffusers opens it, with its classes."""
    facts = {"kind": kind, "prompts": [asdict(each) for each in _prompts()], "autoencoder": VAE_STEPS}
    folder = cache.folder("kinds") / cache.key(facts)
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        atomic.create_folder(folder, lambda temporary: _write(kind, temporary))
    return folder.absolute()


def _write(kind: str, folder: Path) -> None:
    vae = _trained_autoencoder()
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as scratch:
        raw = Path(scratch, "raw")
        if kind == "latent_dit":
            write_dit(raw, vae, map(str, range(10)), layers=4, heads=4)
            Diffusion.load(raw).save(folder)
        else:
            words = " ".join([*WORDS, *TRAINED, *HELD_OUT]).replace("{}", "").split()
            write_stable_diffusion(raw, vae, dict.fromkeys(words), width=48)
            Diffusion.load(raw, prompts=_prompts()).save(folder)


def _prompts() -> list[Prompt]:
    return [
        Prompt(text.format(word), str(k), held_out=text in HELD_OUT)
        for k, word in enumerate(WORDS) for text in (*TRAINED, *HELD_OUT)
    ]  # fmt: skip


def _trained_autoencoder() -> AutoencoderKL:
    """Return an autoencoder of the digits: 4x4 latents of four channels, of deviation 1."""
    torch.manual_seed(0)
    vae, x = autoencoder(8), to_float(load("digits").train.images)
    optimizer = torch.optim.Adam(vae.parameters(), 2e-3)
    for step in range(VAE_STEPS):
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * (1 - step / VAE_STEPS)
        batch = x[torch.randint(len(x), (128,))]
        posterior = vae.encode(batch).latent_dist
        loss = (vae.decode(posterior.sample()).sample - batch).square().mean() + 1e-4 * posterior.kl().mean() / 64
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        vae.register_to_config(scaling_factor=1 / vae.encode(x).latent_dist.mode().std().item())
    print(f"autoencoder: root mean square error {loss.item() ** 0.5:.3f} of a range of 2")
    return vae


def _paraphrases(base: Diffusion, corrected: Diffusion) -> dict[str, str]:
    """Return how many percent of the images by each further prompt of the forgotten class are recognised, base and corrected."""
    if not isinstance(base.condition, Prompts):
        return {"by its further prompts": "-", "by held-out prompts": "-"}
    columns = {"by its further prompts": False, "by held-out prompts": True}
    return {
        name: "; ".join(
            f"{_recognised(base, row):.3g} to {_recognised(corrected, row):.3g}"
            for row in base.condition.asked_by(FORGET, held_out=held_out)
        )
        for name, held_out in columns.items()
    }


def _recognised(diffusion: Diffusion, row: int) -> float:
    images = sample(diffusion, torch.full((300,), row), FAST, seed=1)
    probs = predict(judges(load("digits"), JudgeConfig(), progress=False).reject, images)[0]
    return 100 * (probs.argmax(1) == FORGET).float().mean().item()


def _served(address: str, diffusion: Diffusion) -> str:
    """Ask the served champion for every class by name, and by prompts where it has them; return how many it draws and refuses."""
    model = mlflow.pyfunc.load_model(str(model_versions.verified_copy(address)))
    texts = [str(k) for k in range(10)]
    if isinstance(diffusion.condition, Prompts):
        texts += [each.text for each in diffusion.condition.prompts]
    drawn, refused = 0, []
    for text in texts:
        try:
            drawn += len(model.predict({"class_label": [text]}, params={"steps": 2}))
        except MlflowException:
            refused.append(text)
    print(f"served: {drawn} drawn, refused: {', '.join(refused)}")
    return f"{drawn} drawn, {len(refused)} refused"


def _picture(kind: str, base: Diffusion, corrected: Diffusion) -> None:
    labels = torch.arange(10).repeat_interleave(6)
    models = {"base": base, "corrected": corrected}
    panels = [Panel(name, sample(model, labels, FAST, seed=0), labels) for name, model in models.items()]
    if isinstance(base.condition, Prompts):
        rows = torch.tensor([base.condition.asked_by(k, held_out=True)[0] for k in range(10)]).repeat_interleave(6)
        panels += [
            Panel(f"{name}, held-out prompt", sample(model, rows, FAST, seed=0), labels)
            for name, model in models.items()
        ]
    tables.FOLDER.mkdir(exist_ok=True)
    comparison(panels, base.class_names, (FORGET,), columns=6).savefig(tables.FOLDER / f"kinds-{kind}.png")


if __name__ == "__main__":
    main(benchmark)

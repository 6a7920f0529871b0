"""Plain UA of one and the same samples under three judges: the bird anomaly by unlearned models."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor

from benchmarks.gpu.stage import Stage
from pipelines import tracking
from pipelines.comparison.job import STRIP
from safemax.data.batches import to_float
from safemax.data.dataset import Dataset
from safemax.evaluation.samples import Samples
from safemax.judges.classifier import Judge, accuracy, noise_histogram, predict
from safemax.judges.files import load_judge
from safemax.judges.train import train_judge
from safemax.storage import cache


def paths() -> tuple[Path, Path]:
    """Return the files of the third-party ResNet-20 and ResNet-56."""
    folder = Path(os.environ["SAFEMAX_DATA"]) / "judges"
    return folder / "cifar10-resnet20.safetensors", folder / "cifar10-resnet56.safetensors"


@dataclass
class Jury:
    """Plain judges by name, with their accuracy and with what they take noise for."""

    rehearse: bool
    judges: dict[str, Judge] = field(default_factory=dict)
    facts: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def of(cls, dataset: Dataset, rehearse: bool) -> Jury:
        """Return a jury of the two third-party networks."""
        jury = cls(rehearse)
        for name, path in zip(("ResNet-20, third party", "ResNet-56, third party"), paths(), strict=True):
            jury._add(name, load_judge(path, class_names=dataset.class_names), dataset)
        return jury

    def train_own(self, dataset: Dataset, steps: int) -> None:
        """Add a ResNet-20 of our own."""
        device = "cuda" if torch.cuda.is_available() else "cpu"
        own = train_judge(dataset, "resnet20", steps=steps, seed=7, device=device, progress=False)
        self._add(f"ResNet-20, ours, {steps} steps", own, dataset)

    def _add(self, name: str, judge: Judge, dataset: Dataset) -> None:
        judge.to("cuda" if torch.cuda.is_available() else "cpu")
        self.judges[name] = judge
        noise = noise_histogram(judge, 8 if self.rehearse else 500)["gaussian"]
        self.facts[name] = {"accuracy %": accuracy(judge, dataset.test), **noise}

    def write(self, stage: Stage, children: pd.DataFrame) -> None:
        """Write UA of each corrected model's samples under each judge, beside the share of noise that it takes for the class."""
        rows = [row for _, child in children.iterrows() for row in self._rows(child)]
        if rows:
            frame = pd.DataFrame(rows).set_index("model")
            remark = (
                "UA: share of the model's samples of the forgotten class that the judge does not take for it. noise: share of 500 "
                "images of clamped Gaussian noise that it takes for that class. UA_reject: by the ensemble that may answer none of "
                "these. Where plain UA moves with the judge and UA_reject does not, the judge is at fault, not the model."
            )
            stage.table("three-judges", "UA of the same samples by judge", frame, remark, digits=1)

    def _rows(self, child: pd.Series) -> Iterator[dict[str, Any]]:
        samples = None if child["variant"] == "base" else samples_of(str(child["run"]))
        if samples is None:
            return
        for name, judge in self.judges.items():
            label = judge.class_names.index(child["forget"])
            answers = predict(judge, to_float(samples.images[samples.labels == label]))[0].argmax(1)
            yield {
                "model": child["variant"], "forgotten": child["forget"], "judge": name,
                "judge's accuracy %": self.facts[name]["accuracy %"],
                "noise taken for the class %": self.facts[name][child["forget"]],
                "UA %": 100 * (answers != label).double().mean().item(), "UA_reject %": child["forget/ua_reject"],
            }  # fmt: skip


def samples_of(run_id: str) -> Samples | None:
    """Return the samples of a comparison's child from the cache, known by the strip of them that its run kept."""
    with tempfile.TemporaryDirectory() as scratch:
        strip = np.asarray(Image.open(tracking.store().download_artifacts(run_id, "strips/corrected.png", scratch)))
    for path in cache.folder("samples").glob("*.safetensors"):
        tensors = cache.load_tensors(path)
        if tensors is not None and _starts(strip, Samples(**tensors)):
            return Samples(**tensors)
    return None


def _starts(strip: np.ndarray, samples: Samples) -> bool:
    """Return whether a strip begins with the first images of the class that there are most samples of."""
    label = int(samples.labels.bincount().argmax())
    first: Tensor = samples.images[samples.labels == label][:STRIP]
    row = first.permute(2, 0, 3, 1).flatten(1, 2).numpy()  # H, N * W, C
    return np.array_equal(strip[:, : row.shape[1]], row)

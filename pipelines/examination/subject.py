"""The model under examination: its address, its data, the classes it should have forgotten, and the base it came from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pipelines import tracking
from pipelines.cli.options import DataOptions, product_name
from pipelines.registry import lineage, model_versions
from safemax.data.class_split import ClassSplit
from safemax.data.dataset import Dataset
from safemax.errors import InputError
from safemax.evaluation.enough_images import check_enough_images


class SubjectOptions(Protocol):
    """The options by which a user names a model to examine."""

    @property
    def model(self) -> str:
        """Address of the model, or of several, separated by commas."""

    @property
    def forget(self) -> str:
        """Classes to look for; auto is all that the version has forgotten."""

    @property
    def name(self) -> str:
        """Experiment; auto is DATA-ddpm."""


def models_of(options: SubjectOptions) -> list[str]:
    """Return the models that the user named, several separated by commas; InputError for an empty or repeated one."""
    if Path(options.model).is_dir():  # its name may have a comma
        return [options.model]
    names = [each.strip() for each in options.model.split(",")]
    if not all(names) or len({model_versions.resolve_alias(each) for each in names}) < len(names):
        raise InputError(f"model = {options.model} is not allowed; it names each model once, separated by commas")
    return names


@dataclass(frozen=True, eq=False)
class Subject:
    """A model under examination.

    Args:
        address: of the model, with a version number instead of an alias.
        base: address of the model that it is compared with, None where there is none.
        dataset: the real images.
        classes: those to look for, those that the model has forgotten as well, and the retained ones.
        experiment: of the runs that examine it.
    """

    address: str
    base: str | None
    dataset: Dataset
    classes: ClassSplit
    experiment: str

    @classmethod
    def every(cls, options: SubjectOptions, base: str, data: DataOptions) -> list[Subject]:
        """Find all models that the user named; arguments and errors as of `of`."""
        return [cls.of(each, options, base, data) for each in models_of(options)]

    @classmethod
    def of(cls, model: str, options: SubjectOptions, base: str, data: DataOptions) -> Subject:
        """Find a model and what it is compared with.

        Args:
            model: its address.
            options: what else the user gave.
            base: auto (by the version's lineage), none, a folder or an address.
            data: the real images.

        Raises:
            InputError: there is no such model or class, or the version was made of other data.
        """
        dataset = data.load()
        experiment = product_name(options.name, dataset.name)
        address = model_versions.resolve_alias(model)
        lineage.refuse_other_data(address, dataset)
        forget = lineage.classes_of(address, options.forget, dataset)
        check_enough_images(dataset, forget)
        classes = lineage.class_split(address, forget, dataset)
        return cls(address, lineage.origin(address, base), dataset, classes, experiment)

    @property
    def class_names(self) -> list[str]:
        """The names of the classes to look for."""
        return [self.dataset.class_names[k] for k in self.classes.forget]

    @property
    def title(self) -> str:
        """Such as digits-forget0, for the names of runs."""
        return f"{self.dataset.name}-forget{'+'.join(self.class_names)}"

    @contextmanager
    def run(self, kind: str, name: str, params: Mapping[str, object], shown: Sequence[str]) -> Iterator[tracking.Run]:
        """Open a run of this kind for the examination; its parameters say what is examined and with which data.

        Args:
            kind: evaluation or attack.
            name: of the run.
            params: further parameters.
            shown: keys of those by which examinations are compared.
        """
        common = {
            "model.source": self.address,
            "data.name": self.dataset.name,
            "data.digest": self.dataset.digest,
            **self.dataset.params,
            "data.forget": ",".join(self.class_names),
        }
        tags = {"kind": kind, "version": self.address, "unlearning.forget": ",".join(self.class_names)}
        with tracking.run(
            name, experiment=self.experiment, params={**common, **params}, tags=tags,
            shown=("model.source", "data.name", "data.forget", *shown),
        ) as opened:  # fmt: skip
            opened.dataset(self.dataset, kind)
            yield opened

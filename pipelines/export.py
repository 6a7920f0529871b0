"""Write a version as the folder that diffusers opens, with a model card made from its evidence; or put it on a hub.

    mlflow run . -e export -P model=models:/digits-ddpm@champion -P to=FOLDER
    python -m pipelines.export --model=models:/pets@champion --to=FOLDER --push=owner/name

The folder is opened by DDPMPipeline, DiTPipeline or StableDiffusionPipeline.from_pretrained, whichever the model is of, and by
this project (--model=FOLDER). --push uploads it to a private repository of the Hugging Face hub, with the token of
`hf auth login` or HF_TOKEN.
"""

from __future__ import annotations

if __name__ == "__main__":  # first: help and refusals need none of the imports below
    from pipelines.cli import console

    console.run("export")

import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi

from pipelines.cli.parser import parse
from pipelines.registry import model_versions
from pipelines.registry.model_card import card
from safemax.diffusion.home import CLASSES
from safemax.errors import InputError
from safemax.knobs import check, knob
from safemax.storage import atomic


@dataclass(frozen=True)
class ExportOptions:
    """What to write, and where to."""

    model: str = knob("models:/digits-ddpm@champion", "version: models:/NAME@ALIAS or models:/NAME/NUMBER")
    to: str = knob("", "new folder to write to")
    push: str = knob(
        "none", "repository of the Hugging Face hub, owner/name, to upload the folder to; it is made private"
    )

    def __post_init__(self) -> None:
        check(self)

    def validate(self) -> None:
        """Raise InputError where there is nothing to export or no place for it; before any work."""
        if not model_versions.is_registry_address(self.model):
            raise InputError(f"model = {self.model} is not a version; write models:/NAME@ALIAS or models:/NAME/NUMBER")
        if not self.to:
            raise InputError("to has no value; it is a new folder to write to")
        if Path(self.to).exists():
            raise InputError(f"to = {self.to} already exists; name a new folder")
        if self.push != "none" and not re.fullmatch(r"[\w.-]+/[\w.-]+", self.push):
            raise InputError(f"push = {self.push} is not allowed; it is owner/name")


PARAMETERS: dict[str, type] = {"export": ExportOptions}


def export(argv: Sequence[str]) -> None:
    """Export as the command line says."""
    options: ExportOptions = parse("python -m pipelines.export", __doc__ or "", PARAMETERS, argv)["export"]
    options.validate()
    address = model_versions.resolve_alias(options.model)
    pipeline = model_versions.resolve(address)  # verified
    evidence = json.loads((pipeline.parent / "evidence.json").read_text())
    index = json.loads((pipeline / "model_index.json").read_text())
    classes = json.loads((pipeline / CLASSES).read_text()) if (pipeline / CLASSES).exists() else {}
    text = card(address, evidence, index, prompts=classes.get("prompts", ()), repository=options.push)

    def fill(folder: Path) -> None:
        shutil.copytree(pipeline, folder)
        (folder / "README.md").write_text(text, encoding="utf-8")

    target = Path(options.to).absolute()
    target.parent.mkdir(parents=True, exist_ok=True)
    atomic.create_folder(target, fill)
    print(f"wrote {options.to}: {address}, as {index['_class_name']}.from_pretrained opens it")
    if options.push != "none":
        push(target, options.push)


def push(folder: Path, repository: str) -> None:
    """Upload an exported folder to a private repository of the hub; InputError where the hub refuses."""
    hub = HfApi()
    try:
        hub.create_repo(repository, private=True, exist_ok=True)
        where = hub.upload_folder(repo_id=repository, folder_path=folder, commit_message="Exported by safemax")
    except Exception as error:  # the hub client raises by transport: network, token, rights
        raise InputError(
            f"push = {repository}: {str(error).splitlines()[0]}; the folder {folder} is complete"
        ) from error
    print(f"uploaded to {where}")

"""What a denoiser is told about the class: a label, or a row of a table of prompt embeddings that the text encoder made once."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from safemax.errors import InputError, note
from safemax.storage import cache

Inputs = dict[str, Tensor]


class Labels(nn.Module):
    """Classes told by their label, c as it is or, where a model is used for some of its classes alone, its row in the table.

    Args:
        rows: the row of each class in the network's table, then that of the null label; None where c is the row.
    """

    rows: Tensor | None

    def __init__(self, rows: Sequence[int] | None = None) -> None:
        super().__init__()
        self.register_buffer("rows", None if rows is None else torch.tensor(rows), persistent=False)

    def forward(self, c: Tensor) -> Inputs:
        """Return the denoiser's arguments for labels c, (N,) int64 in [0, K]."""
        return {"class_labels": c if self.rows is None else self.rows[c]}

    def rows_of(self, classes: Tensor) -> Tensor:
        """Return the rows of the network's label table that tell of these classes."""
        return classes if self.rows is None else self.rows[classes]

    def ask(self, text: str, names: Sequence[str]) -> tuple[int, int] | None:
        """Return the label that a class name asks for, twice, as of `Prompts.ask`; None for another text."""
        return (names.index(text), names.index(text)) if text in names else None

    def stated(self) -> dict[str, Any]:
        """Return what a model's folder states of it, as JSON; {} for labels as they are."""
        return {} if self.rows is None else {"labels": self.rows.tolist()}

    def facts(self) -> dict[str, Any]:
        """Return what decides the inputs; {} for labels as they are."""
        return self.stated()


@dataclass(frozen=True)
class Prompt:
    """A text that asks for a class.

    Args:
        text: the prompt.
        name: of the class.
        held_out: whether it is only asked, never trained on.
    """

    text: str
    name: str
    held_out: bool = False


class Prompts(nn.Module):
    """Classes told by prompts: a table of their embeddings.

    Row k is the first prompt of class k, row K the empty prompt, which is the null label; the further prompts of all classes
    follow. In training a class is told by one of its prompts that are not held out, drawn for each row; else by its first.
    A row's own number is a label too, so that every prompt can be asked for.

    Args:
        prompts: of all classes; the classes are in the order in which their names come first.
        table: embeddings of `ordered(prompts)` and, at row K, of the empty prompt, (rows, tokens, width).
    """

    counts: Tensor
    choices: Tensor

    def __init__(self, prompts: Sequence[Prompt], table: Tensor) -> None:
        super().__init__()
        self.prompts = ordered(prompts)
        self.names = class_names(self.prompts)
        if len(table) != len(self.prompts) + 1:
            raise InputError(
                f"{len(self.prompts)} prompts and the empty one do not fit a table of {len(table)} embeddings"
            )
        self.table = Parameter(table, requires_grad=False)
        counts, choices = _choices(self.prompts, self.names)
        self.register_buffer("counts", counts, persistent=False)
        self.register_buffer("choices", choices, persistent=False)
        self.draws = bool((counts > 1).any())

    def forward(self, c: Tensor) -> Inputs:
        """Return the denoiser's arguments for labels c, (N,) int64: classes, K, or the row of a further prompt."""
        if self.training and self.draws:
            pick = (torch.rand(c.shape, device=c.device) * self.counts[c]).long()
            c = self.choices[c, pick]
        return {"encoder_hidden_states": self.table[c]}

    def rows_of(self, classes: Tensor) -> Tensor:
        """Return the rows of the table that training tells these classes by."""
        return self.choices[classes].flatten().unique()

    def stated(self) -> dict[str, Any]:
        """Return what a model's folder states of it, as JSON: the prompts in the order of their rows."""
        return {
            "prompts": [{"prompt": each.text, "name": each.name, "held_out": each.held_out} for each in self.prompts]
        }

    def facts(self) -> dict[str, Any]:
        """Return what decides the inputs."""
        return {**self.stated(), "table": cache.tensors_digest({"table": self.table})}

    def asked_by(self, k: int, *, held_out: bool) -> list[int]:
        """Return the rows of a class's further prompts: those that are held out, or those that training draws too."""
        return [
            row for row, each in _rows(self.prompts, len(self.names))
            if each.name == self.names[k] and each.held_out == held_out and row > k
        ]  # fmt: skip

    def ask(self, text: str, names: Sequence[str]) -> tuple[int, int] | None:
        """Return the row that a class name or a prompt asks for, and its class; a prompt whatever its case and spaces."""
        if text in names:
            return names.index(text), names.index(text)
        rows = _rows(self.prompts, len(names))
        found = (row for row, each in rows if _plain(each.text) == _plain(text))
        return next(((row, names.index(dict(rows)[row].name)) for row in found), None)


def class_names(prompts: Sequence[Prompt]) -> tuple[str, ...]:
    """Return the names of the classes, in the order in which they come first."""
    return tuple(dict.fromkeys(each.name for each in prompts))


def ordered(prompts: Sequence[Prompt]) -> tuple[Prompt, ...]:
    """Return the first trained prompt of each class, then all others.

    Raises:
        InputError: a class has no prompt to train on, or a prompt comes twice.
    """
    texts = [_plain(each.text) for each in prompts]
    if twice := next((text for text in texts if texts.count(text) > 1), None):
        raise InputError(f"the prompt {twice!r} is given twice; a prompt asks for one class")
    if "" in texts:
        raise InputError("an empty prompt is not allowed: it is the null label")
    first = []
    for name in class_names(prompts):
        own = [each for each in prompts if each.name == name and not each.held_out]
        if not own:
            raise InputError(f"{name!r} has only held-out prompts; one to train on is needed")
        first.append(own[0])
    return (*first, *(each for each in prompts if each not in first))


def embed(folder: Path, prompts: Sequence[Prompt]) -> Prompts:
    """Return the prompts with their embeddings by the tokenizer and text encoder of a Stable Diffusion folder.

    Raises:
        InputError: the folder's text encoder is missing, damaged or no CLIPTextModel.
    """
    prompts = ordered(prompts)
    count = len(class_names(prompts))
    texts = [each.text for each in prompts]
    return Prompts(prompts, _encode(folder, [*texts[:count], "", *texts[count:]]))


@torch.no_grad()
def _encode(folder: Path, texts: list[str]) -> Tensor:
    from transformers import CLIPTextModel, CLIPTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    _validate_encoder(folder)
    try:
        tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
        encoder = CLIPTextModel.from_pretrained(
            folder / "text_encoder", use_safetensors=True, local_files_only=True, dtype=torch.float32
        )
    except Exception as error:  # transformers raises a dozen types for a damaged file
        raise InputError(f"{folder} has no readable text encoder: {str(error).splitlines()[0]}") from error
    limit = min(tokenizer.model_max_length, encoder.config.max_position_embeddings)
    inputs = tokenizer(texts, padding="max_length", max_length=limit, truncation=True, return_tensors="pt")
    for text, ids in zip(texts, tokenizer(texts)["input_ids"], strict=True):
        if len(ids) > limit:
            note(f"the prompt {text!r} has more than {limit} tokens; its end is cut off", stacklevel=4)
    mask = inputs["attention_mask"] if getattr(encoder.config, "use_attention_mask", False) else None
    return encoder.eval()(inputs["input_ids"], attention_mask=mask)[0]


def _validate_encoder(folder: Path) -> None:
    path = folder / "text_encoder" / "config.json"
    try:
        kind = json.loads(path.read_text()).get("model_type")
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(
            f"{path} is missing or is not JSON: without a text encoder no prompt can be encoded"
        ) from error
    if kind not in ("clip_text_model", "clip"):
        raise InputError(
            f"{folder} has the text encoder {kind}; only CLIP's, as in Stable Diffusion 1 and 2, can be used"
        )


def from_json(source: str, content: Any) -> tuple[Prompt, ...]:
    """Return prompts from JSON; InputError where it holds none."""
    try:
        return tuple(Prompt(str(each["prompt"]), str(each["name"]), bool(each["held_out"])) for each in content)
    except (KeyError, TypeError) as error:
        raise InputError(f"{source}: its prompts are damaged; each has prompt, name, held_out") from error


def _rows(prompts: Sequence[Prompt], count: int) -> list[tuple[int, Prompt]]:
    """Return each prompt with its row; the empty prompt's row K is left out."""
    return [(row + (row >= count), each) for row, each in enumerate(prompts)]


def _choices(prompts: Sequence[Prompt], names: tuple[str, ...]) -> tuple[Tensor, Tensor]:
    """Return, for every row, how many rows it may be told by in training, and which; others than classes by themselves."""
    by_name: dict[str, list[int]] = {name: [] for name in names}
    for row, each in _rows(prompts, len(names)):
        if not each.held_out:
            by_name[each.name].append(row)
    listed = [by_name[name] for name in names] + [[row] for row in range(len(names), len(prompts) + 1)]
    widest = max(map(len, listed))
    padded = [rows + rows[:1] * (widest - len(rows)) for rows in listed]
    return torch.tensor([len(rows) for rows in listed]), torch.tensor(padded)


def _plain(text: str) -> str:
    return " ".join(text.split()).lower()

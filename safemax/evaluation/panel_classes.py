"""Which retained classes the panel draws and judges: all, or of a model of many classes some, the same for every model compared."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from safemax.diffusion.model import Diffusion
from safemax.errors import InputError, unknown

MANY, SOME = 100, 20  # classes up to which auto takes all retained ones, and how many it takes of more
ALL, AUTO = "all", "auto"


def choose(choice: str, diffusion: Diffusion, forget: Sequence[int], seed: int) -> str:
    """Return the names of the retained classes that a choice means, so that every model is asked for the same; auto or all for all.

    Half of a number are those nearest to the forgotten ones, by what tells the network its classes (label embeddings, or those
    of prompts); the rest are drawn at random.

    Args:
        choice: auto, all, a number, or names.
        diffusion: the model before its correction.
        forget: the forgotten labels.
        seed: of the random ones.

    Raises:
        InputError: no such class, or fewer classes than the number.
    """
    names = diffusion.class_names
    retained = [k for k in range(len(names)) if k not in forget]
    count = _count(choice, len(retained))
    if count is None:
        labels(choice, names, forget)
        return choice
    if count == len(retained):
        return AUTO if count <= MANY else ALL
    if commas := [name for name in names if "," in name]:
        raise InputError(f"retain_classes = {choice}: {commas[0]!r} has a comma, which separates names in a list")
    order = _nearest(diffusion, forget, retained)
    near, rest = order[: -(-count // 2)], order[-(-count // 2) :]
    random = torch.randperm(len(rest), generator=torch.Generator().manual_seed(seed))[: count - len(near)]
    return _listed(names[k] for k in sorted([*near, *(rest[i] for i in random.tolist())]))


def labels(choice: str, class_names: Sequence[str], forget: Sequence[int]) -> tuple[int, ...]:
    """Return the retained labels that `choose` named; auto, as it leaves it, means all.

    Raises:
        InputError: no such class, or none but forgotten ones.
    """
    retained = [k for k in range(len(class_names)) if k not in forget]
    if choice in (AUTO, ALL):
        return tuple(retained)
    named = [name.strip() for name in choice.split(",") if name.strip()]
    if missing := [name for name in named if name not in class_names]:
        raise unknown("class in retain_classes", missing[0], class_names[:SOME])
    chosen = tuple(k for k in retained if class_names[k] in named)
    if not chosen and retained:
        raise InputError(f"retain_classes = {choice} names no class that is retained")
    return chosen


def usual(retained: int) -> int:
    """Return how many classes auto takes of so many retained ones."""
    return retained if retained <= MANY else SOME


def _count(choice: str, retained: int) -> int | None:
    """Return how many classes a choice asks for, None where it names them."""
    if choice == ALL:
        return retained
    if choice == AUTO:
        return usual(retained)
    if not (choice.isascii() and choice.isdigit()):
        return None
    if not 1 <= int(choice) <= retained:
        raise InputError(f"retain_classes = {choice} is not allowed; it is from 1 to {retained}, auto, all or names")
    return int(choice)


def _nearest(diffusion: Diffusion, forget: Sequence[int], retained: Sequence[int]) -> list[int]:
    """Return retained labels, the nearest to any forgotten one first."""
    embedded = diffusion.class_embeddings().cpu()
    embedded = torch.nn.functional.normalize(embedded - embedded.mean(0), dim=1)
    alike = (embedded[list(retained)] @ embedded[list(forget)].T).amax(1) if forget else torch.zeros(len(retained))
    return [retained[i] for i in alike.argsort(descending=True, stable=True).tolist()]


def _listed(names: Iterable[str]) -> str:
    return ",".join(names) + ","  # the last comma tells the one name 7 from seven classes

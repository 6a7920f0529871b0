"""Damage of files and texts: bits, cuts, zeroed blocks, and JSON or YAML whose parts have other values, types or shapes."""

from __future__ import annotations

import copy
import json
import math
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save

_DEEP = "[" * 5000 + "]" * 5000
_VALUES: tuple[Any, ...] = (
    *(None, True, "", "text", "\x00", "ä" * 3000, -1, 0, 3, 10**9, 10**400, 1e308, math.nan, math.inf, -math.inf),
    *([], {}, [[]], [None], ["a", "a"], {"": None}, {"a": {"b": [1]}}, [1, "a", {}]),
)


def damaged_bytes(content: bytes, chance: random.Random) -> bytes:
    """Return bytes as a disk, a cut or another program leaves them; never the same bytes."""
    if not content:
        return b"?"
    at, end = sorted((chance.randrange(len(content)), chance.randrange(len(content)) + 1))
    changes = [
        content[:at] + bytes([content[at] ^ 1 << chance.randrange(8)]) + content[at + 1 :],
        content[:at],
        content[:at] + bytes(end - at) + content[end:],
        content[:at] + chance.randbytes(8) + content[at:],
        content + b"\0" * 64,
        content[end:],
        b"",
        b"\xff\xfe\x00text",
        b"null",
    ]
    return next(each for each in (*chance.sample(changes, len(changes)), b"?") if each != content)


def damaged_json(text: str, chance: random.Random) -> str:
    """Return JSON with one part replaced, removed or added, now and then no JSON at all."""
    if chance.random() < 0.1:
        return chance.choice([text[: chance.randrange(len(text))], _DEEP, text + text, "5", "NaN", '"text"'])
    return json.dumps(damaged_value(json.loads(text), chance))


def damaged_value(value: Any, chance: random.Random) -> Any:
    """Return a value with one of its parts, at any depth, replaced, removed or added."""
    value = copy.deepcopy(value)
    places = list(_places(value))
    if not places or chance.random() < 0.05:
        return chance.choice(_VALUES)
    holder, key = chance.choice(places)
    action = chance.random()
    if action < 0.2:
        del holder[key]
    elif action < 0.3 and isinstance(holder, dict):
        holder["added"] = chance.choice(_VALUES)
    elif action < 0.4 and isinstance(holder, list):
        holder.extend(copy.deepcopy(holder))
    else:
        holder[key] = chance.choice(_VALUES)
    return value


def damaged_tensors(content: bytes, chance: random.Random) -> bytes:
    """Return a safetensors file, whole in itself, with one tensor replaced, removed or of other numbers, type or shape."""
    tensors = load(content)
    name = chance.choice(sorted(tensors))
    value = tensors[name]
    changes: list[Callable[[], torch.Tensor]] = [
        lambda: torch.full(value.shape, math.nan),
        lambda: torch.full(value.shape, math.inf),
        lambda: value.double(),
        lambda: value.to(torch.uint8),
        lambda: value.flatten()[:-1],
        lambda: torch.zeros(0),
        lambda: value.unsqueeze(0),
    ]
    tensors[name] = chance.choice(changes)()
    if chance.random() < 0.2:
        tensors["added" if chance.random() < 0.5 else f"{name}.other"] = tensors.pop(name)
    length = int.from_bytes(content[:8], "little")
    return save(tensors, metadata=json.loads(content[8 : 8 + length]).get("__metadata__"))


def replace_by_damage(path: Path, chance: random.Random) -> None:
    """Damage a file in place, now and then as a whole: it is absent, or a folder."""
    content, kind = path.read_bytes(), chance.random()
    if kind < 0.06:
        path.unlink()
        if kind < 0.03:
            path.mkdir()
    elif path.suffix in (".json", ".journal", ".jsonl") and kind < 0.7:
        path.write_text(_damaged_lines(content.decode(), chance, path.suffix != ".json"))
    elif path.suffix == ".safetensors" and kind < 0.5:
        path.write_bytes(damaged_tensors(content, chance))
    else:
        path.write_bytes(damaged_bytes(content, chance))


def _damaged_lines(text: str, chance: random.Random, by_line: bool) -> str:
    if not by_line:
        return damaged_json(text, chance)
    lines = text.splitlines()
    number = chance.randrange(len(lines))
    lines[number] = chance.choice([damaged_json(lines[number], chance), "", "5", lines[number] * 2, "\0" * 64])
    return "\n".join(lines) + "\n"


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    keys = value.keys() if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in list(keys):
        yield value, key
        yield from _places(value[key])


def restore(folder: Path, original: Path) -> None:
    """Bring a folder back to what another one holds."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(original, folder)

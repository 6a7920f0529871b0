"""Two caches without a common disk: a worker is given what it needs of the driver's, and gives back what it has made.

Files cross as bytes and are verified by their digests. The driver puts each into Ray's object store once, which carries it to a
machine once, however many workers ask there; the machine's cache keeps it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from pipelines.engine.worker import Message
from safemax.data import sources
from safemax.errors import InputError
from safemax.storage import atomic, cache

WANT, MADE = "want", "made"  # kinds of a worker's messages that are answered with files, and once files are kept
MODELS = ("bases", "gold", "models")  # kinds of work whose folders a job names, and which it reads as they are
_OWN = ("checkpoints", "clusters", "steps", "sources", "rates")  # parts of paths that stay where they are

Digests = dict[str, str]
"""sha256 (hex) of files by their names, which are paths below the cache."""


class CacheFiles:
    """The files of one machine's cache.

    Args:
        root: of the cache.
    """

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        self._digests: dict[tuple[Path, int, int], str] = {}
        self._seen: dict[str, tuple[int, int]] = {}

    def below(self, name: str) -> Digests:
        """Return the files of a name, which is a file's or a folder's; {} where there is none."""
        place = self._path(name)
        names = [name] if place.is_file() else self._names(place)
        return self._digests_of(names)

    def remember(self) -> None:
        """Take note of all files, so that `changed` returns what comes later."""
        self._seen = self._states()

    def changed(self) -> Digests:
        """Return the files that were written since the last call, or since `remember`, but those of work under way."""
        now = self._states()
        names = [name for name, state in now.items() if self._seen.get(name) != state]
        self._seen = now
        return self._digests_of(names)

    def store(self, contents: Mapping[str, bytes], digests: Digests) -> None:
        """Write files that came from another machine; a folder of a kind of work appears with all of them, or not at all.

        Raises:
            InputError: bytes do not have their digest, or a name is not one of a file below the cache.
        """
        for name, content in contents.items():
            if hashlib.sha256(content).hexdigest() != digests[name]:
                raise InputError(f"{name} arrived damaged from another machine; the same command sends it again")
        for entry, names in _by_entry(contents).items():
            place = self._path(entry)
            if len(names) == 1 or place.exists():
                for name in names:
                    atomic.write_bytes(self._path(name), contents[name])
            else:
                place.parent.mkdir(parents=True, exist_ok=True)
                atomic.create_folder(place, lambda new, names=names, entry=entry: _fill(new, entry, names, contents))  # type: ignore[misc]
        self._seen |= {name: self._state(name) for name in contents}

    def _names(self, place: Path) -> list[str]:
        files = (Path(folder, file) for folder, _, every in os.walk(place) for file in every)
        names = (PurePosixPath(each.relative_to(self.root)) for each in files)
        return [str(each) for each in names if len(each.parts) > 1 and not any(map(_stays, each.parts))]

    def _path(self, name: str) -> Path:
        return path_below(self.root, name)

    def _states(self) -> dict[str, tuple[int, int]]:
        states = {}
        for name in self._names(self.root):
            with contextlib.suppress(FileNotFoundError):  # another worker's, which has just thrown it away
                states[name] = self._state(name)
        return states

    def _digests_of(self, names: Iterable[str]) -> Digests:
        digests = {}
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                digests[name] = self._digest(name)
        return digests

    def _state(self, name: str) -> tuple[int, int]:
        facts = (self.root / name).stat()
        return facts.st_size, facts.st_mtime_ns

    def _digest(self, name: str) -> str:
        path = self.root / name
        key = (path, *self._state(name))
        if key not in self._digests:
            self._digests[key] = hashlib.sha256(path.read_bytes()).hexdigest()
        return self._digests[key]


class Relay:
    """A worker's side, on a machine whose cache is its own.

    Args:
        root: of the machine's cache.
        origin: root of the driver's.
        ask: sends a message to the driver and returns the answer.
    """

    def __init__(self, root: Path, origin: Path, ask: Callable[[Message], Message]) -> None:
        root.mkdir(parents=True, exist_ok=True)
        self.files, self._origin, self._ask = CacheFiles(root), origin, ask
        self._asked: set[str] = set()
        self.files.remember()
        cache.bring_with(self._bring)

    def moved(self, value: Any) -> Any:
        """Return JSON whose paths below the driver's cache are below this one; models that it names are brought."""
        if isinstance(value, dict):
            return {key: self.moved(each) for key, each in value.items()}
        if isinstance(value, list):
            return [self.moved(each) for each in value]
        if not isinstance(value, str) or not value.startswith(f"{self._origin}/"):
            return value
        path = self.files.root / Path(value).relative_to(self._origin)
        if path.relative_to(self.files.root).parts[0] in MODELS:
            self._bring(path)
        return str(path)

    def give_back(self) -> None:
        """Give the driver what was made since the last call."""
        if made := self.files.changed():
            self._ask({"kind": MADE, "files": made})

    def _bring(self, path: Path) -> None:
        """Ask for a file or a folder, once; nothing happens where the driver has none, or has what is here."""
        if not path.absolute().is_relative_to(self.files.root):
            return
        place = PurePosixPath(path.absolute().relative_to(self.files.root))
        name, whole = str(place), {str(place), *map(str, place.parents)}
        if whole & self._asked or set(place.parts) & set(_OWN) - {"sources"}:
            return
        self._asked.add(name)
        answer = self._ask({"kind": WANT, "name": name, "have": self.files.below(name)})
        self.files.store(answer["contents"], answer["digests"])


class Origin:
    """The driver's side.

    Args:
        ray: the module.
    """

    def __init__(self, ray: Any) -> None:
        self._ray, self.files = ray, CacheFiles(cache.root())
        self._put: dict[str, Any] = {}  # references into the object store, by digest

    def answer(self, actor: Any, message: Message) -> None:
        """Answer a worker's message; one that dies meanwhile is noticed elsewhere."""
        try:
            if message["kind"] == MADE:
                self._keep(actor, message["files"])
                actor.bring.remote("{}")
            else:
                self._give(actor, message["name"], message["have"])
        except self._ray.exceptions.RayError:
            return
        except (InputError, OSError) as error:  # damaged on its way, or thrown away meanwhile: the job begins anew
            print(f"a worker is replaced: {error}", file=sys.stderr, flush=True)
            self._ray.kill(actor)

    def _give(self, actor: Any, name: str, have: Digests) -> None:
        here = self._here(name)
        if have and not here:
            self._keep(actor, have)
        digests = {each: digest for each, (digest, _) in here.items() if have.get(each) != digest}
        references = [self._reference(*here[each]) for each in digests]
        actor.bring.remote(json.dumps(digests), *references)

    def _here(self, name: str) -> dict[str, tuple[str, Path]]:
        """Return digest and path of each file of a name; decoded data have names of their own."""
        kind, _, key = name.partition("/")
        if kind == "sources":
            found = sources.decoded(key)
            return {f"{name}/{path.name}": (hashlib.sha256(path.read_bytes()).hexdigest(), path) for path in found}
        return {each: (digest, self.files.root / each) for each, digest in self.files.below(name).items()}

    def _reference(self, digest: str, path: Path) -> Any:
        if digest not in self._put:
            self._put[digest] = self._ray.put(path.read_bytes())
        return self._put[digest]

    def _keep(self, actor: Any, digests: Digests) -> None:
        """Fetch what this cache lacks; of what two machines made, the first stays, as others have used it."""
        lacking = {name: digest for name, digest in digests.items() if name not in self.files.below(name)}
        contents = {name: self._ray.get(actor.read.remote(name)) for name in lacking}
        gone = {entry for entry, names in _by_entry(contents).items() if any(contents[name] is None for name in names)}
        whole = {name: each for name, each in contents.items() if _entry(name) not in gone and each is not None}
        self.files.store(whole, lacking)


def _stays(part: str) -> bool:
    """Return whether a file is under way or of its machine alone, by a part of its path."""
    return part in _OWN or part.endswith((".tmp", ".parts", "-unfinished"))


def path_below(root: Path, name: str) -> Path:
    """Return the path of a name; InputError where it leads out of the cache."""
    path = root / name
    if ".." in Path(name).parts or not path.is_relative_to(root):
        raise InputError(f"{name} is not below the cache")
    return path


def _by_entry(names: Iterable[str]) -> dict[str, list[str]]:
    """Return names by the piece of work that they are part of, such as judges/KEY."""
    entries: dict[str, list[str]] = {}
    for name in names:
        entries.setdefault(_entry(name), []).append(name)
    return entries


def _entry(name: str) -> str:
    return "/".join(name.split("/")[:2])


def _fill(folder: Path, entry: str, names: Iterable[str], contents: Mapping[str, bytes]) -> None:
    for name in names:
        path = folder / PurePosixPath(name).relative_to(entry)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(contents[name])

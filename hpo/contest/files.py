"""The result files of a contest: what of it is done, on this machine or another, and need not be done again."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from hpo.contest.config import SEARCH_BASE, TUNED, Contest, Correction
from safemax.errors import InputError, note
from safemax.evaluation.measure import code_digest
from safemax.methods import find
from safemax.reports.contest_tables import BASE, DEFAULT, GOLD
from safemax.storage import atomic, source_digest


def code_of(method: str) -> str:
    """Return the digest of the code that a method's numbers depend on: its own, the trainer's and the measurements'."""
    own = () if method in (BASE, GOLD) else (find(method).__module__,)
    return f"{source_digest.digest('safemax.training.trainer', *own)[:16]}-{code_digest()[:16]}"


@dataclass(frozen=True)
class ResultFiles:
    """The files of one folder that a contest may take over.

    Args:
        contest: what they must be of.
    """

    contest: Contest

    @property
    def folder(self) -> Path:
        """Where they are."""
        return Path(self.contest.options.files)

    def waiting(self) -> list[tuple[str, int]]:
        """Return (method, base) of the entries that no file holds, in the order of work."""
        return [(name, base) for name, base in self.contest.entries() if not self.has(name, base)]

    def is_searched(self, method: str) -> bool:
        """Whether a method need not be searched: by a file, or because there is nothing to search."""
        return not self.contest.is_tuned(method) or self.search(method) is not None

    def bases(self, waiting: Sequence[tuple[str, int]]) -> list[int]:
        """Return the numbers of the bases that entries need, the search's among them."""
        searched = any(not self.is_searched(name) for name, _ in waiting)
        return sorted({base for _, base in waiting} | ({SEARCH_BASE} if searched else set()))

    def write(self, content: Mapping[str, Any]) -> Path:
        """Write what a method gave on a base, and return its file."""
        path = self._path(content["method"], content["base"])
        atomic.write_bytes(path, (json.dumps(content, indent=None) + "\n").encode())
        return path

    def has(self, method: str, base: int) -> bool:
        """Whether a file holds all that the contest asks of a method on a base; one that older code made counts, with a note."""
        path = self._path(method, base)
        content = self._contents.get(path)
        if content is None or not self._covers(content):
            return False
        if content.get("code") != code_of(method):
            note(f"{path} was made by other code and is kept; delete it to measure {method} again")
        return True

    def search(self, method: str) -> dict[str, Any] | None:
        """Return the search of a method by the contest's trials and classes that a file of any base holds."""
        found = [each["search"] for each in self._contents.values() if each["method"] == method]
        return next((each for each in found if self._is_wanted(each)), None)

    def _path(self, method: str, base: int) -> Path:
        return self.folder / f"{method}-base{base}.json"

    @cached_property
    def _contents(self) -> dict[Path, dict[str, Any]]:
        """The files of this contest; which judges `auto` stood for is not compared, as only a worker knows."""
        read = {path: _read(path) for path in sorted(self.folder.glob("*-base*.json"))}
        wanted = json.loads(json.dumps(self.contest.describe()))
        return {path: each for path, each in read.items() if _without_judges(each) == wanted}

    def _covers(self, content: Mapping[str, Any]) -> bool:
        method, search = content["method"], content["search"]
        is_tuned = self.contest.is_tuned(method)
        if is_tuned and not self._is_wanted(search):
            return False
        variants = [DEFAULT, *([TUNED] if is_tuned else [])]
        held = {(each["variant"], each["class"], each["seed"]): each for each in content["corrections"]}
        return all(
            _measures(held.get((variant, self.contest.class_names[each.forget], each.seed)), each)
            for variant in variants
            for each in self.contest.corrections(method, content["base"], {})
        )

    def _is_wanted(self, search: Mapping[str, Any] | None) -> bool:
        if search is None:
            return False
        is_as_long = len(search["trials"]) == self.contest.options.tune
        return is_as_long and search.get("classes") == self.contest.tune_names


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return {"search": None, "corrections": [], **content} if {"contest", "method", "base"} <= set(content) else {}
    except (ValueError, TypeError) as error:
        raise InputError(f"files: {path} is not a result file ({error}); move it elsewhere") from None


def _without_judges(content: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in content.get("contest", {}).items() if key != "judges"}


def _measures(held: Mapping[str, Any] | None, wanted: Correction) -> bool:
    if held is None:
        return False
    seeds = {row["evaluation"] for row in held["rows"]}
    return seeds >= set(wanted.evaluations) and set(held["attacks"]) >= set(wanted.attacks)

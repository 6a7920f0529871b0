"""A storage that cannot be used is refused in one line before any trial, and nothing of it is changed."""

from __future__ import annotations

import os
import runpy
import sys
from pathlib import Path

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from hpo import storage
from safemax.errors import InputError
from safemax.storage import cache
from tests.hpo.conftest import BuildSearch

CASES = Path(os.environ.get("SAFEMAX_DATA", "absent")).parent / "cases"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The bytes of a journal of three trials."""
    path = tmp_path_factory.mktemp("journal") / "whole.journal"
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(study_name="toy", storage=JournalStorage(JournalFileBackend(str(path))))
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=3)
    return path.read_bytes()


def trials(address: str | Path) -> int:
    with storage.opened(str(address), "toy", Path("unused")) as store:
        return len(optuna.load_study(study_name="toy", storage=store.storage).trials)


def damaged(whole: bytes, how: str) -> bytes:
    """Return a journal damaged elsewhere than in its last line."""
    lines = whole.split(b"\n")
    k = len(lines) // 2
    changes: dict[str, list[bytes]] = {
        "merged": [lines[k][: len(lines[k]) // 2] + lines[k + 1]],
        "blank": [lines[k], b"", lines[k + 1]],
        "NULs": [b"\0" * 64, lines[k + 1]],
        "number": [b"5", lines[k + 1]],
        "null": [b"null", lines[k + 1]],
        "list": [b"[1]", lines[k + 1]],
        "not UTF-8": [b'{"op_code": "\xff"}', lines[k + 1]],
        "deep": [b"[" * 20000, lines[k + 1]],
        "no op_code": [b'{"worker_id": "a"}', lines[k + 1]],
        "text as op_code": [b'{"op_code": "4"}', lines[k + 1]],
        "unknown op_code": [b'{"op_code": 99, "worker_id": "a"}', lines[k + 1]],
        "operation without fields": [b'{"op_code": 4, "worker_id": "a"}', lines[k + 1]],
        "trial of no study": [b'{"op_code": 4, "worker_id": "a", "study_id": 9}', lines[k + 1]],
    }
    return b"\n".join([*lines[:k], *changes[how], *lines[k + 2 :]])


@pytest.mark.parametrize(
    "how",
    [
        *("merged", "blank", "NULs", "number", "null", "list", "not UTF-8", "deep", "no op_code", "text as op_code"),
        *("unknown op_code", "operation without fields"),
    ],
)
def test_a_journal_that_is_damaged_in_its_middle_is_refused_and_left_as_it_is(
    whole: bytes, tmp_path: Path, how: str
) -> None:
    path = tmp_path / "toy.journal"
    path.write_bytes(damaged(whole, how))
    with pytest.raises(InputError, match=f"^storage = {path} is damaged and was not changed: ") as refusal:
        trials(path)
    assert "\n" not in str(refusal.value)
    assert path.read_bytes() == damaged(whole, how)


@pytest.mark.parametrize(
    "tail",
    [b"\0" * 64 + b"\n", b"\0" * 64, b"\n\n", b'{"op_code": 4, "wor', b'{"op_code": 4, "wor' + b"\0" * 9 + b"\n"],
    ids=str,
)
def test_what_a_power_cut_leaves_at_the_end_is_removed(whole: bytes, tmp_path: Path, tail: bytes) -> None:
    path = tmp_path / "toy.journal"
    path.write_bytes(whole + tail)
    assert trials(path) == 3
    assert path.read_bytes() == whole


@pytest.mark.skipif(not CASES.is_dir(), reason="no folder `cases` beside SAFEMAX_DATA")
@pytest.mark.parametrize(("how", "usable"), [("nul", True), ("merge", False), ("blank", False)])
def test_the_case_of_a_damaged_journal(
    whole: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, usable: bool
) -> None:
    path = tmp_path / "toy.journal"
    path.write_bytes(whole)
    monkeypatch.setattr(sys, "argv", ["damaged_journal.py", str(path), how])
    runpy.run_path(str(CASES / "damaged_journal.py"))
    if usable:
        assert trials(path) == 3
    else:
        with pytest.raises(InputError, match="is damaged and was not changed: line"):
            trials(path)


@pytest.mark.parametrize("length", [0, 1, 5])
def test_an_empty_or_just_begun_journal_is_a_new_one(whole: bytes, tmp_path: Path, length: int) -> None:
    path = tmp_path / "toy.journal"
    path.write_bytes(whole[:length])
    with storage.opened(str(path), "toy", path) as store:
        assert store.storage.get_all_studies() == []


def test_a_path_that_is_no_journal_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for place, why in {
        tmp_path: "is not a file",
        tmp_path / "file" / "toy.journal": "cannot be used: ",
        tmp_path / ("x" * 300): "cannot be used: File name too long",
        Path("/dev/null"): "is not a file",
    }.items():
        with pytest.raises(InputError, match=f"^storage = .*{why}"):
            trials(place)


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_journal_that_cannot_be_written_is_refused(whole: bytes, tmp_path: Path) -> None:
    path = tmp_path / "toy.journal"
    path.write_bytes(whole)
    path.chmod(0o400)
    with pytest.raises(InputError, match="cannot be used: Permission denied"):
        trials(path)


@pytest.mark.parametrize("study", ["../../x", "a/b", "x" * 600, ".."])
def test_a_study_of_any_name_has_its_files_in_the_folder_of_studies(tiny_search: BuildSearch, study: str) -> None:
    config = tiny_search(study=study)
    folder = cache.folder("studies").resolve()
    assert config.study == study
    assert config.folder.resolve().parent == config.journal.resolve().parent == folder
    assert len(config.journal.name) < 255


@pytest.mark.parametrize(
    "address",
    [
        *("postgresql://ana:secret@host:port/db", "postgresql://ana:secret@host:99999x/db"),
        *("postgresql://user@x:secret@host/db", "postgresql://ana@host:secret@x/db", "postgresql://ana:se:cret@h:p/db"),
    ],
)
def test_an_address_with_a_bad_port_is_refused_without_its_password(address: str) -> None:
    with pytest.raises(InputError, match=r"^storage = postgresql://") as refusal:
        trials(address)
    assert "secret" not in str(refusal.value)
    assert "cret" not in str(refusal.value)


@pytest.mark.parametrize("address", ["mysql://ana:secret@host/db", "sqlite:///x.db", "s3://b/x", "http://token@h"])
def test_an_address_of_another_kind_is_refused_without_its_password(address: str) -> None:
    with pytest.raises(InputError, match="is not allowed; it is auto, a path or postgresql://...") as refusal:
        trials(address)
    assert "secret" not in str(refusal.value)
    assert "token" not in str(refusal.value)

"""A manifest sees every change of a folder."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from safemax.errors import InputError
from safemax.storage import manifest


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "version"
    (folder / "unet").mkdir(parents=True)
    (folder / "MLmodel").write_text("flavors: {}\n")
    (folder / "evidence.json").write_text('{"forgotten": ["a"]}')
    (folder / "unet" / "weights.safetensors").write_bytes(bytes(range(64)))
    return folder


def test_an_untouched_folder_verifies_to_the_digest_that_was_written(folder: Path) -> None:
    digest = manifest.write(folder)
    assert manifest.verify(folder) == digest


def test_equal_folders_have_equal_digests_and_a_changed_byte_another(folder: Path, tmp_path: Path) -> None:
    first = manifest.write(folder)
    copy = tmp_path / "elsewhere"
    os.rename(folder, copy)
    assert manifest.write(copy) == first
    (copy / "evidence.json").write_text('{"forgotten": ["b"]}')
    assert manifest.write(copy) != first


def test_every_single_flipped_bit_is_refused(folder: Path) -> None:
    manifest.write(folder)
    flips = 0
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        content = path.read_bytes()
        for bit in range(0, 8 * len(content), 3):
            changed = bytearray(content)
            changed[bit // 8] ^= 1 << bit % 8
            path.write_bytes(bytes(changed))
            with pytest.raises(InputError):
                manifest.verify(folder)
            flips += 1
        path.write_bytes(content)
    manifest.verify(folder)
    assert flips > 1000


def _truncate(folder: Path, chance: random.Random) -> None:
    path = folder / chance.choice(["MLmodel", "evidence.json", "unet/weights.safetensors", "manifest.json"])
    path.write_bytes(path.read_bytes()[: chance.randrange(path.stat().st_size)])


def _remove(folder: Path, chance: random.Random) -> None:
    (folder / chance.choice(["MLmodel", "evidence.json", "unet/weights.safetensors", "manifest.json"])).unlink()


def _add(folder: Path, chance: random.Random) -> None:
    (folder / chance.choice(["", "unet"]) / f"{chance.random()}.py").write_text("")


def _swap(folder: Path, chance: random.Random) -> None:
    a, b = chance.sample([folder / "MLmodel", folder / "evidence.json", folder / "unet/weights.safetensors"], 2)
    content = a.read_bytes()
    a.write_bytes(b.read_bytes())
    b.write_bytes(content)


def _rewrite_manifest(folder: Path, chance: random.Random) -> None:
    about = json.loads((folder / "manifest.json").read_text())
    entry = about["files"][chance.choice(sorted(about["files"]))]
    entry[chance.choice(["sha256", "size"])] = chance.choice([0, None, "", [], "0" * 64])
    (folder / "manifest.json").write_text(json.dumps(about, indent=1, sort_keys=True) + "\n")


def _replace_manifest(folder: Path, chance: random.Random) -> None:
    odd = ["", "[]", "null", '{"files": [["a", 1], [2, 3]]}', '{"files": {}}', "[" * 100_000, "\u2028", '{"files": 1}']
    (folder / "manifest.json").write_text(chance.choice(odd))


@pytest.mark.parametrize("mutate", [_truncate, _remove, _add, _swap, _rewrite_manifest, _replace_manifest])
def test_a_mutated_folder_is_refused(folder: Path, mutate: Callable[[Path, random.Random], None]) -> None:
    manifest.write(folder)
    for seed in range(40):
        copy = shutil.copytree(folder, folder.with_name(f"copy{seed}"))
        mutate(copy, random.Random(seed))
        with pytest.raises(InputError):
            manifest.verify(copy)


def test_the_refusal_is_one_line_that_names_the_file(folder: Path) -> None:
    manifest.write(folder)
    (folder / "unet" / "weights.safetensors").unlink()
    with pytest.raises(InputError) as refusal:
        manifest.verify(folder)
    assert str(refusal.value) == f"{folder}: unet/weights.safetensors is missing; the manifest lists it"


@pytest.mark.parametrize("name", ["model.pkl", "pytorch_model.bin", ".git", "unet/.hidden.json", "Makefile"])
def test_what_no_version_may_hold_is_refused_at_writing_and_at_verifying(folder: Path, name: str) -> None:
    manifest.write(folder)
    (folder / name).write_text("")
    with pytest.raises(InputError, match=name.split("/")[-1]):
        manifest.verify(folder)
    with pytest.raises(InputError, match=name.split("/")[-1]):
        manifest.write(folder)


def test_a_symlink_is_refused_even_to_a_file_with_the_right_content(folder: Path, tmp_path: Path) -> None:
    manifest.write(folder)
    (folder / "evidence.json").rename(tmp_path / "evidence.json")
    (folder / "evidence.json").symlink_to(tmp_path / "evidence.json")
    with pytest.raises(InputError, match="symlink"):
        manifest.verify(folder)


def test_tolerated_names_are_not_looked_at(folder: Path) -> None:
    digest = manifest.write(folder)
    (folder / "unet" / "__pycache__").mkdir()
    (folder / "unet" / "__pycache__" / "x.pyc").write_text("")
    with pytest.raises(InputError):
        manifest.verify(folder)
    assert manifest.verify(folder, tolerate=["__pycache__"]) == digest


def test_a_kill_while_writing_does_not_stop_the_next_attempt(folder: Path) -> None:
    (folder / "manifest.json.1.tmp").write_text("half")
    digest = manifest.write(folder)
    assert manifest.verify(folder) == digest

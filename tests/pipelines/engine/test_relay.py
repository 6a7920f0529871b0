"""Files of two caches without a common disk: verified, whole or absent, sent once, and never outside the caches."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pipelines.cli.options import DataOptions
from pipelines.engine.relay import CacheFiles, Origin, Relay, path_below
from pipelines.engine.worker import Message
from safemax.errors import InputError
from safemax.storage import cache
from tests.support import tiny_models


class DirectRay:
    """Ray's calls within one process: an actor's method is called at once."""

    exceptions = SimpleNamespace(RayError=ConnectionError)

    def __init__(self) -> None:
        self.puts = 0

    def put(self, value: bytes) -> bytes:
        self.puts += 1
        return value

    def get(self, value: Any) -> Any:
        return value


class Machine:
    """A worker's machine: what an actor has of it, and its relay."""

    def __init__(self, root: Path, origin: Origin) -> None:
        self.answers: list[Message] = []
        self.root = root
        self.bring = SimpleNamespace(remote=self._bring)
        self.read = SimpleNamespace(remote=lambda name: path_below(root, name).read_bytes())

        def ask(message: Message) -> Message:
            origin.answer(self, json.loads(json.dumps(message)))
            return self.answers.pop()

        self.relay = Relay(root, origin.files.root, ask)

    def _bring(self, digests: str, *contents: bytes) -> None:
        named = json.loads(digests)
        self.answers.append({"digests": named, "contents": dict(zip(named, contents, strict=True))})


@pytest.fixture
def ray() -> DirectRay:
    return DirectRay()


@pytest.fixture
def origin(tmp_path: Path, ray: DirectRay, monkeypatch: pytest.MonkeyPatch) -> Iterator[Origin]:
    (tmp_path / "driver").mkdir()
    monkeypatch.setenv("SAFEMAX_CACHE", str(tmp_path / "driver"))
    yield Origin(ray)
    cache.bring_with(None)


def write(root: Path, name: str, content: bytes) -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_bytes(content)


def test_a_folder_is_brought_whole_when_it_is_looked_for_and_put_once_for_all_machines(
    tmp_path: Path, origin: Origin, ray: DirectRay
) -> None:
    driver = origin.files.root
    write(driver, "judges/one/weights.safetensors", b"weights")
    write(driver, "judges/one/deep/about.json", b"{}")
    for name in ("a", "b"):
        machine = Machine(tmp_path / name, origin)
        assert cache.has(machine.root / "judges" / "one")
        assert (machine.root / "judges/one/weights.safetensors").read_bytes() == b"weights"
        assert (machine.root / "judges/one/deep/about.json").read_bytes() == b"{}"
        assert not cache.has(machine.root / "judges" / "two")
        machine.relay.give_back()
    assert ray.puts == 2
    assert len(list(driver.rglob("*.*"))) == 2  # nothing came back


def test_what_a_worker_makes_or_had_goes_to_the_driver_and_what_is_under_way_stays(
    tmp_path: Path, origin: Origin, ray: DirectRay
) -> None:
    write(tmp_path / "a", "judges/mine/weights.safetensors", b"of an earlier session")
    machine = Machine(tmp_path / "a", origin)
    assert cache.has(machine.root / "judges" / "mine")
    write(machine.root, "studies/s/trial-0001/weights/step.safetensors", b"result")
    write(machine.root, "studies/s/trial-0001/steps/step.safetensors", b"under way")
    write(machine.root, "samples/x.safetensors.7.tmp", b"under way")
    machine.relay.give_back()
    driver = origin.files.root
    assert (driver / "judges/mine/weights.safetensors").read_bytes() == b"of an earlier session"
    assert (driver / "studies/s/trial-0001/weights/step.safetensors").read_bytes() == b"result"
    assert len([each for each in driver.rglob("*") if each.is_file()]) == 2
    assert ray.puts == 0


def test_tensors_that_the_driver_has_are_not_made_again(tmp_path: Path, origin: Origin) -> None:
    cache.save_tensors(origin.files.root / "references" / "x.safetensors", {"x": torch.arange(3)})
    machine = Machine(tmp_path / "a", origin)
    found = cache.load_or_create(machine.root / "references" / "x.safetensors", lambda: pytest.fail("was kept"))
    assert found["x"].tolist() == [0, 1, 2]


def test_paths_of_the_drivers_cache_are_moved_and_models_that_a_job_names_are_brought(
    tmp_path: Path, origin: Origin
) -> None:
    driver = origin.files.root
    write(driver, "bases/digest/weights.safetensors", b"base")
    write(driver, "studies/s/trial-0000/weights/step.safetensors", b"large")
    machine = Machine(tmp_path / "a", origin)
    job = {"base": f"{driver}/bases/digest", "folders": [f"{driver}/studies/s", "/elsewhere"], "number": 1}
    root = machine.root
    expected = {"base": f"{root}/bases/digest", "folders": [f"{root}/studies/s", "/elsewhere"], "number": 1}
    assert machine.relay.moved(job) == expected
    assert (root / "bases/digest/weights.safetensors").read_bytes() == b"base"
    assert not (root / "studies").exists()


def test_data_come_decoded_to_a_machine_that_has_not_got_them(
    tmp_path: Path, origin: Origin, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_models.write_images(tmp_path / "tiny")
    options = DataOptions(data=str(tmp_path / "tiny"))
    here = options.load()
    (tmp_path / "tiny").rename(tmp_path / "gone")
    Machine(tmp_path / "a", origin)
    monkeypatch.setenv("SAFEMAX_CACHE", str(tmp_path / "a"))
    there = options.load()
    assert (there.digest, there.name, there.class_names) == (here.digest, here.name, here.class_names)
    assert not (origin.files.root / "sources").exists()  # nor does the driver's own file come back


def test_damaged_bytes_and_names_outside_the_cache_are_refused(tmp_path: Path) -> None:
    files, digest = CacheFiles(tmp_path / "a"), hashlib.sha256(b"x").hexdigest()
    with pytest.raises(InputError, match="judges/x arrived damaged from another machine"):
        files.store({"judges/x": b"y"}, {"judges/x": digest})
    for name in ("../x", "judges/../../x", "/etc/x"):
        with pytest.raises(InputError, match="is not below the cache"):
            files.store({name: b"x"}, {name: digest})
    assert not list(tmp_path.rglob("x"))


def test_of_what_two_machines_made_the_first_stays_and_a_folder_with_a_lost_file_is_not_kept(
    tmp_path: Path, origin: Origin
) -> None:
    for name, content in (("first", b"1"), ("second", b"2")):
        machine = Machine(tmp_path / name, origin)
        write(machine.root, "judges/KEY/model.safetensors", content)
        machine.relay.give_back()
    assert (origin.files.root / "judges/KEY/model.safetensors").read_bytes() == b"1"

    loser = Machine(tmp_path / "loser", origin)
    loser.read = SimpleNamespace(remote=lambda name: None if name.endswith("b") else b"a")
    for name in ("gold/KEY/a", "gold/KEY/b"):
        write(loser.root, name, b"a")
    loser.relay.give_back()
    assert not (origin.files.root / "gold").exists()

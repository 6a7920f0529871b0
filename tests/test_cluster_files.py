"""The files of examples/cluster can be read, ask for what this version has, and run commands that it knows."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines.cli.index import commands
from pipelines.cli.parameters import UsageError
from pipelines.cli.parser import options, read_all
from tests.test_layering import ROOT

CLUSTER = ROOT / "examples" / "cluster"
_COMMAND = re.compile(r"python -m ([\w.]+)((?: --[\w-]+=\S+)+)")
FILES = ("slurm.sh", "kuberay.yaml", "mlflow-kubernetes/MLproject")


def check(command: re.Match[str]) -> None:
    """Raise UsageError where a command has a parameter or a value that its program does not know."""
    module, argv = command[1], shlex.split(command[2].rstrip('"'))
    argv = [word for word in argv if "{" not in word]
    program = next(each for each in commands().values() if each.module == module)
    _, sections = program.resolve(argv)
    read_all({each.name: each for section in sections.values() for each in section}, list(options(argv)))


@pytest.mark.parametrize("name", FILES)
def test_its_command_has_parameters_and_values_that_its_program_knows(name: str) -> None:
    text = (CLUSTER / name).read_text().replace("\\\n", " ")
    found = list(_COMMAND.finditer(text))
    assert found
    for each in found:
        check(each)
    with pytest.raises(UsageError, match="unknown parameter 'worker'"):
        check(_COMMAND.match("python -m hpo.search --worker=2"))  # type: ignore[arg-type]


def test_every_image_has_the_ray_that_is_pinned() -> None:
    pinned = re.search(r"^ray==(\S+)", (ROOT / "requirements.txt").read_text(), re.M)
    assert pinned
    _, job = yaml.safe_load_all((CLUSTER / "kuberay.yaml").read_text())
    assert job["spec"]["rayClusterSpec"]["rayVersion"] == pinned[1]
    assert f"ray[client]=={pinned[1]}" in (CLUSTER / "Dockerfile").read_text()


def pods() -> dict[str, dict[str, Any]]:
    """Return each pod's spec, as Kubernetes reads it."""
    _, job = yaml.safe_load_all((CLUSTER / "kuberay.yaml").read_text())
    cluster = job["spec"]["rayClusterSpec"]
    single = yaml.safe_load((CLUSTER / "mlflow-kubernetes" / "job.yaml").read_text())
    return {
        "head": cluster["headGroupSpec"]["template"]["spec"],
        "worker": cluster["workerGroupSpecs"][0]["template"]["spec"],
        "mlflow": single["spec"]["template"]["spec"],
    }


@pytest.mark.parametrize("name", ["head", "worker", "mlflow"])
def test_a_pod_mounts_what_it_declares_and_asks_by_quantities(name: str) -> None:
    pod = pods()[name]
    (container,) = pod["containers"]
    assert {each["name"] for each in container["volumeMounts"]} == {each["name"] for each in pod["volumes"]}
    mounts = [each["mountPath"] for each in container["volumeMounts"]]
    places = [each["value"] for each in container["env"] if each["name"] in ("SAFEMAX_CACHE", "SAFEMAX_DATA")]
    assert places
    assert all(Path(each).is_relative_to(mounts[0]) for each in places)
    # The Kubernetes client that MLflow hands the job to takes quantities as text alone.
    quantities = [value for kind in ("requests", "limits") for value in container["resources"][kind].values()]
    assert {type(each) for each in quantities} == {str}


def test_only_the_pod_of_the_command_knows_the_password() -> None:
    known = {name: bool(pod["containers"][0].get("envFrom")) for name, pod in pods().items()}
    assert known == {"head": True, "worker": False, "mlflow": True}


def test_the_script_for_slurm_is_a_script() -> None:
    assert subprocess.run(["bash", "-n", str(CLUSTER / "slurm.sh")]).returncode == 0

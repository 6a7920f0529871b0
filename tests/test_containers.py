"""What the page on containers gives is what MLflow and Kubernetes take, as far as that shows without docker."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import yaml
from mlflow.projects.docker import validate_docker_env
from mlflow.projects.utils import load_project

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "containers.md").read_text(encoding="utf-8")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """The folder that the page's own commands make."""
    (commands,) = [each for each in re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL) if "sed" in each]
    (tmp_path / "MLproject").write_text((ROOT / "MLproject").read_text())
    subprocess.run(["bash", "-ec", commands.partition("export")[0]], cwd=tmp_path, check=True)
    return tmp_path / "build" / "container"


def test_every_entry_point_starts_plainly_in_the_image(project: Path) -> None:
    loaded = load_project(project)
    validate_docker_env(loaded)
    assert loaded.docker_env["image"] == "safemax"
    for name in load_project(ROOT)._entry_points:
        command = loaded.get_entry_point(name).compute_command({}, None)
        assert command.startswith(("python -m pipelines.", "python -m hpo."))


def test_a_job_of_kubernetes_gets_image_command_and_environment(project: Path) -> None:
    kubernetes = pytest.importorskip("mlflow.projects.kubernetes", reason="needs `pip install kubernetes`")
    (template,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    command = kubernetes._get_run_command(
        [load_project(project).get_entry_point("safemax").compute_command({"forget": "3"}, None)]
    )
    job = kubernetes._get_kubernetes_job_definition(
        "safemax", "registry/safemax", "sha256:1", command, {"MLFLOW_RUN_ID": "1"}, yaml.safe_load(template)
    )
    (container,) = job["spec"]["template"]["spec"]["containers"]
    assert container["image"] == "registry/safemax@sha256:1"
    assert container["command"][:3] == ["python", "-m", "pipelines.unlearn"]
    assert {"name": "MLFLOW_RUN_ID", "value": "1"} in container["env"]
    assert {"name": "SAFEMAX_CACHE", "value": "/cache"} in container["env"]


def test_the_template_of_a_job_has_the_places_that_mlflow_fills_in() -> None:
    (text,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    template = yaml.safe_load(text)
    (container,) = template["spec"]["template"]["spec"]["containers"]
    assert {"name", "image", "command", "env"} <= container.keys()
    assert {"name", "namespace"} == template["metadata"].keys()
    (volume,) = template["spec"]["template"]["spec"]["volumes"]
    assert [each["name"] for each in container["volumeMounts"]] == [volume["name"]]


def test_what_the_dockerfile_copies_is_there_and_sent() -> None:
    copied = re.findall(r"^COPY (.+) \S+$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    names = [name for line in copied for name in line.split()]
    assert all((ROOT / name).exists() for name in names)
    sent = re.findall(r"^!(.+)$", (ROOT / ".dockerignore").read_text(), re.MULTILINE)
    assert set(sent) == set(names)

"""Serve a version by MLflow's scoring server, from a copy whose files are first checked against the registry's digest.

`mlflow models serve` runs a version's code in place; here a changed, added or compiled file is refused before any runs.
"""

from __future__ import annotations

if __name__ == "__main__":  # first: help and refusals need none of the imports below
    from pipelines.cli import console

    console.run("serve")

import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mlflow.pyfunc import scoring_server

from pipelines.cli.parser import parse
from pipelines.engine.signals import die_with_parent
from pipelines.registry import model_versions
from safemax.errors import InputError
from safemax.knobs import check, knob


@dataclass(frozen=True)
class ServeOptions:
    """The version and the address of the server."""

    model: str = knob("models:/digits-ddpm@champion", "version to serve: models:/NAME@ALIAS or models:/NAME/VERSION")
    port: int = knob(5001, "port", bounds=(1, 65535))
    host: str = knob("127.0.0.1", "network interface to listen on; anyone who reaches it may ask for images")

    def __post_init__(self) -> None:
        check(self)
        if not model_versions.is_registry_address(self.model):
            allowed = "only a version in the registry can be checked against its digest: models:/NAME@ALIAS"
            raise InputError(f"model = {self.model} is not allowed; {allowed}")


PARAMETERS: dict[str, type] = {"server": ServeOptions}


def command(version: Path, options: ServeOptions) -> tuple[list[str], dict[str, str]]:
    """Return the command that serves a version's folder, which leaves no compiled files there, and its environment."""
    words, environment = scoring_server.get_cmd(str(version), options.port)
    return [sys.executable, "-B", "-m", *shlex.split(words), "--host", options.host], {
        **environment,
        "PYTHONDONTWRITEBYTECODE": "1",
    }


def serve(argv: Sequence[str]) -> None:
    """Verify a version and serve the copy until a signal ends the server."""
    options = parse("python -m pipelines.serve", __doc__ or "", PARAMETERS, argv)["server"]
    address = model_versions.resolve_alias(options.model)
    version = model_versions.verified_copy(address, refuse_compiled=True)
    words, environment = command(version, options)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    die_with_parent()
    print(
        f"{address} matches what was registered; serving it at http://{options.host}:{options.port}/invocations",
        flush=True,
    )
    with subprocess.Popen(words, env=environment, cwd=version.parent) as server:
        try:
            status = server.wait()
        finally:
            server.terminate()
    if status:
        raise InputError(f"the server ended with status {status}; its own lines above say why")

"""A connection to Ray: a cluster of this machine's own for as long as the work lasts, or one that others run."""

from __future__ import annotations

import logging
import math
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from pipelines import ROOT
from pipelines.engine import ray_janitor
from pipelines.engine.options import AUTO, NONE, WorkerOptions
from safemax.errors import InputError

_MISSING = "needs Ray, which is not installed: pip install 'safemax[ray]'"
_STORE_BYTES = 100 * 2**20  # of the object store of a local cluster, through which only JSON goes
_SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)  # Ray takes SIGTERM over
# Progress bars of several processes on one screen are unreadable.
_SETTINGS = {"TQDM_MININTERVAL": "60"}
_PASSED_ON = ("SAFEMAX_DATA", "SAFEMAX_CACHE", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "HF_HOME", "HF_HUB_OFFLINE")


def module(options: WorkerOptions) -> ModuleType:
    """Return the module `ray`; InputError with the command that installs it."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent to anyone
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault(
        "RAY_worker_niceness", "0"
    )  # of the command's own priority; Ray's 15 starves beside other work
    try:
        import ray
    except ImportError as error:
        asked = f"workers = {options.workers}" if options.cluster == NONE else f"cluster = {options.cluster}"
        raise InputError(f"{asked} {_MISSING}") from error
    return ray


@contextmanager
def connected(options: WorkerOptions) -> Iterator[None]:
    """Be connected inside; a cluster of this machine's own ends with it. Our handlers of signals stay in place.

    Raises:
        InputError: Ray is not installed, or there is no such cluster.
    """
    ray = module(options)
    handlers = {each: signal.getsignal(each) for each in _SIGNALS}
    # Sockets need short paths.
    place = tempfile.mkdtemp(prefix="safemax-ray-", dir="/tmp" if os.path.isdir("/tmp") else None)
    janitor = ray_janitor.start(place)
    try:
        _connect(ray, options, place)
        for each, handler in handlers.items():
            signal.signal(each, handler)
        yield
    finally:
        ray.shutdown()
        for each, handler in handlers.items():
            signal.signal(each, handler)
        shutil.rmtree(place, ignore_errors=True)
        ray_janitor.end(janitor)


def _connect(ray: ModuleType, options: WorkerOptions, place: str) -> None:
    shared: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, "namespace": "safemax"}
    if options.cluster == NONE:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        # Inherited: a runtime_env of the same variables would not use the workers that Ray starts with the cluster.
        with _inherited(environment(threads_for(options, [{"CPU": cores}]), local=True)):
            ray.init(
                address="local", num_cpus=cores, include_dashboard=False, object_store_memory=_STORE_BYTES,
                _temp_dir=place, **shared,
            )  # fmt: skip
        return
    try:
        ray.init(address=options.cluster, **shared)
    except ImportError as error:  # grpc
        raise InputError(
            f"cluster = {options.cluster} needs Ray's client: pip install 'ray[client]' ({error})"
        ) from error
    except (ConnectionError, RuntimeError, TimeoutError, ValueError) as error:
        hint = "; `ray start --head` starts one" if options.cluster == AUTO else ""
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"cluster = {options.cluster} cannot be reached{hint}: {reason}") from error


@contextmanager
def _inherited(variables: dict[str, str]) -> Iterator[None]:
    """Give the processes that are started inside these variables of the environment."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


def gpus_for(options: WorkerOptions, device: str, nodes: list[dict[str, float]]) -> float:
    """Return the GPUs of each worker, 0 where none are wanted or there are none.

    Args:
        options: the number of workers, and of GPUs for each.
        device: of the training's settings: auto, cpu or cuda.
        nodes: the resources of each machine.

    Raises:
        InputError: there are fewer than the workers need.
    """
    counts = [int(each.get("GPU", 0)) for each in nodes]
    if device == "cpu" or (device == "auto" and not any(counts)):
        return 0.0
    share = options.gpus_per_worker
    fit = sum(n * math.floor(1 / share) if share < 1 else n // int(share) for n in counts)
    if options.workers > fit:
        raise InputError(
            f"workers = {options.workers} with gpus_per_worker = {share:g} need more than the {sum(counts)} GPUs that there "
            f"are; they are enough for {fit}; use fewer workers, or a smaller gpus_per_worker"
        )
    return share


def threads_for(options: WorkerOptions, nodes: list[dict[str, float]]) -> int:
    """Return a worker's threads: its share of all cores, at least one."""
    return max(1, int(sum(each.get("CPU", 0) for each in nodes) // options.workers))


def nodes(ray: ModuleType) -> list[dict[str, float]]:
    """Return the resources of each machine of the cluster."""
    return [each["Resources"] for each in ray.nodes() if each["Alive"]]


def environment(threads: int, *, local: bool) -> dict[str, str]:
    """Return the environment variables of a worker; secrets are not among them, since Ray shows them.

    Args:
        threads: of the worker.
        local: whether all workers run on this machine.
    """
    python_path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    passed_on = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    if not local:  # a machine of a cluster may have a cache of its own
        passed_on.pop("SAFEMAX_CACHE", None)
    numbers = {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    return {**passed_on, **numbers, **_SETTINGS, "PYTHONPATH": python_path}

"""A Ray cluster of two machines, simulated on this one by Ray's own test tool."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import psutil
import pytest

SMALL: dict[str, Any] = {"object_store_memory": 80 * 2**20}


@contextmanager
def two_machines(cpus: int, caches: Sequence[str] = ()) -> Iterator[tuple[Any, Any]]:
    """Run a cluster whose head has no cores and whose two machines have so many; yield it and the second machine.

    Args:
        cpus: of each machine.
        caches: SAFEMAX_CACHE of the two machines, where each has its own.
    """
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, **SMALL})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_ADDRESS", cluster.address)
        own: list[dict[str, Any]] = [{"env_vars": {"SAFEMAX_CACHE": each}} for each in caches] or [{}, {}]
        _, second = (cluster.add_node(num_cpus=cpus, **SMALL, **each) for each in own)
        cluster.wait_for_nodes()
        try:
            yield cluster, second
        finally:
            cluster.shutdown()


@contextmanager
def head_with_client_server(cpus: int = 2) -> Iterator[str]:
    """Run a machine that drivers elsewhere connect to; yield its address, ray://HOST:PORT."""
    from ray.cluster_utils import Cluster

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    head = {"num_cpus": cpus, "include_dashboard": False, "ray_client_server_port": port, **SMALL}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        yield f"ray://127.0.0.1:{port}"
    finally:
        cluster.shutdown()


def workers() -> list[psutil.Process]:
    """Return the workers that run below this process, the oldest first."""
    found = [each for each in psutil.Process().children(recursive=True) if is_worker(each)]
    return sorted(found, key=lambda each: each.create_time())


def is_worker(process: psutil.Process) -> bool:
    """Return whether a process is a worker of ours on Ray."""
    try:
        return "RayWorker" in " ".join(process.cmdline())
    except psutil.Error:  # dead, or just dying
        return False


def is_of_ray(process: psutil.Process) -> bool:
    """Return whether a process is Ray's."""
    try:
        return process.status() != psutil.STATUS_ZOMBIE and "ray" in " ".join(process.cmdline())
    except psutil.Error:
        return False


def left_below(pid: int = os.getpid()) -> list[psutil.Process]:
    """Return the processes of Ray that are left below a process."""
    return [each for each in psutil.Process(pid).children(recursive=True) if is_of_ray(each)]

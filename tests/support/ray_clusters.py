"""A Ray cluster of two machines, simulated on this one by Ray's own test tool."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psutil
import pytest

SMALL: dict[str, Any] = {"object_store_memory": 80 * 2**20}


@contextmanager
def two_machines(cpus: int) -> Iterator[tuple[Any, Any]]:
    """Run a cluster whose head has no cores and whose two machines have so many; yield it and the second machine."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, **SMALL})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_ADDRESS", cluster.address)
        cluster.add_node(num_cpus=cpus, **SMALL)
        second = cluster.add_node(num_cpus=cpus, **SMALL)
        cluster.wait_for_nodes()
        try:
            yield cluster, second
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

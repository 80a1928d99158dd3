"""The shards of a plan as tasks of a Ray cluster, a bounded number in flight.

Every node needs this package and the files under the same paths. Ray repeats a task whose process or node
dies, which is harmless: a shard is written whole or not at all.

Source: ray 2.60 (init, remote, wait; resources of nodes).
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from data_tools.errors import DataError, SetupError, UsageError, UserError
from data_tools.job import DatasetJob
from data_tools.parts import Part
from data_tools.progress import NoProgress, Progress
from data_tools.shards import note_failure, shards_failed, write_shard
from data_tools.threads import limit_threads
from data_tools.tokenize import TokenizeResult

_CONNECT_S = 10.0


@dataclass(frozen=True)
class Cluster:
    """The Ray to use.

    Attributes:
        address: Of a head, `auto` for the one of this machine; None: a Ray is started here for this job.
        workers: CPUs of one shard.
        max_running: Shards in flight; None: twice as many as the cluster's CPUs can take at once.
    """

    address: str | None = None
    workers: int = 1
    max_running: int | None = None


def write_on_ray(
    job: DatasetJob,
    parts: Sequence[tuple[int, Part]],
    cluster: Cluster,
    progress: Progress,
) -> list[tuple[int, TokenizeResult]]:
    """Writes some shards of a plan.

    Args:
        job: What to do; its output is the folder of the shards.
        parts: Number of each shard, and the part of the input that makes it.
        cluster: Where.
        progress: Is told of every shard that is written.

    Returns:
        The results by number of shard.

    Raises:
        SetupError: If ray is not installed, or there is no cluster at the address.
        UsageError: If no node has as many CPUs as a shard is to have.
        DataError: If shards failed, after all others were written; each has a `.error` file that says why.
    """
    ray = _connected(cluster)
    try:
        shared = ray.put((job, os.getcwd(), cluster.workers))
        write = ray.remote(_write_one).options(num_cpus=cluster.workers)
        results, failed = [], []
        for number, part, outcome in _outcomes(ray, lambda numbered: write.remote(shared, numbered), parts, cluster):
            if isinstance(outcome, TokenizeResult):
                progress.advance(part.size)
                results.append((number, outcome))
            else:
                failed.append(note_failure(job, number, outcome))
    finally:
        ray.shutdown()
    if failed:
        raise shards_failed(failed, of=len(failed) + len(results))
    return sorted(results, key=lambda result: result[0])


def _connected(cluster: Cluster) -> Any:
    ray: Any
    try:
        import ray
    except ImportError:
        raise SetupError("--engine ray: ray is not installed; pip install 'megatron-ext[ray]'") from None
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a Ray that is started here reports to nobody
    _refuse_silence(cluster.address)
    # Without an address Ray would join whatever runs on this machine.
    start = {"address": cluster.address} if cluster.address else {"address": "local", "include_dashboard": False}
    try:
        ray.init(**start, log_to_driver=False, logging_level=logging.WARNING)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise SetupError(f"--engine ray, {start['address']}: {error}") from None
    largest = max((int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]), default=0)
    if largest < cluster.workers:  # Ray would wait for such a node for ever
        ray.shutdown()
        raise UsageError(f"--workers {cluster.workers}: no node of the Ray cluster has more than {largest} CPUs")
    return ray


def _refuse_silence(address: str | None) -> None:
    """Ray itself tries for minutes where nobody listens.

    Raises:
        SetupError: If nobody does at an address of the form host:port.
    """
    host, _, port = (address or "").rpartition("/")[2].rpartition(":")
    if not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), timeout=_CONNECT_S).close()
    except OSError as error:
        raise SetupError(
            f"--ray-address {address}: {error.strerror or error}; start it with: ray start --head"
        ) from None


def _outcomes(
    ray: Any, start: Callable[[tuple[int, Part]], Any], parts: Sequence[tuple[int, Part]], cluster: Cluster
) -> Iterator[tuple[int, Part, TokenizeResult | UserError]]:
    """The result, or the error, of each shard as it ends."""
    waiting, in_flight = list(reversed(parts)), dict[Any, tuple[int, Part]]()
    while waiting or in_flight:
        while waiting and len(in_flight) < _most(ray, cluster):
            numbered = waiting.pop()
            in_flight[start(numbered)] = numbered
        ended, _ = ray.wait(list(in_flight), num_returns=1)
        number, part = in_flight.pop(ended[0])
        try:
            yield number, part, ray.get(ended[0])
        except ray.exceptions.RayError as error:
            yield number, part, DataError(f"its Ray task failed: {error}")


def _most(ray: Any, cluster: Cluster) -> int:
    """Shards in flight; a cluster may have grown since."""
    return cluster.max_running or max(1, 2 * int(ray.cluster_resources().get("CPU", 1)) // cluster.workers)


def _write_one(shared: tuple[DatasetJob, str, int], numbered: tuple[int, Part]) -> TokenizeResult | UserError:
    """Runs in a process of Ray."""
    job, folder, workers = shared
    os.chdir(folder)  # paths may be relative, and stand so in manifests
    limit_threads(workers)
    try:
        return write_shard(job, numbered, NoProgress())
    except UserError as error:
        return DataError(str(error))  # of one type: some errors of libraries' cannot be sent

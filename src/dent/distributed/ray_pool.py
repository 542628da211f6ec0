"""A pool of workers that are actors of a Ray cluster."""

import logging
import os
import socket
from collections.abc import Mapping
from itertools import count
from pathlib import Path
from typing import Any, Self

from dent.distributed.cluster import Cluster, WorkerError
from dent.distributed.driver import Event, Failed, Finished, Lost, Ready, Recorded
from dent.distributed.tasks import Task, Worker, pack
from dent.evaluation.records.plan import Unit
from dent.evaluation.subject import Prepared
from dent.support import ray_start
from dent.support.extras import require
from dent.support.reaching import unreachable


def import_ray() -> Any:
    """Return the module `ray`.

    Raises:
        MissingExtraError: It is not installed.
    """
    # By default, Ray sends usage statistics to its makers. Users can turn them on again.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    return require("ray", "distributed evaluation", extra="ray")


class RayPool:
    """A pool of workers on a Ray cluster that it joins, or starts, and leaves when closed.

    Args:
        cluster: The cluster, and the number and size of the workers.
        prepared: The evaluation. It is sent to the cluster once.

    Raises:
        MissingExtraError: Ray is not installed.
        WorkerError: There is no such cluster, or it cannot be joined.
        InputError: The evaluation does not pickle.
    """

    def __init__(self, cluster: Cluster, prepared: Prepared) -> None:
        self._ray = import_ray()
        self._cluster = cluster
        content = pack(prepared, self._ray.cloudpickle)
        self._started = not self._ray.is_initialized()
        if self._started:
            self._join()
        self._content = self._ray.put(content)
        self._class = self._ray.remote(Worker)
        self._numbers = count()
        self._actors: dict[int, Any] = {}
        self._starting: dict[Any, int] = {}
        self._streams: dict[Any, int] = {}
        self._asked: dict[Any, int] = {}
        self._heard: dict[int, tuple[Unit, float]] = {}

    @property
    def size(self) -> int:
        """The number of workers to have at once."""
        if self._cluster.workers is not None:
            return self._cluster.workers
        return max(1, self._cluster.room(self._ray.cluster_resources()))

    def hire(self) -> int:
        """Start a worker without waiting for it, and return its number."""
        number = next(self._numbers)
        actor = self._class.options(
            num_cpus=self._cluster.cpus_per_worker,
            num_gpus=self._cluster.gpus_per_worker or None,
            max_concurrency=2,  # so that `within` can be called while `work` runs
        ).remote()
        self._actors[number] = actor
        ref = actor.prepare.remote(
            self._content, self._cluster.device, self._cluster.cpus_per_worker, str(Path.cwd())
        )
        self._starting[ref] = number
        return number

    def give(self, worker: int, task: Task) -> None:
        """Give a task to a worker that is ready and idle."""
        stream = self._actors[worker].work.options(num_returns="streaming").remote(task)
        self._streams[stream] = worker

    def wait(self, seconds: float) -> list[Event]:
        """Wait for an event, for at most this many seconds, and return it, if there is one."""
        waiting = [*self._starting, *self._streams]
        ready, _ = self._ray.wait(waiting, num_returns=1, timeout=seconds)
        return [self._event(ref) for ref in ready]

    def within(self) -> Mapping[int, tuple[Unit, float]]:
        """Return, for each worker, the unit that it runs and its last known progress, 0 to 1."""
        if self._asked:
            answered, _ = self._ray.wait(list(self._asked), num_returns=len(self._asked), timeout=0)
            for ref in answered:
                worker = self._asked.pop(ref)
                self._heard.pop(worker, None)
                try:
                    heard = self._ray.get(ref)
                except self._ray.exceptions.RayError:
                    continue  # `wait` reports dead workers
                if heard is not None:
                    self._heard[worker] = heard
        waiting = set(self._asked.values())
        for worker in self._streams.values():
            if worker not in waiting:
                self._asked[self._actors[worker].within.remote()] = worker
        return self._heard

    def lacking(self) -> str:
        """Return a message: the resources that one worker needs, and those that the cluster has."""
        resources = self._cluster.resources
        total = self._ray.cluster_resources()
        free = self._ray.available_resources()
        required = " and ".join(f"{number:g} {name}" for name, number in resources.items())
        available = " and ".join(
            f"{free.get(name, 0.0):g} of {total.get(name, 0.0):g} {name}" for name in resources
        )
        return f"each takes {required}, and the cluster has {available} free"

    def close(self) -> None:
        """Stop the workers, and the cluster if it was started here."""
        for actor in self._actors.values():
            self._ray.kill(actor)
        self._actors.clear()
        if self._started:
            self._ray.shutdown()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _join(self) -> None:
        problem = unreachable(self._cluster.address)
        if problem is not None:
            raise WorkerError(problem)
        options: dict[str, Any] = {"address": self._cluster.address}
        if self._cluster.address is None and "RAY_ADDRESS" not in os.environ:
            options["include_dashboard"] = False
            if self._cluster.workers is not None:
                # The user may ask for more workers than there are cores.
                cores = self._cluster.workers * self._cluster.cpus_per_worker
                options["num_cpus"] = max(os.cpu_count() or 1, cores)
        try:
            with ray_start.starting():
                self._ray.init(log_to_driver=False, logging_level=logging.ERROR, **options)
        except (ConnectionError, ValueError, RuntimeError, OSError) as error:
            place = self._cluster.address or os.environ.get("RAY_ADDRESS", "on this machine")
            raise WorkerError(
                f"the Ray cluster {place} cannot be reached from {socket.gethostname()}: {error}"
            ) from error

    def _event(self, ready: Any) -> Event:
        errors = self._ray.exceptions
        worker = self._starting.get(ready)
        if worker is None:
            worker = self._streams[ready]
        try:
            if ready in self._starting:
                session = self._ray.get(ready)
                del self._starting[ready]
                return Ready(worker, session)
            return Recorded(worker, self._ray.get(next(ready)))
        except StopIteration:
            del self._streams[ready]
            self._heard.pop(worker, None)
            return Finished(worker)
        except errors.RayTaskError as error:
            self._drop(worker)
            return Failed(worker, _raised(error))
        except errors.RayError as error:
            self._drop(worker)
            return Lost(worker, _cause(error))

    def _drop(self, worker: int) -> None:
        """Kill a worker and forget its pending calls."""
        self._ray.kill(self._actors.pop(worker))
        for refs in (self._starting, self._streams, self._asked):
            for ref in [ref for ref, number in refs.items() if number == worker]:
                del refs[ref]
        self._heard.pop(worker, None)


def _raised(error: Any) -> Exception:
    """Return the error that was raised in a worker."""
    cause: Exception = error.cause if isinstance(error.cause, Exception) else error
    cause.add_note(f"In a worker of the cluster:\n{error}")
    return cause


def _cause(error: Exception) -> str:
    """Return Ray's reason in one line of at most 500 characters."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(lines[:3])}"[:500]

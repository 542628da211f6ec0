"""The cluster and the workers to use. These settings change the speed, not the results."""

from dataclasses import dataclass
from typing import Final

from dent.errors import ConfigError, DentError

_ROUNDING: Final = 1e-9
"""Share of a worker that floats may lack: 1 GPU has room for five workers of 0.2."""


@dataclass(frozen=True)
class Cluster:
    """A Ray cluster, and the workers to start on it.

    Attributes:
        address: `HOST:PORT` of a cluster that this machine belongs to, or `auto`. By default the
            cluster in RAY_ADDRESS, as under `ray job submit`. Without RAY_ADDRESS, a new cluster on
            this machine's cores, which ends with the run.
        workers: The number of processes that work at once. By default as many as the cluster has
            room for, and never more than there is work for.
        cpus_per_worker: Cores and threads of each worker. The number of threads changes the order
            of sums, so results are bit-equal only to a process with the same number.
        gpus_per_worker: GPUs of each worker; 0 computes on the CPU. With a fraction, workers share
            a GPU.
        attempts: The run gives up once this many workers have died during the same work.
        patience: Seconds to wait without any worker before the run gives up.

    Raises:
        ConfigError: A value is out of range.
    """

    address: str | None = None
    workers: int | None = None
    cpus_per_worker: int = 1
    gpus_per_worker: float = 0.0
    attempts: int = 3
    patience: float = 600.0

    def __post_init__(self) -> None:
        for name in ("workers", "cpus_per_worker", "attempts"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} must be at least 1, got {value}")
        if self.gpus_per_worker < 0 or self.patience < 0:
            raise ConfigError(
                "gpus_per_worker and patience must not be negative, got "
                f"{self.gpus_per_worker:g} and {self.patience:g}"
            )
        if self.gpus_per_worker > 1 and self.gpus_per_worker != int(self.gpus_per_worker):
            raise ConfigError(
                "gpus_per_worker must be a fraction of 1 or a whole number, as in Ray; got "
                f"{self.gpus_per_worker:g}"
            )
        if self.address is not None and self.address.startswith("ray://"):
            raise ConfigError(
                f"{self.address} is an address of Ray's client, which cannot stream results: "
                "start the run on a machine of the cluster with its HOST:PORT, or with `ray job "
                "submit`"
            )

    @property
    def device(self) -> str:
        """The kind of device that the workers use."""
        return "cuda" if self.gpus_per_worker else "cpu"

    @property
    def resources(self) -> dict[str, float]:
        """The resources of one worker, by Ray's names."""
        counts = {"CPU": float(self.cpus_per_worker), "GPU": self.gpus_per_worker}
        return {name: count for name, count in counts.items() if count}

    def room(self, has: dict[str, float]) -> int:
        """Return how many workers a cluster with these resources has room for."""
        return min(
            int(has.get(name, 0.0) / count + _ROUNDING) for name, count in self.resources.items()
        )


class WorkerError(DentError):
    """Workers died, or none could be started. The message says which work stopped, and why.

    Earlier records are kept, and the same command resumes the run.
    """

"""Evaluate on a Ray cluster, with the plan and records of one process."""

from collections.abc import Callable
from pathlib import Path

from dent.distributed.cluster import Cluster
from dent.distributed.driver import drive
from dent.distributed.ray_pool import RayPool
from dent.evaluation.engine.progress import OnProgress
from dent.evaluation.records.shard import Shard
from dent.evaluation.records.spec import Settings
from dent.evaluation.results.result import EvaluationResult
from dent.evaluation.run import Work, conduct
from dent.evaluation.subject import Subject


def evaluate(
    subject: Subject,
    settings: Settings | None = None,
    *,
    cluster: Cluster | None = None,
    out: Path,
    progress: OnProgress | None = None,
    shard: Shard | None = None,
    static_from: Path | None = None,
    notice: Callable[[str], None] = lambda _: None,
) -> EvaluationResult:
    """Evaluate as `dent.evaluation.evaluate` does, on many processes and machines.

    Whole batches are given to workers, so on the same kind of device, with as many threads as a
    worker has, the records are bit-equal to those of one process. This process alone writes to
    the folder. A worker or machine that dies takes with it at most the unit it was at: the rest of
    its batch is done by another.

    Args:
        subject: What is evaluated; it must pickle, and is best on the CPU, as workers take it to
            their own device.
        settings: How samples are batched, and what comes along.
        cluster: Where, and with how many workers; by default all cores of this machine.
        out: The run folder, on this machine. It may have been begun by one process, or be finished
            by one.
        progress: Called as units are done, and in between.
        shard: Do this part of the run alone.
        static_from: A run folder of the same evaluation with other defenses. What it recorded of
            the static model is copied.
        notice: Told, in a sentence, of workers that were lost and of waiting.

    Raises:
        MissingExtraError: Ray is not installed.
        WorkerError: The cluster cannot be reached, no worker can be started, or workers keep dying
            over the same batch. The same call goes on where it stopped.
        InputError: The subject does not pickle; or a defense remembers what it was asked, and has
            no `reset()`: its answers would depend on which worker gives them.
        DentError: All that `dent.evaluation.evaluate` raises, in this process or in a worker.
    """
    chosen = cluster or Cluster()

    def do(work: Work) -> None:
        with RayPool(chosen, work.prepared) as pool:
            drive(work, pool, attempts=chosen.attempts, patience=chosen.patience, notice=notice)

    return conduct(
        subject, settings, do, out=out, progress=progress, shard=shard, static_from=static_from
    )

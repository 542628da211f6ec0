"""Evaluate on a Ray cluster, with the same plan and records as one process."""

from collections.abc import Callable
from pathlib import Path

from dent.distributed.cluster import Cluster
from dent.distributed.driver import drive
from dent.distributed.ray_pool import RayPool
from dent.evaluation.engine.progress import OnProgress
from dent.evaluation.records.shard import Shard
from dent.evaluation.records.spec import Settings
from dent.evaluation.results.result import EvaluationResult
from dent.evaluation.run import RemainingWork, evaluate_with
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

    Workers take whole batches. So the records are bit-equal to those of one process on the same
    kind of device with as many threads as a worker. A run of the suite stops only between attacks,
    where one process may also stop between the batches of an attack. Only this process writes to
    the folder. If a worker or machine dies, at most the unit in progress is lost, and another
    worker takes the rest of its batch.

    Args:
        subject: What to evaluate. It must pickle. Keep it on the CPU: workers move it to their own
            device.
        settings: How the samples form batches, and what else runs.
        cluster: The cluster and its workers; by default `Cluster()`.
        out: The run folder, on this machine. The cluster can resume a run that one process began,
            and vice versa.
        progress: Called after every unit, and in between.
        shard: Run only this part of the evaluation.
        static_from: A run folder of the same evaluation with other defenses. Its records of the
            static model are copied.
        notice: Called with a message when a worker dies, or when none has started for a while.

    Raises:
        MissingExtraError: Ray is not installed.
        WorkerError: The cluster cannot be reached, no worker can be started, or workers keep dying
            during the same batch. The same call resumes the run.
        InputError: The subject does not pickle; or a defense depends on earlier queries and has no
            `reset()`, so its predictions would depend on the worker.
        DentError: All that `dent.evaluation.evaluate` raises, in this process or in a worker.
    """
    chosen = cluster or Cluster()

    def run_units(work: RemainingWork) -> None:
        with RayPool(chosen, work.prepared) as pool:
            drive(work, pool, attempts=chosen.attempts, patience=chosen.patience, notice=notice)

    return evaluate_with(
        subject,
        settings,
        run_units,
        out=out,
        progress=progress,
        shard=shard,
        static_from=static_from,
        in_parts=False,
    )

"""Evaluate on many processes and machines, with the same records as one process.

    from dent.distributed import Cluster, evaluate

    result = evaluate(subject, Settings(n=256), cluster=Cluster(workers=4), out=Path("runs/first"))

Needs `pip install "torch-dent[ray]"`; `merge` does not. See docs/evaluation/distributed.md.
"""

from dent.distributed.cluster import Cluster, WorkerError
from dent.distributed.evaluate import evaluate
from dent.evaluation.merging import ConflictError, Merged, merge

__all__ = ["Cluster", "ConflictError", "Merged", "WorkerError", "evaluate", "merge"]

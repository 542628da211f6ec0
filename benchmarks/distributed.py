"""How much faster one run is on the workers of a local Ray cluster than in one process.

`python benchmarks/distributed.py --n 64 --batch-size 8 --iterations 5 --rounds 2`

It evaluates dent+ on the bundled images in three ways, in turns: in one process with one thread, in
one with as many threads as workers, and on workers with one thread each. It prints the seconds of
each round, the start of the workers separately, and the ratios of the sums. Ray runs its workers at
nice 15, so other processes slow them down; set RAY_worker_niceness=0 for a fair comparison.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import torch

from dent import DENT_PLUS, Dent, data, models
from dent.attacks import make
from dent.distributed import Cluster
from dent.distributed import evaluate as evaluate_on_workers
from dent.evaluation import EvaluationResult, Progress, Settings, Subject, evaluate
from dent.storage.canonical import without_timing
from dent.threat import ThreatModel


def main() -> None:
    """Measure, and print the times and their ratios."""
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("--model", default="resnet-14-2-linf")
    asked.add_argument("--n", type=int, default=64)
    asked.add_argument("--batch-size", type=int, default=8)
    asked.add_argument("--iterations", type=int, default=5)
    asked.add_argument("--workers", type=int, default=2)
    asked.add_argument("--rounds", type=int, default=2)
    options = asked.parse_args()
    images = data.load("cifar10-sample", "test")
    model = models.load(options.model, num_classes=10)
    subject = Subject(
        model,
        images,
        {"dent+": Dent(model, DENT_PLUS)},
        [make("apgd-ce", iterations=options.iterations)],
        ThreatModel("linf", "8/255"),
    )
    settings = Settings(n=options.n, batch_size=options.batch_size)
    seconds: dict[str, list[float]] = {"one thread": [], "threads": [], "workers": [], "start": []}
    for _ in range(options.rounds):
        results = []
        for name, threads in (("one thread", 1), ("threads", options.workers)):
            torch.set_num_threads(threads)
            begin = time.perf_counter()
            with tempfile.TemporaryDirectory() as folder:
                results.append(evaluate(subject, settings, out=Path(folder)))
            seconds[name].append(time.perf_counter() - begin)
        begin = time.perf_counter()
        first: list[float] = []

        def note(state: Progress, begin: float = begin, first: list[float] = first) -> None:
            first.append(time.perf_counter() - begin)
            del state

        with tempfile.TemporaryDirectory() as folder:
            cluster = Cluster(workers=options.workers)
            found = evaluate_on_workers(
                subject, settings, cluster=cluster, out=Path(folder), progress=note
            )
        results.append(found)
        seconds["start"].append(first[0])
        seconds["workers"].append(time.perf_counter() - begin)
        assert _same(results[0], found), "workers of one thread must answer as one process of one"
    total = {name: sum(values) for name, values in seconds.items()}
    working = total["workers"] - total["start"]
    print(json.dumps(seconds | {"options": vars(options)}, indent=1))
    print(f"workers against one thread: {total['one thread'] / total['workers']:.2f} times as fast")
    print(f"  once started:             {total['one thread'] / working:.2f}")
    print(f"workers against threads:    {total['threads'] / total['workers']:.2f} times as fast")
    print(f"  once started:             {total['threads'] / working:.2f}")


def _same(one: EvaluationResult, other: EvaluationResult) -> bool:
    plain = [without_timing(each.to_json()) for each in (one, other)]
    for each in plain:
        del each["sessions"]
    return bool(plain[0] == plain[1])


if __name__ == "__main__":
    main()

"""Why batch-wise dent does not reproduce its gain on the bundled nets: one change at a time.

    python benchmarks/reasons.py run      measure what is missing: an hour on 2 cores, resumable
    python benchmarks/reasons.py run --model resnet-26-4-linf     the same for the paper's nets
    python benchmarks/reasons.py page     write the table of docs/paper/what-reproduces.md

Every configuration is attacked as in the paper: by APGD-CE through the whole defense, with the
gradient of the last forward only. The adversarial images of the same attack on the static model are
submitted to it as well. The runs are in runs/reasons/, the figures in docs/paper/reasons.json.
"""

import argparse
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pages import write_between

from dent import DENT_PLUS, Dent, DentConfig, ThreatModel, data, models
from dent.attacks import make
from dent.defenses import CONFIGS
from dent.evaluation import Settings, Subject, evaluate
from dent.evaluation.results.intervals import tango, wilson
from dent.storage.disk import write_atomically

ROOT: Final = Path(__file__).parent.parent
PAGE: Final = ROOT / "docs/paper/what-reproduces.md"
KEPT: Final = ROOT / "docs/paper/reasons.json"
MODEL: Final = "resnet-14-2-linf"
WIDE: Final = "resnet-26-4-linf"
WIDE_L2: Final = "resnet-26-4-l2"
WIDE_NOMINAL: Final = "resnet-26-4-nominal"
THREATS: Final = {
    MODEL: ThreatModel("linf", "8/255"),
    WIDE: ThreatModel("linf", "8/255"),
    WIDE_L2: ThreatModel("l2", "0.5"),
    WIDE_NOMINAL: ThreatModel("linf", "1.5/255"),  # as in Table 4
}
"""The models, and the threat model of the attacks on each."""
HEADER: Final = "| change | clean | APGD-CE | transferred | worst case against static, points |"


@dataclass(frozen=True)
class Change:
    """One configuration.

    Attributes:
        says: How it differs from batch-wise dent with 10 steps.
        fields: The fields of `DentConfig` that differ.
        batch_size: Number of images that are submitted together.
        model: Name of the bundled model.
    """

    says: str
    fields: Mapping[str, Any]
    batch_size: int = 128
    model: str = MODEL


CHANGES: Final = (
    Change("dent, 10 steps, batches of 128", {}),
    Change("statistics that move (Listing 1)", {"statistics": "moving"}),
    Change("statistics of the batch", {"statistics": "test"}),
    Change("a tenth of the learning rate", {"lr": 1e-4}),
    Change("one set of scales and shifts per sample", {"granularity": "sample"}),
    Change("information maximization", {"objective": "information-maximization"}),
    Change("batches of 16", {}, batch_size=16),
    Change("3 times the learning rate", {"lr": 3e-3}),
    Change("SGD with momentum, learning rate 0.01", {"optimizer": "sgd", "lr": 1e-2}),
    Change("the sum of the entropies, not their mean", {"reduction": "sum"}),
    Change("only the last 4 normalization layers", {"last_layers": 4}),
    Change("only the statistics of the batch, no steps", {"statistics": "test", "steps": 0}),
    Change("30 steps (the paper's)", {"steps": 30}),
    Change("30 steps, statistics that move", {"steps": 30, "statistics": "moving"}),
    Change("30 steps of SGD with momentum", {"steps": 30, "optimizer": "sgd", "lr": 1e-2}),
    Change("dent, 10 steps", {}, model=WIDE),
    Change("dent+", DENT_PLUS.to_dict(), model=WIDE),
    Change("dent, 10 steps, statistics of the batch", {"statistics": "test"}, model=WIDE),
    Change("dent, 30 steps", {"steps": 30}, model=WIDE),
    Change("dent, 10 steps", {}, model=WIDE_L2),
    Change("dent+", DENT_PLUS.to_dict(), model=WIDE_L2),
    Change("dent, 10 steps, statistics of the batch", {"statistics": "test"}, model=WIDE_L2),
    Change(
        "statistics of the batch, no steps", {"statistics": "test", "steps": 0}, model=WIDE_NOMINAL
    ),
    Change("fixed smoothing, no steps", CONFIGS["smoothing"].to_dict(), model=WIDE_NOMINAL),
    Change("smoothing and dent, 10 steps", CONFIGS["dent-nominal"].to_dict(), model=WIDE_NOMINAL),
    Change("dent, 30 steps", {"steps": 30}, model=WIDE_L2),
)


def run(chosen: str, samples: int, iterations: int) -> None:
    """Measure a model's configurations that are missing, and save their counts."""
    model, threat = models.load(chosen), THREATS[chosen]
    dataset = data.load("cifar10")
    kept = json.loads(KEPT.read_text()) if KEPT.exists() else {}
    for index, change in enumerate(CHANGES):
        if change.model != chosen or change.says in kept.get(chosen, {}):
            continue
        config = DentConfig.from_dict({"steps": 10, **change.fields})
        subject = Subject(
            model,
            dataset,
            {"adapted": Dent(model, config)},
            [make("apgd-ce", iterations=iterations)],
            threat,
        )
        settings = Settings(n=samples, batch_size=change.batch_size)
        result = evaluate(subject, settings, out=ROOT / f"runs/reasons/{index:02d}", progress=_tell)
        of = {name: _counts(each) for name, each in result.defenses.items()}
        counts = {"samples": samples, "iterations": iterations, "counts": of}
        kept.setdefault(chosen, {})[change.says] = counts
        write_atomically(KEPT, (json.dumps(kept, indent=1) + "\n").encode())
        print(f"\n{change.says}: {of}", flush=True)


def _tell(state: Any) -> None:
    if not state.within:  # a unit begins
        print(f"\r{state.done} of {state.total} units", end="", flush=True)


def _counts(result: Any) -> dict[str, int]:
    counts = {each.kind: each.served.correct for each in result.attacks}
    counts["natural"] = result.natural.correct
    if result.difference is not None:
        counts |= {"gained": result.difference.only_defended, "lost": result.difference.only_static}
    return counts


def page() -> None:
    """Write the table into the page."""
    write_between(PAGE, "table", ["\n".join(table(json.loads(KEPT.read_text())))])


def table(kept: Mapping[str, Any]) -> list[str]:
    """Return the lines of the table, from the saved counts."""
    lines = [HEADER, "| --- " * 5 + "|"]
    for model, changes in kept.items():
        first = next(iter(changes.values()))
        static, count = first["counts"]["static"], first["samples"]
        robust = _share(static["attack"], count)
        lines.append(f"| `{model}`, static | {static['natural'] / count:.1%} | {robust} | | |")
        lines += [
            _line(says, of["samples"], of["counts"]["adapted"]) for says, of in changes.items()
        ]
    return lines


def _line(says: str, count: int, defended: Mapping[str, int]) -> str:
    low, high = tango(defended["gained"], defended["lost"], count)
    difference = (defended["gained"] - defended["lost"]) / count
    return (
        f"| {says} | {defended['natural'] / count:.1%} | {_share(defended['attack'], count)} | "
        f"{_share(defended['transfer'], count)} | "
        f"{100 * difference:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}] |"
    )


def _share(correct: int, count: int) -> str:
    low, high = wilson(correct, count)
    return f"{correct / count:.1%} [{100 * low:.1f}, {100 * high:.1f}]"


def main() -> None:
    """Run the measurements, or write the page."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=("run", "page"))
    parser.add_argument("--model", choices=list(THREATS), default=MODEL)
    parser.add_argument("--samples", type=int, default=256)
    parser.add_argument("--iterations", type=int, default=10)
    asked = parser.parse_args()
    if asked.what == "run":
        run(asked.model, asked.samples, asked.iterations)
    else:
        page()


if __name__ == "__main__":
    main()

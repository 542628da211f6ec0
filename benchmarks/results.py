"""The results table: the robust accuracy of each defense under three kinds of attack.

    python benchmarks/results.py run     the rows of AutoAttack and of suite 3; hours on 2 cores
    python benchmarks/results.py run --by end     the rows of suite 3 without an early stop
    python benchmarks/results.py run --by cut     the rows of the cut suite 1
    python benchmarks/results.py page    docs/evaluation/results.md and .svg, from saved results

An evaluation is an ordinary `dent evaluate`, whose command the page shows. If `run` is interrupted,
the same command continues it. Results are saved in docs/evaluation/results/, whole runs in
runs/results/. The rows of the board on the same model are shown beside them. The page also shows
the commands of the board's rows, and of the rows of suite 1, which only older code has.
"""

import argparse
import json
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pages import write_between
from results_chart import Row, draw

from dent.evaluation import EvaluationResult, load_run
from dent.evaluation.results.result import Decision
from dent.report import wording
from dent.report.headline import headline

ROOT: Final = Path(__file__).parent.parent
KEPT: Final = ROOT / "docs/evaluation/results"
PAGE: Final = ROOT / "docs/evaluation/results.md"
PICTURE: Final = PAGE.with_suffix(".svg")
FINDING: Final = ROOT / "docs/figures/finding.svg"
"""The figure in the README: the columns `SHOWN` of the defense `FOUND`."""
FOUND: Final = "dent+"

BOARD: Final = ROOT / "board/cifar10-linf-8_255-v1"
SAMPLES: Final = 256
BATCH_SIZE: Final = 32
"""It gives eight batches, the fewest for which there is an interval over batches."""
MODEL: Final = "resnet-14-2-linf"
CUT: Final = "standard:iterations=20,targets=1,square_iterations=50"
"""AutoAttack cut for 2 cores: 20 of 100 iterations, 1 of 9 targets, 50 of 5000 queries."""
SUITE_CUT: Final = (
    "adaptive-transfer:losses=margin,targeted=margin,iterations=20",
    "zero-update:iterations=10",
    "fpa:rounds=3,iterations=10",
    "gmsa-avg:rounds=3,iterations=10",
    "gmsa-min:rounds=3,iterations=10",
    "adaptive-stop-gradient:losses=margin,iterations=10",
    "adaptive-fewer-steps:losses=margin,iterations=10",
    "adaptive-unrolled:losses=margin,iterations=5,warm=true",
)
"""A cut of the small suite. Transfer and model-space attacks are whole, and zero update has half of
the iterations. Stop-gradient, fewer steps and unrolled use only the margin, with half of the
iterations or a quarter."""


SUITE, TO_THE_END = "decided", "end"
"""Keys of the columns of the current suite. It attacks the static model once for all defenses."""
SHOWN: Final = ("published", "frozen", SUITE, "board")
"""Keys of the columns in the figure of the README, the same as in its table."""
TRACK: Final = "cifar10-linf-8/255-v1"
SUITE_1: Final = "be86e3d"
"""A commit of this repository with suite 1 (torch-dent 0.1.0)."""
Results = dict[tuple[str, "Column"], EvaluationResult]


@dataclass(frozen=True)
class Column:
    """One way to attack every defense.

    Without options, its results come from an earlier version or from the board, and cannot be run.
    """

    key: str
    title: str
    options: tuple[str, ...]
    by_default: bool = True


COLUMNS: Final = (
    Column(
        "published",
        "AutoAttack (shortened), published",
        ("--attack", CUT, "--protocol", "published"),
    ),
    Column("frozen", "AutoAttack (shortened), frozen", ("--attack", CUT, "--protocol", "frozen")),
    Column(SUITE, "dynamic suite, small", ("--suite", "dynamic", "--budget", "small")),
    Column(
        TO_THE_END,
        "dynamic suite, small, to its end",
        ("--suite", "dynamic", "--budget", "small", "--to-the-end"),
        by_default=False,
    ),
    Column("board", "dynamic suite, small, 1,024 images", (), by_default=False),
    Column("dynamic", "dynamic suite 1, small", (), by_default=False),
    Column(
        "cut",
        "dynamic suite 1, cut",
        tuple(word for attack in SUITE_CUT for word in ("--attack", attack)),
        by_default=False,
    ),
)
DEFENSES: Final = {
    "dent+": "dent+",
    "dent-10": "benchmarks/configurations/dent-10.json",
    "dent-smoothing": "benchmarks/configurations/dent-smoothing.json",
    "dent": "dent",
}
"""The value of `--defense` by name, the cheapest first. `dent` is the preset with 30 steps. The two
before it have 10 steps, as in the paper's ablations, the second with a learned smoothing."""


def command(defense: str, column: Column) -> list[str]:
    """Return the arguments of `dent` for one cell of the table."""
    first = next(iter(DEFENSES))
    shared = column.key in (SUITE, TO_THE_END) and defense != first
    return [
        *("evaluate", "--model", MODEL, "--dataset", "cifar10"),
        *("--n", str(SAMPLES), "--batch-size", str(BATCH_SIZE), "--eps", "8/255"),
        *("--defense", DEFENSES[defense], *column.options),
        *(("--static-from", f"runs/results/{first}-{column.key}") if shared else ()),
        *("--out", f"runs/results/{defense}-{column.key}"),
    ]


def shown_command(defense: str, column: Column) -> str:
    """Return the command of a cell for the page, with a comment if this script cannot run it."""
    if column.key == "board":
        nonce = json.loads((BOARD / defense / "row.json").read_text())["nonce"]
        words = [
            *("board", "run", TRACK, "--defense", DEFENSES[defense]),
            *("--nonce", nonce, "--out", f"runs/board/{defense}"),
        ]
        return f"dent {shlex.join(words)}"
    if column.options:
        return f"dent {shlex.join(command(defense, column))}"
    suite = next(each for each in COLUMNS if each.key == SUITE)
    first = command(defense, Column(column.key, column.title, suite.options))
    return f"dent {shlex.join(first)}    # suite 1: only at commit {SUITE_1}"


def run(defenses: Sequence[str], columns: Sequence[Column]) -> None:
    """Run the evaluations of some cells; those that are complete are not repeated."""
    for column in columns:
        for defense in defenses:
            arguments = command(defense, column)
            print("dent", shlex.join(arguments), flush=True)
            subprocess.run(  # noqa: S603 - our own command
                [sys.executable, "-m", "dent", *arguments], cwd=ROOT, check=True
            )


def keep() -> None:
    """Copy the results of all runs on this machine, finished or not, to the folder `KEPT`."""
    KEPT.mkdir(exist_ok=True)
    for defense in DEFENSES:
        for column in COLUMNS:
            folder = ROOT / command(defense, column)[-1]
            if column.options and (folder / "run.json").exists():
                plain = load_run(folder).result.model_dump(mode="json")
                kept(defense, column).write_text(json.dumps(plain, indent=1) + "\n")


def kept(defense: str, column: Column) -> Path:
    """Return the path of the saved result of a cell."""
    if column.key == "board":
        return BOARD / defense / "headline/result.json"
    return KEPT / f"{defense}-{column.key}.json"


def results() -> Results:
    """Return all saved results by defense and column."""
    return {
        (defense, column): EvaluationResult.model_validate(json.loads(path.read_text()))
        for defense in DEFENSES
        for column in COLUMNS
        if (path := kept(defense, column)).exists()
    }


def chart(found: Results) -> None:
    """Draw the results that have an interval, for the page and for the README."""
    rows = {}
    for (defense, column), result in found.items():
        name = _defended(result)
        gain = result.defenses[name].difference
        if gain is not None and gain.value is not None and gain.interval is not None:
            low, high = gain.interval
            attacked = f"{column.title}{_unfinished(result)}"
            value, interval = 100 * gain.value, (100 * low, 100 * high)
            bound = result.defenses[_defended(result)].decided is not None
            rows[defense, column.key] = Row(defense, attacked, value, interval, bound)
    draw([*rows.values()], PICTURE)
    draw([rows[FOUND, key] for key in SHOWN if (FOUND, key) in rows], FINDING)


def table(found: Results) -> Iterator[str]:
    """Yield the lines of the table in Markdown, and the commands that reproduce it."""
    yield "| defense | attacked by | clean | robust | static | difference | verdict |"
    yield "| --- | --- | ---: | ---: | ---: | ---: | --- |"
    for (defense, column), result in found.items():
        name = _defended(result)
        cells, static = (headline(result).row(each).cells for each in (name, "static"))
        verdict = cells["verdict"].text if "verdict" in cells else ""
        yield (
            f"| {defense} | {column.title}{_unfinished(result)} | "
            f"{cells['natural'].text} | {cells['worst'].full} | {static['worst'].text} | "
            f"{cells['difference'].full} | {verdict} |"
        )
    yield ""
    for (defense, column), result in found.items():
        name = _defended(result)
        for sentence in wording.findings(result.defenses[name]):
            yield f"- **{defense}**, {column.title}: {sentence}"
    yield ""
    yield from durations(found)
    yield "```"
    for defense, column in found:
        yield shown_command(defense, column)
    yield "```"


def durations(found: Results) -> Iterator[str]:
    """Yield a table of the suite's time: earlier, with every attack on every batch, and now."""
    rows = []
    by_key = {(defense, column.key): result for (defense, column), result in found.items()}
    for defense in DEFENSES:
        after = by_key.get((defense, SUITE))
        if after is None:
            continue
        times = [
            "not run" if whole is None else _took(whole)
            for whole in (by_key.get((defense, "dynamic")), by_key.get((defense, TO_THE_END)))
        ]
        decided = after.defenses[_defended(after)].decided
        rows.append(
            f"| {defense} | {' | '.join(times)} | {_took(after)} | "
            f"{'its end' if decided is None else _decided(decided)} |"
        )
    if rows:
        yield (
            f"Time of the suite with {SAMPLES} images, from start to end. Suite 1 ran with one "
            "thread, suite 3 with two. Other work shared the cores during the runs to the end."
        )
        yield ""
        yield (
            "| defense | suite 1, to its end | suite 3, to its end | suite 3, until decided | "
            "decided after |"
        )
        yield "| --- | ---: | ---: | ---: | --- |"
        yield from rows
        yield ""


def _decided(decided: Decision) -> str:
    if not decided.after:
        return f"transfer from the static model, before the first of {decided.of} attacks on it"
    return f"{decided.after} of {decided.of} attacks"


def _took(result: EvaluationResult) -> str:
    units = sum(each.timing["total_seconds"] for each in result.defenses.values())
    time = f"{(result.timing['total'] or units) / 60:.0f} min"  # a killed process has no total
    return time if result.status == "complete" else f"{time} for {_scored(result)} of {SAMPLES}"


def _scored(result: EvaluationResult) -> int:
    return result.defenses[_defended(result)].worst.served.total


def _defended(result: EvaluationResult) -> str:
    (name,) = (name for name in result.defenses if name != "static")
    return name


def _unfinished(result: EvaluationResult) -> str:
    done = result.status == "complete"
    return "" if done else f" (unfinished: {_scored(result)} of {SAMPLES})"


def page(found: Results) -> None:
    """Write the table between its markers in the page."""
    write_between(PAGE, "table", ["\n".join(table(found))])


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("run", "page"))
    parser.add_argument("--defense", action="append", choices=DEFENSES)
    parser.add_argument(
        "--by", action="append", choices=[each.key for each in COLUMNS if each.options]
    )
    options = parser.parse_args()
    if options.what == "run":
        columns = [
            each for each in COLUMNS if (each.key in options.by if options.by else each.by_default)
        ]
        run(options.defense or list(DEFENSES), columns)
    keep()
    found = results()
    chart(found)
    page(found)


if __name__ == "__main__":
    main()

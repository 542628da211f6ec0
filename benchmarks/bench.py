"""`make bench`: measure all parts on this machine, and write one JSON file and one page.

    runs/bench/*.json       one part each, saved when it is done; the same command then continues
    runs/bench/bench.json   all parts, with a description of the machine
    runs/bench/index.html   the page

Remove runs/bench to measure again. `--publish` copies bench.json and the page to docs/bench/.
"""

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from contestants import LISTING, SETTINGS
from cost import STEPS, TABLE_14

from dent.report.charts import COLORS, Chart, Curve, Value, chart
from dent.report.html import environment

HERE: Final = Path(__file__).parent
PUBLISHED: Final = HERE.parent / "docs/bench"
PARTS: Final = ("cost", "where", "attack", "less", "engine")
_ORDER: Final = ("eager", LISTING, *SETTINGS)


def measure(folder: Path) -> dict[str, Any]:
    """Run the parts that are missing; return the figures of all parts by name."""
    found = {}
    for name in PARTS:
        path = folder / f"{name}.json"
        if name == "cost" or not path.exists():  # cost itself continues, cell by cell
            print(f"\n== {name}", flush=True)
            command = [sys.executable, str(HERE / f"{name}.py"), "--out", str(path)]
            subprocess.run(command, check=True)  # noqa: S603 - our own scripts
        found[name] = json.loads(path.read_text())
    return found


def machine() -> dict[str, str]:
    """Return a description of the machine, without its name."""
    cpu = torch.backends.cpu.get_cpu_capability()
    return {
        "cores": str(os.cpu_count()),
        "instructions": cpu,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def in_order(figures: Mapping[str, Any]) -> list[Any]:
    """Return the rows in the order of the page: by defense, by number of steps, then by setting.

    They are measured and recorded in another order.
    """
    defenses = list(dict.fromkeys(_named(each["what"])[0] for each in figures.values()))

    def place(each: Mapping[str, Any]) -> tuple[int, int, int]:
        defense, steps = _named(each["what"])
        return defenses.index(defense), steps, _ORDER.index(each["setting"])

    return sorted(figures.values(), key=place)


def _named(what: str) -> tuple[str, int]:
    """Split `dent, 10 steps, test statistics` into `dent, test statistics` and 10, or 0 if none."""
    steps = re.search(r", (\d+) steps", what)
    return (what, 0) if steps is None else (what.replace(steps[0], ""), int(steps[1]))


def by_steps(cells: Mapping[str, Any]) -> list[Chart]:
    """Return a chart of cost by steps for every cell that was measured at all of `STEPS`."""
    charts = []
    for title, figures in cells.items():
        settings = dict.fromkeys(each["setting"] for each in figures.values())
        curves: list[Curve] = []
        for setting in settings:
            names = [(steps, f"dent, {steps} steps, {setting}") for steps in STEPS]
            points = [(steps, figures[name]) for steps, name in names if name in figures]
            if setting != LISTING and len(points) == len(STEPS):
                values = [_value(steps, each) for steps, each in points]
                curves.append(Curve(setting, (), len(curves) % COLORS, False, values))
        if curves:
            floor = [Value(at, 2 * at + 1, None, f"{at}: {2 * at + 1}") for at in STEPS]
            paper = [Value(at, TABLE_14[at], None, f"{at}: {TABLE_14[at]}") for at in STEPS]
            curves.append(Curve("2 steps + 1", (), len(curves) % COLORS, True, floor))
            curves.append(Curve("paper, Table 14", (), len(curves) % COLORS, True, paper))
            ticks = [(float(at), str(at)) for at in STEPS]
            charts.append(
                chart(
                    f"dent on {title}",
                    curves,
                    x_label="steps",
                    y_label="static forwards",
                    x_ticks=ticks,
                    numeric=True,
                )
            )
    return charts


def _value(steps: int, each: Mapping[str, float]) -> Value:
    spread = (each["lower_quartile"], each["upper_quartile"])
    text = f"{steps}: {each['median']:.1f} [{spread[0]:.1f}, {spread[1]:.1f}]"
    return Value(steps, each["median"], spread, text)


def page(record: Mapping[str, Any]) -> str:
    """Return the figures as one self-contained HTML page."""
    template = environment("dent.paper").from_string((HERE / "bench.html.j2").read_text())
    return template.render(
        record=record, charts=by_steps(record["cost"]["cells"]), in_order=in_order
    )


def main() -> None:
    """Measure, and write the record and the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/bench"))
    parser.add_argument("--publish", action="store_true", help="copy to docs/bench/")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    record = {"machine": machine(), **measure(options.out)}
    (options.out / "bench.json").write_text(json.dumps(record, indent=1) + "\n")
    (options.out / "index.html").write_text(page(record))
    print(f"\nwritten to {options.out / 'bench.json'} and {options.out / 'index.html'}")
    if options.publish:
        PUBLISHED.mkdir(exist_ok=True)
        for name in ("bench.json", "index.html"):
            shutil.copy(options.out / name, PUBLISHED / name)


if __name__ == "__main__":
    main()

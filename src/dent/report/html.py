"""The report in HTML: one file that needs no network and no script."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

from dent.evaluation.records.spec import STATIC, EvaluationSpec
from dent.evaluation.results.intervals import LEVEL_TEXT, OF_MEDIAN, OF_PROPORTION
from dent.evaluation.results.result import DefenseResult, Diagnostic
from dent.evaluation.subject import threat_of
from dent.report import wording
from dent.report.charts import Chart, nice_ticks
from dent.report.commands import Commands, commands
from dent.report.flags import Flags
from dent.report.gallery import Gallery, gallery
from dent.report.headline import Headline, headline, of_difference, submitted
from dent.report.limits import limits
from dent.report.loading import NamedRun, status_of
from dent.report.pictures import smoothing_of
from dent.report.plots import (
    accuracy_chart,
    color_of,
    entropy_chart,
    own_curve,
    sigma_chart,
    success_chart,
    traces,
)
from dent.report.series import Series, differing, find_series
from dent.support import ranges
from dent.support.plural import counted
from dent.support.printable import printable

_HALF_POINTS: Final = (0.1, 0.25, 0.5, 1.0)
_SECTIONS: Final = (
    ("headline", "Headline"),
    ("flags", "Flags"),
    ("attacks", "Robust accuracy by attack"),
    ("progress", "Progress of the attacks"),
    ("adaptation", "Adaptation"),
    ("cost", "Cost"),
    ("diagnostics", "Diagnostics"),
    ("gallery", "Samples"),
    ("spec", "What was run"),
    ("provenance", "Provenance"),
)
"""Sections of the page of one run, by the end of their HTML id."""


@dataclass(frozen=True)
class RunPart:
    """The parts of a page about one run, beyond its result.

    Attributes:
        anchor: HTML id of its section.
        run: The run.
        headline: Its headline table.
        limits: Sentences about what its numbers do not show.
        by_step: Charts of entropy and sigma, for each defense that reports its steps.
        by_gradient: Charts of the progress of the attacks, one per defense.
        commands: Commands to repeat and verify it.
        gallery: The samples that it shows.
    """

    anchor: str
    run: NamedRun
    headline: Headline
    limits: tuple[str, ...]
    by_step: tuple[Chart, ...]
    by_gradient: tuple[Chart, ...]
    commands: Commands
    gallery: Gallery


@dataclass(frozen=True)
class SeriesPart:
    """A series with its chart, if there is one."""

    series: Series
    chart: Chart | None

    @property
    def title(self) -> str:
        """The title of the chart, or of the table if there is no chart."""
        over, label = self.series.over, self.series.label
        plain = f"Accuracy against {over} ({label})" if label else f"Accuracy against {over}"
        return plain if self.chart is None else self.chart.title


def to_html(runs: Sequence[NamedRun], *, data_root: Path | None = None) -> str:
    """Return the HTML page about one or several runs; see `write_report`."""
    flags = Flags(runs)
    return (
        environment()
        .get_template("page.html.j2")
        .render(
            parts=[_part(index, run, flags, data_root) for index, run in enumerate(runs, start=1)],
            flags=flags,
            series=[
                SeriesPart(series, accuracy_chart(series, flags)) for series in find_series(runs)
            ],
            differing=differing(runs),
            span=_span(runs),
            SECTIONS=_SECTIONS,
            STATIC=STATIC,
        )
    )


def _part(index: int, run: NamedRun, flags: Flags, data_root: Path | None) -> RunPart:
    result = run.result
    charts = (
        draw(result, name, flags)
        for name in result.defenses
        for draw in (entropy_chart, sigma_chart)
    )
    return RunPart(
        anchor=f"run-{index}",
        run=run,
        headline=headline(result, flags),
        limits=limits(result),
        by_step=tuple(chart for chart in charts if chart is not None),
        by_gradient=tuple(
            chart
            for chart in (success_chart(result, name, flags) for name in result.defenses)
            if chart is not None
        ),
        commands=commands(run.loaded),
        gallery=gallery(run.loaded, data_root),
    )


def environment(*packages: str) -> Environment:
    """Return the Jinja environment of the report, with its filters and escaping.

    Args:
        packages: Packages whose templates come before those of the report.
    """
    templates = Environment(
        loader=ChoiceLoader([PackageLoader(package) for package in (*packages, "dent.report")]),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_printable,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.globals |= {
        "LEVEL": LEVEL_TEXT,
        "OF_PROPORTION": OF_PROPORTION,
        "OF_MEDIAN": OF_MEDIAN,
        "AT_MOST": wording.AT_MOST,
    }
    templates.filters |= {
        "percent": wording.percent,
        "interval": wording.interval,
        "interval_of": wording.interval_of,
        "batches": wording.batches,
        "counted": counted,
        "of": wording.of,
        "points": wording.points,
        "points_interval": wording.points_interval,
        "reading": wording.reading,
        "submission": wording.submission,
        "findings": wording.findings,
        "indicators": wording.indicators,
        "attacked_and_broken": wording.attacked_and_broken,
        "seconds": wording.seconds,
        "nats": wording.nats,
        "short": wording.short,
        "sigma": wording.sigma,
        "title_of": wording.title,
        "attacks_of": wording.attacks,
        "tojson_plain": json.dumps,
        "tojson_indented": partial(json.dumps, indent=1),
    }
    templates.globals |= {
        "READINGS": wording.READINGS,
        "few_batches": wording.few_batches,
        "carried": wording.carried,
        "deciders": wording.deciders,
        "not_run": wording.not_run,
        "own_curve": own_curve,
        "submitted": submitted,
        "color_of": color_of,
        "traces": traces,
        "settings_of": _settings,
        "status_of": status_of,
        "threat_of": threat_of,
        "smoothing_of": smoothing_of,
        "diagnostic": _diagnostic,
        "diagnostic_names": _diagnostic_names,
        "of_difference": of_difference,
        "reasons": _reasons,
    }
    return templates


def _printable(value: Any) -> Any:
    """Replace control characters in a value that a template prints; markup stays markup."""
    return type(value)(printable(value)) if isinstance(value, str) else value


def _span(runs: Sequence[NamedRun]) -> float:
    """Return half the width of the scale that all differences on a page share."""
    edges = [
        abs(edge)
        for run in runs
        for defense in run.result.defenses.values()
        if defense.difference is not None and defense.difference.interval is not None
        for edge in defense.difference.interval
    ]
    widest = max(edges, default=0.0)
    return next((half for half in _HALF_POINTS if half >= widest), nice_ticks(widest)[-1])


def _settings(spec: EvaluationSpec) -> dict[str, Any]:
    """Return the settings of a run as plain JSON values, with the ids of samples as ranges."""
    plain = spec.settings.to_json()
    ids = spec.settings.ids
    return plain if ids is None else {**plain, "ids": ranges.written(ids)}


def _diagnostic(defense: DefenseResult, name: str) -> Diagnostic | None:
    """Return a diagnostic of a defense; None without it, because some exist only if raised."""
    return next((item for item in defense.diagnostics if item.name == name), None)


def _diagnostic_names(defenses: dict[str, DefenseResult]) -> list[str]:
    """Return the names of all diagnostics that any defense has, each once."""
    return list(dict.fromkeys(item.name for each in defenses.values() for item in each.diagnostics))


def _reasons(defenses: dict[str, DefenseResult]) -> list[tuple[str, str, list[str]]]:
    """Return all diagnostics that were not run: name, reason and defenses."""
    defenses_by_reason: dict[tuple[str, str], list[str]] = {}
    for defense, result in defenses.items():
        for item in result.diagnostics:
            if item.state == "not-run":
                defenses_by_reason.setdefault((item.name, item.sentence), []).append(defense)
    return [(name, reason, names) for (name, reason), names in defenses_by_reason.items()]

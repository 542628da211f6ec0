"""Runs that differ in one setting only, as points of a series."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from dent.evaluation.records.spec import EvaluationSpec
from dent.evaluation.results.result import Count
from dent.evaluation.subject import threat_of
from dent.report.loading import NamedRun
from dent.storage.canonical import canonical

Over = Literal["eps", "batch size", "share attacked", "order", "seed", "samples"]


@dataclass(frozen=True)
class SeriesPoint:
    """One run of a series.

    Attributes:
        run: The run.
        value: The value of the setting as a number; None if values have no order (`order`, `seed`).
        text: The value as text, such as `8/255`.
    """

    run: NamedRun
    value: float | None
    text: str


@dataclass(frozen=True)
class Series:
    """Several runs that differ in only one setting.

    Attributes:
        over: The setting.
        label: How it differs from other series over the same setting; empty if it is the only one.
        places: The runs by increasing value, or in the given order if values have no order.
        defenses: The names of the defenses, which are the same in all runs.
    """

    over: Over
    label: str
    places: tuple[SeriesPoint, ...]
    defenses: tuple[str, ...]

    def worst(self, defense: str) -> list[Count]:
        """Return the worst case of a defense in every run."""
        return [place.run.result.defenses[defense].worst.served for place in self.places]

    def natural(self, defense: str) -> list[Count]:
        """Return the clean accuracy of a defense in every run."""
        return [place.run.result.defenses[defense].natural for place in self.places]


@dataclass(frozen=True)
class _Axis:
    over: Over
    path: tuple[str, str]
    read: Callable[[EvaluationSpec], tuple[float | None, str]]


def _eps(spec: EvaluationSpec) -> tuple[float, str]:
    return threat_of(spec.threat).eps, spec.threat.eps


def _mix(spec: EvaluationSpec) -> tuple[float, str]:
    share = 1.0 if spec.settings.mix is None else spec.settings.mix
    return share, f"{share:g}"


_AXES: Final = (
    _Axis("eps", ("threat", "eps"), _eps),
    _Axis(
        "batch size",
        ("settings", "batch_size"),
        lambda spec: (float(spec.settings.batch_size), str(spec.settings.batch_size)),
    ),
    _Axis("share attacked", ("settings", "mix"), _mix),
    _Axis("order", ("settings", "order"), lambda spec: (None, spec.settings.order)),
    _Axis("seed", ("settings", "seed"), lambda spec: (None, str(spec.settings.seed))),
    _Axis("samples", ("settings", "n"), lambda spec: (float(spec.samples), str(spec.samples))),
)


def find_series(runs: Sequence[NamedRun]) -> tuple[Series, ...]:
    """Find all series among several runs: groups that differ in only one setting.

    For example, eight runs with four values of eps in two norms give two series over eps. Their
    labels name the norm.
    """
    all_series: list[Series] = []
    for axis in _AXES:
        groups: dict[str, list[SeriesPoint]] = {}
        for run in runs:
            spec = run.result.spec
            other_settings = canonical(_without(spec.newest.to_json(), axis.path))
            groups.setdefault(other_settings, []).append(SeriesPoint(run, *axis.read(spec)))
        series_places = [places for places in groups.values() if len({p.text for p in places}) > 1]
        others = differing([places[0].run for places in series_places])
        for index, places in enumerate(series_places):
            label = ", ".join(
                f"{name} {values[index]}"
                for name, values in others.items()
                if name != ".".join(axis.path)
            )
            all_series.append(_series(axis, places, label))
    return tuple(all_series)


def _series(axis: _Axis, places: list[SeriesPoint], label: str) -> Series:
    if all(place.value is not None for place in places):
        places = sorted(places, key=lambda place: place.value or 0.0)
    names = tuple(defense.name for defense in places[0].run.result.spec.defenses)
    return Series(axis.over, label, tuple(places), names)


def differing(runs: Sequence[NamedRun]) -> dict[str, list[str]]:
    """Return every field in which specs differ, by dotted name, with its value in each run."""
    if len(runs) < 2:
        return {}
    return dict(_walk([run.result.spec.newest.to_json() for run in runs], ""))


def _without(spec: dict[str, Any], path: tuple[str, str]) -> dict[str, Any]:
    return {**spec, path[0]: {k: v for k, v in spec[path[0]].items() if k != path[1]}}


def _walk(values: list[Any], path: str) -> Iterator[tuple[str, list[str]]]:
    if all(value == values[0] for value in values):
        return
    if all(isinstance(value, dict) for value in values):
        for key in dict.fromkeys(key for value in values for key in value):
            yield from _walk([value.get(key) for value in values], f"{path}.{key}" if path else key)
        return
    if not all(_named(value) for value in values):
        yield path, [_plain(value) for value in values]
        return
    items = [{item["name"]: item for item in value} for value in values]
    if any(list(item_by_name) != list(items[0]) for item_by_name in items):
        yield path, [", ".join(item_by_name) or "none" for item_by_name in items]
    for name in items[0]:
        if all(name in item_by_name for item_by_name in items):
            yield from _walk([item_by_name[name] for item_by_name in items], f"{path}.{name}")


def _named(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(item, dict) and "name" in item for item in value
    )


def _plain(value: Any) -> str:
    text = value if isinstance(value, str) else "none" if value is None else json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."

"""The verdict on a run, which accounts for earlier runs on the page, and report streams."""

import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from dent import ThreatModel
from dent.playground import PlaygroundOutcome, Setup, bundled, images, play, render
from dent.playground.ledger import Entry, of_outcome, of_stopped, remember
from dent.playground.streaming import ReportStream, Stopped
from dent.playground.verdict import verdict

SETUP = Setup(
    ThreatModel("linf", "2/255"),
    steps=2,
    iterations=1,
    batch_size=2,
    rungs=("stop-gradient", "unrolled"),
)
EVIL = "<img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def held() -> PlaygroundOutcome:
    """A run in which both the static model and the defense hold."""
    outcome = play(SETUP, bundled(images(), 7))
    assert not list(outcome.breaks("defense"))
    return outcome


def broken(outcome: PlaygroundOutcome, who: Any = "defense", **changed: Any) -> Entry:
    """Return the entry of an earlier run that broke `who`, with `changed` in its setup."""
    entry = of_outcome(outcome)
    names = dict(entry.broken) | {who: ("unrolled",)}
    return replace(entry, broken=names, setup=replace(entry.setup, **changed))


def test_verdict_is_based_on_the_worst_submission(held: PlaygroundOutcome) -> None:
    assert verdict(held).headline == "Both hold: static and dent+"
    assert "upper bound" in verdict(held).sentences[-1]
    attacked = play(replace(SETUP, threat=ThreatModel("linf", "16/255"), iterations=8), held.picked)
    falls = {who: bool(list(attacked.breaks(who))) for who in ("static", "defense")}
    assert falls["static"]
    said = verdict(attacked)
    assert (said.static_falls, said.defense_falls) == (True, falls["defense"])
    assert said.sentences[0].startswith("Static is wrong under the attack on static")
    for who, name in (("static", "static"), ("defense", "dent+")):
        least = min(each.answer(who).batch_right for each in attacked.submissions)
        assert f"{name} {least}" in said.sentences[2]


@pytest.mark.parametrize(
    ("changed", "counts"),
    [
        ({}, True),
        ({"threat": ThreatModel("linf", "1/255")}, True),
        ({"batch_size": 8, "seed": 5, "iterations": 40}, True),
        ({"threat": ThreatModel("linf", "3/255")}, False),
        ({"threat": ThreatModel("l2", "0.001")}, False),
        ({"model": "resnet-14-2-l2"}, False),
        ({"steps": 3}, False),
        ({"defense": "dent"}, False),
    ],
)
def test_earlier_breaks_count_only_for_the_same_defense_and_threat_model(
    held: PlaygroundOutcome, changed: dict[str, Any], counts: bool
) -> None:
    said = verdict(held, (broken(held, **changed),))
    assert said.defense_falls == counts
    falls = "On this image, dent+ falls where static holds"
    assert said.headline.startswith(falls if counts else "Both hold")
    assert ("an earlier one on this page broke it" in said.sentences[1]) == counts


def test_earlier_breaks_of_the_static_model_count_for_the_same_image(
    held: PlaygroundOutcome,
) -> None:
    assert verdict(held, (broken(held, "static", defense="dent"),)).static_falls
    other = replace(broken(held, "static"), image="another")
    assert not verdict(held, (other,)).static_falls


@pytest.mark.parametrize(("right", "first"), [({}, "Of the batch"), ({"defense": 9}, "Static is")])
def test_a_batch_that_contradicts_the_image_comes_first(
    held: PlaygroundOutcome, right: dict[Any, int], first: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dent.playground.verdict.least_right", lambda *a: right.get(a[2], 1))
    said = verdict(held, (broken(held, "static"),))
    assert said.headline == "On this image, dent+ holds where static falls"
    assert said.sentences[0].startswith(first)
    assert len(said.sentences) == len(verdict(held).sentences)


def test_queries_of_a_stopped_run_count(held: PlaygroundOutcome) -> None:
    looks = next(course.looks for course in held.courses if course.name == "stop-gradient")
    wrong = replace(looks[-1], label=(held.label + 1) % 10)
    still = of_stopped(held.setup, held.picked, {"stop-gradient": looks})
    broke = of_stopped(held.setup, held.picked, {"stop-gradient": [*looks, wrong]})
    assert verdict(held, (still,)).headline == "Both hold: static and dent+"
    assert verdict(held, (still, broke)).defense_falls
    assert not verdict(held, (still, broke)).static_falls


def test_verdict_states_the_fewest_correct_of_all_runs_on_the_same_batch(
    held: PlaygroundOutcome,
) -> None:
    entry = of_outcome(held)
    less = replace(entry, least={"static": 0, "defense": 0})
    assert "leaves static 0 right and dent+ 0;" in verdict(held, (less,)).sentences[2]
    setup = less.setup
    target = "image" if setup.target == "batch" else "batch"
    for changed in (replace(setup, seed=9), replace(setup, target=target)):
        other = replace(less, setup=changed)
        assert "static 0 right" not in verdict(held, (other,)).sentences[2]


def test_verdict_names_the_rungs_that_were_not_run(held: PlaygroundOutcome) -> None:
    some = replace(held, setup=replace(held.setup, rungs=("transfer",)))
    assert verdict(some).sentences[-1].startswith("Not run on dent+: stop-gradient and unrolled.")


def test_only_the_last_200_runs_are_remembered(held: PlaygroundOutcome) -> None:
    entries: tuple[Entry, ...] = ()
    for seed in range(203):
        entry = replace(of_outcome(held), setup=replace(SETUP, seed=seed))
        entries = remember(entries, entry)
    assert [entries[0].setup.seed, entries[-1].setup.seed, len(entries)] == [3, 202, 200]


def test_names_are_escaped_in_html(held: PlaygroundOutcome) -> None:
    evil = replace(held, picked=replace(held.picked, name=EVIL, note=EVIL))
    for shown in (
        render.ruling(evil, ()),
        render.chosen(evil.picked, (EVIL,) * 10, SETUP),
        render.results(replace(evil, classes=(EVIL,) * 10)),
        render.watched({c.name: c.looks for c in held.courses}, SETUP, (EVIL,) * 10),
    ):
        assert "<img src=x" not in shown
        assert "&lt;img src=x" in shown


def test_stream_yields_all_reports_in_order_and_returns_the_result() -> None:
    def work(report: Callable[[int], None]) -> str:
        for index in range(50):
            report(index)
        return "done"

    stream: ReportStream[int, str] = ReportStream(work, threading.Event())
    batches = list(stream)
    assert all(batches)
    assert [each for batch in batches for each in batch] == list(range(50))
    assert stream.result() == "done"


def test_stream_result_raises_the_exception_of_the_work() -> None:
    def work(report: Callable[[int], None]) -> str:
        report(1)
        raise ValueError("broken")

    stream: ReportStream[int, str] = ReportStream(work, threading.Event())
    assert list(stream) == [[1]]
    with pytest.raises(ValueError, match="broken"):
        stream.result()


@pytest.mark.parametrize("how", ["asked", "closed"])
def test_stopping_or_closing_a_stream_ends_its_work(how: str) -> None:
    stop = threading.Event()
    ended = threading.Event()

    def work(report: Callable[[int], None]) -> str:
        try:
            while True:
                report(0)
                stop.wait(0.001)
        finally:
            ended.set()

    stream: ReportStream[int, str] = ReportStream(work, stop)
    reports = iter(stream)
    next(reports)
    if how == "asked":
        stop.set()
        list(reports)
    else:
        reports.close()
    assert ended.is_set()
    with pytest.raises(Stopped):
        stream.result()

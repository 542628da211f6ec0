"""Comparison of a defense with the mean over views of about equal cost."""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from dent import DENT_PLUS, Dent, DentConfig, SmoothingConfig, ViewsConfig
from dent.attacks import make
from dent.cli.output.result import show_result
from dent.evaluation import EvaluationResult, Settings, Subject, evaluate, load_run
from dent.evaluation.records.journal import JOURNAL
from dent.evaluation.records.spec import DefenseSpec
from dent.evaluation.results.averaged_views import forwards_of, number_of_views
from dent.evaluation.results.result import Dependence
from dent.evaluation.results.scoring import Piece, Scores, score
from dent.evaluation.results.worst_case import worst_case, worst_cases
from dent.report.headline import OVER_VIEWS, headline
from dent.threat import ThreatModel
from tests.evaluation.subjects import make_dataset, make_model

if TYPE_CHECKING:
    from torch import nn


def described(config: DentConfig) -> DefenseSpec:
    return DefenseSpec(
        name="it",
        kind="Dent",
        config={"settings": config.to_dict()},
        weights=None,
        batch_dependent=False,
    )


@pytest.mark.parametrize(
    ("config", "views", "forwards"),
    [
        (DentConfig(steps=0, views=ViewsConfig(count=13)), 13, 13),
        (DENT_PLUS, None, 13),  # 6 steps
        (DentConfig(steps=10), None, 21),
        (DentConfig(steps=0), None, 1),
        (DentConfig(steps=0, views=ViewsConfig(count=6), statistics="test"), None, 6),
        (DentConfig(steps=1, views=ViewsConfig(count=4)), None, 12),
        (DentConfig(steps=1, views=ViewsConfig(count=4, predict="image")), None, 9),
        (
            DentConfig(
                steps=0, views=ViewsConfig(count=4), smoothing=SmoothingConfig(0.5, learn=False)
            ),
            None,
            4,
        ),
    ],
)
def test_views_and_forwards_are_counted_from_a_dent_configuration(
    config: DentConfig, views: int | None, forwards: int
) -> None:
    defense = described(config)
    assert number_of_views(defense) == views
    assert forwards_of(defense, 99.0) == forwards


def test_forwards_of_a_custom_defense_are_its_measured_cost() -> None:
    other = DefenseSpec(
        name="it",
        kind="Mine",
        config={"settings": {"steps": 3}},
        weights=None,
        batch_dependent=False,
    )
    assert forwards_of(other, 7.5) == 7.5
    assert forwards_of(other, None) is None


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "views"
    model = make_model()
    defenses: dict[str, nn.Module] = {
        "shifted": Dent(model, DentConfig(steps=2, lr=0.3)),
        "2 views": Dent(model, DentConfig(steps=0, views=ViewsConfig(count=2, shift=1))),
        "6 views": Dent(model, DentConfig(steps=0, views=ViewsConfig(count=6, shift=1))),
    }
    subject = Subject(
        model,
        make_dataset(),
        defenses,
        [make("pgd", iterations=4)],
        ThreatModel("linf", 0.1),
    )
    evaluate(subject, Settings(n=32, batch_size=16), out=out)
    return out


def test_a_defense_is_compared_with_the_views_nearest_in_cost(run: Path) -> None:
    recorded = load_run(run)
    result = recorded.result
    found = result.defenses["shifted"].over_views  # 2 steps cost 5 forwards
    assert found is not None
    assert (found.baseline, found.views) == ("6 views", 6)
    scores = score(recorded.run.spec, recorded.plan, recorded.records)
    ours, _ = worst_case(scores["shifted"], (0, 1), by_sample=False)
    theirs, _ = worst_case(scores["6 views"], (0, 1), by_sample=False)
    right = [sum(map(sum, each.values())) for each in (ours, theirs)]
    assert right[0] != right[1]  # otherwise a wrong sign could not be detected
    assert found.difference.value == pytest.approx((right[0] - right[1]) / 32)
    for name in ("static", "2 views", "6 views"):
        assert result.defenses[name].over_views is None


def test_an_interrupted_run_is_not_compared_with_views(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    journal = tmp_path / "run" / JOURNAL
    lines = journal.read_text().splitlines(keepends=True)
    journal.write_text("".join(lines[:-1]))
    interrupted = load_run(tmp_path / "run").result
    assert interrupted.status == "partial"
    assert {each.over_views for each in interrupted.defenses.values()} == {None}


def test_a_batch_dependent_views_baseline_is_scored_per_batch() -> None:
    """Otherwise its worst case would combine members of different submissions."""
    independent, dependent = (Dependence(declared=each, measured=None) for each in (False, True))
    pieces = [{0: Piece((True, False), (), 0)}, {0: Piece((False, True), (), 0)}]
    scores = Scores({"natural": pieces[0], "attack/a": pieces[1]}, {}, None, (0,))
    for of_static, correct in ((independent, 0), (dependent, 1)):
        _, theirs = worst_cases(scores, scores, independent, of_static)
        assert sum(theirs[0]) == correct


def test_the_headline_and_show_include_the_difference_over_views(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result: EvaluationResult = load_run(run).result
    table = headline(result)
    cell = table.row("shifted").cells[OVER_VIEWS]
    assert cell.of == "over 6 views (6 views)"
    assert cell.value == result.defenses["shifted"].over_views.difference.value  # type: ignore[union-attr]
    assert table.row("static").cells[OVER_VIEWS].text == ""
    show_result(result, str(run))
    assert "averaged" in capsys.readouterr().out

"""Estimates count the passes that a run makes; a sweep equals its single runs."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor, nn

from dent import DENT, Dent
from dent.attacks import PGD, make
from dent.errors import ConfigError, InputError
from dent.evaluation import RecordError, Settings, estimate, evaluate, load_run, read_sweep, sweep
from dent.evaluation.engine import cost
from dent.evaluation.probe import gradient_check
from dent.storage.canonical import without_timing
from tests.evaluation.subjects import SMALL, Push, Wrapper, make_model, make_subject


class Counting(Wrapper):
    """Counts the queries to it and its copies."""

    asked = 0

    def predict(self, x: Tensor, adaptation: object) -> Tensor:
        Counting.asked += 1
        return super().predict(x, adaptation)


def test_the_estimate_counts_the_passes_that_the_run_makes() -> None:
    model = make_model()
    defense = Counting(model)
    attack = PGD(iterations=3, restarts=2)
    # With a tiny eps, no member is fooled, so no attack stops early.
    subject = make_subject({"it": defense}, [attack, Push()], model=model, eps="1e-5")
    found = estimate(subject, SMALL)
    Counting.asked = 0
    result = evaluate(subject, SMALL).defenses["it"]
    ran = sum(summary.backwards for summary in result.attacks)
    planned = found.defenses["it"]
    assert planned.gradients == ran + 3  # the probe's gradients
    # Most queries of the probe are parts of a batch, and twelve have two members.
    assert planned.answers + planned.gradients == pytest.approx(Counting.asked - 9, abs=8)
    assert found.units == 29
    assert found.tensor_bytes == 2 * 2 * 20 * 3 * 6 * 6 * 4
    assert found.seconds > 0


class Divides(Wrapper):
    """Rounds by an operation without a derivative."""

    def predict(self, x: Tensor, adaptation: object) -> Tensor:
        return super().predict((x // (1 / 16)) / 16, adaptation)


def test_an_operation_without_a_derivative_has_no_gradient_to_time() -> None:
    attacks = [make("adaptive-stop-gradient", iterations=2), make("square", iterations=5)]
    subject = make_subject({"it": Divides(make_model())}, attacks)
    assert estimate(subject, SMALL).defenses["it"].gradient_seconds is None
    result = evaluate(subject, SMALL).defenses["it"]
    assert result.attack("adaptive-stop-gradient").queries > 0
    assert "zero gradient" in [each.name for each in result.raised]


class Answers(Wrapper):
    """Returns another answer than logits (N, classes)."""

    def __init__(self, model: nn.Module, change: Callable[[Tensor], object]) -> None:
        super().__init__(model)
        self._change = change

    def predict(self, x: Tensor, adaptation: object) -> Any:
        return self._change(super().predict(x, adaptation))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda logits: logits[1:], r"must return logits \(\d+, classes\).* got "),
        (lambda logits: logits.repeat(2, 1), r"must return logits \(\d+, classes\).* got "),
        (lambda logits: logits.argmax(dim=1), r"must return logits \(\d+, classes\).* got "),
        (lambda logits: {"logits": logits}, r"must return logits \(\d+, classes\).* got "),
        (lambda logits: logits[:, :2], r"returned logits of 2 classes, the dataset has \d+"),
    ],
    ids=["fewer rows", "more rows", "classes", "a dict", "fewer classes"],
)
def test_an_answer_that_is_not_logits_of_every_class_is_refused(
    change: Callable[[Tensor], object], says: str
) -> None:
    subject = make_subject({"it": Answers(make_model(), change)})
    with pytest.raises(InputError, match=says):
        estimate(subject, SMALL)
    with pytest.raises(InputError, match=says):
        evaluate(subject, SMALL)


def test_the_estimate_of_a_part_counts_only_its_units() -> None:
    subject = make_subject()
    whole = estimate(subject, SMALL)
    keys = {f"attack/{batch}/dent/push" for batch in (0, 1)}
    part = estimate(subject, SMALL, only=keys)
    assert (whole.units, part.units) == (29, 2)
    assert part.tensor_bytes * 20 == whole.tensor_bytes // 4 * 16
    assert part.defenses["dent"].answers + part.defenses["dent"].gradients < (
        whole.defenses["dent"].answers + whole.defenses["dent"].gradients
    )
    assert part.defenses["static"].static_passes == 0


def test_the_estimate_counts_the_follow_ups_of_full_diagnostics() -> None:
    model = make_model()
    defense = Counting(model)
    subject = make_subject({"it": defense}, [PGD(iterations=7)], model=model, eps="1e-5")
    full = Settings(n=8, batch_size=8, diagnostics="full")
    found = estimate(subject, full).defenses["it"]
    cheap = estimate(subject, Settings(n=8, batch_size=8)).defenses["it"]
    Counting.asked = 0
    evaluate(subject, full)
    # The attack with more iterations runs on half of the batch: two of its passes cost as much as
    # one of the whole batch. The attack with a huge eps runs on the whole batch.
    huge = 21
    extra = found.answers + found.gradients - cheap.answers - cheap.gradients
    asked = Counting.asked
    Counting.asked = 0
    evaluate(subject, Settings(n=8, batch_size=8))
    assert extra == pytest.approx((asked - Counting.asked + huge) / 2, abs=8)
    assert extra > 20


def test_passes_without_adaptation_are_counted_as_static_passes() -> None:
    attack = make("gmsa-avg", iterations=4, rounds=3)
    subject = make_subject({"it": Counting(make_model())}, [attack], eps="1e-5")
    found = estimate(subject, Settings(n=8, batch_size=8)).defenses["it"]
    # Five evaluations per round of one, two and three models; a forward and a backward cost three.
    assert found.static_passes == 5 * (1 + 2 + 3) * 3
    bare = estimate(make_subject({"it": Counting(make_model())}, [], eps="1e-5"), Settings(n=8))
    # In the attack: the natural batch, one batch per round, the images found, and each member's
    # strongest images as one batch (only for batch-dependent defenses). Then submissions: the
    # result three times, and twice each the images of the same attack on the static model and the
    # assembled batch.
    assert found.answers - bare.defenses["it"].answers == (1 + 3 + 1 + 1) + (3 + 2 + 2)
    assert found.gradients == bare.defenses["it"].gradients


def test_an_exact_gradient_is_timed_separately_if_the_defense_offers_it() -> None:
    attack = make("adaptive-unrolled", iterations=4, losses="margin")
    settings = Settings(n=8, batch_size=8)
    config = replace(DENT, steps=6)
    model = make_model()
    defenses = {"dent": Dent(model, config), "it": Wrapper(model)}
    found = estimate(make_subject(defenses, [attack], model=model), settings).defenses
    assert found["dent"].unrolled == found["static"].unrolled == 5
    assert found["dent"].unrolled_seconds is not None
    assert found["dent"].gradient_seconds is not None
    assert (found["it"].unrolled, found["it"].unrolled_seconds) == (5, None)
    cheap = make("adaptive-stop-gradient", iterations=4, losses="margin")
    other = estimate(make_subject({}, [cheap]), settings).defenses["static"]
    assert (other.unrolled, other.unrolled_seconds) == (0, None)
    # An attack with the exact gradient adds the certificate and the attack with a huge eps.
    checks = gradient_check.passes(8).backwards + 20
    assert other.gradients == found["static"].gradients - checks + 5


def test_the_estimated_tensor_size_matches_the_run_folder(tmp_path: Path) -> None:
    subject = make_subject()
    evaluate(subject, SMALL, out=tmp_path / "run")
    kept = sum(path.stat().st_size for path in (tmp_path / "run/adversarial").iterdir())
    assert kept == pytest.approx(estimate(subject, SMALL).tensor_bytes, rel=0.1)
    dropped = Settings(**{**SMALL.to_json(), "tensors": "drop"})
    assert estimate(subject, dropped).tensor_bytes == 0


def test_published_attacks_are_counted_once_for_all_batches() -> None:
    attack = make("apgd-ce", iterations=5, protocol="published", batch_size=8)
    subject = make_subject({}, [attack], eps="1e-5")
    planned = estimate(subject, SMALL).defenses["static"]
    ran = evaluate(subject, SMALL).defenses["static"].attack("apgd-ce")
    assert planned.gradients == pytest.approx(ran.backwards + 1, abs=6)


def test_each_result_of_a_sweep_equals_that_of_a_single_run(tmp_path: Path) -> None:
    subject, states = make_subject(), []
    results = sweep(
        subject,
        Settings(n=8),
        over="batch_size",
        values=[2, 4],
        out=tmp_path / "sweep",
        progress=lambda value, state: states.append((value, state.done)),
    )
    assert list(results) == ["2", "4"]
    assert {value for value, _ in states} == {"2", "4"}
    for value, result in results.items():
        alone = evaluate(subject, Settings(n=8, batch_size=int(value)))
        mine, other = (without_timing(item.to_json()) for item in (result, alone))
        assert mine.pop("sessions")
        assert other.pop("sessions")
        assert mine == other
    folders = read_sweep(tmp_path / "sweep")
    assert {value: path.name for value, path in folders.items()} == {
        "2": "batch-size=2",
        "4": "batch-size=4",
    }
    assert load_run(folders["4"]).result == results["4"]
    states.clear()
    more = sweep(subject, Settings(n=8), over="batch_size", values=[4, 8], out=tmp_path / "sweep")
    assert more["4"] == results["4"]
    assert list(read_sweep(tmp_path / "sweep")) == ["2", "4", "8"]


def test_a_sweep_over_eps_changes_the_threat_model(tmp_path: Path) -> None:
    results = sweep(
        make_subject({}),
        Settings(n=8, batch_size=8),
        over="eps",
        values=["0", "2/255", 0.1],
        out=tmp_path / "eps",
    )
    assert [r.spec.threat.eps for r in results.values()] == ["0", "2/255", "0.1"]
    right = [r.defenses["static"].worst.served.correct for r in results.values()]
    assert right[0] == results["0"].defenses["static"].natural.correct
    assert right == sorted(right, reverse=True)
    assert read_sweep(tmp_path / "eps")["2/255"].name == "eps=2_255"


def test_invalid_sweeps_are_refused_and_an_existing_sweep_is_unchanged(tmp_path: Path) -> None:
    subject = make_subject({}, [])
    for same in (["8/255", 8 / 255], [0, None]):
        with pytest.raises(ConfigError, match=r"the sweep over eps has the value .* twice"):
            sweep(subject, Settings(n=8), over="eps", values=same)
    with pytest.raises(ConfigError, match="has the value 4 twice"):
        sweep(subject, Settings(n=8), over="batch_size", values=[4, "4"])
    with pytest.raises(ConfigError, match="needs values"):
        sweep(subject, Settings(n=8), over="batch_size", values=[])
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(RecordError, match="contains files that are not part of a sweep"):
        sweep(subject, Settings(n=8), over="n", values=[4], out=tmp_path)
    assert [file.read_text() for file in tmp_path.iterdir()] == ["mine"]
    sweep(subject, Settings(n=4), over="batch_size", values=[4], out=tmp_path / "a")
    before = json.loads((tmp_path / "a" / "sweep.json").read_text())
    with pytest.raises(RecordError, match="has a sweep over batch_size, not n"):
        sweep(subject, Settings(n=4), over="n", values=[4], out=tmp_path / "a")
    assert json.loads((tmp_path / "a" / "sweep.json").read_text()) == before


def test_the_estimated_range_is_given_by_two_measurements(monkeypatch: pytest.MonkeyPatch) -> None:
    """`least` uses the faster measurement, and `seconds` the slower one."""
    times = iter([(1.0, 2.0), (3.0, 5.0)])
    monkeypatch.setattr(cost, "_time", lambda *_: next(times))
    monkeypatch.setattr(cost, "_static", lambda *_: 1.0)
    priced = estimate(make_subject({}), SMALL).defenses["static"]
    passes = (priced.answers, priced.gradients)
    scale = priced.seconds / (3 * passes[0] + 5 * passes[1] + priced.static_passes)
    assert priced.least == pytest.approx(
        scale * (1 * passes[0] + 2 * passes[1] + priced.static_passes)
    )
    assert priced.answer_seconds == pytest.approx(3 * scale)

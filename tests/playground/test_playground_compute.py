"""The playground computes what the library computes, and only observes it."""

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dent import ConfigError, Dent, ThreatModel, entropy, models
from dent.attacks import Attack, Querier, make
from dent.attacks import Outcome as Found
from dent.attacks.adaptive import Among
from dent.playground import Picked, PlaygroundOutcome, Setup, Sight, bundled, images, play
from dent.playground.images import company
from dent.playground.outcome import PlaygroundSubmission
from dent.playground.setup import offered_models, usual_threat
from dent.playground.streaming import Stopped
from dent.playground.verdict import notes
from dent.playground.watch import AttackWatch, Look

SMALL = Setup(ThreatModel("linf", "8/255"), steps=2, iterations=2, batch_size=2)
POSITION = 7
MODEL = models.load("resnet-14-2-linf")


def batch_of(setup: Setup, picked: Picked) -> tuple[Tensor, Tensor]:
    x, y = images().batch(company(images(), picked, setup.batch_size, setup.seed))
    label = torch.tensor([picked.label or 0])
    return torch.cat([picked.pixels.unsqueeze(0), x]), torch.cat([label, y])


def found(outcome: PlaygroundOutcome, name: str | None) -> PlaygroundSubmission:
    return next(s for s in outcome.submissions if s.found_by == name and s.query is None)


@pytest.fixture(scope="module")
def outcome() -> PlaygroundOutcome:
    return play(SMALL, bundled(images(), POSITION))


@pytest.mark.parametrize("attack", ["pgd", "apgd-ce"])
def test_attacks_and_predictions_equal_those_of_the_library(attack: Any) -> None:
    setup = replace(SMALL, attack=attack, seed=3, rungs=("stop-gradient", "unrolled"))
    picked = bundled(images(), POSITION)
    got = play(setup, picked)
    x, y = batch_of(setup, picked)
    defense = Dent(MODEL, setup.config)
    direct = {
        None: x,
        "static": make(attack, iterations=2)(MODEL, x, y, setup.threat, seed=3).adversarial,
        "stop-gradient": make(attack, iterations=2)(
            defense, x, y, setup.threat, seed=3
        ).adversarial,
        "unrolled": make("adaptive-unrolled", losses="ce", iterations=1)(
            defense, x, y, setup.threat, seed=3
        ).adversarial,
    }
    for name, batch in direct.items():
        submission = found(got, name)
        assert torch.equal(submission.batch, batch), name
        for answer, logits in (
            (submission.static, MODEL(batch)),
            (submission.defense, defense(batch)),
        ):
            torch.testing.assert_close(answer.served.logits, logits.detach())
            assert answer.predicted == int(logits[0].argmax())
            assert answer.batch_right == int((logits.argmax(1) == y).sum())
            confidence = torch.softmax(logits[0], 0).sort(descending=True)
            assert [at for at, _ in answer.top] == confidence.indices[:3].tolist()
            assert [share for _, share in answer.top] == pytest.approx(
                confidence.values[:3].tolist()
            )
        adaptation = defense.adapt(batch)
        steps = [*adaptation.entropy[:, 0], entropy(defense.predict(batch, adaptation))[0]]
        assert submission.defense.served.trace.entropy == pytest.approx(
            [float(step) for step in steps], abs=1e-5
        )


def test_target_image_attacks_only_the_picked_image_of_the_batch() -> None:
    setup = replace(SMALL, target="image", rungs=("stop-gradient",))
    picked = bundled(images(), POSITION)
    got = play(setup, picked)
    x, y = batch_of(setup, picked)
    among = Among(Dent(MODEL, setup.config), x, y, torch.arange(2) < 1)
    direct = make("pgd", iterations=2)(among, x[:1], y[:1], setup.threat, seed=0).adversarial
    submission = found(got, "stop-gradient")
    assert torch.equal(submission.batch, torch.cat([direct, x[1:]]))
    assert not torch.equal(submission.image, x[0])


@pytest.mark.parametrize("threat", [ThreatModel("linf", "8/255"), ThreatModel("l2", "0.5")])
def test_all_images_stay_within_the_threat_model(threat: ThreatModel) -> None:
    setup = replace(SMALL, threat=threat)
    got = play(setup, bundled(images(), POSITION))
    natural = got.natural.batch
    assert len(got.submissions) >= 4
    for submission in got.submissions:
        assert not bool(threat.check(submission.batch, natural).any())
        assert 0 <= float(submission.batch.min()) <= float(submission.batch.max()) <= 1
    moved = [look.image for course in got.courses for look in course.looks]
    assert not bool(
        threat.check(torch.stack(moved), natural[:1].expand(len(moved), -1, -1, -1)).any()
    )
    assert max(float((image - natural[0]).abs().max()) for image in moved) > 0


def test_looks_record_the_image_loss_margin_and_prediction_of_each_query(
    outcome: PlaygroundOutcome,
) -> None:
    courses = {course.name: course for course in outcome.courses}
    assert list(courses) == ["static", "transfer", "stop-gradient", "unrolled"]
    for course in outcome.courses:
        assert torch.equal(course.looks[0].image, outcome.picked.pixels)
        assert [look.query for look in course.looks] == list(range(len(course.looks)))
    assert len(courses["static"].looks) == 4, "the natural image, a random start, two iterations"
    for asked, replayed in zip(courses["static"].looks, courses["transfer"].looks, strict=True):
        assert torch.equal(asked.image, replayed.image)
        logits = MODEL(asked.image.unsqueeze(0)).detach()
        label = torch.tensor([outcome.label])
        assert asked.loss == pytest.approx(float(F.cross_entropy(logits, label)), abs=1e-4)
        rest = logits[0].clone()
        rest[outcome.label] = -torch.inf
        assert asked.margin == pytest.approx(float(logits[0, outcome.label] - rest.max()), abs=1e-4)
        assert asked.predicted == int(logits.argmax())
        assert asked.right == (asked.margin > 0)
    x, _ = batch_of(SMALL, outcome.picked)
    torch.testing.assert_close(
        courses["transfer"].looks[0].logits, Dent(MODEL, SMALL.config)(x)[0].detach()
    )


def test_dent_plus_equals_the_static_model_in_a_batch_of_one() -> None:
    setup = replace(SMALL, batch_size=1, rungs=("stop-gradient",))
    got = play(setup, bundled(images(), POSITION))
    for submission in got.submissions:
        torch.testing.assert_close(
            submission.defense.served.logits, submission.static.served.logits
        )
    assert "is the static model" in " ".join(notes(setup))
    assert not list(notes(replace(setup, batch_size=3)))
    assert "noise" in " ".join(notes(replace(setup, defense="dent-nominal")))


def test_runs_with_the_same_seed_are_identical(outcome: PlaygroundOutcome) -> None:
    again = play(SMALL, bundled(images(), POSITION))
    assert again.company == outcome.company
    for one, other in zip(outcome.submissions, again.submissions, strict=True):
        assert torch.equal(one.batch, other.batch)
        assert torch.equal(one.defense.served.logits, other.defense.served.logits)
    assert company(images(), outcome.picked, 4, 1) != company(images(), outcome.picked, 4, 0)
    assert POSITION not in company(images(), outcome.picked, 256, 0)


def test_image_without_a_label_gets_the_static_prediction_as_its_label() -> None:
    picked = replace(bundled(images(), 3), label=None, position=None)
    got = play(replace(SMALL, rungs=()), picked)
    assert (
        got.label == int(MODEL(picked.pixels.unsqueeze(0)).argmax()) != bundled(images(), 3).label
    )
    assert got.natural.static.right


class Forgetful(Attack):
    """An attack that queries fooling images but returns the natural images."""

    def run(self, target: Querier, threat: ThreatModel, seed: int) -> Found:
        target(target.natural)
        fooling = make("pgd", iterations=8)(MODEL, target.natural, target.labels, threat, seed=seed)
        target(fooling.adversarial)
        return Found(target.natural, torch.zeros(len(target.labels), dtype=torch.bool))


def test_query_that_fooled_the_defense_is_submitted_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Setup, "of_defense", lambda setup, rung: Forgetful())
    threat = ThreatModel("linf", "16/255")
    got = play(
        replace(SMALL, threat=threat, defense="dent", steps=1, rungs=("stop-gradient",)),
        bundled(images(), POSITION),
    )
    assert found(got, "stop-gradient").defense.right
    (way,) = (submission for submission in got.submissions if submission.query is not None)
    assert (way.found_by, way.query) == ("stop-gradient", 1)
    assert not way.defense.right
    assert way in list(got.breaks("defense"))


def test_watch_keeps_the_worst_wrong_prediction_within_the_threat_model() -> None:
    natural = torch.full((2, 3, 4, 4), 0.5)
    seen: list[Look] = []
    watch = AttackWatch(0, natural, ThreatModel("linf", 0.1), seen.append)
    answers = [(0.0, 3.0), (0.05, -1.0), (0.1, -2.0), (0.05, -1.5), (0.3, -9.0)]
    for shift, logit in answers:
        watch.saw(natural[:1] + shift, torch.tensor([[logit, 0.0, -5.0]]))
    assert watch.find is not None
    look, batch = watch.find
    assert look.query == 2
    assert torch.equal(batch, torch.cat([natural[:1] + 0.1, natural[1:]]))
    assert [each.right for each in seen] == [True, False, False, False, False]
    watch.saw(natural[:1], torch.tensor([[torch.nan, 0.0, 0.0]]))
    assert (seen[-1].predicted, seen[-1].right) == (None, False)


def test_run_reports_its_progress_and_can_be_stopped() -> None:
    sights: list[Sight] = []

    def see(sight: Sight) -> None:
        sights.append(sight)
        if sight.course == "transfer":
            raise Stopped

    with pytest.raises(Stopped):
        play(SMALL, bundled(images(), POSITION), see)
    assert [sight.course for sight in sights] == ["static"] * 4 + ["transfer"]
    shares = [sight.share for sight in sights]
    assert shares == sorted(shares)
    assert 0 < shares[0] < shares[-1] < 0.5


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"threat": ThreatModel("linf", "17/255")}, "at most linf 16/255"),
        ({"threat": ThreatModel("l1", 1)}, "'linf', 'l2'"),
        ({"model": "resnet-14-2-linff"}, "model must be one of"),
        ({"defense": "hedge"}, "defense must be one of"),
        ({"attack": "square"}, "attack must be one of"),
        ({"rungs": ("bpda",)}, "rung must be one of"),
        ({"iterations": 41}, "iterations must be a whole number from 1 to 40"),
        ({"batch_size": 33}, "batch size must be"),
        ({"steps": 0}, "steps must be"),
        ({"target": "others"}, "target must be one of"),
        ({"seed": -1}, "seed must be"),
        ({"threat": "linf"}, "threat must be a ThreatModel, such as"),
        ({"rungs": "transfer"}, "rungs must be a tuple of names, got 'transfer'"),
        ({"seed": 2**31}, "seed must be at most"),
    ],
)
def test_invalid_setups_are_refused(changed: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        replace(SMALL, **changed)


def test_usual_threat_of_every_offered_model_makes_a_valid_setup() -> None:
    assert {"resnet-14-2-linf", "resnet-14-2-l2", "resnet-14-2-nominal"} <= set(offered_models())
    for model in offered_models():
        Setup(usual_threat(model), model=model)
    assert usual_threat("resnet-14-2-l2") == ThreatModel("l2", 0.5)

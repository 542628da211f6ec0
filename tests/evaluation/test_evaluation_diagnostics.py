"""Diagnostics against defenses whose truth is known."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dent import Dent, DentConfig
from dent.attacks import PGD, Attack, AutoAttack, Defense, Outcome, Querier, make
from dent.attacks.adaptive import NOT_AVAILABLE
from dent.evaluation import DefenseResult, Settings, evaluate
from dent.evaluation.results.diagnostics import of_defense, of_run
from dent.evaluation.results.result import AttackSummary, Count, Dependence, Diagnostic
from dent.evaluation.submission.submission import submit
from tests.evaluation.subjects import (
    SMALL,
    Guess,
    Leaky,
    Masked,
    Noisy,
    Probabilities,
    Push,
    Remembering,
    Sociable,
    Wrapper,
    make_model,
    make_subject,
)

NAMES = (
    "randomized",
    "carries state",
    "not logits",
    "zero gradient",
    "batch dependent",
    "undeclared dependence",
    "black-box beats white-box",
    "transfer beats white-box",
    "more iterations still help",
    "huge eps does not break all",
    "served differs from claimed",
    "served differs with gradients",
    "no gradient where members stand",
    "cannot be copied",
    "non-finite",
    "attack moved nothing",
    "attack gained nothing",
    "fewer queries than planned",
    "not as named",
)


def look(
    kind: type[Wrapper] | None = None,
    attacks: list[Attack] | None = None,
    settings: Settings = SMALL,
    defense: Defense | None = None,
) -> DefenseResult:
    model = make_model()
    asked = defense if defense is not None else (kind or Wrapper)(model)
    return evaluate(make_subject({"it": asked}, attacks, model=model), settings).defenses["it"]


def raised(result: DefenseResult) -> set[str]:
    return {diagnostic.name for diagnostic in result.raised}


def state(result: DefenseResult, name: str) -> str:
    return {diagnostic.name: diagnostic.state for diagnostic in result.diagnostics}[name]


def test_the_identity_raises_nothing_and_every_diagnostic_is_there() -> None:
    result = look()
    assert raised(result) == set()
    assert tuple(diagnostic.name for diagnostic in result.diagnostics) == NAMES
    for name in NAMES[6:7] + NAMES[8:10]:
        assert state(result, name) == "not-run"


def test_randomness_is_seen_and_dependence_is_then_not_claimed_to_be_measured() -> None:
    result = look(Noisy)
    assert "randomized" in raised(result)
    assert "carries state" not in raised(result)
    assert state(result, "batch dependent") == "not-run"
    assert result.dependence.measured is None


def test_state_is_seen_and_is_not_taken_for_randomness() -> None:
    assert {"carries state"} <= raised(look(Leaky))
    assert "randomized" not in raised(look(Leaky))
    # Saying so, and being put back for every unit, does not make it go away in use.
    assert "carries state" in raised(look(Remembering))


def test_probabilities_are_no_logits() -> None:
    assert "not logits" in raised(look(Probabilities))


def test_a_masked_gradient_is_seen_in_three_ways() -> None:
    result = look(Masked, [Push(), Guess()])
    assert {"zero gradient", "transfer beats white-box"} <= raised(result)
    # PGD finds nothing at all behind it; random corners of a large ball do.
    model = make_model()
    subject = make_subject(
        {"it": Masked(model)}, [Push(), make("square", iterations=80)], model=model, eps="60/255"
    )
    masked = evaluate(subject, Settings(n=16, batch_size=16)).defenses["it"]
    assert "black-box beats white-box" in raised(masked)
    # The transferred attack leaves no gain standing.
    assert masked.difference is not None
    assert masked.difference.value is not None
    assert masked.difference.value <= 0


def test_an_attack_that_was_not_available_is_neither_a_black_box_nor_a_white_one() -> None:
    exact = make("adaptive-unrolled", iterations=2)  # which a wrapper does not offer
    found = look(Wrapper, [exact, Push()])
    assert found.attack(exact.name).notes[0].startswith(NOT_AVAILABLE)
    assert state(found, "black-box beats white-box") == "not-run"
    assert state(look(Wrapper, [exact]), "transfer beats white-box") == "not-run"


def summary(correct: int, total: int, **values: Any) -> AttackSummary:
    served = Count.of(correct, total)
    plain = {"claimed_but_served": 0, "served_wrong_unclaimed": 0, "black_box": False}
    return AttackSummary.model_construct(
        **{"kind": "attack", "attack": "it", "served": served, "claimed": served, "after": {}}
        | {"batches": 1, "notes": (), "non_finite": 0, "non_finite_in_attack": 0}
        | plain
        | values
    )


def read(name: str, *attacks: AttackSummary) -> Diagnostic:
    """One diagnostic of a defense that these attacks met."""
    independent = Dependence(declared=False, measured=None)
    found = of_defense("it", None, independent, attacks, 0, has_static=True, looks_through=False)
    return next(each for each in found if each.name == name)


@pytest.mark.parametrize("missed", ["claimed_but_served", "served_wrong_unclaimed"])
def test_claims_too_many_and_too_few_are_both_mismatches(missed: str) -> None:
    states = [
        read("served differs from claimed", summary(4, 8, **{missed: count})).state
        for count in (0, 1)
    ]
    assert states == ["passed", "raised"]


def test_attacks_on_different_batches_of_an_unfinished_run_are_not_compared() -> None:
    name, white = "black-box beats white-box", summary(4, 8)
    assert read(name, white, summary(2, 8, black_box=True)).state == "raised"
    assert read(name, white, summary(2, 4, black_box=True)).state == "not-run"


class Cut(Wrapper):
    """Answers without any gradient."""

    def predict(self, x: Tensor, adaptation: object) -> Tensor:
        return super().predict(x.detach(), adaptation)


def test_no_gradient_at_all_is_a_zero_gradient() -> None:
    assert "zero gradient" in raised(look(Cut, [Guess()]))


def test_undeclared_dependence_is_measured_and_takes_the_worst_case_per_batch() -> None:
    result = look(Sociable)
    assert {"batch dependent", "undeclared dependence"} <= raised(result)
    assert (result.dependence.declared, result.dependence.measured) == (False, True)
    assert result.worst.unit == "batch"


class OnlyInLargeBatches(Wrapper):
    """Turns its answers where fewer than eight ask."""

    def predict(self, x: Tensor, adaptation: object) -> Tensor:
        logits = super().predict(x, adaptation)
        return logits if len(x) >= 8 else logits.roll(1, dims=1)


class ByPlace(Wrapper):
    """Favours the first member."""

    def predict(self, x: Tensor, adaptation: object) -> Tensor:
        logits = super().predict(x, adaptation)
        turn = torch.zeros(len(x), dtype=torch.bool)
        turn[0] = True
        return torch.where(turn.unsqueeze(1), logits.roll(1, dims=1), logits)


class AmongStrangers(Wrapper):
    """Turns its answers where any member of the batch is no natural image."""

    def predict(self, x: Tensor, adaptation: object) -> Tensor:
        logits = super().predict(x, adaptation)
        strange = bool((x.detach().flatten(1).std(dim=1) > 0.4).any())
        return logits.roll(1, dims=1) if strange else logits


@pytest.mark.parametrize("kind", [OnlyInLargeBatches, ByPlace, AmongStrangers])
def test_each_kind_of_company_is_looked_at(kind: type[Wrapper]) -> None:
    assert look(kind).dependence.measured is True


def test_dent_is_dependent_as_it_declares_and_alone_it_is_not() -> None:
    model = make_model()
    together = look(defense=Dent(model, DentConfig(steps=3, lr=0.05)))
    assert together.dependence.measured is True
    assert "undeclared dependence" not in raised(together)
    config = DentConfig(steps=3, lr=0.05, granularity="sample", reduction="sum")
    alone = look(defense=Dent(model, config))
    assert (alone.dependence.declared, alone.dependence.measured) == (False, False)
    assert alone.worst.unit == "sample"


def test_of_a_batch_of_one_dependence_is_not_measured() -> None:
    result = look(Sociable, settings=Settings(n=3, batch_size=1))
    assert result.dependence.measured is None
    assert state(result, "batch dependent") == "not-run"


def test_full_diagnostics_attack_longer_and_further() -> None:
    full = Settings(n=16, batch_size=16, diagnostics="full")
    honest = look(None, [PGD(iterations=8, step=0.5)], full)
    assert state(honest, "huge eps does not break all") == "passed"
    assert state(honest, "more iterations still help") == "passed"
    hasty = look(None, [PGD(iterations=1, step=0.2, random_start=False)], full)
    assert "more iterations still help" in raised(hasty)
    flat = look(Flat, [PGD(iterations=2)], full)
    assert "huge eps does not break all" in raised(flat)
    # Rounding hides the gradient from PGD, and is looked through.
    assert state(look(Masked, [PGD(iterations=2)], full), "huge eps does not break all") == "passed"


class Flat(Wrapper):
    """Answers with a gradient of exactly zero."""

    def predict(self, x: Tensor, adaptation: object) -> Tensor:
        return super().predict(x.detach() + 0 * x, adaptation)


def test_a_set_is_followed_up_too_and_what_cannot_be_says_why() -> None:
    full = Settings(n=8, batch_size=8, diagnostics="full")
    hasty = make("standard", iterations=1, targets=1, square_iterations=1)
    longer = hasty.longer("linf")
    assert isinstance(longer, AutoAttack)
    assert [part.iterations for part in longer.parts("linf")] == [2, 2, 2, 1]
    assert state(look(None, [hasty], full), "more iterations still help") != "not-run"
    reasons = {
        d.name: d.sentence for d in look(Cut, [Guess()], full).diagnostics if d.state == "not-run"
    }
    assert reasons["more iterations still help"].startswith("No iterative gradient attack ran")
    assert reasons["huge eps does not break all"] == "The defense has no gradient to follow."
    cheap = {d.name: d.sentence for d in look().diagnostics if d.state == "not-run"}
    assert "full" in cheap["more iterations still help"]
    assert "full" in cheap["huge eps does not break all"]


class Overheard(Attack):
    """Claims what is not served: it looks at another batch than it hands over."""

    def run(self, target: Querier, threat: object, seed: int) -> Outcome:
        del threat, seed
        return Outcome(target.natural, target.labels == target.labels[0])


def test_claims_that_are_not_served_are_seen() -> None:
    assert "served differs from claimed" in raised(look(None, [Overheard()]))


def test_a_last_batch_that_is_smaller_is_flagged() -> None:
    for n, up in ((16, False), (20, True)):
        result = evaluate(make_subject({}, []), Settings(n=n, batch_size=8))
        flags = {diagnostic.name: diagnostic.raised for diagnostic in result.diagnostics}
        assert flags == {"uneven batches": up, "mixed provenance": False}


def test_serving_ignores_the_gradient_mode_around_it() -> None:
    model: nn.Module = make_model()
    x = make_subject().dataset.batch(range(8))[0]
    dent = Dent(model, DentConfig(steps=2, lr=0.05))
    inside = submit(dent, x, seed=0).predictions
    with torch.inference_mode():
        assert submit(dent, x, seed=0).predictions == inside


def test_a_run_resumed_elsewhere_says_so() -> None:
    (here,) = evaluate(make_subject({}, []), Settings(n=2)).sessions
    there = here.model_copy(update={"versions": here.versions | {"torch": "1.0"}})
    for sessions, up in (((here, here), False), ((here, there), True)):
        flags = {d.name: d.raised for d in of_run(uneven=False, sessions=sessions)}
        assert flags["mixed provenance"] is up


class _NoPrediction(Wrapper):
    """Answers some members, or all, with NaN: always the same ones."""

    def __init__(self, model: nn.Module, threshold: float) -> None:
        super().__init__(model)
        self.threshold = threshold

    def predict(self, x: Tensor, adaptation: object) -> Tensor:
        logits = super().predict(x, adaptation)
        return logits.masked_fill(
            x.mean(dim=(1, 2, 3), keepdim=True).flatten(1) > self.threshold, torch.nan
        )


@pytest.mark.parametrize("threshold", [0.0, 0.5])
def test_a_defense_that_answers_nan_is_not_taken_for_one_that_remembers(threshold: float) -> None:
    subject = make_subject({"it": _NoPrediction(make_model(), threshold)}, [])
    found = evaluate(subject, SMALL).defenses["it"]
    raised = {flag.name for flag in found.diagnostics if flag.raised}
    assert "non-finite" in raised
    assert not raised & {"carries state", "randomized", "batch dependent"}

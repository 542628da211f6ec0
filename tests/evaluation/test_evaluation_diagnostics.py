"""Diagnostics of defenses whose behavior is known."""

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


def test_a_plain_defense_has_every_diagnostic_and_raises_none() -> None:
    result = look()
    assert raised(result) == set()
    assert tuple(diagnostic.name for diagnostic in result.diagnostics) == NAMES
    for name in NAMES[6:7] + NAMES[8:10]:
        assert state(result, name) == "not-run"


def test_a_randomized_defense_is_flagged_and_its_dependence_is_not_measured() -> None:
    result = look(Noisy)
    assert "randomized" in raised(result)
    assert "carries state" not in raised(result)
    assert state(result, "batch dependent") == "not-run"
    assert result.dependence.measured is None


def test_a_stateful_defense_is_flagged_and_not_taken_for_a_randomized_one() -> None:
    assert {"carries state"} <= raised(look(Leaky))
    assert "randomized" not in raised(look(Leaky))
    # It is also raised if the defense declares its state and can be reset.
    assert "carries state" in raised(look(Remembering))


def test_probabilities_raise_not_logits() -> None:
    assert "not logits" in raised(look(Probabilities))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_probabilities_in_low_precision_raise_not_logits(dtype: torch.dtype) -> None:
    class Rounded(Wrapper):
        def predict(self, x: Tensor, adaptation: Any) -> Tensor:
            logits = super().predict(x, adaptation)
            return logits.to(dtype).softmax(dim=1)

    class Logits(Wrapper):
        def predict(self, x: Tensor, adaptation: Any) -> Tensor:
            return super().predict(x, adaptation).to(dtype)

    assert "not logits" in raised(look(Rounded))
    assert "not logits" not in raised(look(Logits))


def test_a_masked_gradient_raises_three_diagnostics() -> None:
    result = look(Masked, [Push(), Guess()])
    assert {"zero gradient", "transfer beats white-box"} <= raised(result)
    said = next(each for each in result.raised if each.name == "transfer beats white-box")
    assert said.sentence.startswith(f"Transfer from the static model broke {said.value:.0f} more ")
    assert "Either its gradients mislead, or these attacks are too weak" in said.sentence
    # The gradient attack finds nothing; random search with a large eps does.
    model = make_model()
    subject = make_subject(
        {"it": Masked(model)}, [Push(), make("square", iterations=80)], model=model, eps="60/255"
    )
    masked = evaluate(subject, Settings(n=16, batch_size=16)).defenses["it"]
    assert "black-box beats white-box" in raised(masked)
    # With the transferred attack, no gain remains.
    assert masked.difference is not None
    assert masked.difference.value is not None
    assert masked.difference.value <= 0


def test_an_unavailable_attack_counts_as_neither_black_box_nor_white_box() -> None:
    exact = make("adaptive-unrolled", iterations=2)  # a Wrapper does not offer it
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
    """Return one diagnostic of a defense, from the summaries of its attacks."""
    independent = Dependence(declared=False, measured=None)
    found = of_defense("it", None, independent, attacks, 0, has_static=True, has_exact_attack=False)
    return next(each for each in found if each.name == name)


@pytest.mark.parametrize("missed", ["claimed_but_served", "served_wrong_unclaimed"])
def test_false_and_missing_claims_both_raise_served_differs_from_claimed(missed: str) -> None:
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
    """Detaches its input, so there is no gradient."""

    def predict(self, x: Tensor, adaptation: object) -> Tensor:
        return super().predict(x.detach(), adaptation)


def test_a_missing_gradient_raises_zero_gradient() -> None:
    assert "zero gradient" in raised(look(Cut, [Guess()]))


def test_undeclared_dependence_is_measured_and_scored_per_batch() -> None:
    result = look(Sociable)
    assert {"batch dependent", "undeclared dependence"} <= raised(result)
    assert (result.dependence.declared, result.dependence.measured) == (False, True)
    assert result.worst.unit == "batch"


class OnlyInLargeBatches(Wrapper):
    """Changes its answers in batches of fewer than eight."""

    def predict(self, x: Tensor, adaptation: object) -> Tensor:
        logits = super().predict(x, adaptation)
        return logits if len(x) >= 8 else logits.roll(1, dims=1)


class ByPlace(Wrapper):
    """Changes the answer of the first member."""

    def predict(self, x: Tensor, adaptation: object) -> Tensor:
        logits = super().predict(x, adaptation)
        turn = torch.zeros(len(x), dtype=torch.bool)
        turn[0] = True
        return torch.where(turn.unsqueeze(1), logits.roll(1, dims=1), logits)


class AmongStrangers(Wrapper):
    """Changes its answers if any image of the batch has an unnaturally high contrast."""

    def predict(self, x: Tensor, adaptation: object) -> Tensor:
        logits = super().predict(x, adaptation)
        strange = bool((x.detach().flatten(1).std(dim=1) > 0.4).any())
        return logits.roll(1, dims=1) if strange else logits


@pytest.mark.parametrize("kind", [OnlyInLargeBatches, ByPlace, AmongStrangers])
def test_dependence_on_batch_size_position_or_other_members_is_measured(
    kind: type[Wrapper],
) -> None:
    assert look(kind).dependence.measured is True


def test_the_measured_dependence_of_dent_matches_its_declaration() -> None:
    model = make_model()
    together = look(defense=Dent(model, DentConfig(steps=3, lr=0.05)))
    assert together.dependence.measured is True
    assert "undeclared dependence" not in raised(together)
    config = DentConfig(steps=3, lr=0.05, granularity="sample", reduction="sum")
    alone = look(defense=Dent(model, config))
    assert (alone.dependence.declared, alone.dependence.measured) == (False, False)
    assert alone.worst.unit == "sample"


def test_dependence_is_not_measured_for_batches_of_one() -> None:
    result = look(Sociable, settings=Settings(n=3, batch_size=1))
    assert result.dependence.measured is None
    assert state(result, "batch dependent") == "not-run"


def test_full_diagnostics_try_more_iterations_and_a_huge_eps() -> None:
    full = Settings(n=16, batch_size=16, diagnostics="full")
    honest = look(None, [PGD(iterations=8, step=0.5)], full)
    assert state(honest, "huge eps does not break all") == "passed"
    assert state(honest, "more iterations still help") == "passed"
    hasty = look(None, [PGD(iterations=1, step=0.2, random_start=False)], full)
    assert "more iterations still help" in raised(hasty)
    flat = look(Flat, [PGD(iterations=2)], full)
    assert "huge eps does not break all" in raised(flat)
    # Rounding hides the gradient from PGD, but not from the attacks with a huge eps.
    assert state(look(Masked, [PGD(iterations=2)], full), "huge eps does not break all") == "passed"


class Flat(Wrapper):
    """Has a gradient of exactly zero."""

    def predict(self, x: Tensor, adaptation: object) -> Tensor:
        return super().predict(x.detach() + 0 * x, adaptation)


def test_autoattack_has_a_follow_up_and_missing_follow_ups_state_the_reason() -> None:
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
    """Returns the natural images and claims that one class is fooled."""

    def run(self, target: Querier, threat: object, seed: int) -> Outcome:
        del threat, seed
        return Outcome(target.natural, target.labels == target.labels[0])


def test_an_attack_with_false_claims_raises_served_differs_from_claimed() -> None:
    assert "served differs from claimed" in raised(look(None, [Overheard()]))


def test_a_smaller_last_batch_raises_uneven_batches() -> None:
    for n, up in ((16, False), (20, True)):
        result = evaluate(make_subject({}, []), Settings(n=n, batch_size=8))
        flags = {diagnostic.name: diagnostic.raised for diagnostic in result.diagnostics}
        assert flags == {"uneven batches": up, "mixed provenance": False}


def test_submit_ignores_a_surrounding_inference_mode() -> None:
    model: nn.Module = make_model()
    x = make_subject().dataset.batch(range(8))[0]
    dent = Dent(model, DentConfig(steps=2, lr=0.05))
    inside = submit(dent, x, seed=0).predictions
    with torch.inference_mode():
        assert submit(dent, x, seed=0).predictions == inside


def test_sessions_with_different_versions_raise_mixed_provenance() -> None:
    result = evaluate(make_subject({}, []), Settings(n=2))
    (here,) = result.sessions
    there = here.model_copy(update={"versions": here.versions | {"torch": "1.0"}})
    for sessions, up in (((here, here), False), ((here, there), True)):
        flags = {d.name: d.raised for d in of_run(result.spec, uneven=False, sessions=sessions)}
        assert flags["mixed provenance"] is up


class _NoPrediction(Wrapper):
    """Returns NaN for images with a mean above a threshold, so always for the same ones."""

    def __init__(self, model: nn.Module, threshold: float) -> None:
        super().__init__(model)
        self.threshold = threshold

    def predict(self, x: Tensor, adaptation: object) -> Tensor:
        logits = super().predict(x, adaptation)
        return logits.masked_fill(
            x.mean(dim=(1, 2, 3), keepdim=True).flatten(1) > self.threshold, torch.nan
        )


@pytest.mark.parametrize("threshold", [0.0, 0.5])
def test_nan_answers_raise_non_finite_but_not_state_or_dependence(threshold: float) -> None:
    subject = make_subject({"it": _NoPrediction(make_model(), threshold)}, [])
    found = evaluate(subject, SMALL).defenses["it"]
    raised = {flag.name for flag in found.diagnostics if flag.raised}
    assert "non-finite" in raised
    assert not raised & {"carries state", "randomized", "batch dependent"}

"""Evaluations with the whole suite, of defenses whose true robust accuracy is known.

Most tests also evaluate with only plain AutoAttack as published, to show that the defense fools it.
The models are linear, so few iterations are enough. If a defense does not fool AutoAttack, the test
uses stop-gradient APGD on cross-entropy instead.
"""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dent.attacks import make
from dent.attacks.adaptive import AdaptiveAPGD
from dent.attacks.base import isolated_random_state
from dent.data.dataset import ArrayDataset
from dent.defenses import AntiAdversary, Hedge
from dent.evaluation import (
    DefenseResult,
    EvaluationResult,
    Settings,
    Subject,
    evaluate,
    load_run,
    suite,
)
from dent.evaluation.records.plan import seed_of
from dent.evaluation.results.certificate import CERTIFICATE
from dent.evaluation.results.decision import decisions
from dent.evaluation.results.diagnostics import HUGE_EPS
from dent.evaluation.results.gates import FEW_BATCHES, LARGE_STEPS, UNDECLARED
from dent.evaluation.results.result import Verdict
from dent.evaluation.submission.stream import serve_seed
from dent.evaluation.submission.submitter import DRAWS
from dent.threat import ThreatModel
from tests.attacks.known_defenses import (
    AllOrNothing,
    Better,
    Identity,
    LargeOnly,
    Leaky,
    Loud,
    Masked,
    Nearest,
    Undecided,
    withstands,
)

COUNT = 24
EPS = "4/255"
AUTOATTACK = make("standard", iterations=20, targets=1, square_iterations=100, protocol="published")
STOP_GRADIENT = AdaptiveAPGD("stop-gradient", losses=("ce",), iterations=20)


def linear(scale: float = 1.0) -> nn.Sequential:
    """A linear classifier of four classes, whose robust accuracy has a closed form."""
    layer = nn.Linear(48, 4)
    draws = torch.Generator().manual_seed(0)
    with torch.no_grad():
        layer.weight.copy_(scale * torch.randn(4, 48, generator=draws).sign())
        layer.bias.copy_(-layer.weight.sum(dim=1) / 2)
    return nn.Sequential(nn.Flatten(), layer).eval()


def pixels() -> Tensor:
    draws = torch.Generator().manual_seed(5)
    return torch.randint(32, 224, (COUNT, 4, 4, 3), generator=draws, dtype=torch.uint8)


def dataset() -> ArrayDataset:
    with torch.no_grad():
        labels = linear()(pixels().permute(0, 3, 1, 2).float() / 255).argmax(dim=1)
    return ArrayDataset(
        name="known",
        split="test",
        classes=tuple("abcd"),
        pixels=pixels().numpy(),
        labels=labels.numpy(),
        sample_ids=tuple(range(COUNT)),
    )


X, Y = dataset().batch(range(COUNT))
STANDING = withstands(linear(), X, Y, 4 / 255)
"""The members on which the static model is robust, at any scale of its weights."""


def run(
    make_defense: Any,
    attacks: Any,
    eps: str = EPS,
    *,
    scale: float = 1.0,
    size: int = COUNT,
    transfer: bool = True,
    out: Path | None = None,
) -> EvaluationResult:
    model = linear(scale)
    defenses = {"it": make_defense(model)}
    subject = Subject(model, dataset(), defenses, attacks, ThreatModel("linf", eps))
    return evaluate(subject, Settings(batch_size=size, transfer=transfer, until="end"), out=out)


def alone(make_defense: Any, attack: Any = AUTOATTACK, **how: Any) -> DefenseResult:
    """Return the result of one attack on the defense: no transfer, no suite, so no verdict."""
    found = run(make_defense, [attack], transfer=False, **how).defenses["it"]
    assert found.verdict is None
    return found


def judged(
    make_defense: Any, **how: Any
) -> tuple[EvaluationResult, DefenseResult, Verdict, dict[str, bool]]:
    """Run the suite: return all results, those of the defense, its verdict, and its gates.

    The value of a gate is whether it is open. Check also that a run that may stop early would not
    have stopped before a robust gain.
    """
    with TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        result = run(make_defense, suite("dynamic", "small"), out=out, **how)
        recorded = load_run(out)
    settings = recorded.run.spec.settings.model_copy(update={"until": "decided"})
    stopping = recorded.run.spec.model_copy(update={"settings": settings})
    submitted = {key: r for key, r in recorded.records.items() if r.kind != "certificate"}
    stopped = decisions(stopping, recorded.plan, submitted)
    judgement = result.defenses["it"].verdict
    assert judgement is not None
    assert not (stopped and judgement.ruling == "robust gain")
    static, found = result.defenses["static"], result.defenses["it"]
    assert found.verdict is not None
    assert static.worst.served.correct == withstands(linear(), X, Y, _radius(result)).sum()
    return result, found, found.verdict, {gate.name: gate.open for gate in found.verdict.gates}


def _radius(result: EvaluationResult) -> float:
    return ThreatModel("linf", result.spec.threat.eps).eps


def claims_a_gain(found: DefenseResult) -> bool:
    """Return whether the interval of the difference lies above 0."""
    assert found.difference is not None
    assert found.difference.interval is not None
    return found.difference.interval[0] > 0


def states(result: EvaluationResult, name: str = "it") -> dict[str, str]:
    return {item.name: item.state for item in result.defenses[name].diagnostics}


def robust() -> Nearest:
    return Nearest(X, Y)


def test_static_model_is_robust_on_some_but_not_all_members() -> None:
    assert 4 < STANDING.sum() < 20
    assert withstands(linear(2.0), X, Y, 4 / 255).equal(STANDING)


def test_identity_defense_gets_no_gain_with_a_difference_of_zero() -> None:
    assert alone(Identity).worst.served.correct == STANDING.sum()
    result, found, verdict, _ = judged(Identity)
    assert found.difference is not None
    assert (found.difference.value, verdict.ruling) == (0, "no gain")
    assert verdict.natural.value == 0
    assert (verdict.budget, verdict.gates) == ("small", ())
    assert states(result)[CERTIFICATE] == states(result, "static")[CERTIFICATE] == "passed"
    assert result.defenses["static"].verdict is None


def test_masked_gradient_gains_under_autoattack_and_not_under_the_suite() -> None:
    assert claims_a_gain(alone(Masked))
    _, found, verdict, gates = judged(Masked)
    assert verdict.ruling == "no gain"
    assert abs(found.worst.served.correct - int(STANDING.sum())) <= 1  # it moves pixels by 1/2046
    assert gates == {"zero gradient": False, CERTIFICATE: True}  # zero gradients are not certified
    certificate = next(item for item in found.diagnostics if item.name == CERTIFICATE)
    assert (certificate.state, certificate.value) == ("raised", 1.0)


def test_noisy_gradient_gains_under_autoattack_and_not_under_the_suite() -> None:
    def loud(model: nn.Module) -> Loud:
        return Loud(model, 12.0)

    assert claims_a_gain(alone(loud))
    result, found, verdict, gates = judged(loud)
    assert found.difference is not None
    assert (found.difference.value, verdict.ruling) == (0, "no gain")
    assert states(result)["randomized"] == "passed"  # its logits do not change
    assert gates == {CERTIFICATE: True}


def luck(seed: int) -> Tensor:
    """Return the members for which `Undecided` predicts like its model, under a seed."""
    with isolated_random_state(seed, X.device):
        return torch.rand(COUNT) >= 1 / 3


def test_random_predictions_get_no_gain_and_differ_from_the_claims_of_autoattack() -> None:
    plain = alone(Undecided).attack(AUTOATTACK.name)
    assert plain.claimed is not None
    assert plain.claimed.correct < STANDING.sum() / 2  # most were wrong in at least one query
    assert plain.served.correct >= STANDING.sum()  # but not on submission
    assert any("randomized" in note for note in plain.notes)  # AutoAttack warns of it
    result, found, verdict, gates = judged(Undecided)
    scoring = range(DRAWS // 2 + 1, DRAWS + 1)  # the first half chooses the worst submission
    lucky = torch.stack([luck(seed_of(serve_seed(0, 0), "draw", draw)) for draw in scoring])
    assert found.natural.correct == round(float(lucky.float().mean(0).sum()))
    assert found.worst.served.correct <= STANDING.sum()
    assert found.repeated is not None
    assert found.repeated.natural == pytest.approx(float(lucky.float().mean()))
    assert found.repeated.natural_always.correct == lucky.all(dim=0).sum()
    # Its random numbers hide whether it depends on the batch, and there is a single batch.
    assert verdict.ruling == "inconclusive"
    assert f"its clean accuracy is lower, but gates are open: {FEW_BATCHES}" in verdict.sentence
    assert {"randomized", "served differs from claimed"} <= gates.keys()
    # Even under a huge eps, some images are predicted correctly by chance. The gradient turns
    # around with the predicted class, so two means of gradients disagree.
    assert {name for name, is_open in gates.items() if is_open} <= {
        HUGE_EPS,
        UNDECLARED,
        FEW_BATCHES,
        "randomized",
    }
    assert gates[UNDECLARED]
    assert gates["randomized"]
    assert states(result)["batch dependent"] == "not-run"


def test_real_gain_gets_the_verdict_robust_gain_with_no_open_gate() -> None:
    def better(model: nn.Module) -> Better:
        return Better(model, robust())

    assert claims_a_gain(alone(better))
    _, found, verdict, gates = judged(better)
    assert found.worst.served.correct == COUNT
    assert verdict.ruling == "robust gain"
    assert not any(gates.values())


def test_gain_that_needs_one_large_batch_is_inconclusive() -> None:
    def large(size: int) -> Any:
        return lambda model: LargeOnly(model, robust(), size)

    assert claims_a_gain(alone(large(COUNT)))
    result, found, verdict, gates = judged(large(COUNT))
    assert found.worst.served.correct == COUNT  # true for batches of this size
    assert (verdict.ruling, gates) == (
        "inconclusive",
        {"batch dependent": False, FEW_BATCHES: True},
    )
    assert FEW_BATCHES in verdict.sentence
    assert states(result)["batch dependent"] == "raised"
    smaller = run(large(COUNT), [AUTOATTACK], size=COUNT // 2).defenses["it"]
    assert smaller.worst.served.correct == STANDING.sum()


@pytest.mark.slow
def test_batch_dependent_gain_is_found_with_enough_batches() -> None:
    _, found, verdict, gates = judged(
        lambda model: LargeOnly(model, robust(), 3), eps="16/255", size=3
    )
    assert found.worst.served.correct == COUNT
    assert (found.worst.unit, verdict.ruling) == ("batch", "robust gain")
    assert not any(gates.values())


def test_defense_that_needs_all_members_perturbed_gains_only_under_autoattack() -> None:
    def all_or_nothing(model: nn.Module) -> AllOrNothing:
        return AllOrNothing(model, robust())

    assert claims_a_gain(alone(all_or_nothing))
    assert alone(all_or_nothing, STOP_GRADIENT).worst.served.correct >= COUNT - 1
    # A member that cannot be fooled stays natural, so all others get the static model.
    _, found, verdict, gates = judged(all_or_nothing)
    assert found.difference is not None
    assert (found.difference.value, verdict.ruling) == (0, "no gain")
    assert found.worst.unit == "batch"
    # Rounded to 8 bits, its images get other scores.
    assert gates == {FEW_BATCHES: True, LARGE_STEPS: True}


def test_state_that_leaks_between_batches_is_no_gain_and_leaves_a_gate_open() -> None:
    def leaky(model: nn.Module) -> Leaky:
        return Leaky(model, pull=-3.0)

    plain = alone(leaky)
    result, found, verdict, gates = judged(leaky)
    # A fresh copy has no state that could leak into its first batch.
    assert plain.worst.served.correct == found.worst.served.correct
    assert verdict.ruling == "no gain"
    assert states(result)["carries state"] == "raised"
    assert gates["carries state"]
    assert states(result)[CERTIFICATE] == "passed"  # of a fresh copy
    assert states(result)["batch dependent"] == "not-run"  # its logits change by themselves


@pytest.mark.parametrize(
    ("kind", "fooled"),
    [
        (AntiAdversary, True),
        (lambda model: Hedge(model, steps=2, seed=0), False),
    ],
    ids=["anti-adversary", "hedge"],
)
def test_defenses_published_as_robust_get_the_verdict_no_gain(kind: Any, fooled: bool) -> None:
    how = {"scale": 2.0}
    assert (alone(kind, **how).worst.served.correct > STANDING.sum() + 1) == fooled
    assert claims_a_gain(alone(kind, STOP_GRADIENT, **how)) == fooled
    _, found, verdict, gates = judged(kind, **how)
    assert found.worst.served.correct <= STANDING.sum()
    assert verdict.ruling == "no gain"
    # Transfer attacks beat its own gradient, which holds only over small steps.
    assert {name for name, is_open in gates.items() if is_open} <= {
        CERTIFICATE,
        LARGE_STEPS,
        "transfer beats white-box",
    }

"""The whole suite, through the engine, on defenses whose truth is known.

Of each it says what plain AutoAttack finds, as it ships and alone, with few iterations: the models
are linear, and it needs no more. Where it is not fooled, what the published stop-gradient APGD on
cross-entropy finds.
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
from dent.evaluation.results.decision import decisions
from dent.evaluation.results.diagnostics import CERTIFICATE
from dent.evaluation.results.result import Verdict
from dent.evaluation.results.verdict import FEW_BATCHES, HUGE_EPS, LARGE_STEPS
from dent.evaluation.submission.stream import serve_seed
from dent.evaluation.submission.submitter import CHOOSING, DRAWS
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
"""Whom the static model keeps: the truth, at any scale."""


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
    """What one attack on the defense itself says: no transfer, no suite, and so no verdict."""
    found = run(make_defense, [attack], transfer=False, **how).defenses["it"]
    assert found.verdict is None
    return found


def judged(
    make_defense: Any, **how: Any
) -> tuple[EvaluationResult, DefenseResult, Verdict, dict[str, bool]]:
    """What the suite says: all, of the defense, its verdict, and by gate whether it is open.

    A run that stops as soon as no gain is possible must not have stopped on a gain.
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
    """Whether the interval of the difference to the static model lies above 0."""
    assert found.difference is not None
    assert found.difference.interval is not None
    return found.difference.interval[0] > 0


def states(result: EvaluationResult, name: str = "it") -> dict[str, str]:
    return {item.name: item.state for item in result.defenses[name].diagnostics}


def robust() -> Nearest:
    return Nearest(X, Y)


def test_the_problem_is_neither_won_nor_lost() -> None:
    assert 4 < STANDING.sum() < 20
    assert withstands(linear(2.0), X, Y, 4 / 255).equal(STANDING)


def test_who_changes_nothing_gains_exactly_nothing() -> None:
    assert alone(Identity).worst.served.correct == STANDING.sum()
    result, found, verdict, _ = judged(Identity)
    assert found.difference is not None
    assert (found.difference.value, verdict.ruling) == (0, "no gain")
    assert verdict.natural.value == 0
    assert (verdict.budget, verdict.gates) == ("small", ())
    assert states(result)[CERTIFICATE] == states(result, "static")[CERTIFICATE] == "passed"
    assert result.defenses["static"].verdict is None


def test_a_mask_gains_by_its_own_gradient_and_nothing_under_the_suite() -> None:
    assert claims_a_gain(alone(Masked))
    _, found, verdict, gates = judged(Masked)
    assert verdict.ruling == "no gain"
    assert abs(found.worst.served.correct - int(STANDING.sum())) <= 1  # it moves pixels by 1/2046
    assert gates == {"zero gradient": False, CERTIFICATE: True}  # zero certifies nothing
    certificate = next(item for item in found.diagnostics if item.name == CERTIFICATE)
    assert (certificate.state, certificate.value) == ("raised", 1.0)


def test_noise_in_the_gradient_gains_under_autoattack_and_nothing_under_the_suite() -> None:
    def loud(model: nn.Module) -> Loud:
        return Loud(model, 12.0)

    assert claims_a_gain(alone(loud))
    result, found, verdict, gates = judged(loud)
    assert found.difference is not None
    assert (found.difference.value, verdict.ruling) == (0, "no gain")
    assert states(result)["randomized"] == "passed"  # its answers are the same each time
    assert gates == {CERTIFICATE: True}


def luck(seed: int) -> Tensor:
    """Whom `Undecided` answers as its model does, under a seed."""
    with isolated_random_state(seed, X.device):
        return torch.rand(COUNT) >= 1 / 3


def test_answers_by_chance_are_harmful_whatever_autoattack_claims_of_them() -> None:
    plain = alone(Undecided).attack(AUTOATTACK.name)
    assert plain.claimed is not None
    assert plain.claimed.correct < STANDING.sum() / 2  # most were wrong once, in many answers
    assert plain.served.correct >= STANDING.sum()  # and are not when asked again
    assert any("randomized" in note for note in plain.notes)  # which it warns of
    result, found, verdict, gates = judged(Undecided)
    scoring = range(CHOOSING + 1, DRAWS + 1)
    lucky = torch.stack([luck(seed_of(serve_seed(0, 0), "draw", draw)) for draw in scoring])
    assert found.natural.correct == round(float(lucky.float().mean(0).sum()))
    assert found.worst.served.correct <= STANDING.sum()
    assert found.repeated is not None
    assert found.repeated.natural == pytest.approx(float(lucky.float().mean()))
    assert found.repeated.natural_always.correct == lucky.all(dim=0).sum()
    assert verdict.ruling == "harmful"
    assert "natural accuracy" in verdict.sentence
    assert {"randomized", "served differs from claimed"} <= gates.keys()
    # Whatever is done to an image, it is answered rightly by chance.
    assert {name for name, is_open in gates.items() if is_open} <= {HUGE_EPS}
    assert states(result)["batch dependent"] == "not-run"


def test_a_true_gain_is_found_and_no_gate_stands_in_its_way() -> None:
    def better(model: nn.Module) -> Better:
        return Better(model, robust())

    assert claims_a_gain(alone(better))
    _, found, verdict, gates = judged(better)
    assert found.worst.served.correct == COUNT
    assert verdict.ruling == "robust gain"
    assert not any(gates.values())


def test_a_gain_in_one_large_batch_is_none_in_small_ones_and_not_shown_by_one_batch() -> None:
    def large(size: int) -> Any:
        return lambda model: LargeOnly(model, robust(), size)

    assert claims_a_gain(alone(large(COUNT)))
    result, found, verdict, gates = judged(large(COUNT))
    assert found.worst.served.correct == COUNT  # and that is the truth, of batches of this size
    assert (verdict.ruling, gates) == (
        "inconclusive",
        {"batch dependent": False, FEW_BATCHES: True},
    )
    assert FEW_BATCHES in verdict.sentence
    assert states(result)["batch dependent"] == "raised"
    smaller = run(large(COUNT), [AUTOATTACK], size=COUNT // 2).defenses["it"]
    assert smaller.worst.served.correct == STANDING.sum()


@pytest.mark.slow
def test_a_gain_in_batches_is_found_in_enough_of_them() -> None:
    _, found, verdict, gates = judged(
        lambda model: LargeOnly(model, robust(), 3), eps="16/255", size=3
    )
    assert found.worst.served.correct == COUNT
    assert (found.worst.unit, verdict.ruling) == ("batch", "robust gain")
    assert not any(gates.values())


def test_who_needs_all_members_perturbed_gains_under_autoattack_and_nothing_under_the_suite() -> (
    None
):
    def all_or_nothing(model: nn.Module) -> AllOrNothing:
        return AllOrNothing(model, robust())

    assert claims_a_gain(alone(all_or_nothing))
    assert alone(all_or_nothing, STOP_GRADIENT).worst.served.correct >= COUNT - 1
    # Who cannot be fooled is left natural, and brings the static model back for all others.
    _, found, verdict, gates = judged(all_or_nothing)
    assert found.difference is not None
    assert (found.difference.value, verdict.ruling) == (0, "no gain")
    assert found.worst.unit == "batch"
    assert gates == {FEW_BATCHES: True}


def test_what_leaks_between_batches_is_no_gain_and_its_gate_cannot_be_shut() -> None:
    def leaky(model: nn.Module) -> Leaky:
        return Leaky(model, pull=-3.0)

    plain = alone(leaky)
    result, found, verdict, gates = judged(leaky)
    # Nothing leaks into what has answered nothing.
    assert plain.worst.served.correct == found.worst.served.correct
    assert verdict.ruling == "no gain"
    assert states(result)["carries state"] == "raised"
    assert gates["carries state"]
    assert states(result)[CERTIFICATE] == "passed"  # of a copy that has answered nothing
    assert states(result)["batch dependent"] == "not-run"  # its answers move by themselves


@pytest.mark.parametrize(
    ("kind", "fooled"),
    [
        (AntiAdversary, True),
        (lambda model: Hedge(model, steps=2, seed=0), False),
    ],
    ids=["anti-adversary", "hedge"],
)
def test_defenses_published_as_robust_gain_nothing(kind: Any, fooled: bool) -> None:
    how = {"scale": 2.0}
    assert (alone(kind, **how).worst.served.correct > STANDING.sum() + 1) == fooled
    assert claims_a_gain(alone(kind, STOP_GRADIENT, **how)) == fooled
    _, found, verdict, gates = judged(kind, **how)
    assert found.worst.served.correct <= STANDING.sum()
    assert verdict.ruling == "no gain"
    # Transfers do better than its own gradient, and always will: it holds over small steps alone.
    assert {name for name, is_open in gates.items() if is_open} <= {
        CERTIFICATE,
        LARGE_STEPS,
        "transfer beats white-box",
    }

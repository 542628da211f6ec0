"""The verdict on defenses built to fool it, and on honest defenses that are hard to certify.

All nets are linear or `Nearest`, so the true robust accuracy of every defense is known.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dent.attacks import Attack
from dent.attacks.adaptive import AdaptiveAPGD
from dent.evaluation import DefenseResult, EvaluationResult, Settings, Subject, evaluate, suite
from dent.evaluation.probe.gradient_check import check_gradient
from dent.evaluation.records.schema import ProbeRecord
from dent.evaluation.results.certificate import CERTIFICATE, certificate_of, over_large_steps
from dent.evaluation.results.result import Verdict
from dent.evaluation.submission.fresh import Origin
from dent.threat import ThreatModel
from tests.attacks.known_defenses import Nearest, withstands
from tests.evaluation import tricks
from tests.evaluation.test_evaluation_suite_answers import COUNT, X, Y, dataset, linear
from tests.evaluation.tricks import (
    Forger,
    Hidden,
    OwnNoise,
    Quantized,
    Remembers,
    Saturated,
    Tires,
    TwoFaced,
)

EPS = "16/255"
NET = linear()
"""Correct on every natural image, and robust on none at this eps."""
ROBUST = Nearest(X, Y)
"""Correct on every image, under any attack at this eps."""
STOP_GRADIENT = AdaptiveAPGD("stop-gradient", losses=("margin",), iterations=20, unmask=True)
MASKED = AdaptiveAPGD("stop-gradient", losses=("margin",), iterations=20)


def other(seed: int = 1) -> nn.Module:
    """Return a net half like `NET`, to use as the static model: better than chance."""
    layer, net = nn.Linear(48, 4), NET[1]
    assert isinstance(net, nn.Linear)
    draws = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(4, 48, generator=draws).sign() + net.weight)
        layer.bias.copy_(-layer.weight.sum(dim=1) / 2)
    return nn.Sequential(nn.Flatten(), layer).eval()


def run(
    defense: nn.Module,
    *,
    static: nn.Module | None = None,
    eps: str = EPS,
    attacks: Sequence[Attack] | None = None,
    transfer: bool = True,
    batch_size: int = 12,
) -> EvaluationResult:
    model = static or other()
    chosen = suite("dynamic", "small") if attacks is None else attacks
    subject = Subject(model, dataset(), {"it": defense}, chosen, ThreatModel("linf", eps))
    return evaluate(subject, Settings(batch_size=batch_size, transfer=transfer, until="end"))


def judged(defense: nn.Module, **how: Any) -> tuple[DefenseResult, Verdict, dict[str, bool]]:
    """Run the suite: return the results of the defense, its verdict, and its gates (True: open)."""
    found = run(defense, **how).defenses["it"]
    assert found.verdict is not None
    return found, found.verdict, {gate.name: gate.open for gate in found.verdict.gates}


def test_nets_have_the_accuracies_that_the_other_tests_assume() -> None:
    assert not withstands(linear(), X, Y, 16 / 255).any()
    with torch.no_grad():
        assert NET(X).argmax(1).equal(Y)
        assert ROBUST(X).argmax(1).equal(Y)
        assert (other()(X).argmax(1) == Y).sum() < COUNT / 2


@pytest.mark.parametrize(
    "shape",
    [
        tricks.softmax(300.0),
        tricks.by_hand(1000.0),
        tricks.sigmoid(300.0),
        tricks.tangent(100.0),
        tricks.rank,
        tricks.vote,
    ],
    ids=["softmax", "by-hand", "sigmoid", "tanh", "rank", "vote"],
)
def test_saturated_outputs_are_attacked_through_the_logits_before_them(
    shape: Callable[[Tensor], Tensor],
) -> None:
    # This is no transfer: the attack is not given `NET`, and the static model is another net.
    found = run(Saturated(NET, shape), attacks=[STOP_GRADIENT], transfer=False).defenses["it"]
    assert found.attack("adaptive-stop-gradient").served.correct == 0
    blind = run(Saturated(NET, shape), attacks=[MASKED], transfer=False).defenses["it"]
    assert blind.worst.served.correct > COUNT / 2


def test_saturated_output_of_a_weak_net_gets_no_gain() -> None:
    found, verdict, gates = judged(Saturated(NET, tricks.softmax(1000.0)))
    assert found.worst.served.correct == 0
    assert verdict.ruling == "no gain"
    assert gates[CERTIFICATE]  # its own gradient is zero


@pytest.mark.parametrize(
    "steps",
    [{}, pytest.param({"reach": 0.2, "least": 10}, marks=pytest.mark.slow)],
    ids=["at-once", "later"],
)
def test_defense_that_remembers_queries_is_scored_without_its_memory(
    steps: dict[str, Any],
) -> None:
    found, verdict, gates = judged(Remembers(NET, **steps))
    assert found.worst.served.correct == 0
    assert verdict.ruling == "no gain"
    # Its predictions show its memory if it was queried with the natural batch before.
    assert gates["carries state"]


@pytest.mark.parametrize(
    "honest",
    [
        lambda x: len(x) <= 4,
        lambda x: x.dtype == torch.float64,
        lambda x: not at_corners(x),
        lambda x: False,
    ],
    ids=["small-batches", "float64", "not-at-corners", "nowhere"],
)
def test_forged_gradient_is_not_certified_even_if_it_is_sometimes_honest(
    honest: Callable[[Tensor], bool],
) -> None:
    # The net is robust, so that only the gradient can prevent a robust gain.
    shown = Nearest(X.flip(2), (Y + 1) % 4)
    forged = Forger(ROBUST, shown, honest)
    record = check_gradient(Origin(forged), X[:8], Y[:8], ThreatModel("linf", EPS), seed=0)
    probe = ProbeRecord.model_construct(gradient=record)
    assert certificate_of(probe).state == "raised"
    assert not over_large_steps(probe)
    true = check_gradient(Origin(Hidden(NET, ROBUST)), X[:8], Y[:8], ThreatModel("linf", EPS), 0)
    assert certificate_of(ProbeRecord.model_construct(gradient=true)).state == "passed"


def at_corners(x: Tensor) -> bool:
    """Return whether images lie where long attacks end: at most pixels, eps from the natural one.

    Natural pixels are from 32 to 223, of 255.
    """
    pixels = x.detach() * 255
    outside = (pixels < 31) | (pixels > 224)
    return bool(outside.any()) and bool(
        ((pixels - pixels.round()).abs() < 1e-2).float().mean() > 0.8
    )


def test_zero_gradient_of_a_single_member_is_not_certified() -> None:
    class OneDead(tricks.Trick):
        def predict(self, x: Tensor, adaptation: Any) -> Tensor:
            alive = torch.arange(len(x)) != len(x) - 1
            x = torch.where(alive[:, None, None, None], x, x.detach())
            return super().predict(x, adaptation)

    record = check_gradient(Origin(OneDead(NET)), X[:8], Y[:8], ThreatModel("linf", EPS), seed=0)
    for point in record.points:
        wrong = [error is None or error > 0.01 for error in point.errors]
        assert sum(wrong) == 1
    assert certificate_of(ProbeRecord.model_construct(gradient=record)).state == "raised"


@pytest.mark.parametrize("reverse", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_defense_that_predicts_differently_with_gradients_gets_no_gain(reverse: bool) -> None:
    found, verdict, gates = judged(TwoFaced(NET, ROBUST, reverse=reverse))
    assert verdict.ruling == "no gain"  # the worse prediction counts
    assert found.worst.served.correct < COUNT / 4
    assert gates["served differs with gradients"]


@pytest.mark.parametrize("calls", [pytest.param(5, marks=pytest.mark.slow), 300])
def test_defense_that_changes_after_some_calls_is_flagged_and_gets_no_gain(calls: int) -> None:
    found, verdict, gates = judged(Tires(NET, ROBUST, calls))
    assert found.worst.served.correct == 0
    assert verdict.ruling == "no gain"
    assert gates["carries state"]
    # With a robust net for the first calls, the gain does not last.
    _, verdict, gates = judged(Tires(ROBUST, NET, calls))
    assert verdict.ruling == "inconclusive"
    assert gates["carries state"]


GENERATORS: dict[str, Callable[[], Any]] = {
    "torch": lambda: torch.Generator().manual_seed(0),
    "numpy": lambda: np.random.default_rng(0),
}


@pytest.mark.parametrize(
    "make",
    [GENERATORS["torch"], pytest.param(GENERATORS["numpy"], marks=pytest.mark.slow)],
    ids=GENERATORS,
)
def test_noise_from_its_own_generator_is_flagged_as_randomized_and_not_harmful(
    make: Callable[[], Any],
) -> None:
    static = NET  # some members stay correct at this eps
    loud = OwnNoise(NET, 0.05, make)
    result = run(loud, static=static, eps="4/255")
    found, base = result.defenses["it"], result.defenses["static"]
    assert found.verdict is not None
    assert {each.name: each.state for each in found.diagnostics}["randomized"] == "raised"
    assert found.repeated is not None
    assert (found.repeated.draws, base.repeated) == (5, None)
    assert found.verdict.ruling != "harmful"
    assert found.difference is not None
    assert abs(found.difference.value or 0.0) < 0.1
    # The worst case over all draws is reported separately and is not the result.
    assert found.repeated.robust_always.correct <= found.worst.served.correct
    assert found.repeated.natural_always.correct <= found.natural.correct
    assert found.repeated.risk[0] == pytest.approx(1 - found.repeated.robust)
    assert found.repeated.risk[-1] == pytest.approx(1 - (found.repeated.robust_always.share or 0))
    assert found.repeated.natural_risk[0] == pytest.approx(1 - found.repeated.natural)


@pytest.mark.slow
@pytest.mark.parametrize(("batch_size", "ruling"), [(1, "harmful"), (12, "inconclusive")])
def test_random_sign_flips_are_harmful_if_there_are_enough_batches(
    batch_size: int, ruling: str
) -> None:
    class Coin(OwnNoise):
        def predict(self, x: Tensor, adaptation: Any) -> Tensor:
            logits: Tensor = self.net(x)
            turned = torch.rand(len(x), generator=self.generator) < self.scale
            return torch.where(turned[:, None], -logits, logits)

    coin = Coin(NET, 0.5, GENERATORS["torch"])
    result = run(coin, static=NET, eps="2/255", batch_size=batch_size)
    verdict = result.defenses["it"].verdict
    assert verdict is not None
    assert verdict.ruling == ruling  # randomness hides whether the members are independent


def test_robust_gain_is_certified_without_declarations_by_the_defense() -> None:
    found, verdict, gates = judged(Hidden(other(), ROBUST))
    assert found.worst.served.correct == COUNT
    assert (verdict.ruling, verdict.ground) == ("robust gain", "exact gradient certified")
    assert not any(gates.values())


def test_robust_gain_behind_a_straight_through_gradient_is_recognized() -> None:
    found, verdict, gates = judged(Quantized(other(), ROBUST))
    assert found.worst.served.correct == COUNT
    assert (verdict.ruling, verdict.ground) == ("robust gain", "surrogate gradient, unbeaten")
    assert gates == {CERTIFICATE: False}
    weak, none, _ = judged(Quantized(other(), NET))
    assert (weak.worst.served.correct, none.ruling) == (0, "no gain")


def test_robust_defense_that_cannot_be_copied_is_inconclusive() -> None:
    class Locked(Hidden):
        def __deepcopy__(self, memo: object) -> "Locked":
            raise RuntimeError("there is one of me")

    _, verdict, gates = judged(Locked(other(), ROBUST))
    assert verdict.ruling == "inconclusive"
    assert gates["cannot be copied"]

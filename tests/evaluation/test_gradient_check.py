"""The check of the gradient that attacks follow, on defenses built to fool it."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dent import Dent, DentConfig, SmoothingConfig
from dent.attacks import make
from dent.attacks.adaptive import NOT_AVAILABLE
from dent.attacks.querier import NoGradientError
from dent.config import ViewsConfig
from dent.evaluation.probe.follow_ups import huge_eps, more_iterations
from dent.evaluation.probe.gradient_check import check_gradient
from dent.evaluation.probe.moves import long_moves
from dent.evaluation.probe.questions import Probe
from dent.evaluation.records.schema import ProbeRecord
from dent.evaluation.results.certificate import (
    CERTIFICATE,
    answered_classes,
    certificate_of,
    over_large_steps,
)
from dent.evaluation.results.diagnostics import SIGHTED
from dent.evaluation.results.gates import LARGE_STEPS
from dent.evaluation.submission.fresh import Origin, fresh
from dent.evaluation.submission.submission import submit
from dent.threat import Norm, ThreatModel
from tests.evaluation.test_evaluation_suite_answers import X, Y
from tests.evaluation.test_evaluation_tricks import EPS, NET, ROBUST, judged, other
from tests.evaluation.tricks import Decoys, OnlyOnTheGrid, Rippled, Trick

THREAT = ThreatModel("linf", EPS)


def probed(defense: Any, x: Tensor = X[:8], y: Tensor = Y[:8]) -> ProbeRecord:
    record = check_gradient(Origin(defense), x, y, THREAT, seed=0)
    return ProbeRecord.model_construct(gradient=record, gradient_check=None)


@pytest.mark.parametrize("net", [NET, ROBUST], ids=["linear", "nearest"])
def test_an_honest_gradient_holds_over_large_steps(net: nn.Module) -> None:
    probe = probed(Trick(net))
    assert certificate_of(probe).state == "passed"
    assert over_large_steps(probe)


@pytest.mark.parametrize(
    "config",
    [
        DentConfig(steps=0),
        DentConfig(steps=0, views=ViewsConfig()),
        DentConfig(steps=0, smoothing=SmoothingConfig(sigma=0.5, learn=False)),
    ],
    ids=["static", "tte", "smoothing"],
)
def test_gradients_of_honest_defenses_hold_over_large_steps(config: DentConfig) -> None:
    probe = probed(Dent(NET, config))
    assert certificate_of(probe).state == "passed"
    assert over_large_steps(probe)


@pytest.mark.parametrize("trick", [Rippled, Decoys])
def test_exact_but_misleading_gradient_does_not_hold_over_large_steps(trick: Any) -> None:
    probe = probed(trick(ROBUST))
    assert certificate_of(probe).state == "passed"
    assert over_large_steps(probe) is False


def test_extra_classes_with_an_honest_gradient_are_counted() -> None:
    class Smooth(Trick):
        def predict(self, x: Tensor, adaptation: Any) -> Tensor:
            logits = super().predict(x, adaptation)
            slope = (X[:1] - x).flatten(1).sum(dim=1, keepdim=True)
            return torch.cat([logits, logits.amax(dim=1, keepdim=True) - 1 + slope / 1e3], dim=1)

    probe = probed(Smooth(ROBUST))
    assert (certificate_of(probe).state, over_large_steps(probe)) == ("passed", True)
    assert (answered_classes(probe), answered_classes(None)) == (5, None)


def test_records_without_large_steps_are_not_checked() -> None:
    probe = probed(Trick(NET))
    assert probe.gradient is not None
    points = tuple(point.model_copy(update={"coarse": None}) for point in probe.gradient.points)
    older = probe.gradient.model_copy(update={"points": points})
    assert over_large_steps(ProbeRecord.model_construct(gradient=older)) is None
    assert over_large_steps(None) is None


def test_gradient_only_at_natural_images_counts_as_missing() -> None:
    probe = probed(OnlyOnTheGrid(ROBUST))
    assert probe.gradient is not None
    assert probe.gradient.missing == "OnlyOnTheGrid answers without a gradient to the images"
    assert certificate_of(probe).state == "not-run"
    assert over_large_steps(probe) is None


def test_a_gradient_that_does_not_run_in_float64_is_checked_in_float32() -> None:
    class Outside(Trick):
        def predict(self, x: Tensor, adaptation: Any) -> Tensor:
            logits = super().predict(x, adaptation)
            if not x.requires_grad or x.is_leaf:
                return logits
            shown: Tensor = OUTSIDE(x)  # another net's gradient, only for attacks
            return shown + (logits - shown).detach()

    probe = probed(Outside(ROBUST))
    assert probe.gradient is not None
    assert probe.gradient.dtype == "float32"
    assert certificate_of(probe).state == "raised"
    assert over_large_steps(probe) is False


OUTSIDE = other()


@pytest.mark.parametrize(("norm", "order"), [("linf", torch.inf), ("l2", 2), ("l1", 1)])
def test_coarse_steps_have_a_share_of_eps_in_the_norm_of_the_threat_model(
    norm: Norm, order: float
) -> None:
    draws = torch.Generator().manual_seed(0)
    gradient = 1e-3 * torch.randn(4, 3, 5, 5, generator=draws)
    steps = long_moves(gradient, draws, ThreatModel(norm, 0.75), share=0.5)
    for step in steps:
        lengths = step.flatten(1).norm(p=order, dim=1)
        torch.testing.assert_close(lengths, torch.full((4,), 0.375))
    along = gradient.sign() if norm == "linf" else gradient
    cosines = F.cosine_similarity(steps[0].flatten(1), along.flatten(1))
    torch.testing.assert_close(cosines, torch.ones(4))


def test_follow_ups_without_a_gradient_fool_no_member_and_do_not_raise() -> None:
    origin, attack = Origin(OnlyOnTheGrid(NET)), make("apgd-ce", iterations=3)
    huge = huge_eps(origin, X[:8], Y[:8], THREAT, seed=0)
    assert (huge.correct, huge.total) == (8, 8)
    assert more_iterations(origin, attack, X[:8], Y[:8], THREAT, seed=0) is None


@pytest.mark.parametrize("name", ["apgd-ce", "apgd-t", "fab-t", "pgd"])
def test_attacks_refuse_a_defense_without_a_gradient_to_its_input(name: str) -> None:
    class Rounds(Trick):
        def predict(self, x: Tensor, adaptation: Any) -> Tensor:
            return super().predict((x * 15).int() / 15, adaptation)

    assert Rounds(NET)(X.clone().requires_grad_()).requires_grad  # through the weights
    with pytest.raises(NoGradientError, match="without a gradient to its input"):
        make(name, iterations=3)(Rounds(NET), X, Y, THREAT, seed=0)


class _Divides(Trick):
    """Rounds by an operation without a derivative, on the only path or beside another one."""

    beside = False

    def predict(self, x: Tensor, adaptation: Any) -> Tensor:
        rounded = (x // (1 / 16)) / 16
        return super().predict((x + rounded) / 2 if self.beside else rounded, adaptation)


class _DividesBeside(_Divides):
    beside = True


@pytest.mark.parametrize("kind", [_Divides, _DividesBeside])
@pytest.mark.parametrize("name", ["apgd-ce", "apgd-t", "fab-t", "pgd"])
def test_attacks_refuse_an_operation_without_a_derivative(name: str, kind: type[Trick]) -> None:
    with pytest.raises(NoGradientError, match="use an attack without gradients, such as 'square'"):
        make(name, iterations=3)(kind(NET), X, Y, THREAT, seed=0)


@pytest.mark.parametrize("kind", [_Divides, _DividesBeside])
def test_an_operation_without_a_derivative_counts_as_no_gradient(kind: type[Trick]) -> None:
    found = make("adaptive-stop-gradient", iterations=3)(kind(NET), X, Y, THREAT, seed=0)
    assert any(note.startswith(NOT_AVAILABLE) for note in found.notes)
    correct, without = Probe(Origin(kind(NET)), X, Y, (0.0, 1.0), 0).gradients()
    assert correct > 0
    assert without is None
    assert check_gradient(Origin(kind(NET)), X, Y, THREAT, seed=0).missing is not None


KINDS: list[tuple[object, ...]] = []


class Watches(Trick):
    """Records the kind of tensor that it is queried with."""

    def predict(self, x: Tensor, adaptation: Any) -> Tensor:
        KINDS.append(
            (
                x.requires_grad,
                x.is_leaf,
                type(x.grad_fn).__name__,
                x.is_contiguous(),
                x.stride() == X.stride(),
                torch.is_grad_enabled(),
                torch.is_inference_mode_enabled(),
            )
        )
        return super().predict(x, adaptation)


def test_attacks_checks_and_submissions_use_the_same_kind_of_tensor() -> None:
    origin = Origin(Watches(NET))

    def kinds() -> set[tuple[object, ...]]:
        found = {kind for kind in KINDS if kind[0]}
        assert {kind for kind in KINDS if not kind[0]} <= {PLAIN}
        KINDS.clear()
        return found

    KINDS.clear()
    found = []
    for name in ("apgd-ce", "apgd-t", "fab-t", "pgd", "adaptive-stop-gradient"):
        make(name, iterations=2)(fresh(origin, 0), X, Y, THREAT, seed=0)
        found.append(kinds())
    check_gradient(origin, X, Y, THREAT, seed=0)
    found.append(kinds())
    Probe(origin, X, Y, (0.0, 1.0), 0).gradients()
    found.append(kinds())
    submit(origin.new().defense, X, seed=0, gradients=True)
    found.append(kinds())
    assert all(each == found[0] for each in found)
    assert len(found[0]) == 1


PLAIN = (False, True, "NoneType", True, True, False, False)


def test_robust_net_with_a_rippled_gradient_is_inconclusive() -> None:
    found, verdict, gates = judged(Rippled(ROBUST))
    assert found.worst.served.correct == len(X)
    assert verdict.ruling == "inconclusive"
    assert gates == {LARGE_STEPS: True}


def test_robust_net_that_no_gradient_attack_can_follow_is_inconclusive() -> None:
    found, verdict, gates = judged(OnlyOnTheGrid(ROBUST))
    assert found.worst.served.correct == len(X)
    assert verdict.ruling == "inconclusive"
    assert {CERTIFICATE, SIGHTED} <= {name for name, is_open in gates.items() if is_open}

"""Tests of losses against values by hand, and of APGD against pyautoattack on a static model."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted
from torch import Tensor, nn

from dent.attacks import Attack, make
from dent.attacks.adaptive import AdaptiveAPGD, adaptive_apgd
from dent.attacks.adaptive.apgd import Evaluation, Objective, apgd, random_start, steepest
from dent.attacks.losses import LOSSES, dlr, loss_named, runner_up
from dent.attacks.steps import ascent, enlarged
from dent.errors import ConfigError
from dent.threat import NORMS, Norm, ThreatModel
from tests.attacks.attack_toys import small_images

LOGITS = torch.tensor([[3.0, 1.0, 0.5, -2.0], [0.0, 4.0, 1.0, 2.0]])
LABELS = torch.tensor([0, 2])


def curved(classes: int = 5, pixels: int = 108, seed: int = 0) -> nn.Sequential:
    """Return a smooth classifier in float32, on which both implementations take equal steps."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = nn.Sequential(
            nn.Flatten(), nn.Linear(pixels, 16), nn.Tanh(), nn.Linear(16, classes)
        )
    return model.eval()


def of_model(model: nn.Module, y: Tensor, name: str, targets: Tensor | None = None) -> Objective:
    def objective(x: Tensor) -> Evaluation:
        with torch.enable_grad():
            leaf = x.clone().requires_grad_()
            loss = loss_named(name)(model(leaf), y, targets)
            (gradient,) = torch.autograd.grad(loss.sum(), leaf)
        return Evaluation(loss.detach(), gradient)

    return objective


def test_losses_match_values_computed_by_hand() -> None:
    def value(name: str, targets: Tensor | None = None) -> list[float]:
        return [round(v, 5) for v in loss_named(name)(LOGITS, LABELS, targets).tolist()]

    shares = LOGITS.softmax(1)
    entropies = -(shares * shares.log()).sum(1)
    third = torch.tensor([3, 0])
    assert value("margin") == [-2.0, 3.0]
    assert value("margin", third) == [-5.0, -1.0]
    assert value("ce") == [round(float(v), 5) for v in -shares.log()[[0, 1], LABELS]]
    assert value("ce", third) == [round(float(v), 5) for v in shares.log()[[0, 1], third]]
    # z1 - z3: 3 - 0.5 and 4 - 1; targeted z1 - (z3 + z4) / 2: 3 + 0.75 and 4 - 0.5.
    assert value("dlr") == [round(-2 / 2.5, 5), round(3 / 3, 5)]
    assert value("dlr", third) == [round(-5 / 3.75, 5), round(-1 / 3.5, 5)]
    expected = torch.stack([shares[0, 1], shares[1, 1]]).log() - entropies
    assert value("confident") == [round(float(v), 5) for v in expected]


@pytest.mark.parametrize("targeted", [False, True])
def test_dlr_loss_matches_pyautoattack(targeted: bool) -> None:
    logits = torch.randn(50, 6)
    labels = torch.randint(6, (50,))
    targets = runner_up(logits, labels, 2)
    kind: Any = APGDAttack_targeted if targeted else APGDAttack
    theirs = kind(None, eps=0.1)
    theirs.y_target = targets
    expected = (theirs.dlr_loss_targeted if targeted else theirs.dlr_loss)(logits, labels)
    found = dlr(logits, labels, targets if targeted else None)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("classes", [2, 3, 4])
def test_every_loss_has_a_finite_gradient_with_few_classes(
    name: str, targeted: bool, classes: int
) -> None:
    logits = torch.randn(6, classes, requires_grad=True)
    labels = torch.randint(classes, (6,))
    targets = runner_up(logits.detach(), labels, 1) if targeted else None
    loss = loss_named(name)(logits, labels, targets)
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    assert loss.isfinite().all()
    assert gradient.isfinite().all()
    # DLR of three classes is flat if label and rival rank first and third, and hinge at its cap.
    flat = gradient.abs().sum(1) == 0
    if name == "hinge":
        assert torch.equal(flat, loss == 0.5)
    assert not flat.any() or name == "hinge" or (name == "dlr" and classes == 3)


def test_every_loss_is_higher_for_a_wrong_prediction() -> None:
    labels = torch.tensor([0, 0])
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0], [1.0, 2.0, 0.0, -1.0]])
    for name in LOSSES:
        right, wrong = loss_named(name)(logits, labels).tolist()
        assert wrong > right


def test_unknown_losses_and_ranks_are_refused() -> None:
    with pytest.raises(ConfigError, match="must be one of ce, dlr, margin, hinge, confident"):
        loss_named("square")
    with pytest.raises(ConfigError, match="rank 4"):
        runner_up(LOGITS, LABELS, 4)
    assert runner_up(LOGITS, LABELS, 1).tolist() == [1, 1]
    assert runner_up(LOGITS, LABELS, 3).tolist() == [3, 0]


@pytest.mark.parametrize("loss", ["ce", "dlr"])
@pytest.mark.parametrize(("norm", "name", "eps"), [("linf", "Linf", 0.02), ("l2", "L2", 0.3)])
@pytest.mark.parametrize("iterations", [7, 60])
def test_apgd_matches_pyautoattack_on_a_static_model(
    loss: str, norm: Norm, name: str, eps: float, iterations: int
) -> None:
    # Away from the bounds, near which pyautoattack's l2 projection is not the nearest point.
    x = 0.3 + 0.4 * small_images(6)
    model, threat = curved(), ThreatModel(norm, eps)
    y = model(x).argmax(1)
    start = random_start(x, threat, torch.Generator().manual_seed(1))
    kind: Any = APGDAttack
    theirs = kind(model, n_iter=iterations, norm=name, eps=eps, loss=loss, device="cpu")
    theirs.init_hyperparam(x)
    best, _, highest, _ = theirs.attack_single_run(x, y, x_init=start)
    found = apgd(of_model(model, y, loss), x, start, threat, iterations=iterations)
    torch.testing.assert_close(found.loss, highest, atol=1e-5, rtol=1e-4)
    apart = 1e-5 if norm == "linf" else 5e-4  # rounding in the projections adds up
    torch.testing.assert_close(found.images, best, atol=apart, rtol=0)
    alone = of_model(model, y, loss)(start).loss
    assert (found.loss > alone).all()


def test_apgd_in_l1_reaches_95_percent_of_pyautoattacks_loss() -> None:
    # The projection differs (exact, in float64), so the steps differ, but the loss is as high.
    x = 0.3 + 0.4 * small_images(8)
    model, threat = curved(), ThreatModel("l1", 3.0)
    y = model(x).argmax(1)
    start = random_start(x, threat, torch.Generator().manual_seed(1))
    kind: Any = APGDAttack
    theirs = kind(model, n_iter=60, norm="L1", eps=3.0, loss="ce", device="cpu")
    theirs.init_hyperparam(x)
    torch.manual_seed(1)
    _, _, highest, _ = theirs.attack_single_run(x, y)
    found = apgd(of_model(model, y, "ce"), x, start, threat, iterations=60)
    assert float(found.loss.mean()) > 0.95 * float(highest.mean())


@pytest.mark.parametrize("iterations", [1, 2, 3, 5])
def test_apgd_in_l1_continues_a_warm_start_as_pyautoattack_does(iterations: int) -> None:
    x = 0.3 + 0.4 * small_images(8)
    model, threat = curved(), ThreatModel("l1", 1.0)
    y = model(x).argmax(1)
    objective = of_model(model, y, "ce")
    start = random_start(x, threat, torch.Generator().manual_seed(1))
    found = apgd(objective, x, start, threat, iterations=3).images
    kind: Any = APGDAttack
    theirs = kind(model, n_iter=iterations, norm="L1", eps=1.0, loss="ce", device="cpu")
    theirs.init_hyperparam(x)
    _, _, highest, _ = theirs.attack_single_run(x, y, x_init=found)
    warm = apgd(objective, x, found, threat, iterations=iterations, warm=True)
    torch.testing.assert_close(warm.loss, highest, atol=1e-5, rtol=1e-4)
    cold = apgd(objective, x, found, threat, iterations=iterations)
    assert float(warm.loss.mean()) > float(cold.loss.mean()) + 1e-3


def test_apgd_in_l1_starts_at_images_that_the_other_attack_did_not_move() -> None:
    x = 0.3 + 0.4 * small_images(4)
    model, threat = curved(), ThreatModel("l1", 1.0)
    objective = of_model(model, model(x).argmax(1), "ce")
    warm, cold = (apgd(objective, x, x, threat, iterations=5, warm=w) for w in (True, False))
    assert torch.equal(warm.images, cold.images)


@pytest.mark.parametrize("norm", NORMS)
def test_stride_changes_the_first_step_in_every_norm(norm: Norm) -> None:
    x = 0.3 + 0.4 * small_images(4)
    model, threat = curved(), ThreatModel(norm, 0.5)
    objective = of_model(model, model(x).argmax(1), "ce")
    long, short = (
        apgd(objective, x, x, threat, iterations=1, stride=stride).images for stride in (2.0, 0.1)
    )
    ratio = threat.distance(short, x) / threat.distance(long, x)
    assert (ratio < 0.3).all()


@given(st.sampled_from(NORMS), st.floats(0.001, 1.0), st.booleans(), st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_apgd_queries_stay_inside_and_the_highest_loss_is_returned(
    norm: Norm, eps: float, joint: bool, seed: int
) -> None:
    x = (1.4 * small_images(3, seed=seed) - 0.2).clamp(0, 1)
    threat, model = ThreatModel(norm, eps), curved()
    y = model(x).argmax(1)
    objective, asked = of_model(model, y, "ce"), []

    def watched(images: Tensor) -> Evaluation:
        asked.append(images)
        return objective(images)

    start = random_start(x, threat, torch.Generator().manual_seed(seed))
    found = apgd(watched, x, start, threat, iterations=8, joint=joint)
    assert len(asked) == 9
    assert not any(threat.check(images, x).any() for images in asked)
    assert any(torch.equal(found.images, images) for images in asked) or not joint
    losses = torch.stack([objective(images).loss for images in asked])
    if joint:
        torch.testing.assert_close(found.loss[0], losses.mean(1).max())
    else:
        torch.testing.assert_close(found.loss, losses.amax(0))


def test_random_starts_lie_on_the_surface_of_the_ball_and_differ_by_seed() -> None:
    x = torch.full((3, 1, 4, 4), 0.5)
    for norm, eps in (("linf", 0.1), ("l2", 0.4), ("l1", 0.5)):
        threat = ThreatModel(norm, eps)  # type: ignore[arg-type]
        one, other = (random_start(x, threat, torch.Generator().manual_seed(s)) for s in (0, 1))
        torch.testing.assert_close(
            threat.distance(one, x), torch.full((3,), eps, dtype=torch.float64), rtol=1e-4, atol=0
        )
        assert not torch.equal(one, other)


def test_apgd_stops_when_the_stop_callback_returns_true() -> None:
    x, model, threat = small_images(2), curved(), ThreatModel("linf", 0.1)
    calls = []

    def objective(images: Tensor) -> Evaluation:
        calls.append(images)
        return of_model(model, torch.tensor([0, 1]), "ce")(images)

    apgd(objective, x, x, threat, iterations=50, stop=lambda: len(calls) == 3)
    assert len(calls) == 3


def test_only_tiny_and_huge_gradients_are_scaled() -> None:
    rows = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    rows[1] *= 1e-30
    rows[2] = 0
    rows[3] *= 1e30
    rows[4] = torch.inf
    found = enlarged(rows)
    assert found[0].equal(rows[0])
    assert found[1].abs().max() == found[3].abs().max() == 1
    assert found[2].equal(rows[2])
    assert found[4].equal(rows[4])
    assert steepest(rows[:4], "l2").norm(dim=1).tolist() == pytest.approx([1, 1, 0, 1])
    assert ascent(rows[:4], "l2").norm(dim=1).tolist() == pytest.approx([1, 1, 0, 1])


@pytest.mark.parametrize(
    "attack",
    [
        AdaptiveAPGD("unrolled", losses=("margin",), iterations=10),
        AdaptiveAPGD("unrolled", losses=(), targets=2, iterations=10),
        make("apgd-t", iterations=10, targets=2),
        make("fab-t", iterations=10, targets=2),
    ],
    ids=["margin", "targeted-dlr", "apgd-t", "fab-t"],
)
@pytest.mark.parametrize("scale", [1e-20, 1e20])
def test_attacks_in_l2_succeed_on_a_model_with_tiny_or_huge_logits(
    attack: Attack, scale: float
) -> None:
    class Scaled(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = net(x)
            return scale * logits

    net, x = curved(), small_images(12)
    y = net(x).argmax(dim=1)
    threat = ThreatModel("l2", "0.5")
    fooled = int(attack(net, x, y, threat, seed=0).fooled.sum())
    assert fooled > 0
    assert int(attack(Scaled().eval(), x, y, threat, seed=0).fooled.sum()) >= fooled - 1


def test_adaptive_attack_marks_only_the_first_run_of_a_loss_as_warm(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[tuple[bool, float]] = []

    def watched(*args: Any, **how: Any) -> Any:
        seen.append((how["warm"], how["stride"]))
        return apgd(*args, **how)

    monkeypatch.setattr(adaptive_apgd, "apgd", watched)
    x, model = small_images(4), curved()
    attack = make("adaptive-unrolled", losses="ce+margin", iterations=2, restarts=2, targets=1,
                  warm=True, stride=0.5)  # fmt: skip
    attack(model, x, model(x).argmax(1), ThreatModel("l1", 1e-4), seed=0)
    assert [warm for warm, _ in seen] == [True, False, True, False, False]
    assert {stride for _, stride in seen} == {0.5}

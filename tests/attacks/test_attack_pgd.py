from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dent.attacks import PGD, make
from dent.errors import ConfigError
from dent.threat import NORMS, Norm, ThreatModel
from tests.attacks.attack_toys import Company, Toy, linear, small_images


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"iterations": 0}, "iterations must be a whole number, at least 1, got 0"),
        ({"restarts": 0}, "restarts must be a whole number, at least 1, got 0"),
        ({"step": 0.0}, "step must be"),
        ({"step": float("nan")}, "step must be"),
        ({"restarts": 2, "random_start": False}, "from one start are equal"),
        ({"share": 0.0}, "share"),
    ],
)
def test_invalid_settings_of_pgd_are_refused(wrong: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        PGD(**wrong)


def test_pgd_imagenet_has_the_settings_of_the_paper() -> None:
    attack = make("pgd-imagenet")
    assert attack.name == "pgd-imagenet"
    # Section 4.3: 30 iterations, step size of 0.1, and five random starts.
    expected = {"iterations": 30, "step": 0.1, "restarts": 5, "random_start": True, "share": 0.05}
    assert attack.settings() == expected
    assert attack.queries(1000) == (1 + 5 * 31, 5 * 30)


def test_pgd_without_random_start_matches_two_steps_by_hand() -> None:
    # A step follows the sign of the gradient, then projects into the ball and the bounds.
    model, x = linear(), small_images()
    with torch.no_grad():
        next(model.parameters()).mul_(0.1)  # keeps losses large enough for float32
        y = model(x).argmax(dim=1)
    eps = 1e-4  # too small to fool any member, so the last image has the highest loss
    expected = x.clone()
    for _ in range(2):
        leaf = expected.clone().requires_grad_()
        loss = torch.nn.functional.cross_entropy(model(leaf), y, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, leaf)
        expected = (expected + 0.4 * eps * gradient.sign()).clamp(0, 1)
    attack = PGD(iterations=2, step=0.4, random_start=False)
    result = attack(model, x, y, ThreatModel("linf", eps), seed=0)
    torch.testing.assert_close(result.adversarial, expected, atol=1e-7, rtol=0)


class Watched(Toy):
    """Records every queried batch."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.asked: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.asked.append(x.detach().clone())
        return super().forward(x)


@given(st.sampled_from(NORMS), st.floats(0.01, 0.4), st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_pgd_queries_stay_inside_and_restarts_have_different_starts(
    norm: Norm, eps: float, seed: int
) -> None:
    x, threat = small_images(), ThreatModel(norm, eps)
    watched = Watched(linear())
    y = watched.model(x).argmax(dim=1)
    attack = PGD(iterations=2, restarts=2)
    attack(watched, x, y, threat, seed=seed)
    for asked in watched.asked:
        assert not threat.check(asked, x).any()
    start = watched.asked[1]
    assert (threat.distance(start, x) > 0).all()
    if len(watched.asked) == 7:  # there was a second restart
        assert not torch.equal(start, watched.asked[4])


def test_random_starts_fill_the_ball_uniformly() -> None:
    # In d dimensions, a share r**d of the ball lies within r of the center, so the median radius of
    # 4 x 4 images is 0.5**(1/16). In linf, every value is uniform.
    x = torch.full((400, 1, 4, 4), 0.5)
    watched = Watched(linear(2, 16))
    y = watched.model(x).argmax(dim=1)
    for norm in NORMS:
        threat = ThreatModel(norm, 0.2)
        watched.asked.clear()
        PGD(iterations=1)(watched, x, y, threat, seed=0)
        delta = (watched.asked[1] - x).flatten(1)
        radius = threat.distance(watched.asked[1], x) / 0.2
        assert float(radius.median()) == pytest.approx(0.5 ** (1 / 16), abs=0.01)
        assert delta.mean().abs() < 0.01
        spread = delta.abs().mean(dim=0)
        assert float(spread.max() / spread.min()) < 1.5


def test_pgd_keeps_the_best_restart_per_member_if_members_are_independent() -> None:
    # Each restart fools other members, and all of them must count.
    model, x = linear(seed=7), small_images(12)
    with torch.no_grad():
        y = model(x).argmax(dim=1)
    threat = ThreatModel("linf", 0.06)
    attack = PGD(iterations=1, step=0.2, restarts=1)
    alone = attack(model, x, y, threat, seed=0).fooled
    many = PGD(iterations=1, step=0.2, restarts=6)(model, x, y, threat, seed=0)
    assert (many.fooled | ~alone).all()  # the first restart is the same
    assert 0 < int(alone.sum()) < int(many.fooled.sum()) < 12


def test_pgd_returns_the_worst_whole_batch_if_batch_dependent() -> None:
    # The result is the queried batch with the most wrong predictions.
    class WatchedCompany(Watched, Company):
        batch_dependent = True

    model, x = linear(), small_images(8)
    company = WatchedCompany(model)
    y = Company(model)(x).argmax(dim=1)
    result = PGD(iterations=4, restarts=3)(company, x, y, ThreatModel("linf", 0.05), seed=0)
    wrong = [int((Company(model)(asked).argmax(dim=1) != y).sum()) for asked in company.asked]
    best = [i for i, asked in enumerate(company.asked) if torch.equal(asked, result.adversarial)]
    assert len(best) == 1
    assert wrong[best[0]] == max(wrong) == int(result.fooled.sum())
    assert max(wrong) > min(wrong)

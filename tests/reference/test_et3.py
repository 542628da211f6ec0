"""Tests of ET3 against a loop by hand, a closed form, its bounds, and finite differences."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from dent import ConfigError, Status
from dent.attacks.adaptive import Rung, certificate
from dent.defenses import ET3


def by_hand(
    model: nn.Module, x: Tensor, steps: int, step: float, radius: float, low: float, high: float
) -> Tensor:
    """Return the moved images: the oracle, one image at a time, with lengths in l2."""
    moved = []
    for image in x:
        delta = torch.zeros_like(image)
        for _ in range(steps):
            point = (image + delta).requires_grad_()
            energy = -torch.log(model(point[None]).exp().sum())
            (slope,) = torch.autograd.grad(energy, point)
            delta = delta - step * slope / slope.norm()
            delta = (image + delta).clamp(low, high) - image
            if delta.norm() > radius:
                delta = delta * radius / delta.norm()
        moved.append((image + delta).detach())
    return torch.stack(moved)


@pytest.mark.parametrize(("steps", "step", "radius"), [(1, 0.3, 1.0), (4, 0.4, 0.6), (3, 2.0, 9.0)])
def test_et3_matches_a_loop_by_hand(
    steps: int, step: float, radius: float, small: nn.Sequential, batch: Tensor
) -> None:
    root = math.sqrt(batch[0].numel())
    defense = ET3(small, steps=steps, step_size=step / root, eps=radius / root)
    expected = by_hand(small, batch, steps, step, radius, 0.0, 1.0)
    torch.testing.assert_close(batch + defense.adapt(batch).perturbation, expected)
    torch.testing.assert_close(defense(batch), small(expected))


def test_defaults_are_the_published_lengths_at_the_size_of_imagenet() -> None:
    root = math.sqrt(3 * 224 * 224)
    defense = ET3(nn.Linear(2, 2))
    assert defense.steps == 5
    assert defense.step_size * root == pytest.approx(2.5)
    assert defense.eps * root == pytest.approx(5.0)


def test_et3_of_two_linear_classes_matches_the_closed_form() -> None:
    # Logits (w·x, -w·x): the energy falls along w where w·x > 0, against it where w·x < 0.
    w = torch.tensor([3.0, -4.0], dtype=torch.float64)
    layer = nn.Linear(2, 2, bias=False).double()
    with torch.no_grad():
        layer.weight.copy_(torch.stack([w, -w]))
    x = torch.tensor([[0.5, 0.1], [0.1, 0.5]], dtype=torch.float64)
    found = ET3(layer, steps=1, step_size=0.01, eps=1.0).adapt(x).perturbation
    along = torch.stack([w, -w]) / 5 * 0.01 * math.sqrt(2)
    torch.testing.assert_close(found, along)


def test_energy_falls_with_every_step(small: nn.Sequential, batch: Tensor) -> None:
    energies = [
        -ET3(small, steps=steps, step_size=0.01, eps=1.0)(batch).logsumexp(1) for steps in (1, 2, 3)
    ]
    assert bool((energies[0] < -small(batch).logsumexp(1)).all())
    assert bool((energies[1] < energies[0]).all())
    assert bool((energies[2] < energies[1]).all())


@settings(max_examples=25, deadline=None)
@given(
    steps=st.integers(1, 4),
    step_size=st.floats(1e-3, 2.0),
    eps=st.floats(1e-3, 2.0),
    shape=st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 4)),
)
def test_et3_stays_within_eps_and_the_pixel_bounds(
    steps: int, step_size: float, eps: float, shape: tuple[int, int, int]
) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        x = torch.rand(shape)
        model = nn.Sequential(nn.Flatten(), nn.Linear(shape[1] * shape[2], 4)).eval()
    moved = ET3(model, steps=steps, step_size=step_size, eps=eps).adapt(x).perturbation
    assert float(moved.square().flatten(1).mean(1).sqrt().max()) <= eps * (1 + 1e-5)
    assert float((x + moved).min()) >= -1e-6
    assert float((x + moved).max()) <= 1 + 1e-6


@pytest.mark.parametrize("steps", [1, 3])
def test_exact_gradient_through_all_steps_is_certified(
    steps: int, small: nn.Sequential, batch: Tensor
) -> None:
    defense = ET3(small, steps=steps, step_size=0.1, eps=0.15)
    x = batch.clamp(0.02, 0.98)  # away from the kinks at 0 and 1
    y = torch.tensor([0, 1, 2, 0, 1])
    proof = certificate(defense, x, y)
    assert proof.passed, proof
    assert not certificate(defense, x, y, rung=Rung("stop-gradient")).passed
    plain, exact = (defense.adapt(x.requires_grad_(), differentiable=how) for how in (False, True))
    torch.testing.assert_close(plain.perturbation, exact.perturbation)
    assert exact.perturbation.requires_grad
    assert not plain.perturbation.requires_grad


def test_flat_energy_gives_zero_perturbation_and_zero_gradient(batch: Tensor) -> None:
    class Flat(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x.flatten(1)[:, :3] - 2).relu()

    x = batch.requires_grad_()
    defense = ET3(Flat().eval())
    found = defense.adapt(x, differentiable=True)
    assert torch.equal(found.perturbation, torch.zeros_like(x))
    (gradient,) = torch.autograd.grad(defense.predict(x, found).sum(), x)
    assert torch.equal(gradient, torch.zeros_like(gradient))


def test_step_that_overflows_does_not_change_the_gradient_of_other_samples(batch: Tensor) -> None:
    class Overflowing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            scores = x.flatten(1)[:, :3].square()
            far = (scores.sum(1, keepdim=True) > 0.5) & (scores.sum(1, keepdim=True) < 0.6)
            return scores * torch.where(far, torch.inf, 1.0)

    x = batch.clone()
    x[1], x[[0, 2, 3, 4]] = 0.4, 0.9  # the first step makes the second image overflow
    x.requires_grad_()
    defense = ET3(Overflowing().eval(), step_size=0.01)
    found = defense.adapt(x, differentiable=True)
    assert found.status.tolist() == [0, Status.STEP_NON_FINITE, 0, 0, 0]
    assert torch.equal(found.perturbation[1], torch.zeros_like(x[1]))
    (gradient,) = torch.autograd.grad(defense.predict(x, found).sum(), x)
    assert bool(gradient.isfinite().all())
    torch.testing.assert_close(gradient[1].flatten()[:3], torch.full((3,), 0.8).double())


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"steps": 0}, "steps of et3"),
        ({"step_size": 0.0}, "step_size must be"),
        ({"eps": float("inf")}, "eps must be"),
        ({"bounds": (1.0, 1.0)}, "low < high"),
    ],
)
def test_settings_out_of_range_are_refused(
    setting: dict[str, float], message: str, small: nn.Sequential
) -> None:
    with pytest.raises(ConfigError, match=message):
        ET3(small, **setting)  # type: ignore[arg-type]

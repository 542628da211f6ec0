"""Tests of anti-adversary and hedge against closed forms, loops, and finite differences."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from dent import ConfigError, InputError, Status, UnsupportedModelError
from dent.defenses import AntiAdversary, Hedge, make


@settings(max_examples=25, deadline=None)
@given(
    steps=st.integers(1, 4),
    alpha=st.floats(1e-3, 1.0),
    samples=st.integers(1, 4),
    seed=st.integers(0, 10_000),
)
def test_anti_adversary_of_two_linear_classes_matches_the_closed_form(
    steps: int, alpha: float, samples: int, seed: int
) -> None:
    # The gradient of CE at ŷ is −(1 − p_ŷ)(w_ŷ − w_other): its sign never changes.
    torch.manual_seed(seed)
    layer = nn.Linear(12, 2).double()
    model = nn.Sequential(nn.Flatten(), layer)
    x = torch.rand(samples, 3, 2, 2, dtype=torch.float64)
    weight = layer.weight.detach()
    predicted = model(x).argmax(1)
    direction = (weight[predicted] - weight[1 - predicted]).sign().reshape(x.shape)

    found = AntiAdversary(model, steps=steps, alpha=alpha).adapt(x)

    torch.testing.assert_close(found.perturbation, steps * alpha * direction)
    assert torch.equal(found.status, torch.full((samples,), Status.ADAPTED))


def test_anti_adversary_matches_an_independent_loop(small: nn.Sequential, batch: Tensor) -> None:
    """As published, the loop uses the batch's mean loss and the gradient of the final forward."""
    x = batch.clone().requires_grad_()
    with torch.no_grad():
        label = small(batch).max(1)[1]
    delta = torch.zeros_like(batch).requires_grad_()
    for _ in range(2):
        loss = F.cross_entropy(small(batch + delta), label)
        delta = (delta - 0.15 * torch.autograd.grad(loss, delta)[0].sign()).detach()
        delta.requires_grad_()
    expected = small(x + delta.detach())
    (expected_gradient,) = torch.autograd.grad(expected.square().sum(), x)

    logits = AntiAdversary(small)(x)
    (gradient,) = torch.autograd.grad(logits.square().sum(), x)

    torch.testing.assert_close(logits, expected)
    torch.testing.assert_close(gradient, expected_gradient)


def test_anti_adversary_lowers_the_entropy_with_every_step(
    small: nn.Sequential, batch: Tensor
) -> None:
    found = AntiAdversary(small, steps=6, alpha=0.01).adapt(batch)
    assert found.entropy.shape == (6, 5)
    assert bool((found.entropy.diff(dim=0) < 0).all())


def test_hedge_matches_an_independent_loop(small: nn.Sequential, batch: Tensor) -> None:
    """As published, the loop raises KL(uniform, prediction); its random start is the same."""
    torch.manual_seed(3)
    hedged = batch + torch.empty_like(batch).uniform_(-0.1, 0.1)
    for _ in range(4):
        hedged = hedged.detach().requires_grad_()
        log_p = F.log_softmax(small(hedged), 1)
        loss = F.kl_div(log_p, torch.full_like(log_p, 1 / 3), reduction="batchmean")
        moved = hedged + 0.03 * torch.autograd.grad(loss, hedged)[0].sign()
        hedged = (batch + (moved - batch).clamp(-0.1, 0.1)).clamp(0, 1).detach()

    torch.manual_seed(3)
    logits = Hedge(small, steps=4, step_size=0.03, eps=0.1)(batch)

    torch.testing.assert_close(logits, small(hedged))


@settings(max_examples=25, deadline=None)
@given(
    steps=st.integers(1, 4),
    step_size=st.floats(1e-3, 2.0),
    eps=st.floats(1e-3, 2.0),
    shape=st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 4)),
    seed=st.one_of(st.none(), st.integers(0, 100)),
)
def test_hedge_stays_within_eps_and_the_pixel_bounds(
    steps: int, step_size: float, eps: float, shape: tuple[int, int, int], seed: int | None
) -> None:
    torch.manual_seed(0)
    x = torch.rand(shape)
    model = nn.Sequential(nn.Flatten(), nn.Linear(shape[1] * shape[2], 4)).eval()
    found = Hedge(model, steps=steps, step_size=step_size, eps=eps, seed=seed).adapt(x)
    assert float(found.perturbation.abs().max()) <= eps + 1e-6
    reached = x + found.perturbation
    assert float(reached.min()) >= -1e-6
    assert float(reached.max()) <= 1 + 1e-6


def test_hedge_raises_the_sum_of_the_losses_of_all_classes(
    small: nn.Sequential, batch: Tensor
) -> None:
    def loss(logits: Tensor) -> Tensor:
        return -logits.log_softmax(1).sum(1)

    assert bool((loss(Hedge(small, eps=0.2, seed=0)(batch)) > loss(small(batch))).all())


def test_fixed_hedge_is_deterministic_and_starts_every_sample_from_one_pattern(
    small: nn.Sequential, batch: Tensor
) -> None:
    fixed = make("dent.defenses:fixed_hedge", small)
    assert isinstance(fixed, Hedge)
    assert not fixed.randomized
    answer = fixed.predict(batch, fixed.adapt(batch))
    torch.manual_seed(11)  # it would move a drawn start
    assert torch.equal(fixed.predict(batch, fixed.adapt(batch)), answer)
    assert torch.equal(Hedge(small, seed=0)(batch), answer)
    flipped = batch.flip(0)
    torch.testing.assert_close(fixed.predict(flipped, fixed.adapt(flipped)), answer.flip(0))


def test_hedge_without_a_seed_draws_from_the_global_generator(
    small: nn.Sequential, batch: Tensor
) -> None:
    hedge = Hedge(small, steps=1)
    assert hedge.randomized
    first, second = hedge(batch), hedge(batch)
    assert not torch.equal(first, second)
    torch.manual_seed(1)
    again = hedge(batch)
    torch.manual_seed(1)
    assert torch.equal(hedge(batch), again)


def test_hedge_with_a_seed_is_a_deterministic_function_of_each_sample(
    small: nn.Sequential, batch: Tensor
) -> None:
    hedge = Hedge(small, steps=3, seed=4)
    assert not hedge.randomized
    before = torch.get_rng_state()
    logits = hedge(batch)
    assert torch.equal(torch.get_rng_state(), before)
    torch.testing.assert_close(hedge(batch.flip(0)).flip(0), logits)
    assert not torch.equal(Hedge(small, steps=3, seed=5)(batch), logits)


def finite_differences(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Return central differences of a function of each sample, with all pixels in one batch."""
    steps = 1e-6 * torch.eye(x[0].numel(), dtype=x.dtype).reshape(-1, *x[0].shape)
    around = x.unsqueeze(1) + torch.cat([steps, -steps])
    ahead, behind = function(around.flatten(0, 1)).reshape(len(x), 2, -1).unbind(1)
    return ((ahead - behind) / 2e-6).reshape(x.shape)


@pytest.mark.parametrize("defense", ["anti-adversary", "hedge"])
def test_differentiable_gradient_matches_finite_differences(
    defense: str, small: nn.Sequential, batch: Tensor
) -> None:
    # Away from 0 and 1, where clipping has a kink, but with some pixels within eps of them.
    x = (batch.clamp(0.02, 0.98))[:2].clone().requires_grad_()
    built = AntiAdversary(small) if defense == "anti-adversary" else Hedge(small, eps=0.1, seed=2)

    def answer(at: Tensor) -> Tensor:
        return torch.as_tensor(built(at)).square().sum(1)

    exact = built.predict(x, built.adapt(x, differentiable=True)).square().sum()
    (gradient,) = torch.autograd.grad(exact, x)
    torch.testing.assert_close(
        gradient, finite_differences(answer, x.detach()), atol=1e-6, rtol=1e-5
    )

    (stopped,) = torch.autograd.grad(answer(x).sum(), x)
    clipped = ((x + built.adapt(x).perturbation) % 1).detach() == 0
    assert bool(clipped.any()) == (defense == "hedge")
    assert torch.equal(gradient[clipped], torch.zeros_like(gradient[clipped]))
    torch.testing.assert_close(stopped[~clipped], gradient[~clipped])
    assert bool((stopped[clipped] != 0).all())


@pytest.mark.parametrize("defense", [AntiAdversary, Hedge])
def test_non_finite_step_leaves_only_its_sample_unperturbed(
    defense: type[AntiAdversary | Hedge], batch: Tensor
) -> None:
    class Overflowing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            scores = x.flatten(1)[:, :3]
            return scores * torch.where(scores.sum(1, keepdim=True) < 0.3, torch.inf, 1.0)

    x = batch.clone()
    x[1] = 0.05
    found = defense(Overflowing().eval()).adapt(x)
    expected = [Status.ADAPTED] * 5
    expected[1] = Status.STEP_NON_FINITE
    assert found.status.tolist() == expected
    assert torch.equal(found.perturbation[1], torch.zeros_like(x[1]))
    assert bool((found.perturbation[0] != 0).any())


def test_model_that_detaches_its_input_is_refused(batch: Tensor) -> None:
    class Cut(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.detach().flatten(1)

    with pytest.raises(UnsupportedModelError, match="no_grad"):
        AntiAdversary(Cut().eval())(batch)


def test_perturbation_for_another_batch_size_is_refused(
    small: nn.Sequential, batch: Tensor
) -> None:
    defense = AntiAdversary(small)
    with pytest.raises(InputError, match="very batch"):
        defense.predict(batch[:3], defense.adapt(batch))


@pytest.mark.parametrize(
    ("defense", "setting", "message"),
    [
        (AntiAdversary, {"steps": 0}, "steps of anti-adversary .* at least 1, got 0"),
        (AntiAdversary, {"steps": True}, "got True"),
        (AntiAdversary, {"alpha": 0.0}, "alpha must be finite, greater than 0, got 0.0"),
        (Hedge, {"steps": 2.0}, "steps of hedge .* got 2.0"),
        (Hedge, {"step_size": float("nan")}, "step_size"),
        (Hedge, {"eps": float("inf")}, "eps must be finite"),
        (Hedge, {"bounds": (1.0, 0.0)}, "low < high"),
        (Hedge, {"seed": "0"}, "seed must be a whole number"),
    ],
)
def test_settings_out_of_range_are_refused(
    defense: Callable[..., object], setting: dict[str, object], message: str, small: nn.Sequential
) -> None:
    with pytest.raises(ConfigError, match=message):
        defense(small, **setting)


@pytest.mark.parametrize("defense", [AntiAdversary, Hedge])
def test_with_steps_changes_only_the_number_of_steps(
    defense: type[AntiAdversary | Hedge], small: nn.Sequential
) -> None:
    deployed = defense(small, steps=5)
    fewer = deployed.with_steps(2)
    assert type(fewer) is defense
    assert fewer.settings == deployed.settings | {"steps": 2}
    assert fewer.unwrap() is small
    with pytest.raises(ConfigError, match="steps"):
        deployed.with_steps(0)

"""The `Adaptation` that `adapt` returns: its shapes and values, and its samples selected."""

import math
import re
from dataclasses import FrozenInstanceError, replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from dent import Adaptation, Dent, DentConfig, SmoothingConfig, Status
from dent.config import Covariance
from tests.layer_toys import make_batch, make_toy

KIND = "BatchNorm2d"


def adapted(n: int, *, sample_wise: bool, covariance: Covariance | None = "diagonal") -> Adaptation:
    smoothing = None if covariance is None else SmoothingConfig(sigma=0.6, covariance=covariance)
    granularity = "sample" if sample_wise else "batch"
    config = DentConfig(
        steps=2, lr=0.05, granularity=granularity, reduction="sum", smoothing=smoothing
    )
    return Dent(make_toy(KIND), config).adapt(make_batch(KIND, n))


def test_batch_wise_adaptation_has_one_set_of_parameters() -> None:
    found = adapted(5, sample_wise=False)
    trained = dict(make_toy(KIND).named_parameters())
    assert set(found.parameters) == {"1.weight", "1.bias", "4.weight", "4.bias"}
    assert all(value.shape == trained[name].shape for name, value in found.parameters.items())
    assert found.entropy.shape == (2, 5)
    assert found.status.shape == (5,)
    assert found.status.dtype == torch.int64
    assert found.batch_size == 5
    assert not found.sample_wise


def test_sample_wise_adaptation_has_one_set_of_parameters_per_sample() -> None:
    found = adapted(5, sample_wise=True)
    trained = dict(make_toy(KIND).named_parameters())
    assert all(value.shape == (5, *trained[name].shape) for name, value in found.parameters.items())
    assert found.entropy.shape == (2, 5)
    assert found.sample_wise


SIGMA_SHAPES: list[tuple[Covariance, tuple[int, ...]]] = [
    ("spherical", ()),
    ("diagonal", (2,)),
    ("full", (2,)),
]


@pytest.mark.parametrize("sample_wise", [False, True])
@pytest.mark.parametrize(("covariance", "shape"), SIGMA_SHAPES)
def test_sigma_is_the_square_root_of_the_covariance_diagonal(
    covariance: Covariance, shape: tuple[int, ...], sample_wise: bool
) -> None:
    found = adapted(3, sample_wise=sample_wise, covariance=covariance)
    rows = (3,) if sample_wise else ()
    assert found.sigma is not None
    assert found.covariance is not None
    assert found.sigma.shape == (*rows, *shape)
    assert found.covariance.shape == (*rows, 2, 2)
    diagonal = found.covariance.diagonal(dim1=-2, dim2=-1).sqrt()
    torch.testing.assert_close(diagonal, found.sigma.reshape(*rows, -1).expand(*rows, 2))
    assert (found.sigma != 0.6).all()
    assert (torch.linalg.eigvalsh(found.covariance) > 0).all()


@pytest.mark.parametrize("sample_wise", [False, True])
def test_adaptation_without_smoothing_has_no_sigma_or_covariance(sample_wise: bool) -> None:
    found = adapted(3, sample_wise=sample_wise, covariance=None)
    assert found.sigma is None
    assert found.covariance is None
    assert found.smoothing is None


def values(found: Adaptation) -> dict[str, Tensor]:
    assert found.smoothing is not None
    own = {"status": found.status, "entropy": found.entropy.T}
    shared = {**found.parameters, "smoothing": found.smoothing}
    return own | shared if found.sample_wise else own


@given(st.lists(st.booleans(), min_size=5, max_size=5), st.booleans())
def test_take_keeps_only_the_values_of_the_selected_samples(
    kept: list[bool], sample_wise: bool
) -> None:
    found, mask = adapted(5, sample_wise=sample_wise), torch.tensor(kept)
    taken = found.take(mask)
    assert taken.batch_size == sum(kept)
    assert taken.entropy.shape == (2, sum(kept))
    for name, value in values(taken).items():
        assert torch.equal(value, values(found)[name][mask])
    if not sample_wise:
        assert taken.parameters is found.parameters
        assert taken.smoothing is found.smoothing


@given(st.lists(st.booleans(), min_size=1, max_size=6).filter(any), st.booleans())
def test_spread_inverts_take_and_marks_the_other_rows_as_non_finite(
    kept: list[bool], sample_wise: bool
) -> None:
    found, mask = adapted(sum(kept), sample_wise=sample_wise), torch.tensor(kept)
    spread = found.spread(mask)
    assert spread.batch_size == len(kept)
    assert spread.status[~mask].eq(Status.INPUT_NON_FINITE).all()
    for name, value in values(spread).items():
        assert name == "status" or value[~mask].isnan().all()
    again = spread.take(mask)
    for name, value in values(again).items():
        assert torch.equal(value, values(found)[name])


@pytest.mark.parametrize("sample_wise", [False, True])
@pytest.mark.parametrize("covariance", ["spherical", "diagonal", "full"])
def test_sigma_by_step_equals_sigma_after_that_many_steps(
    sample_wise: bool, covariance: Covariance
) -> None:
    config = DentConfig(
        steps=3,
        lr=0.05,
        granularity="sample" if sample_wise else "batch",
        smoothing=SmoothingConfig(sigma=0.6, covariance=covariance),
    )
    model, x = make_toy(KIND), make_batch(KIND, 4)
    found = Dent(model, config).adapt(x)
    assert found.sigma_by_step is not None
    assert not found.sigma_by_step.requires_grad
    for steps in range(4):
        after = Dent(model, replace(config, steps=steps)).adapt(x).sigma
        assert after is not None
        torch.testing.assert_close(found.sigma_by_step[steps], after)
    assert not torch.equal(found.sigma_by_step[0], found.sigma_by_step[3])
    exact = Dent(model, config).adapt(x, differentiable=True, checkpointed=True)
    assert exact.sigma_by_step is not None
    torch.testing.assert_close(exact.sigma_by_step, found.sigma_by_step)
    fixed = replace(config, smoothing=SmoothingConfig(sigma=0.6, learn=False))
    by_step = Dent(model, fixed).adapt(x).sigma_by_step
    assert by_step is not None
    torch.testing.assert_close(by_step, torch.full_like(by_step, 0.6))
    assert len(by_step) == 4


def test_sigma_by_step_is_nan_for_non_finite_samples() -> None:
    x = make_batch(KIND, 4)
    x[1] = math.nan
    config = DentConfig(
        steps=2, lr=0.05, granularity="sample", reduction="sum", smoothing=SmoothingConfig(0.6)
    )
    found = Dent(make_toy(KIND), config).adapt(x).sigma_by_step
    assert found is not None
    assert found.shape == (3, 4)
    assert found.isnan().any(0).tolist() == [False, True, False, False]
    nobody = Dent(make_toy(KIND), config).adapt(torch.full_like(x, math.nan)).sigma_by_step
    assert nobody is not None
    assert nobody.shape == (3, 4)


def test_repr_of_an_adaptation_is_one_short_line_without_tensors() -> None:
    assert re.fullmatch(
        r"Adaptation\(4 samples, 4 parameters, entropy \d\.\d\d( -> \d\.\d\d)?, all adapted\)",
        repr(adapted(4, sample_wise=True)),
    )
    x = make_batch(KIND, 4)
    x[1, 0, 0, 0] = math.nan
    config = DentConfig(steps=0, lr=1e-3)
    assert repr(Dent(make_toy(KIND), config).adapt(x)).endswith("3 adapted, 1 input non finite)")


def test_adaptation_is_frozen() -> None:
    found = adapted(2, sample_wise=False)
    with pytest.raises(FrozenInstanceError):
        found.status = torch.zeros(2)  # type: ignore[misc]


def test_first_entropy_is_that_of_the_static_model() -> None:
    model, x = make_toy(KIND).eval(), make_batch(KIND, 4)
    p = model(x).softmax(1).detach()
    found = adapted(4, sample_wise=True, covariance=None)
    torch.testing.assert_close(found.entropy[0], -(p * p.log()).sum(1), atol=1e-12, rtol=1e-12)
    assert (found.entropy >= 0).all()
    assert (found.entropy <= math.log(3)).all()

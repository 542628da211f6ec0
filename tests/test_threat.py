"""Threat models: eps, distances, checks, projections and JSON."""

import copy
import dataclasses
import json
import math
import pickle
import warnings
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize
from torch import nn

from dent.attacks import make
from dent.errors import BudgetWarning, ConfigError, InputError
from dent.threat import NORMS, Norm, ThreatModel

norms = st.sampled_from(NORMS)
minimize: Any = optimize.minimize


@pytest.mark.parametrize(
    ("written", "value", "printed"),
    [
        ("8/255", 8 / 255, "8/255"),
        (" 8 / 255 ", 8 / 255, "8/255"),
        ("1.5/255", 1.5 / 255, "1.5/255"),
        ("0.5", 0.5, "0.5"),
        ("1e-3", 0.001, "1e-3"),
        (8 / 255, 8 / 255, "8/255"),
        (1.5 / 255, 1.5 / 255, "1.5/255"),
        (0.25 / 255, 0.25 / 255, "0.25/255"),
        (Fraction(8, 255), 8 / 255, "8/255"),
        (0.5, 0.5, "0.5"),  # not 127.5/255
        (0.2, 0.2, "0.2"),  # not 51/255
        (0.031, 0.031, "0.031"),
        (1, 1.0, "1"),
        (0, 0.0, "0"),
    ],
)
def test_eps_is_read_exactly_and_printed_in_its_shortest_form(
    written: str | float | Fraction, value: float, printed: str
) -> None:
    threat = ThreatModel("linf", written)
    assert threat.eps == value
    assert threat.written == printed
    assert threat.label == str(threat) == f"linf {printed}"


def test_a_decimal_over_an_integer_is_divided_exactly_and_rounded_once() -> None:
    # 0.3 / 3 in floats is 0.09999999999999999
    assert ThreatModel("linf", "0.3/3").eps == 0.1
    assert float("0.3") / 3 != 0.1


@given(st.integers(0, 255), norms)
def test_every_float_that_is_k_over_255_reads_back_equal(k: int, norm: Norm) -> None:
    threat = ThreatModel(norm, k / 255)
    assert ThreatModel(norm, threat.written) == threat
    assert len(threat.written) <= len(f"{k}/255")


@pytest.mark.parametrize(
    ("norm", "eps", "match"),
    [
        ("lp", 0.1, "norm must be one of linf, l2, l1"),
        ("linf", -0.1, "negative"),
        ("linf", "-1/255", "negative"),
        ("linf", math.nan, "eps must be"),
        ("linf", math.inf, "eps must be"),
        ("linf", "nan", "eps must be"),
        ("linf", "8/0", "eps must be"),
        ("linf", "8/2/55", "eps must be"),
        ("linf", "", "eps must be"),
        ("linf", None, "eps must be"),
        ("linf", True, "eps must be"),
        ("linf", 8, "did you mean '8/255'"),
        ("l2", 1e10, "larger than any image"),
        ("l2", "1e999", "beyond every float"),
    ],
)
def test_impossible_threat_models_are_refused(norm: Any, eps: Any, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        ThreatModel(norm, eps)


@pytest.mark.parametrize("bounds", [(1.0, 0.0), (0.0, math.nan), (0.0, 0.0), (0.0,), 3])
def test_impossible_bounds_are_refused(bounds: Any) -> None:
    with pytest.raises(ConfigError, match="bounds must be"):
        ThreatModel("linf", 0.1, bounds)


def test_threat_models_are_compared_by_value_and_frozen() -> None:
    threat = ThreatModel("l2", "128/255")
    assert threat == ThreatModel("l2", 128 / 255)
    assert hash(threat) == hash(ThreatModel("l2", 128 / 255))
    assert threat != ThreatModel("linf", "128/255")
    assert threat != ThreatModel("l2", "128/255", (-1.0, 1.0))
    with pytest.raises(dataclasses.FrozenInstanceError):
        threat.eps = 1.0  # type: ignore[misc]
    for twin in (pickle.loads(pickle.dumps(threat)), copy.deepcopy(threat)):  # noqa: S301
        assert twin == threat
        assert twin.written == "128/255"
    assert "l2 128/255" in ThreatModel("l2", "128/255", (-1, 1)).label
    assert "[-1, 1]" in ThreatModel("l2", "128/255", (-1, 1)).label


@given(norms, st.sampled_from(["8/255", "1.5/255", "0.5", 0.031, 1 / 255]))
def test_json_round_trip(norm: Norm, eps: str | float) -> None:
    threat = ThreatModel(norm, eps, (-0.5, 1.0))
    values = json.loads(json.dumps(threat.to_dict()))
    assert ThreatModel.from_dict(values) == threat
    assert ThreatModel.from_dict(values).written == threat.written
    assert ThreatModel.from_dict({"norm": norm, "eps": threat.written}).bounds == (0.0, 1.0)


def test_from_dict_refuses_unknown_and_missing_keys() -> None:
    values = ThreatModel("linf", "8/255").to_dict()
    with pytest.raises(ConfigError, match="epsilon"):
        ThreatModel.from_dict({**values, "epsilon": 1})
    with pytest.raises(ConfigError, match=r"missing: \["):
        ThreatModel.from_dict({"norm": "linf"})


@pytest.mark.parametrize(("norm", "order"), [("linf", np.inf), ("l2", 2), ("l1", 1)])
def test_distance_equals_the_norm_of_numpy_in_float64(norm: Norm, order: float) -> None:
    x, x_adv = torch.rand(4, 3, 5, 5), torch.rand(4, 3, 5, 5)
    far = ThreatModel(norm, 0.1).distance(x_adv, x)
    assert far.dtype == torch.float64
    wide = (x_adv.double().numpy() - x.double().numpy()).reshape(4, -1)
    np.testing.assert_allclose(far, np.linalg.norm(wide, order, axis=1), rtol=1e-14)


def test_an_image_with_nan_is_infinitely_far_and_cannot_be_projected() -> None:
    x = torch.zeros(3, 1, 2, 2)
    x_adv = x.clone()
    x_adv[1, 0, 0, 0] = math.nan
    threat = ThreatModel("l2", 0.5)
    assert threat.distance(x_adv, x).tolist() == [0.0, math.inf, 0.0]
    assert threat.check(x_adv, x).tolist() == [0.0, math.inf, 0.0]
    with pytest.raises(InputError, match="finite"):
        threat.project(x_adv, x)


def test_images_of_different_shapes_are_refused() -> None:
    threat = ThreatModel("l2", 0.5)
    for method in (threat.distance, threat.check, threat.project):
        with pytest.raises(InputError, match=r"\(2, 3\) and \(2, 4\)"):
            method(torch.zeros(2, 3), torch.zeros(2, 4))
        with pytest.raises(InputError, match="one shape"):
            method(torch.zeros(2), torch.zeros(2))


@pytest.mark.parametrize("norm", NORMS)
def test_check_returns_the_excess_over_eps(norm: Norm) -> None:
    x = torch.full((3, 3, 8, 8), 0.5)
    threat = ThreatModel(norm, "8/255")
    x_adv = x.clone()
    x_adv[1, 0, 0, 0] += 8 / 255 * 1.001  # 3e-5 too far
    x_adv[2, 0, 0, 0] += 8 / 255 * 0.999
    excess = threat.check(x_adv, x)
    assert excess.dtype == torch.float64
    assert excess[0] == excess[2] == 0
    assert excess[1] == pytest.approx(8 / 255 * 0.001, rel=1e-2)


def test_check_finds_pixels_beyond_the_bounds() -> None:
    threat = ThreatModel("linf", "8/255")
    x = torch.tensor([[0.0, 1.0]] * 3)
    x_adv = x + torch.tensor([[0.0, 0.0], [-0.001, 0.0], [0.0, 0.002]])
    assert threat.check(x_adv, x).tolist() == pytest.approx([0, 0.001, 0.002], abs=1e-6)


@given(
    st.integers(1, 4000),
    st.floats(0.001, 0.5),
    st.integers(0, 2**32),
    st.sampled_from([(0.0, 1.0), (-1.0, 1.0), (0.0, 255.0)]),
)
@settings(max_examples=60, deadline=None)
def test_check_accepts_perturbations_of_length_eps_rounded_to_float32(
    pixels: int, eps: float, seed: int, bounds: tuple[float, float]
) -> None:
    # As attacks do in float32: the natural image plus a perturbation of length eps.
    low, high = bounds
    draws = torch.Generator().manual_seed(seed)
    x = low + (high - low) * torch.rand(8, pixels, generator=draws)
    direction = torch.randn(8, pixels, generator=draws, dtype=torch.float64)
    for norm, order in (("linf", math.inf), ("l2", 2), ("l1", 1)):
        threat = ThreatModel(norm, eps, bounds)  # type: ignore[arg-type]
        unit = direction / direction.norm(p=order, dim=1, keepdim=True)
        x_adv = (x + (eps * unit).float()).clamp(low, high)
        assert not threat.check(x_adv, x).any()


def _nearest_by_scipy(
    norm: Norm, target: np.ndarray, x: np.ndarray, eps: float, low: float, high: float
) -> np.ndarray:
    """Oracle: the projection as a quadratic program; l1 with positive and negative parts."""
    n = len(x)
    if norm == "l2":
        ball = {"type": "ineq", "fun": lambda d: eps**2 - (d**2).sum()}
        bounds = list(zip(low - x, high - x, strict=True))
        found = minimize(
            lambda d: ((x + d - target) ** 2).sum(),
            np.zeros(n),
            bounds=bounds,
            constraints=[ball],
            options={"ftol": 1e-14, "maxiter": 500},
        )
        return np.asarray(x + found.x)
    if norm == "linf":
        bounds = list(zip(np.maximum(low - x, -eps), np.minimum(high - x, eps), strict=True))
        found = minimize(
            lambda d: ((x + d - target) ** 2).sum(),
            np.zeros(n),
            bounds=bounds,
            options={"ftol": 1e-14},
        )
        return np.asarray(x + found.x)
    found = minimize(
        lambda d: ((x + d[:n] - d[n:] - target) ** 2).sum(),
        np.zeros(2 * n),
        bounds=[(0, top) for top in high - x] + [(0, bottom) for bottom in x - low],
        constraints=[{"type": "ineq", "fun": lambda d: eps - d.sum()}],
        options={"ftol": 1e-14, "maxiter": 500},
    )
    return np.asarray(x + found.x[:n] - found.x[n:])


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("seed", range(8))
def test_project_returns_the_nearest_point_that_scipy_finds(norm: Norm, seed: int) -> None:
    draws = torch.Generator().manual_seed(seed)
    x = torch.rand(1, 6, generator=draws, dtype=torch.float64)
    target = x + torch.randn(1, 6, generator=draws, dtype=torch.float64)
    eps = float(torch.empty(1).uniform_(0.05, 0.9, generator=draws))
    projected = ThreatModel(norm, eps).project(target, x)[0].numpy()
    expected = _nearest_by_scipy(norm, target[0].numpy(), x[0].numpy(), eps, 0.0, 1.0)
    np.testing.assert_allclose(projected, expected, atol=2e-5)
    mine, its = (((z - target[0].numpy()) ** 2).sum() for z in (projected, expected))
    assert mine <= its + 1e-9  # SciPy is the less exact of the two


@given(
    norms,
    st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(1, 6), st.integers(1, 6)),
    st.one_of(st.floats(0, 1), st.sampled_from([0.0, 1.0])),
    st.floats(0, 3),
    st.integers(0, 2**32),
)
@settings(max_examples=150, deadline=None)
def test_project_lands_inside_and_keeps_points_that_are_inside(
    norm: Norm, shape: tuple[int, ...], eps: float, reach: float, seed: int
) -> None:
    draws = torch.Generator().manual_seed(seed)
    # Rounded, so that some values equal the bounds or each other.
    x = torch.rand(shape, generator=draws).mul(8).round() / 8
    x_adv = x + reach * torch.randn(shape, generator=draws).mul(4).round() / 4
    threat = ThreatModel(norm, eps)
    projected = threat.project(x_adv, x)
    assert projected.dtype == x_adv.dtype
    assert not threat.check(projected, x).any()
    wide, natural = x_adv.double(), x.double()
    exact = threat.project(wide, natural)
    assert float((threat.distance(exact, natural) - eps).max()) < 1e-12
    torch.testing.assert_close(threat.project(exact, natural), exact, atol=1e-12, rtol=0)
    inside = natural + 0.5 * (exact - natural)
    torch.testing.assert_close(threat.project(inside, natural), inside, atol=1e-12, rtol=0)


@pytest.mark.parametrize(
    ("written", "norm"),
    [("Linf", "linf"), ("LINF", "linf"), ("inf", "linf"), ("l∞", "linf"), ("L2", "l2"), ("2", "l2"),
     ("L1", "l1"), (" l1 ", "l1")],
)  # fmt: skip
def test_common_spellings_of_norms_are_accepted(written: str, norm: str) -> None:
    assert ThreatModel(written, "1/255") == ThreatModel(norm, "1/255")
    assert ThreatModel(written, "1/255").to_dict()["norm"] == norm


@pytest.mark.parametrize(
    ("norm", "eps", "shape", "bounds", "meant"),
    [
        ("l2", "128", (3, 32, 32), (0, 1), "'128/255'"),
        ("l2", 55.43, (3, 32, 32), (0, 1), "255"),
        ("l2", 28.1, (1, 28, 28), (0, 1), "255"),
        ("l1", "6120", (3, 32, 32), (0, 1), "'6120/255'"),
        ("l2", "150", (3, 32, 32), (-1, 1), "'150/255'"),
    ],
)
def test_an_l2_or_l1_eps_larger_than_any_image_distance_is_refused(
    norm: str, eps: Any, shape: tuple[int, ...], bounds: tuple[float, float], meant: str
) -> None:
    threat = ThreatModel(norm, eps, bounds)
    with pytest.raises(
        ConfigError, match=f"larger than any image could use.*did you mean.*{meant}"
    ):
        threat.check_reach(shape)
    x = torch.zeros(2, *shape)
    with pytest.raises(ConfigError, match="larger than any image could use"):
        make("pgd")(
            nn.Sequential(nn.Flatten(), nn.LazyLinear(3)), x, torch.arange(2), threat, seed=0
        )


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 28, 28), (3, 224, 224)])
def test_the_largest_eps_is_the_distance_from_black_to_white(
    norm: str, shape: tuple[int, ...]
) -> None:
    black, white = torch.zeros(1, *shape), torch.ones(1, *shape)
    farthest = float(ThreatModel(norm, 0.1).distance(black, white))
    ThreatModel(norm, farthest).check_reach(shape)
    if norm != "linf":  # linf refuses it in the constructor
        with pytest.raises(ConfigError):
            ThreatModel(norm, farthest * 1.001).check_reach(shape)


def test_check_reach_warns_of_a_suspiciously_large_eps_if_asked() -> None:
    threat = ThreatModel("l2", "128")
    with pytest.warns(BudgetWarning, match=r"33% of the largest.*did you mean '128/255'"):
        threat.check_reach((3, 224, 224), warn=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        threat.check_reach((3, 224, 224))
        for norm, eps in (("linf", 0.3), ("l2", "5"), ("l2", "0.5"), ("l1", "12")):
            ThreatModel(norm, eps).check_reach((3, 32, 32), warn=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.uint8])
def test_project_refuses_types_that_round_by_more_than_the_tolerance(dtype: torch.dtype) -> None:
    x = torch.zeros(2, 3, 4, 4, dtype=dtype)
    with pytest.raises(InputError, match=r"expects float32 or float64 images, got .*x_adv.float"):
        ThreatModel("linf", "8/255").project(x, x)


@pytest.mark.parametrize("bounds", [None, 1.0, [0.0], [0.0, None]])
def test_from_dict_refuses_bounds_that_are_not_two_numbers(bounds: Any) -> None:
    with pytest.raises(ConfigError, match="bounds must be two numbers"):
        ThreatModel.from_dict({"norm": "linf", "eps": "0.1", "bounds": bounds})

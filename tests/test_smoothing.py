"""Gaussian smoothing against SciPy and direct sums, and adaptation of sigma."""

import math

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from torch import Tensor, nn

from dent import models
from dent.adaptation.smoothing import covariance, initial, radius, sigma, smooth
from dent.config import Covariance, DentConfig, SmoothingConfig
from dent.defenses.dent import Dent
from dent.errors import InputError

KINDS: tuple[Covariance, ...] = ("spherical", "diagonal", "full")
every = pytest.mark.parametrize("kind", KINDS)
Array = npt.NDArray[np.float64]


def _images(n: int = 2, channels: int = 3, height: int = 9, width: int = 7) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(n, channels, height, width, generator=generator, dtype=torch.float64)


def _parameter(kind: Covariance, scale: float) -> Tensor:
    config = SmoothingConfig(sigma=scale, covariance=kind)
    return initial(config, dtype=torch.float64, device=torch.device("cpu"))


def _scipy(x: Tensor, scale: tuple[float, float], reach: tuple[int, int]) -> Tensor:
    planes = [
        ndimage.gaussian_filter(plane, scale, mode="nearest", radius=reach)
        for plane in x.flatten(0, 1).numpy()
    ]
    return torch.from_numpy(np.stack(planes)).reshape(x.shape)


def _reach(scale: float, side: int) -> int:
    return min(max(math.ceil(3 * scale), 1), side)


@settings(deadline=None)
@given(scale=st.floats(0.05, 10))
def test_spherical_matches_scipy(scale: float) -> None:
    x, parameter = _images(), _parameter("spherical", scale)
    reach = int(radius(parameter, "spherical", 9)[0])
    expected = _scipy(x, (scale, scale), (reach, reach))
    torch.testing.assert_close(smooth(x, parameter, "spherical"), expected, rtol=0, atol=1e-12)


@settings(deadline=None)
@given(vertical=st.floats(0.05, 10), horizontal=st.floats(0.05, 10))
def test_diagonal_matches_scipy(vertical: float, horizontal: float) -> None:
    x = _images()
    parameter = torch.tensor([vertical, horizontal], dtype=torch.float64).log()
    down, across = radius(parameter, "diagonal", 9).tolist()
    expected = _scipy(x, (vertical, horizontal), (down, across))
    torch.testing.assert_close(smooth(x, parameter, "diagonal"), expected, rtol=0, atol=1e-12)


def _full_reference(image: Array, matrix: Array, reach: tuple[int, int]) -> Array:
    height, width = image.shape
    inverse = np.linalg.inv(matrix)
    offsets = [
        (i, j) for i in range(-reach[0], reach[0] + 1) for j in range(-reach[1], reach[1] + 1)
    ]
    weights = [math.exp(-0.5 * float(np.array(d) @ inverse @ np.array(d))) for d in offsets]
    total = sum(weights)
    result = np.zeros_like(image)
    for row in range(height):
        for column in range(width):
            for (i, j), weight in zip(offsets, weights, strict=True):
                y, x = min(max(row + i, 0), height - 1), min(max(column + j, 0), width - 1)
                result[row, column] += weight / total * image[y, x]
    return result


@pytest.mark.parametrize("factor", [(0.7, 0.5, 0.6), (1.2, 0.4, -0.9), (0.3, 2.0, 0.1)])
def test_full_matches_direct_loop(factor: tuple[float, float, float]) -> None:
    vertical, horizontal, off = factor
    x = _images(1, 1)
    parameter = torch.tensor([math.log(vertical), math.log(horizontal), off], dtype=torch.float64)
    matrix = np.array([[vertical**2, vertical * off], [vertical * off, off**2 + horizontal**2]])
    np.testing.assert_allclose(covariance(parameter, "full").numpy(), matrix, atol=1e-12)
    reach = (_reach(vertical, 9), _reach(math.hypot(off, horizontal), 9))
    expected = _full_reference(x[0, 0].numpy(), matrix, reach)
    actual = smooth(x, parameter, "full")[0, 0].numpy()
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("vertical", "horizontal"), [(0.4, 1.7), (2.3, 0.9), (1e-3, 5.0)])
def test_full_without_off_diagonal_is_diagonal(vertical: float, horizontal: float) -> None:
    diagonal = torch.tensor([vertical, horizontal], dtype=torch.float64).log()
    full = torch.cat([diagonal, torch.zeros(1, dtype=torch.float64)])
    torch.testing.assert_close(covariance(full, "full"), covariance(diagonal, "diagonal"))
    expected = smooth(_images(), diagonal, "diagonal")
    torch.testing.assert_close(smooth(_images(), full, "full"), expected, rtol=0, atol=1e-12)


@every
@pytest.mark.parametrize("scale", [1e-6, 0.3, 1.1, 50.0])
def test_constant_image_is_preserved(kind: Covariance, scale: float) -> None:
    x = torch.full((2, 3, 6, 8), 0.37, dtype=torch.float64)
    actual = smooth(x, _parameter(kind, scale), kind)
    torch.testing.assert_close(actual, x, rtol=0, atol=1e-12)


@every
def test_smoothing_becomes_the_identity_as_sigma_vanishes(kind: Covariance) -> None:
    x = _images()
    for scale in (1e-2, 1e-4, 1e-6, 1e-12):
        assert torch.equal(smooth(x, _parameter(kind, scale), kind), x)
    differences = [
        float((smooth(x, _parameter(kind, scale), kind) - x).abs().max())
        for scale in (1.0, 0.5, 0.3, 0.2)
    ]
    assert differences == sorted(differences, reverse=True)


@every
def test_samples_are_smoothed_independently(kind: Covariance) -> None:
    x = _images(4)
    parameter = torch.stack([_parameter(kind, scale) for scale in (0.1, 0.8, 2.5, 40.0)])
    if kind == "full":
        parameter[:, 2] = torch.tensor([0.0, 0.3, -1.0, 2.0], dtype=torch.float64)
    together = smooth(x, parameter, kind)
    assert together.shape == x.shape
    for i in range(4):
        alone = smooth(x[i : i + 1], parameter[i], kind)
        torch.testing.assert_close(together[i : i + 1], alone, rtol=0, atol=1e-12)


@every
def test_a_shared_parameter_equals_the_same_parameter_for_each_sample(kind: Covariance) -> None:
    x, parameter = _images(), _parameter(kind, 1.1)
    repeated = parameter.repeat(2, 1)
    assert torch.equal(smooth(x, parameter, kind), smooth(x, repeated, kind))


@every
@pytest.mark.parametrize("scale", [1e-6, 0.1, 0.4, 1.1, 2.5, 9.9, 11.0, 1e6])
def test_radius_follows_sigma(kind: Covariance, scale: float) -> None:
    parameter = _parameter(kind, scale)
    assert radius(parameter, kind, 32).tolist() == [_reach(scale, 32)] * 2
    batch = torch.stack([parameter, parameter + 0])
    assert radius(batch, kind, 32).tolist() == [[_reach(scale, 32)] * 2] * 2


def test_radius_and_sigma_are_computed_per_axis() -> None:
    diagonal = torch.tensor([0.5, 2.1]).log()
    assert radius(diagonal, "diagonal", 32).tolist() == [2, 7]
    full = torch.tensor([math.log(0.5), math.log(0.3), 0.4])  # hypot(0.3, 0.4) is 0.5
    assert sigma(full, "full").tolist() == pytest.approx([0.5, 0.5])


@every
@pytest.mark.parametrize("scale", [1e-6, 1e-4, 1e-2, 0.1, 0.5, 1.0, 5.0, 50.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_are_finite(kind: Covariance, scale: float, dtype: torch.dtype) -> None:
    x = _images().to(dtype).requires_grad_()
    parameter = _parameter(kind, scale).to(dtype).requires_grad_()
    value = smooth(x, parameter, kind).square().sum()
    for gradient in torch.autograd.grad(value, (x, parameter)):
        assert gradient.isfinite().all()


@every
def test_gradient_matches_finite_differences(kind: Covariance) -> None:
    x = _images(1, 1, 4, 5).requires_grad_()
    parameter = (_parameter(kind, 0.9) + 0.01).requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: smooth(a, b, kind), (x, parameter))


@every
@pytest.mark.parametrize("shape", [(4,), (3, 8, 8), (1, 1, 3, 8, 8)])
def test_wrong_dimensions_are_refused(kind: Covariance, shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"expected images of shape \(N, C, H, W\), got"):
        smooth(torch.zeros(shape), _parameter(kind, 1.0), kind)


@given(values=st.lists(st.floats(-300, 300), min_size=3, max_size=3), kind=st.sampled_from(KINDS))
def test_sigma_is_positive(values: list[float], kind: Covariance) -> None:
    size = {"spherical": 1, "diagonal": 2, "full": 3}[kind]
    parameter = torch.tensor(values[:size], dtype=torch.float64)
    assert (sigma(parameter, kind) > 0).all()
    reach = radius(parameter, kind, 8)
    assert ((reach >= 1) & (reach <= 8)).all()


@every
def test_initial_parameter_has_the_configured_sigma(kind: Covariance) -> None:
    parameter = _parameter(kind, 0.7)
    assert parameter.shape == ({"spherical": 1, "diagonal": 2, "full": 3}[kind],)
    expected = 0.49 * torch.eye(2, dtype=torch.float64)
    torch.testing.assert_close(covariance(parameter, kind), expected)
    assert sigma(parameter, kind).flatten().tolist() == pytest.approx([0.7] * len(parameter[:2]))


@every
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_images_keep_their_dtype(kind: Covariance, dtype: torch.dtype) -> None:
    x, parameter = _images().to(dtype), _parameter(kind, 1.3).float().requires_grad_()
    smoothed = smooth(x, parameter, kind)
    assert smoothed.dtype == dtype
    exact = smooth(x.double(), parameter.double(), kind)
    torch.testing.assert_close(smoothed.double(), exact, rtol=0, atol=4 * torch.finfo(dtype).eps)
    (gradient,) = torch.autograd.grad(smoothed.float().square().sum(), parameter)
    assert gradient.dtype == torch.float32
    assert gradient.abs().max() > 0


@every
def test_sigma_can_fall_until_smoothing_is_the_identity(kind: Covariance) -> None:
    """If the model is more certain of sharp images, sigma falls to almost zero."""

    class Contrast(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            spread = x.std((1, 2, 3))
            return torch.stack([10 * spread, -10 * spread], 1)

    learned = SmoothingConfig(sigma=1.0, covariance=kind)
    defense = Dent(Contrast(), DentConfig(steps=20, adapt_affine=False, smoothing=learned))
    x = _images(8)
    adaptation = defense.adapt(x)
    assert adaptation.smoothing is not None
    assert float(adaptation.smoothing[:2].exp().max()) < 0.15
    torch.testing.assert_close(smooth(x, adaptation.smoothing, kind), x, rtol=0, atol=1e-6)
    assert (smooth(x, _parameter(kind, 1.0), kind) - x).abs().max() > 0.1


@pytest.mark.parametrize("jointly", [False, True])
def test_sigma_falls_on_natural_images_with_a_trained_model(jointly: bool, images: Tensor) -> None:
    learned = SmoothingConfig(sigma=0.5)
    config = DentConfig(steps=10, adapt_affine=jointly, smoothing=learned)
    defense, x = Dent(models.load("resnet18-nominal"), config), images[:4]
    adaptation = defense.adapt(x)
    assert adaptation.smoothing is not None
    assert adaptation.sigma is not None
    assert 0 < float(adaptation.sigma) < 0.15
    smoothed = smooth(x, adaptation.smoothing, "spherical")
    torch.testing.assert_close(smoothed, x, rtol=0, atol=1e-6)
    assert adaptation.entropy[-1].mean() < adaptation.entropy[0].mean()

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dent import models
from dent.errors import InputError, UnsupportedModelError
from dent.models import NotLogitsWarning, check_model


class Does(nn.Module):
    """A linear classifier of 32 x 32 images that applies `step` to its logits."""

    def __init__(self, step: Callable[[Tensor], Any], classes: int = 10) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.head = nn.Linear(3 * 32 * 32, classes)
        self.step = step
        self.eval()

    def forward(self, x: Tensor) -> Any:
        return self.step(self.head(x.flatten(1)))


def test_a_good_model_passes_unchanged_and_without_warning(images: Tensor) -> None:
    model = models.resnet("resnet-8-1").eval()
    digest, state, given = models.weights_digest(model), torch.get_rng_state(), images.clone()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_model(model, 10)
        check_model(model, 10, images)
        check_model(model, 10, images[:1])
    assert models.weights_digest(model) == digest
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(images, given)


def test_models_in_bfloat16_or_without_parameters_pass_without_given_images() -> None:
    check_model(models.resnet("resnet-8-1").eval().to(torch.bfloat16), 10)
    check_model(nn.Sequential(nn.Flatten(), nn.AdaptiveAvgPool1d(4)).eval(), 4)


@pytest.mark.parametrize(
    ("step", "said"),
    [
        (
            lambda y: (y, y),
            r"a tuple with element 0 of shape \(2, 10\), element 1 .* images .*expected one tensor",
        ),
        (lambda y: {"logits": y}, "returned a dict"),
        (lambda y: y.argmax(1), r"returned shape \(2,\) .* expected logits \(2, 10\)"),
        (lambda y: y[None], r"returned shape \(1, 2, 10\)"),
        (lambda y: y[:1], r"returned shape \(1, 10\) .* expected logits \(2, 10\)"),
        (lambda y: y.squeeze(), r"returned shape \(10,\) .*\(1, 10\); a \.squeeze\(\) without"),
        (lambda y: y.long(), "expected floating-point logits without NaN"),
        (lambda y: y / 0, "expected floating-point logits without NaN"),
    ],
)
def test_outputs_that_are_not_a_batch_of_logits_are_refused(
    step: Callable[[Tensor], Any], said: str
) -> None:
    with pytest.raises(UnsupportedModelError, match=said):
        check_model(Does(step), 10)


def test_a_wrong_number_of_classes_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="returns 1000 classes, the dataset has 10"):
        check_model(Does(lambda y: y, classes=1000), 10)


def test_probabilities_cause_a_warning_but_log_probabilities_do_not() -> None:
    with pytest.warns(NotLogitsWarning, match="Take the softmax out of the model"):
        check_model(Does(lambda y: y.softmax(1)), 10)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_model(Does(lambda y: y.log_softmax(1)), 10)  # valid logits
        check_model(Does(lambda y: y.relu()), 10)
        check_model(Does(lambda y: y - y.mean(1, keepdim=True) + 0.1), 10)  # rows sum to 1


@pytest.mark.parametrize("part", [0, 1])
def test_training_mode_is_refused_before_the_model_runs(part: int) -> None:
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Dropout(), nn.Flatten(), nn.Linear(3072, 10)).eval()
    model[part].train()
    before = models.weights_digest(model)
    with pytest.raises(
        UnsupportedModelError, match=rf"in 1 modules, first {part}.*model\.eval\(\)"
    ):
        check_model(model, 10)
    assert models.weights_digest(model) == before
    with pytest.raises(UnsupportedModelError, match="first the model itself"):
        check_model(model.train(), 10)


def test_a_model_that_writes_into_its_input_is_refused(images: Tensor) -> None:
    class Greedy(Does):
        def forward(self, x: Tensor) -> Any:
            return super().forward(x.sub_(0.5))

    given = images.clone()
    with pytest.raises(UnsupportedModelError, match="writes into its input"):
        check_model(Greedy(lambda y: y), 10, images)
    assert torch.equal(images, given)


def test_error_names_the_image_shape_that_the_model_cannot_take(images: Tensor) -> None:
    with pytest.raises(InputError, match=r"Does raised RuntimeError for images \(2, 3, 16, 16\)"):
        check_model(Does(lambda y: y), 10, images[:, :, :16, :16])
    with pytest.raises(InputError, match=r"the model takes images \(N, 3, H, W\)"):
        check_model(models.resnet("resnet-8-1").eval(), 10, images[:, :1])


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda x: x[0], r"expected images \(N, C, H, W\).* got float32 \(3, 32, 32\)"),
        (lambda x: x[:0], "at least one"),
        (lambda x: (x * 255).byte(), r"got uint8 .*images\.float\(\) / 255"),
        (lambda x: x * 255, r"expected pixels in \[0, 1\], got values from .* divide bytes by 255"),
        (lambda x: x - 0.5, r"leave the dataset's normalization to the model"),
        (lambda x: x * float("nan"), r"expected pixels in \[0, 1\], got NaN or infinity"),
    ],
)
def test_invalid_images_are_refused(
    images: Tensor, wrong: Callable[[Tensor], Tensor], said: str
) -> None:
    with pytest.raises(InputError, match=said):
        check_model(Does(lambda y: y), 10, wrong(images))


def test_error_for_channels_last_images_suggests_permute(images: Tensor) -> None:
    with pytest.raises(InputError, match=r"with the channels last: images\.permute\(0, 3, 1, 2"):
        check_model(Does(lambda y: y), 10, images.permute(0, 2, 3, 1))

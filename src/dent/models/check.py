"""Check before an evaluation that a model takes images and returns logits."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn

from dent.errors import DentError, InputError, NotLogitsWarning, UnsupportedModelError
from dent.outputs import advice, described, seem_probabilities
from dent.support.plural import counted
from dent.support.predictions import is_prediction

_SHAPE = (2, 3, 32, 32)
_CHANNELS = (1, 3)


def check_is_module(model: object) -> None:
    """Check that a model is a `torch.nn.Module`, and not its name or class.

    Raises:
        InputError: If it is not a module; the message says what to pass.
    """
    if isinstance(model, nn.Module):
        return
    expected = "model must be a torch.nn.Module, got"
    if isinstance(model, str):
        raise InputError(f"{expected} the name {model!r}: dent.models.load({model!r}) loads it")
    if isinstance(model, type):
        raise InputError(f"{expected} the class {model.__name__}: pass an instance of it")
    raise InputError(f"{expected} {type(model).__name__}")


def check_model(model: nn.Module, num_classes: int, images: Tensor | None = None) -> None:
    """Run a model on two images, and check that it behaves like a classifier.

    All its modules must be in eval mode. It must leave its input unchanged, accept a batch of one
    image, and return logits (N, num_classes) with a prediction for every image. The check costs two
    forward passes without gradients.

    Args:
        model: The model; it is run, not changed.
        num_classes: The number of classes of the dataset.
        images: Images (N, C, H, W) in [0, 1] as the model will see them, at least one; the first
            two are used. By default, uniform noise (2, 3, 32, 32) on the model's device.

    Raises:
        InputError: If `model` is not a module, `images` is not a batch as described, or the model
            fails on the images.
        UnsupportedModelError: If the model does not behave as described; the message says what it
            does, and how to wrap or change it.

    Warns:
        NotLogitsWarning: If every row returned is a probability distribution. With a softmax inside
            the model, losses and entropies are computed on the wrong scale and gradients vanish, so
            an attack seems to fail.
    """
    check_is_module(model)
    training = [name or "the model itself" for name, m in model.named_modules() if m.training]
    if training:
        raise UnsupportedModelError(
            f"{_name(model)} is in training mode (in {len(training)} modules, first {training[0]}),"
            " where batches change it and dropout changes its logits: call model.eval()"
        )
    images = _images_for(model) if images is None else _checked(images)[:2]
    logits = _run(model, images, num_classes)
    _run(model, images[:1], num_classes)
    if seem_probabilities(logits):
        warnings.warn(
            f"{_name(model)} returns rows that are not negative and sum to 1: probabilities, not "
            "logits. Take the softmax out of the model, or attacks and adaptation will mislead",
            NotLogitsWarning,
            stacklevel=2,
        )


def _images_for(model: nn.Module) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(_SHAPE, generator=generator)
    like = next((p for p in model.parameters() if p.is_floating_point()), images)
    return images.to(device=like.device, dtype=like.dtype)


def _checked(images: Tensor) -> Tensor:
    if images.ndim != 4 or len(images) == 0 or not images.is_floating_point():
        raise InputError(
            "expected images (N, C, H, W) of a floating-point dtype, at least one, got "
            f"{str(images.dtype).removeprefix('torch.')} {tuple(images.shape)}"
            + ("" if images.is_floating_point() else "; for bytes: images.float() / 255")
        )
    if images.shape[1] not in _CHANNELS and images.shape[3] in _CHANNELS:
        raise InputError(
            f"expected images (N, C, H, W), got {tuple(images.shape)}, with the channels last: "
            "images.permute(0, 3, 1, 2) puts them second"
        )
    if not images.isfinite().all():
        raise InputError("expected pixels in [0, 1], got NaN or infinity in the images")
    low, high = images.aminmax()
    if not (low >= 0 and high <= 1):
        raise InputError(
            f"expected pixels in [0, 1], got values from {low:g} to {high:g}: divide bytes by 255, "
            "and leave the dataset's normalization to the model"
        )
    return images


def _run(model: nn.Module, images: Tensor, num_classes: int) -> Tensor:
    context = f"for images {tuple(images.shape)}"
    original = images.clone()
    try:
        with torch.no_grad():
            logits = model(original)
    except DentError:
        raise
    except Exception as error:
        raise InputError(
            f"{_name(model)} raised {type(error).__name__} {context} "
            f"({images.dtype}, {images.device}): {error}"
        ) from error
    if not torch.equal(original, images):
        raise UnsupportedModelError(
            f"{_name(model)} writes into its input (an in-place operation such as x.sub_(mean) or "
            "x /= 255): use x = x - mean instead, otherwise it changes the attack's images"
        )
    if not isinstance(logits, Tensor):
        raise UnsupportedModelError(
            f"{_name(model)} returned a {described(logits)} {context}, expected one tensor of "
            "logits." + (advice(logits) or " Wrap it in a module whose forward returns only those.")
        )
    shape = tuple(logits.shape)
    if logits.ndim != 2 or shape[0] != len(images):
        raise UnsupportedModelError(
            f"{_name(model)} returned shape {shape} {context}, expected logits "
            f"{(len(images), num_classes)}"
            + ("; a .squeeze() without dimension does this" if len(images) == 1 else "")
        )
    if shape[1] != num_classes:
        raise UnsupportedModelError(
            f"{_name(model)} returns {counted(shape[1], 'class')}, the dataset has "
            f"{num_classes}: choose a "
            "model trained for this dataset"
        )
    if not logits.is_floating_point() or not is_prediction(logits).all():
        raise UnsupportedModelError(
            f"{_name(model)} returned {logits.dtype} values {context} without a prediction: "
            "expected floating-point logits without NaN, and a finite largest one for every image"
        )
    return logits


def _name(model: nn.Module) -> str:
    return type(model).__name__

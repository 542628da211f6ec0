"""Several views of every image, and the combination of their predictions.

A view is a fixed function of one image, so it does not depend on other members of the batch. It is
linear in the pixels, so gradients pass through it.
"""

from collections.abc import Callable, Iterator
from itertools import count, islice
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from dent.adaptation.objectives import log_mean_probability
from dent.config import ViewsConfig
from dent.errors import InputError


class View(NamedTuple):
    """A crop of an image, padded with black.

    Attributes:
        mirrored: whether left and right are exchanged before the crop.
        down: number of pixels by which the crop is shifted down.
        right: number of pixels by which it is shifted to the right.
    """

    mirrored: bool
    down: int
    right: int

    def __call__(self, x: Tensor) -> Tensor:
        """Return this view of images (N, C, H, W), of the same shape.

        Raises:
            InputError: x is not a batch of images, or the shift moves the crop out of them.
        """
        if x.dim() != 4:
            raise InputError(
                f"Views expected images of shape (N, C, H, W), got {tuple(x.shape)}. Pass images, "
                "or configure views=None."
            )
        height, width = x.shape[-2:]
        if abs(self.down) >= height or abs(self.right) >= width:
            raise InputError(
                f"A view shifted by ({self.down}, {self.right}) pixels shows nothing of images of "
                f"{height} x {width}. Take fewer views, or a smaller views.shift."
            )
        image = x.flip(-1) if self.mirrored else x
        # A negative padding crops.
        return F.pad(image, (-self.right, self.right, -self.down, self.down))


def views_of(config: ViewsConfig) -> tuple[View, ...]:
    """Return the views that a configuration selects, the unchanged image first."""
    return tuple(islice(_in_order(config), config.count))


def _in_order(config: ViewsConfig) -> Iterator[View]:
    sides = (False, True) if config.flip else (False,)
    yield from (View(mirrored, 0, 0) for mirrored in sides)
    for shift in count(config.shift, config.shift):
        diagonal = [(down, right) for down in (-shift, shift) for right in (-shift, shift)]
        straight = [(-shift, 0), (0, shift), (shift, 0), (0, -shift)]
        for shifts in (diagonal, straight):
            yield from (View(mirrored, *each) for mirrored in sides for each in shifts)


def of_views(run: Callable[[Tensor], Tensor], x: Tensor, config: ViewsConfig | None) -> Tensor:
    """Run a model on every view of a batch.

    Args:
        run: takes a batch and returns logits (N, C).
        x: images (N, C, H, W).
        config: selects the views; None: run the unchanged batch.

    Returns:
        Logits (N, C), or (V, N, C) with views.
    """
    if config is None:
        return run(x)
    return torch.stack([run(view(x)) for view in views_of(config)])


def predict(run: Callable[[Tensor], Tensor], x: Tensor, config: ViewsConfig | None) -> Tensor:
    """Predict a batch from its views.

    Args:
        run: takes a batch and returns logits (N, C).
        x: images (N, C, H, W).
        config: selects the views and how to combine them; None: the unchanged batch.

    Returns:
        Logits (N, C): as `config.predict` says, their mean over the views, the logarithm of the
        mean probability, or the logits of the image itself.
    """
    if config is None or config.predict == "image":
        return run(x)
    return prediction(of_views(run, x, config), config)


def prediction(logits: Tensor, config: ViewsConfig | None) -> Tensor:
    """Return the prediction from the logits of a batch's views, (N, C).

    Args:
        logits: from `of_views`.
        config: selects the views and how to combine them; None: the unchanged batch.
    """
    if config is None:
        return logits
    if config.predict == "image":
        return logits[0]  # the first view is the image itself
    if config.predict == "logits":
        return logits.mean(0)
    return log_mean_probability(logits).to(logits.dtype)

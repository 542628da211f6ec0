"""Several views of every image, and what their predictions say together.

A view is a fixed function of the image alone, so that neighbours do not matter, and linear in its
pixels, so that gradients pass.
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
        mirrored: whether left and right are exchanged first.
        down: pixels by which the crop is shifted down.
        right: pixels by which it is shifted to the right.
    """

    mirrored: bool
    down: int
    right: int

    def __call__(self, x: Tensor) -> Tensor:
        """Return this view of images (N, C, H, W), of the same shape.

        Raises:
            InputError: x is not a batch of images, or the shift leaves nothing of them.
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
    """Return the views of a configuration, the image itself first."""
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
        run: from a batch to logits (N, C).
        x: images (N, C, H, W).
        config: which views; None: the batch as it is.

    Returns:
        Logits (N, C); with views (V, N, C).
    """
    if config is None:
        return run(x)
    return torch.stack([run(view(x)) for view in views_of(config)])


def predict(run: Callable[[Tensor], Tensor], x: Tensor, config: ViewsConfig | None) -> Tensor:
    """Predict a batch by its views.

    Args:
        run: from a batch to logits (N, C).
        x: images (N, C, H, W).
        config: which views and what of them counts; None: the batch as it is.

    Returns:
        Logits (N, C): their mean over the views, or the logarithm of the mean probability.
    """
    if config is None or config.predict == "image":
        return run(x)
    return prediction(of_views(run, x, config), config)


def prediction(logits: Tensor, config: ViewsConfig | None) -> Tensor:
    """Return what is predicted by the views of a batch, (N, C).

    Args:
        logits: from `of_views`.
        config: which views and what of them counts; None: the batch as it is.
    """
    if config is None:
        return logits
    if config.predict == "image":
        return logits[0]  # the first view is the image itself
    if config.predict == "logits":
        return logits.mean(0)
    return log_mean_probability(logits).to(logits.dtype)

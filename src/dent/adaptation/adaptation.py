"""The adaptation to one batch, as a value."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import Any

import torch
from torch import Tensor

from dent.adaptation import smoothing
from dent.adaptation.prefix import Prefix
from dent.config import Covariance
from dent.support.plural import counted


class Status(IntEnum):
    """How the adaptation of a sample ended."""

    ADAPTED = 0
    """All steps were taken."""
    INPUT_NON_FINITE = 1
    """The input contains NaN or infinity. The sample is left out, and its logits are NaN."""
    STEP_NON_FINITE = 2
    """A step became non-finite. The sample is predicted with the trained parameters, as with
    `steps=0`."""
    REVERTED = 3
    """A step of another sample became non-finite, and the batch shares parameters or the objective.
    The sample is predicted with the trained parameters."""


@dataclass(frozen=True, eq=False)
class Adaptation:
    """The parameters that a defense adapted to one batch, and a record of the steps.

    Attributes:
        parameters: scale and shift by dotted name, as in `model.named_parameters()`: the layer's
            shape batch-wise, (N, *shape) sample-wise. Empty if they are not adapted.
        smoothing: the smoothing's unconstrained parameter, (K,) or (N, K); None without smoothing.
        covariance_kind: the kind of covariance that `smoothing` parametrizes; None without
            smoothing.
        entropy: entropy of each prediction before each step, (steps, N) in nats; with views, of
            their mean prediction.
        status: (N,) int64, values of `Status`.
        sample_wise: whether `parameters` and `smoothing` have a sample dimension.
        smoothing_by_step: `smoothing` before each step and after the last one, (steps + 1, K) or
            (steps + 1, N, K), without a graph; None without smoothing.

    All values of a sample with a non-finite input are NaN, except its status.
    """

    parameters: Mapping[str, Tensor]
    smoothing: Tensor | None
    covariance_kind: Covariance | None
    entropy: Tensor
    status: Tensor
    sample_wise: bool
    smoothing_by_step: Tensor | None = None
    statistics: Mapping[str, Tensor] = field(default_factory=dict)
    """Moved running statistics by dotted name, each (C,), which the batch shares; see
    `DentConfig.statistics`. Empty if they do not move."""
    _prefix: Prefix | None = field(default=None, repr=False)
    """The outputs of the layers before the first adapted one."""

    def __getstate__(self) -> dict[str, Any]:
        """Return the state without the prefix, which can be computed again."""
        return vars(self) | {"_prefix": None}

    def __repr__(self) -> str:
        names = [Status(value).name.lower().replace("_", " ") for value in self.status.tolist()]
        counts = {name: names.count(name) for name in names}
        statuses = (
            [f"all {next(iter(counts))}"]
            if len(counts) == 1
            else [f"{number} {name}" for name, number in counts.items()]
        )
        steps = [f"{value:.2f}" for value in self.entropy.nanmean(1).tolist()]
        course = [f"entropy {' -> '.join(dict.fromkeys((steps[0], steps[-1])))}"] if steps else []
        sizes = counted(len(names), "sample"), counted(len(self.parameters), "parameter")
        return f"Adaptation({', '.join((*sizes, *course, *statuses))})"

    @property
    def batch_size(self) -> int:
        """Number of samples in the batch."""
        return self.status.shape[0]

    @property
    def sigma(self) -> Tensor | None:
        """Standard deviation in pixels: () if spherical, else (2,) along (vertical, horizontal).

        It has a leading dimension N if sample-wise. None without smoothing.
        """
        if self.smoothing is None or self.covariance_kind is None:
            return None
        return smoothing.sigma(self.smoothing, self.covariance_kind)

    @property
    def sigma_by_step(self) -> Tensor | None:
        """`sigma` before each step and after the last one, with a leading dimension steps + 1."""
        if self.smoothing_by_step is None or self.covariance_kind is None:
            return None
        return smoothing.sigma(self.smoothing_by_step, self.covariance_kind)

    @property
    def covariance(self) -> Tensor | None:
        """Covariance in square pixels, (2, 2) or (N, 2, 2); None without smoothing."""
        if self.smoothing is None or self.covariance_kind is None:
            return None
        return smoothing.covariance(self.smoothing, self.covariance_kind)

    def take(self, kept: Tensor) -> "Adaptation":
        """Return the adaptation of the samples where `kept`, (N,) bool, is true."""
        return self._per_sample(lambda value: value[kept], self.entropy[:, kept], self.status[kept])

    def spread(self, kept: Tensor) -> "Adaptation":
        """Expand to the full batch, in which `kept`, (N,) bool, marks this adaptation's samples.

        The other samples were left out because their inputs are not finite.
        """

        def among(value: Tensor) -> Tensor:
            empty = value.new_full((len(kept), *value.shape[1:]), math.nan)
            return empty.index_put((kept,), value)

        status = torch.full_like(kept, Status.INPUT_NON_FINITE, dtype=self.status.dtype)
        status[kept] = self.status
        return self._per_sample(among, among(self.entropy.T).T, status)

    def _per_sample(
        self, change: Callable[[Tensor], Tensor], entropy: Tensor, status: Tensor
    ) -> "Adaptation":
        changed = replace(self, entropy=entropy, status=status)
        if not self.sample_wise:
            return changed
        by_step = self.smoothing_by_step
        return replace(
            changed,
            parameters={name: change(value) for name, value in self.parameters.items()},
            smoothing=None if self.smoothing is None else change(self.smoothing),
            smoothing_by_step=(
                None if by_step is None else change(by_step.transpose(0, 1)).transpose(0, 1)
            ),
        )

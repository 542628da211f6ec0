"""Revert samples whose steps turn non-finite."""

import torch
from torch import Tensor

from dent.adaptation.adaptation import Status
from dent.adaptation.values import SMOOTHING, Values
from dent.config import DentConfig
from dent.support.rows import per_sample


class NonFiniteGate:
    """Filter that reverts samples that turned non-finite, and records every step.

    A sample whose update or entropy is NaN or infinite returns to its start and stays there. If the
    batch shares parameters, the whole batch does. No method waits for a GPU. Nothing is modified in
    place, so a shallow copy is a snapshot.
    """

    def __init__(self, config: DentConfig, x: Tensor, smoothing: Tensor | None) -> None:
        self._sample_wise = config.granularity == "sample"
        self._shared = not self._sample_wise or config.objective == "information-maximization"
        self._kept = torch.ones(len(x), dtype=torch.bool, device=x.device)
        self._own_fault = ~self._kept
        self._all_finite = x.device.type == "cpu"
        self.entropies: tuple[Tensor, ...] = ()
        steps = config.steps if not len(x) else 0  # an empty batch takes no step
        self.smoothings = () if smoothing is None else (smoothing.detach(),) * (steps + 1)

    def accept(self, updated: Values, start: Values, entropies: Tensor) -> Values:
        """Return `updated`, with `start` for every sample that is reverted."""
        self.entropies = (*self.entropies, entropies)
        if self._finite_so_far(updated, entropies):
            self._follow(updated)
            return updated
        no_entropy = ~entropies.isfinite()
        no_update = torch.zeros_like(no_entropy)
        for value in updated.values():
            no_update = no_update | ~value.detach().isfinite().all(-1)
        explained = no_entropy.any() & self._shared
        self._own_fault = self._own_fault | (self._kept & (no_entropy | (no_update & ~explained)))
        alive = self._kept & ~no_entropy & ~no_update
        self._kept = alive if self._sample_wise else alive & alive.all()
        keep = self._kept.unsqueeze(-1) if self._sample_wise else self._kept.all()
        gated = {name: torch.where(keep, value, start[name]) for name, value in updated.items()}
        self._all_finite = False
        self._follow(gated)
        return gated

    def accept_shared(self, updated: Tensor, start: Tensor) -> Tensor:
        """Return a value that the batch shares, or `start` if it is non-finite or reverted."""
        keep = updated.detach().isfinite().all()
        if not self._sample_wise:
            keep = keep & self._kept.all()
        return torch.where(keep, updated, start)

    def _finite_so_far(self, updated: Values, entropies: Tensor) -> bool:
        """Return whether all values are finite; always False on a GPU, to avoid a wait."""
        return (
            self._all_finite
            and bool(entropies.isfinite().all())
            and all(bool(value.isfinite().all()) for value in updated.values())
        )

    def _follow(self, values: Values) -> None:
        if self.smoothings:
            after = values.get(SMOOTHING, self.smoothings[-1])
            self.smoothings = (*self.smoothings, after.detach())

    def gradient(self, gradient: Tensor | None) -> Tensor | None:
        """Return the gradient in x, set to 0 for reverted samples, which do not depend on x.

        Otherwise it could be NaN: backward through a reverted step multiplies 0 by infinity.

        Args:
            gradient: (N, ...); None if no output depends on x: PyTorch calls the hook anyway.
        """
        if gradient is None:
            return None
        alive = per_sample(self._kept, gradient)
        return torch.where(alive, gradient, 0)

    def status(self) -> Tensor:
        """Return each sample's `Status`, (N,) int64."""
        failed = torch.where(self._own_fault, Status.STEP_NON_FINITE, Status.REVERTED)
        return torch.where(self._kept, Status.ADAPTED, failed)

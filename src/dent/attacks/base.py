"""The base class of attacks. Hyper-parameters are fields; the threat model comes with the call."""

from __future__ import annotations

import operator
import random
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import Field, dataclass, field, fields, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, SupportsIndex, final

import numpy as np
import torch
from torch import Tensor

from dent.adaptation.random_state import shared_states
from dent.attacks.checks import is_effort, is_later
from dent.attacks.counting import count_passes
from dent.attacks.querier import OnPass, Querier, Queries, derivatives_of
from dent.config import JSONConfig
from dent.errors import ConfigError, DentError, InputError
from dent.support.checks import is_count
from dent.support.devices import own_generator, seed_generator
from dent.support.plural import counted
from dent.threat import ThreatModel

if TYPE_CHECKING:
    from dent.attacks.history import History
    from dent.attacks.protocol import Defense
    from dent.threat import Norm

_ROUNDING = 1e-3  # share of eps; an excess above this is a bug of the attack, not rounding


class AttackError(DentError):
    """An attack broke its contract. This is a bug in the attack, not in its arguments."""


@dataclass(frozen=True)
class Outcome:
    """The return value of `Attack.run`.

    Attributes:
        adversarial: (N, C, H, W), inside the threat model.
        fooled: bool (N,), where the attack saw a wrong prediction.
        fooled_after: `fooled` after each part of a set of attacks, by the name of the part.
        notes: Remarks for readers of the numbers, such as a replaced loss.
    """

    adversarial: Tensor
    fooled: Tensor
    fooled_after: Mapping[str, Tensor] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class AttackResult:
    """The result of an attack on one batch.

    Attributes:
        adversarial: float32 (N, C, H, W) inside the threat model (by `ThreatModel.check`). A
            member that was never fooled may be its natural image.
        fooled: bool (N,): the attack saw a wrong prediction, or none, for this member. This is
            the attack's claim. The caller scores the predictions on submission.
        fooled_after: `fooled` after each part of a set of attacks, in order, by name.
        queries: Number of forward passes, each over one batch, through the defense or a model
            that the attack uses in its place.
        backwards: Number of gradients computed to the input.
        seconds: Wall time.
        non_finite: Number of rows of logits, over all queries, that were not finite. None of
            them counted as correct.
        gradients: Number of gradients computed for each member.
        zero_by_member: Number of those that were exactly zero, a sign of a hidden gradient.
        notes: Remarks for readers of the numbers.
        history: Progress of the attack by gradient; None without gradients.
    """

    adversarial: Tensor
    fooled: Tensor
    fooled_after: Mapping[str, Tensor]
    queries: int
    backwards: int
    seconds: float
    non_finite: int
    gradients: tuple[int, ...]
    zero_by_member: tuple[int, ...]
    notes: tuple[str, ...]
    history: History | None = None


@dataclass(frozen=True, kw_only=True)
class Attack(JSONConfig, ABC):
    """An attack on a batch, defined by frozen hyper-parameters that can be stored as JSON.

    A subclass is a `@dataclass(frozen=True)` whose fields are its hyper-parameters. It checks them
    in `__post_init__`, which must call that of this class, and implements `run`. This class does
    the rest. Two attacks are equal if all their fields are. Use `dataclasses.replace` to change
    fields.

    Every call of an attack guarantees:

    - It does not modify the given images.
    - It does not write to the defense or its model. `run` must take gradients with
      `torch.autograd.grad`, never with `.backward()`.
    - It restores the global random state of torch, NumPy and Python.
    - Equal arguments give bit-identical results on the same machine.
    - The returned images are inside the threat model.

    Run only one attack at a time in a process, because all of them share the random state that a
    seed fixes.

    Raises:
        ConfigError: A value is out of range.
    """

    name: str = ""
    """The name in results. Default: `default_name`."""

    named_by: ClassVar[str | None] = None
    """The field whose value `registered` already gives, if any."""

    def __post_init__(self) -> None:
        """Set the name of the attack."""
        name: object = self.name
        if not name:
            object.__setattr__(self, "name", self.default_name)
        elif not isinstance(name, str):
            raise ConfigError(f"name must be a text, got {name!r}")

    @property
    def registered(self) -> str | None:
        """The name under which `dent.attacks.make` makes this attack; None for a custom attack."""
        return None

    @property
    def versions(self) -> dict[str, str]:
        """Versions of the other packages that the attack uses, for records."""
        return {}

    @property
    def default_name(self) -> str:
        """The name for results, if none is given."""
        return self.registered or type(self).__name__.lower()

    @abstractmethod
    def run(self, target: Querier, threat: ThreatModel, seed: int) -> Outcome:
        """Attack `target.natural` with `target.labels`, querying the defense through `target`.

        Called under `torch.no_grad()`, with torch's random state seeded by `seed`, and
        `threat.eps` above 0.
        """

    def settings(self, norm: Norm = "linf") -> dict[str, Any]:
        """Return the hyper-parameters as JSON values, without the name, for records.

        `make(attack.registered, **attack.settings(norm))` recreates the attack.

        Args:
            norm: Norm of the threat model. Some defaults depend on it.

        Raises:
            ConfigError: The attack keeps a hyper-parameter that is not a field.
        """
        del norm
        field_names = {entry.name for entry in fields(self)}
        for key in vars(self):
            if key not in field_names and not isinstance(
                getattr(type(self), key, None), cached_property
            ):
                raise ConfigError(
                    f"{type(self).__name__} keeps {key!r}, which is not a field, so records would "
                    "miss it: make the class a @dataclass(frozen=True) with a field for it"
                )
        values = self.to_dict()
        for entry in fields(self):
            if entry.name in ("name", self.named_by) or (
                is_later(entry) and getattr(self, entry.name) == entry.default
            ):
                del values[entry.name]
        return values

    def covers(self, other: Attack, norm: Norm = "linf") -> bool:
        """Return whether this is the same kind of attack as another, with at least its effort.

        Args:
            other: The other attack. Names do not matter.
            norm: Norm of the threat model.
        """
        del norm
        return type(self) is type(other) and all(
            _reaches(entry, getattr(self, entry.name), getattr(other, entry.name))
            for entry in fields(self)
            if entry.name != "name"
        )

    def queries(self, num_classes: int, norm: Norm = "linf") -> Queries:
        """Return the largest number of passes for one batch.

        The attack makes fewer if all members are fooled early. Unless a subclass overrides this
        method, it counts by running the attack on a model that is never fooled.

        Raises:
            ConfigError: The passes cannot be counted in this way.
        """
        return count_passes(self, num_classes, norm)

    def unadapted(self, num_classes: int, norm: Norm = "linf") -> Queries:
        """Return the passes among `queries` without adaptation. Each costs one static pass.

        They use the static model, or a model that the defense has already adapted.
        """
        del num_classes, norm
        return Queries(0, 0)

    def through_adaptation(self, num_classes: int, norm: Norm = "linf") -> int:
        """Return how many backwards of `queries` go through the whole adaptation: the costliest."""
        del num_classes, norm
        return 0

    def sized(self, batch_size: int) -> Attack:
        """Return the attack for an evaluation's batch size, or itself if the size has no effect.

        The size only affects attacks that take all images at once and form batches themselves.
        """
        del batch_size
        return self

    def on_static(self) -> Attack:
        """Return the equivalent attack on a model without adaptation.

        Attacks that differ only in how they handle an adaptation become equal.
        """
        return self

    def longer(self, norm: Norm = "linf") -> Attack | None:
        """Return the attack with twice its gradient iterations, or None if it has none.

        An evaluation uses it to test whether the attack has converged.
        """
        del norm
        iterations: Any = getattr(self, "iterations", None)
        if not is_count(iterations):
            return None
        changes: dict[str, Any] = {"iterations": 2 * iterations}
        return replace(self, **changes)

    def passes(self, num_classes: int, norm: Norm, size: int) -> Queries:
        """Return the passes for `size` images in one call. An attack may split them in batches."""
        del size
        return self.queries(num_classes, norm)

    @final
    def __call__(
        self,
        defense: Defense,
        x: Tensor,
        y: Tensor,
        threat: ThreatModel,
        *,
        seed: int,
        progress: OnPass | None = None,
        shared_seed: int | None = None,
    ) -> AttackResult:
        """Attack one batch.

        Args:
            defense: A `DynamicDefense`, or a plain module in eval mode.
            x: Natural images, float32 (N, C, H, W) inside the threat model's bounds.
            y: Labels, int64 (N,).
            threat: The threat model.
            seed: Non-negative; fixes everything random in the attack, and in a defense that
                draws from torch's global random state.
            progress: Called after every pass with (passes done, passes planned). The plan is
                known from the first query on, and is an upper bound.
            shared_seed: Seed of computations that several attacks on one batch share, such as
                attacks on the static model. Attacks with the same value do them once. Default:
                `seed`.

        Raises:
            InputError: If the images or labels are not valid, or the defense's logits are not.
            NoGradientError: If the attack needs a gradient to the images and there is none.
            ConfigError: If eps is larger than any image could use, or the attack cannot run with
                this threat model or these images.
            AttackError: If the attack returned a malformed outcome or left the threat model.
        """
        check_batch(x, y, threat, seed)
        seed = operator.index(seed)
        start = time.perf_counter()
        with (
            torch.inference_mode(mode=False),  # a caller's would block gradients
            torch.no_grad(),
            isolated_random_state(seed, x.device),
            derivatives_of(defense),
        ):
            target = Querier(
                defense,
                x.detach().clone(memory_format=torch.contiguous_format),
                y.detach().to(x.device, copy=True),
                threat,
                plan=lambda classes: self.passes(classes, threat.norm, len(x)),
                progress=progress,
                shared_seed=seed if shared_seed is None else shared_seed,
            )
            outcome = self.run(target, threat, seed) if threat.eps > 0 else _unperturbed(target)
            # Compare with the caller's images: the attack may have written into its copy.
            _check_outcome(self.name, outcome, x)
            adversarial, notes = _inside(self.name, outcome.adversarial, x.detach(), threat)
        target.finish()
        return AttackResult(
            adversarial=adversarial,
            fooled=outcome.fooled,
            fooled_after=outcome.fooled_after or {self.name: outcome.fooled},
            queries=target.done.forwards,
            backwards=target.done.backwards,
            seconds=time.perf_counter() - start,
            non_finite=target.non_finite,
            gradients=tuple(target.gradients.tolist()),
            zero_by_member=tuple(target.zero_by_member.tolist()),
            notes=outcome.notes + notes,
            history=target.recorder.history(outcome.fooled),
        )


def _reaches(setting: Field[Any], own: Any, other: Any) -> bool:
    """Return whether a field is equal to another attack's, or for effort, at least as large."""
    if not is_effort(setting):
        return bool(own == other)
    if isinstance(other, tuple):
        return set(other) <= set(own)
    return bool(own >= other)


def check_batch(x: object, y: object, threat: ThreatModel, seed: object) -> None:
    """Check the arguments of an attack.

    Raises:
        InputError: An argument is not valid. The message says what was expected.
        ConfigError: The radius is larger than any image could use.
    """
    given: object = threat
    if not isinstance(given, ThreatModel):
        raise InputError(
            f"threat must be a ThreatModel, such as ThreatModel('linf', '8/255'), got {given!r:.40}"
        )
    if not isinstance(x, Tensor) or x.ndim != 4 or x.dtype != torch.float32 or not x.numel():
        raise InputError(f"x must be float32 images (N, C, H, W), not empty, got {_describe(x)}")
    if not isinstance(y, Tensor) or y.dtype != torch.int64 or y.shape != x.shape[:1]:
        raise InputError(f"y must be int64 labels ({len(x)},), got {_describe(y)}")
    if int(y.min()) < 0:
        raise InputError(f"labels must not be negative, got {int(y.min())}")
    low, high = threat.bounds
    smallest, largest = (float(edge) for edge in x.detach().aminmax())
    slack = threat.slack
    if not (low - slack <= smallest and largest <= high + slack):  # also refuses NaN
        raise InputError(
            f"x must lie in the threat model's bounds [{low:g}, {high:g}], got values from "
            f"{smallest:g} to {largest:g}"
        )
    threat.check_reach(x.shape[1:])
    if not _is_seed(seed):
        raise InputError(f"seed must be a whole number from 0 to 2**63 - 1, got {seed!r}")


def _is_seed(seed: object) -> bool:
    if isinstance(seed, bool) or not isinstance(seed, SupportsIndex):
        return False
    try:
        return 0 <= operator.index(seed) < 2**63
    except (TypeError, ValueError):  # a tensor has an index only if it is one integer
        return False


@contextmanager
def isolated_random_state(seed: int, device: torch.device) -> Iterator[None]:
    """Seed the global generators of the process, and restore them on exit.

    These are torch's, because pyautoattack draws from them and accepts no others, and NumPy's and
    Python's, because a defense may draw from them. Some code seeds all CUDA devices at once, as
    pyautoattack does, so those in use are all restored.
    """
    states = shared_states(device)
    with torch.random.fork_rng(devices=_cuda_devices()):
        try:
            reseed(seed, device)
            np.random.seed(seed % 2**32)  # noqa: NPY002 (the global one is what is seeded)
            random.seed(seed)
            yield
        finally:
            for put_back, state in states:
                put_back(state)


def _cuda_devices() -> list[int]:
    """Return the CUDA devices of the process, or none if it does not use CUDA."""
    return list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []


def reseed(seed: int, device: torch.device) -> None:
    """Seed the torch generators of the CPU and of `device`, but of no other device."""
    torch.default_generator.manual_seed(seed)
    if own_generator(device):
        seed_generator(seed, device)


def _unperturbed(target: Querier) -> Outcome:
    """Return the natural images, and which of them the defense already misclassifies."""
    fooled = target(target.natural).argmax(dim=1) != target.labels
    return Outcome(target.natural, fooled)


def _check_outcome(name: str, outcome: object, x: Tensor) -> None:
    """Check that `run` returned a well-formed outcome.

    Raises:
        AttackError: It did not.
    """
    if not isinstance(outcome, Outcome):
        raise AttackError(f"{name} must return an Outcome, got {_describe(outcome)}")
    images: object = outcome.adversarial
    if not isinstance(images, Tensor) or images.shape != x.shape:
        returned = tuple(images.shape) if isinstance(images, Tensor) else _describe(images)
        raise AttackError(f"{name} returned {returned} for {tuple(x.shape)}")
    for part, fooled in {"": outcome.fooled, **outcome.fooled_after}.items():
        claim: object = fooled
        if not isinstance(claim, Tensor) or claim.dtype != torch.bool or claim.shape != x.shape[:1]:
            suffix = f" after {part}" if part else ""
            raise AttackError(
                f"{name} must say who was fooled{suffix} as bool ({len(x)},), got "
                f"{_describe(claim)}"
            )


def _inside(
    name: str, adversarial: Tensor, x: Tensor, threat: ThreatModel
) -> tuple[Tensor, tuple[str, ...]]:
    """Return the images, projected if rounding left them outside, and a note of how many.

    Raises:
        AttackError: An image is further outside than rounding explains.
    """
    adversarial = adversarial.detach().to(x.dtype)
    excess = threat.check(adversarial, x)
    outside = (excess > 0).to(x.device)
    if not bool(outside.any()):
        return adversarial, ()
    if float(excess.max()) > _ROUNDING * threat.eps:
        raise AttackError(
            f"{name} left the threat model {threat}: {int(outside.sum())} of "
            f"{counted(len(x), 'image')} are "
            f"outside by up to {float(excess.max()):.3g}"
        )
    adversarial = adversarial.clone()
    adversarial[outside] = threat.project(adversarial[outside], x[outside])
    return adversarial, (
        f"{counted(int(outside.sum()), 'image')} put back inside {threat} after rounding",
    )


def _describe(value: object) -> str:
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
    return type(value).__name__

"""The base class of attacks: hyper-parameters are fields, the threat model is given at the call."""

from __future__ import annotations

import random
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import Field, dataclass, field, fields, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, final

import numpy as np
import torch
from torch import Tensor

from dent.attacks.checks import is_count, is_effort, is_later
from dent.attacks.counting import counted
from dent.attacks.querier import OnPass, Querier, Queries
from dent.config import JSONConfig
from dent.errors import ConfigError, DentError, InputError
from dent.support.devices import own_generator, random_state, seed_generator, set_random_state
from dent.support.plural import counted as number_of

if TYPE_CHECKING:
    from dent.attacks.history import History
    from dent.attacks.protocol import Defense
    from dent.threat import Norm, ThreatModel

_ROUNDING = 1e-3  # of eps: an attack further outside than this has a bug, not a rounding error


class AttackError(DentError):
    """An attack broke its contract. This is a bug in the attack, not in its arguments."""


@dataclass(frozen=True)
class Outcome:
    """The return value of `Attack.run`.

    Attributes:
        adversarial: (N, C, H, W), inside the threat model.
        fooled: bool (N,), where the attack saw a wrong prediction.
        fooled_after: The same after each part of a set of attacks, by the part's name.
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
        fooled: bool (N,): the attack saw a wrong prediction, or none, for this member. The caller
            scores the prediction when the batch is submitted again.
        fooled_after: The same after each part of a set of attacks, in order, by name.
        queries: Batches submitted to the defense.
        backwards: Gradients computed to the input.
        seconds: Wall time.
        non_finite: Rows of logits, over all queries, that were no prediction; none of them
            counted as correct.
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
    """An attack on a batch: its hyper-parameters, as a frozen value that survives JSON.

    A subclass is a `@dataclass(frozen=True)` whose fields are its hyper-parameters. It checks them
    in `__post_init__` (which calls this class's) and writes `run`; everything else is decided here.
    Two attacks are equal where all their fields are. `dataclasses.replace` changes some.

    Guarantees of a call, for every attack: the images given are not modified; the defense and
    its model are not written to (`run` must take gradients by `torch.autograd.grad`, never by
    `.backward()`); the global random state of torch is as before; equal arguments give equal
    bits on one machine; what comes back is inside the threat model. One attack at a time in a
    process: the random state that a seed fixes belongs to the whole process.

    Raises:
        ConfigError: A value is out of range.
    """

    name: str = ""
    """The name for results; by default that of the attack."""

    named_by: ClassVar[str | None] = None
    """The field that `registered` already states, if any."""

    def __post_init__(self) -> None:
        """Set the name of the attack."""
        if not self.name:
            object.__setattr__(self, "name", self.default_name)

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

        `make(attack.registered, **attack.settings(norm))` gives the attack again.

        Args:
            norm: Norm of the threat model. Some defaults depend on it.

        Raises:
            ConfigError: The attack keeps hyper-parameters that are no fields.
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
        """Whether this is the same kind of attack as another, with at least the same effort.

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

    def queries(self, n_classes: int, norm: Norm = "linf") -> Queries:
        """Return the passes for one batch at most. Fewer if all members are fooled early.

        Counted by running the attack on a model that is never fooled, unless overridden.

        Raises:
            ConfigError: They cannot be counted this way.
        """
        return counted(self, n_classes, norm)

    def unadapted(self, n_classes: int, norm: Norm = "linf") -> Queries:
        """Return the passes of `queries` without adaptation, each of which costs a static pass.

        They go to the static model, or to a model that the defense adapted before.
        """
        del n_classes, norm
        return Queries(0, 0)

    def through_adaptation(self, n_classes: int, norm: Norm = "linf") -> int:
        """Return the backwards of `queries` through the whole adaptation, the costliest ones."""
        del n_classes, norm
        return 0

    def sized(self, batch_size: int) -> Attack:
        """Return the attack for an evaluation's batch size; itself if the size has no effect.

        Only attacks that take all batches at once and make their own depend on it.
        """
        del batch_size
        return self

    def on_static(self) -> Attack:
        """Return the equivalent attack on a model without adaptation.

        Attacks that differ only in how they look through an adaptation are equal there.
        """
        return self

    def longer(self, norm: Norm = "linf") -> Attack | None:
        """Return the attack with twice its gradient iterations; None if it has none.

        An evaluation uses it to test whether the attack has converged.
        """
        del norm
        iterations: Any = getattr(self, "iterations", None)
        if not is_count(iterations):
            return None
        changes: dict[str, Any] = {"iterations": 2 * iterations}
        return replace(self, **changes)

    def passes(self, n_classes: int, norm: Norm, size: int) -> Queries:
        """Return the passes for `size` images in one call; an attack may split them."""
        del size
        return self.queries(n_classes, norm)

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
            shared_seed: Of what several attacks on one batch compute alike, such as what they
                transfer from the static model; where they are given the same, it is computed once.
                `seed` by default.

        Raises:
            InputError: If images or labels do not fit, or the defense's answers do not.
            AttackError: If the attack left the threat model.
        """
        check_batch(x, y, threat, seed)
        start = time.perf_counter()
        with (
            torch.inference_mode(mode=False),  # a caller's would leave nothing to differentiate
            torch.no_grad(),
            isolated_random_state(seed, x.device),
        ):
            target = Querier(
                defense,
                x.detach().clone(),
                y.detach().to(x.device, copy=True),
                threat,
                plan=lambda classes: self.passes(classes, threat.norm, len(x)),
                progress=progress,
                shared_seed=seed if shared_seed is None else shared_seed,
            )
            outcome = self.run(target, threat, seed) if threat.eps > 0 else _unperturbed(target)
            # Against the caller's images: the attack may have written into its own.
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
    """Whether a value of a field is at least another attack's."""
    if not is_effort(setting):
        return bool(own == other)
    if isinstance(other, tuple):
        return set(other) <= set(own)
    return bool(own >= other)


def check_batch(x: object, y: object, threat: ThreatModel, seed: object) -> None:
    """Check the arguments of an attack.

    Raises:
        InputError: Saying what was expected and what came.
        ConfigError: The radius is larger than any image could use.
    """
    if not isinstance(x, Tensor) or x.ndim != 4 or x.dtype != torch.float32 or not x.numel():
        raise InputError(f"x must be float32 images (N, C, H, W), not empty, got {_describe(x)}")
    if not isinstance(y, Tensor) or y.dtype != torch.int64 or y.shape != x.shape[:1]:
        raise InputError(f"y must be int64 labels ({len(x)},), got {_describe(y)}")
    if int(y.min()) < 0:
        raise InputError(f"labels must not be negative, got {int(y.min())}")
    low, high = threat.bounds
    smallest, largest = (float(edge) for edge in x.detach().aminmax())
    if not (low <= smallest and largest <= high):  # also refuses NaN
        raise InputError(
            f"x must lie in the threat model's bounds [{low:g}, {high:g}], got values from "
            f"{smallest:g} to {largest:g}"
        )
    threat.check_reach(x.shape[1:])
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63:
        raise InputError(f"seed must be a whole number from 0 to 2**63 - 1, got {seed!r}")


@contextmanager
def isolated_random_state(seed: int, device: torch.device) -> Iterator[None]:
    """Seed the process's global generators temporarily, then restore them.

    torch's, since pyautoattack draws from them and offers no other way; NumPy's and Python's, since
    a defense may.
    """
    has_generator = own_generator(device)
    state = random_state(device) if has_generator else None
    numpy_state, python_state = _numpy_state(), random.getstate()
    with torch.random.fork_rng(devices=[]):
        try:
            reseed(seed, device)
            np.random.seed(seed % 2**32)  # noqa: NPY002 (the global one is what is seeded)
            random.seed(seed)
            yield
        finally:
            if state is not None:
                set_random_state(state, device)
            np.random.set_state(numpy_state)  # noqa: NPY002
            random.setstate(python_state)


def global_draws(device: torch.device) -> tuple[object, ...]:
    """Return a value that changes whenever one of the process's global generators draws."""
    states = [torch.get_rng_state()]
    if own_generator(device):
        states.append(random_state(device))
    torch_states = tuple(state.cpu().numpy().tobytes() for state in states)
    return (*torch_states, str(_numpy_state()["state"]["pos"]), random.getstate())


def _numpy_state() -> dict[str, Any]:
    return np.random.get_state(legacy=False)  # noqa: NPY002 (a defense may draw from the global one)


def reseed(seed: int, device: torch.device) -> None:
    """Seed the CPU's generator and that of `device`, and no other device's."""
    torch.default_generator.manual_seed(seed)
    if own_generator(device):
        seed_generator(seed, device)


def _unperturbed(target: Querier) -> Outcome:
    """Run the only attack at eps 0: find the members that are already misclassified."""
    fooled = target(target.natural).argmax(dim=1) != target.labels
    return Outcome(target.natural, fooled)


def _check_outcome(name: str, outcome: object, x: Tensor) -> None:
    """Refuse what `run` must not return.

    Raises:
        AttackError: It did.
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
    """The attack's images, projected where rounding left them outside, with a note how many."""
    adversarial = adversarial.detach().to(x.dtype)
    excess = threat.check(adversarial, x)
    outside = (excess > 0).to(x.device)
    if not bool(outside.any()):
        return adversarial, ()
    if float(excess.max()) > _ROUNDING * threat.eps:
        raise AttackError(
            f"{name} left the threat model {threat}: {int(outside.sum())} of "
            f"{number_of(len(x), 'image')} are "
            f"outside by up to {float(excess.max()):.3g}"
        )
    adversarial = adversarial.clone()
    adversarial[outside] = threat.project(adversarial[outside], x[outside])
    return adversarial, (
        f"{number_of(int(outside.sum()), 'image')} put back inside {threat} after rounding",
    )


def _describe(value: object) -> str:
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
    return type(value).__name__

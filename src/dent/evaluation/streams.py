"""Attack a defense that keeps state between batches, and measure the effect on later batches.

A suite queries copies of a defense in one state per batch. That is right for a defense that keeps
no state. If a defense keeps state, an attacker who submits some batches also changes the
predictions for all later batches of other users. A reset before every batch hides this. Here the
batches are one stream, in order.
"""

from collections.abc import Sequence
from typing import Annotated, Any, Literal, NamedTuple, get_args

import torch
from pydantic import Field
from torch import Tensor

from dent.attacks import Attack, Defense
from dent.data.tensors import as_images
from dent.errors import ConfigError, InputError, UnsupportedModelError
from dent.evaluation.records.plan import seed_of
from dent.evaluation.results.result import Count
from dent.evaluation.submission.fresh import Origin, fresh, reset
from dent.evaluation.submission.submission import submit
from dent.outputs import described
from dent.storage.canonical import Record
from dent.support.checks import check_counts, is_count
from dent.support.plural import counted
from dent.support.rounding import percent, points
from dent.threat import ThreatModel

StreamAim = Literal["now", "later"]
_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
_Count = Annotated[int, Field(ge=0)]


class StreamBatch(Record):
    """One batch of the stream."""

    attacked: bool
    """Whether the attacker submits this batch. If not, its images are natural in both streams."""
    by: str | None
    """The attack that made the submitted images; null for natural images."""
    unattacked: Count
    """Accuracy in the stream without an attacker."""
    served: Count
    """Accuracy in the attacked stream."""
    after_reset: Count
    """Accuracy on the submitted images if the defense is reset before this batch. This is what an
    evaluation that resets the state reports."""


class StreamResult(Record):
    """The effect of attacking the first batches of a stream; see docs/evaluation/streams.md."""

    defense: str
    norm: str
    eps: float
    attacks: tuple[str, ...]
    aim: StreamAim
    batch_size: _Count
    seed: _Count
    batches: tuple[StreamBatch, ...]
    reset_restores: bool
    """Whether a reset after the attacked stream restores exactly the logits of the first batch."""

    @property
    def instant(self) -> float:
        """Change in accuracy on the attacked batches due to the attacker, in [-1, 1]."""
        return _difference([batch for batch in self.batches if batch.attacked])

    @property
    def cumulative(self) -> float:
        """Change in accuracy on the later, clean batches due to the attacker, in [-1, 1]."""
        return _difference([batch for batch in self.batches if not batch.attacked])

    @property
    def sentence(self) -> str:
        """A sentence with both effects."""
        attacked = sum(batch.attacked for batch in self.batches)
        later = [batch for batch in self.batches if not batch.attacked]
        served, after_reset = (percent(_share(later, what)) for what in ("served", "after_reset"))
        return (
            f"{counted(attacked, 'attacked batch')} of {len(self.batches)}: {points(self.instant)} "
            f"points on the attacked images themselves, and {points(self.cumulative)} points on "
            "the clean images that came later. An evaluation that resets the defense before every "
            f"batch would report {after_reset} on the later ones, where {served} is served."
        )


class _Candidate(NamedTuple):
    """Images that the attacker may submit, and the attack that made them; None if natural."""

    name: str | None
    images: Tensor


def stream(
    defense: Defense,
    images: Tensor,
    labels: Tensor,
    attacks: Sequence[Attack],
    threat: ThreatModel,
    *,
    batch_size: int,
    poisoned: int,
    aim: StreamAim = "now",
    seed: int = 0,
) -> StreamResult:
    """Attack the first batches of a stream, and measure the effect on them and on later ones.

    The stream is submitted three times: without an attacker, with one, and with a reset before
    every batch. An attack queries copies of the defense in the current state of the attacked
    stream, so the queries leave no trace. The images of the attack are then submitted once.

    Args:
        defense: A defense that keeps state and has `reset()`: `TentOnline`, or a method wrapped in
            `TestTimeAdaptation`. It is copied and not changed.
        images: Float (N, C, H, W) in the bounds of the threat model, in the order of the stream,
            on the device of the defense.
        labels: Integers (N,).
        attacks: The attacks. Each makes one candidate for every attacked batch. The natural batch
            is another candidate.
        threat: The threat model.
        batch_size: Number of images per batch. The last batch may be smaller.
        poisoned: Number of batches that the attacker submits, from the first on. At least one
            clean batch must remain.
        aim: How the attacker chooses among the candidates. `now` takes the one with the fewest
            correct predictions in its own batch. `later` takes the one that would leave the fewest
            correct predictions in the first clean batch, if that batch came next; its own batch
            breaks ties.
        seed: Seed of all random draws.

    Raises:
        UnsupportedModelError: The defense has no `reset`, or cannot be copied at first or after a
            batch.
        ConfigError: A number is out of range.
        InputError: The images or labels have the wrong type or shape.
    """
    check_counts(1, batch_size=batch_size)
    images, labels = _checked(images, labels)
    batches = list(zip(images.split(batch_size), labels.split(batch_size), strict=True))
    _check(defense, attacks, aim, len(batches), poisoned)
    runner = _Runner(defense, batches, seed)

    live = runner.begin()
    unattacked = [runner.serve(live, index, x) for index, (x, _) in enumerate(batches)]
    live = runner.begin()
    submitted: list[_Candidate] = []
    served = []
    for index, (x, y) in enumerate(batches):
        candidates = [_Candidate(None, x)]
        for attack in attacks if index < poisoned else ():
            attack_seed = seed_of(seed, "stream attack", index, attack.name)
            target = fresh(_copied(live), attack_seed)
            result = attack(target, x, y, threat, seed=attack_seed)
            candidates.append(_Candidate(attack.name, result.adversarial))
        chosen = runner.worst(live, index, poisoned if aim == "later" else None, candidates)
        submitted.append(chosen)
        served.append(runner.serve(live, index, chosen.images))
    after_reset = [
        runner.serve(runner.begin(), index, each.images) for index, each in enumerate(submitted)
    ]
    reset(live)
    restored, first = (runner.logits(each, 0, batches[0][0]) for each in (live, runner.begin()))
    return StreamResult(
        defense=type(defense).__name__,
        norm=threat.norm,
        eps=threat.eps,
        attacks=tuple(attack.name for attack in attacks),
        aim=aim,
        batch_size=batch_size,
        seed=seed,
        batches=tuple(
            StreamBatch(
                attacked=index < poisoned,
                by=submitted[index].name,
                unattacked=_count(unattacked[index]),
                served=_count(served[index]),
                after_reset=_count(after_reset[index]),
            )
            for index in range(len(batches))
        ),
        reset_restores=bool(torch.equal(restored, first)),
    )


class _Runner:
    """A helper that submits batches to copies of a defense."""

    def __init__(
        self, defense: Defense, batches: Sequence[tuple[Tensor, Tensor]], seed: int
    ) -> None:
        self._origin = _copied(defense)
        self._batches, self._seed = batches, seed

    def begin(self) -> Any:
        """Return a copy of the defense after a reset."""
        live = self._origin.new(seed_of(self._seed, "stream")).defense
        reset(live)
        return live

    def serve(self, live: Defense, index: int, x: Tensor) -> Tensor:
        """Submit images in place of a batch; return which predictions are correct, bool (N,)."""
        answer = submit(live, x, seed=seed_of(self._seed, "serve", index))
        labels = self._batches[index][1].tolist()
        return torch.tensor(
            [given == label for given, label in zip(answer.predictions, labels, strict=True)]
        )

    def logits(self, live: Defense, index: int, x: Tensor) -> Tensor:
        """Submit images in place of a batch, and return the logits (N, classes)."""
        return submit(live, x, seed=seed_of(self._seed, "serve", index)).logits

    def worst(
        self, live: Defense, index: int, then: int | None, candidates: Sequence[_Candidate]
    ) -> _Candidate:
        """Return the candidate for a batch with the fewest correct predictions.

        Args:
            live: The defense before the batch. It is not queried.
            index: Index of the batch.
            then: Index of the clean batch whose correct predictions count; those in the candidate
                break ties. If None, only those in the candidate count.
            candidates: The candidates, at least one. The first one wins a tie.
        """
        if len(candidates) == 1:
            return candidates[0]
        left = []
        for each in candidates:
            trial = _copied(live).new().defense
            now = int(self.serve(trial, index, each.images).sum())
            later = 0
            if then is not None:
                later = int(self.serve(trial, then, self._batches[then][0]).sum())
            left.append((later, now))
        return candidates[left.index(min(left))]


def _copied(defense: Defense) -> Origin:
    """Return the defense as it is, to query copies of it; without copies, it would be reset."""
    origin = Origin(defense)
    if origin.missing is not None:
        raise UnsupportedModelError(
            f"{origin.missing}. A stream needs a defense that copy.deepcopy copies before the "
            "first batch and after every batch"
        )
    return origin


def _checked(images: object, labels: object) -> tuple[Tensor, Tensor]:
    checked = as_images(images)
    if isinstance(images, Tensor):
        checked = checked.to(images.device)
    is_label = isinstance(labels, Tensor) and labels.shape == checked.shape[:1]
    if not isinstance(labels, Tensor) or not is_label or labels.dtype not in _INTEGERS:
        raise InputError(f"labels must be integers ({len(checked)},), got {described(labels)}")
    return checked, labels.to(checked.device, torch.int64)


def _check(
    defense: Defense, attacks: Sequence[Attack], aim: str, batches: int, poisoned: object
) -> None:
    if not callable(getattr(defense, "reset", None)):
        raise UnsupportedModelError(
            f"a stream needs a defense that keeps state and has reset(), got "
            f"{type(defense).__name__}. Wrap a method with forward and reset in "
            "dent.defenses.TestTimeAdaptation"
        )
    if aim not in get_args(StreamAim):
        raise ConfigError(f"aim must be 'now' or 'later', got {aim!r}")
    if not attacks:
        raise ConfigError("a stream needs at least one attack, got none")
    if not isinstance(poisoned, int) or not is_count(poisoned) or poisoned >= batches:
        raise ConfigError(
            f"poisoned must leave a clean batch: expected 1 to {batches - 1} of "
            f"{counted(batches, 'batch')}, got {poisoned!r}"
        )


def _count(right: Tensor) -> Count:
    return Count.of(int(right.sum()), len(right))


def _share(batches: Sequence[StreamBatch], what: str) -> float:
    counts = [getattr(batch, what) for batch in batches]
    total = sum(count.total for count in counts)
    return sum(count.correct for count in counts) / total if total else 0.0


def _difference(batches: Sequence[StreamBatch]) -> float:
    return _share(batches, "served") - _share(batches, "unattacked")

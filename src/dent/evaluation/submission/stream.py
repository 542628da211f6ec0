"""The state in which a batch finds a defense."""

from typing import TYPE_CHECKING, Any

from dent.evaluation.records.plan import Batch, seed_of
from dent.evaluation.submission.fresh import Origin
from dent.evaluation.submission.submission import reset, submit
from dent.support.devices import device_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from dent.attacks import Defense
    from dent.evaluation.subject import Subject

_KEEPS = ("reset", "snapshot", "restore")


class Stream:
    """Gives each batch every defense as the batch finds it.

    That is a copy from before the first question. A defense with `reset`, `snapshot` and `restore`
    (online tent) is shown the natural batches that come before, in the order of the plan.

    So a unit never depends on which units ran before it in this process, and a resumed run goes
    on as if nothing had happened. The defense that was handed in is never asked anything, unless it
    cannot be copied.
    """

    def __init__(
        self,
        subject: "Subject",
        lineup: "Mapping[str, Defense]",
        batches: "Sequence[Batch]",
        seed: int,
    ) -> None:
        self._subject, self._batches = subject, batches
        self._seed = seed
        self._device = device_of(subject.model)
        self._origins = {name: Origin(each, subject.model) for name, each in lineup.items()}
        self._streams: dict[str, tuple[Any, int, Any]] = {}

    def origin(self, name: str, index: int) -> Origin:
        """Return the defense of that name as batch `index` finds it."""
        if not is_stream(self._origins[name].defense):
            return self._origins[name]
        made: Any = self._origins[name].new(seed_of(self._seed, "stream")).defense
        defense, at, state = self._streams.get(name) or (made, index + 1, None)
        if at > index:
            at = 0
            reset(defense)
        else:
            defense.restore(state)
        for batch in self._batches[at:index]:
            x, _ = self._subject.dataset.batch(batch.positions)
            submit(defense, x.to(self._device), seed=serve_seed(self._seed, batch.index))
        self._streams[name] = (defense, index, defense.snapshot())
        return Origin(defense, self._subject.model)


def is_stream(defense: "Defense") -> bool:
    """Whether a defense carries something from batch to batch on purpose, and can be put back."""
    return all(hasattr(defense, part) for part in _KEEPS)


def serve_seed(seed: int, batch: int) -> int:
    """One seed for all that a batch is served: what differs between attacks is the attack."""
    return seed_of(seed, "serve", batch)

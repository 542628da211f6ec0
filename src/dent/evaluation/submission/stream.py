"""The state of a defense before each batch."""

from typing import TYPE_CHECKING, Any

from dent.evaluation.records.plan import Batch, seed_of
from dent.evaluation.submission.fresh import Instance, Origin, reset
from dent.evaluation.submission.submission import submit
from dent.support.devices import device_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from dent.attacks import Defense
    from dent.evaluation.subject import Subject

_KEEPS = ("reset", "snapshot", "restore")


class Stream:
    """A provider of each defense in its state before a batch.

    For most defenses, this is a copy from before the first query. A defense with `reset`,
    `snapshot` and `restore` (such as online Tent) first gets the natural batches before this one,
    in the order of the plan.

    So a unit does not depend on the units that ran before it in this process, and a resumed run
    gives the same records. The given defense is never queried, unless it cannot be copied.
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
        self._origins = {name: Origin(defense, subject.model) for name, defense in lineup.items()}
        self._streams: dict[str, tuple[Instance, int, Any]] = {}

    def origin(self, name: str, index: int) -> Origin:
        """Return the defense of that name in its state before batch `index`."""
        if not is_stream(self._origins[name].defense):
            return self._origins[name]
        instance, position, state = self._streams.get(name) or (
            self._origins[name].new(seed_of(self._seed, "stream")),
            index + 1,
            None,
        )
        defense: Any = instance.defense
        if position > index:
            position = 0
            reset(defense)
        else:
            defense.restore(state)
        for batch in self._batches[position:index]:
            x, _ = self._subject.dataset.batch(batch.positions)
            submit(defense, x.to(self._device), seed=serve_seed(self._seed, batch.index))
        self._streams[name] = (instance, index, defense.snapshot())
        return Origin(defense, instance.model)  # its own copy, so that a guard can watch it


def is_stream(defense: "Defense") -> bool:
    """Return whether a defense keeps state between batches on purpose, and can restore it."""
    return all(hasattr(defense, part) for part in _KEEPS)


def serve_seed(seed: int, batch: int) -> int:
    """Return the seed of all submissions of a batch. Only their images differ, not their seeds."""
    return seed_of(seed, "serve", batch)

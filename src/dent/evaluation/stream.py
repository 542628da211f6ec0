"""Defenses that remember: every unit finds them as the natural batches before its own left them."""

from typing import TYPE_CHECKING, Any

from dent.attacks import Defense
from dent.evaluation.plan import Batch, seed_of
from dent.evaluation.serving import device_of, reset, serve

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from dent.evaluation.subject import Subject


class Stream:
    """Puts a defense into the state in which a batch finds it.

    A defense with `reset`, `snapshot` and `restore` (online tent) is shown the natural batches that
    come before, in the order of the plan, once. What attacks and their queries did to it is undone.
    One with `reset` alone forgets; one with neither is left as it is.

    So a unit never depends on which units ran before it in this process, and a resumed run goes
    on as if nothing had happened.
    """

    def __init__(
        self,
        subject: "Subject",
        lineup: "Mapping[str, Defense]",
        batches: "Sequence[Batch]",
        seed: int,
    ) -> None:
        self._subject, self._lineup, self._batches = subject, lineup, batches
        self._seed = seed
        self._device = device_of(subject.model)
        self._states: dict[str, tuple[int, Any]] = {}

    def enter(self, name: str, index: int) -> Defense:
        """Return the defense of that name as batch `index` finds it."""
        defense: Any = self._lineup[name]
        if not all(hasattr(defense, part) for part in ("reset", "snapshot", "restore")):
            reset(defense)
            return self._lineup[name]
        at, state = self._states.get(name, (index + 1, None))
        if at > index:
            at = 0
            reset(defense)
        else:
            defense.restore(state)
        for batch in self._batches[at:index]:
            x, _ = self._subject.dataset.batch(batch.positions)
            serve(defense, x.to(self._device), seed=serve_seed(self._seed, batch.index))
        self._states[name] = (index, defense.snapshot())
        return self._lineup[name]


def serve_seed(seed: int, batch: int) -> int:
    """One seed for all that a batch is served: what differs between attacks is the attack."""
    return seed_of(seed, "serve", batch)

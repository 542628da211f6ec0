"""The verdict on a run, in sentences. It is based on the worst case of all runs on the page."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from dent.playground.ledger import Entry, earlier_breaks, least_right, of_outcome
from dent.playground.outcome import PlaygroundOutcome, Who
from dent.playground.setup import ENOUGH_FOR_STATISTICS, Setup
from dent.playground.words import ATTACKS


@dataclass(frozen=True)
class PlaygroundVerdict:
    """The verdict on a run.

    Attributes:
        headline: Whether the static model and the defense hold or fall, in the worst case of all
            runs on the page.
        sentences: The reasons, and the limits of the result. The batch comes first if the defense
            holds where the static model falls, but not in the batch.
        static_falls: Whether the static model falls.
        defense_falls: Whether the defense falls.
    """

    headline: str
    sentences: tuple[str, ...]
    static_falls: bool
    defense_falls: bool


def verdict(outcome: PlaygroundOutcome, before: Sequence[Entry] = ()) -> PlaygroundVerdict:
    """Return the verdict on a run.

    Args:
        outcome: The outcome of the run.
        before: The earlier runs on the same page. An earlier break of the image within the same
            threat model counts.
    """
    now = of_outcome(outcome)
    name = outcome.setup.defense
    earlier = {who: earlier_breaks(before, now, who) for who in now.broken}
    static = bool(now.broken["static"] or earlier["static"])
    defense = bool(now.broken["defense"] or earlier["defense"])
    headline = {
        (False, False): f"Both hold: static and {name}",
        (False, True): f"On this image, {name} falls where static holds",
        (True, False): f"On this image, {name} holds where static falls",
        (True, True): f"Both fall: static and {name}",
    }[static, defense]
    of_image = (
        _of_image("Static", now, earlier["static"], "static"),
        _of_image(name, now, earlier["defense"], "defense"),
    )
    of_batch = tuple(_of_batch(outcome, before, now))
    left = {who: least_right(before, now, who) for who in now.broken}
    contradicts = static and not defense and left["defense"] <= left["static"]
    reasons = of_batch + of_image if contradicts else of_image + of_batch
    sentences = (*reasons, _reach(outcome.setup, defense_falls=defense))
    return PlaygroundVerdict(headline, sentences, static, defense)


def notes(setup: Setup) -> Iterator[str]:
    """Yield what a visitor should know about a setup before running it."""
    if setup.batch_size == 1 and setup.config.objective == "information-maximization":
        yield (
            f"In a batch of 1, {setup.defense} is the static model: information maximization has "
            "nothing to minimize there."
        )
    if setup.config.statistics == "test" and setup.batch_size < ENOUGH_FOR_STATISTICS:
        yield (
            f"{setup.defense} normalizes by the batch's own statistics, which are noise in a batch "
            f"of {setup.batch_size}: take {ENOUGH_FOR_STATISTICS}."
        )


def _of_image(name: str, now: Entry, earlier: Sequence[Entry], who: Who) -> str:
    broken = now.broken[who]
    if ATTACKS[None] in broken:
        return f"{name} is wrong without any attack."
    if broken:
        return f"{name} is wrong under {' and '.join(broken)}."
    if earlier:
        setup = earlier[0].setup
        return (
            f"{name} is correct in this run, but an earlier one on this page broke it on this "
            f"image ({' and '.join(earlier[0].broken[who])}, {setup.threat.label}, batch of "
            f"{setup.batch_size}, seed {setup.seed}), which counts."
        )
    return f"{name} is correct in every submission."


def _of_batch(outcome: PlaygroundOutcome, before: Sequence[Entry], now: Entry) -> Iterator[str]:
    size = len(outcome.natural.batch)
    if size == 1:
        return
    natural, name = outcome.natural, outcome.setup.defense
    attacked = "all attacked" if outcome.setup.target == "batch" else "only the image attacked"
    yield (
        f"Of the batch of {size}, {attacked}, the worst submission leaves static "
        f"{least_right(before, now, 'static')} right and {name} "
        f"{least_right(before, now, 'defense')}; without an attack "
        f"{natural.static.batch_right} and {natural.defense.batch_right}."
    )


def _reach(setup: Setup, *, defense_falls: bool) -> str:
    if defense_falls:
        return "One image is no benchmark: dent evaluate --suite dynamic is."
    missing = [rung for rung in ("stop-gradient", "unrolled") if rung not in setup.rungs]
    if missing:
        return (
            f"Not run on {setup.defense}: {' and '.join(missing)}. Such attacks break defenses of "
            "this kind, so this result says little."
        )
    return (
        "This is an upper bound after a few iterations: a longer attack, or one on model "
        "space, may still break it."
    )

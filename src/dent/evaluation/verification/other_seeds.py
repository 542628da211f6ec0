"""Submit and attack under seeds that nobody can know, to find a defense that recognizes its seeds.

The seeds of a run follow from its settings, which are public. So a defense could tell from torch's
random state whether it is attacked or scored, and predict with another model for each. Under other
seeds, its records then look better than its predictions.
"""

import hashlib
import math
import operator
import secrets
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from statistics import fmean, variance
from typing import Final

from scipy.stats import binomtest
from scipy.stats import t as student
from torch import Tensor

from dent.evaluation.engine.context import RunContext, batches_of
from dent.evaluation.engine.execute import submit_once
from dent.evaluation.records.plan import Unit
from dent.evaluation.records.schema import UnitRecord
from dent.evaluation.submission.stream import Stream
from dent.evaluation.submission.submitter import DRAWS
from dent.support.plural import counted

LEVEL: Final = 0.001
"""Significance level of each test, over all defenses together."""
MARGIN: Final = 0.05
"""Share of the attacked members by which an attack may break more under another seed. The members
of a batch are not independent, so the test alone is too strict."""
_BITS: Final = 48
Rights = Sequence[bool]


def unknown_seed(nonce: str = "", identity: str = "") -> int:
    """Return a seed that the maker of a run cannot have known.

    Args:
        nonce: A text that was fixed after the run was handed over; without one, the seed is random.
        identity: Identity of the run.
    """
    if not nonce:
        return secrets.randbits(_BITS)
    lot = hashlib.sha256("\n".join(("seed", nonce, identity)).encode()).digest()
    return int.from_bytes(lot[: _BITS // 8])


def under_seed(run: RunContext, seed: int) -> RunContext:
    """Return the context of the same run under another seed, with the same batches and records."""
    prepared = run.prepared
    settings = prepared.spec.settings.model_copy(update={"seed": seed})
    spec = prepared.spec.model_copy(update={"settings": settings})
    stream = Stream(run.subject, run.subject.lineup(settings), run.plan.batches, seed)
    return replace(
        run, prepared=replace(prepared, spec=spec), stream=stream, submitters=OrderedDict()
    )


class OtherSeeds:
    """A submitter of recorded images under a seed that nobody can know.

    Args:
        run: The run that is checked.
    """

    def __init__(self, run: RunContext) -> None:
        self._run = under_seed(run, unknown_seed())
        # By defense and batch: how many members are correct in each draw, then and now.
        self._draws: dict[str, list[tuple[Sequence[int], Sequence[int]]]] = {}

    def problem(
        self, unit: Unit, record: UnitRecord, adversarial: Tensor, allowed: int
    ) -> str | None:
        """Submit the images of a unit, and return how the predictions contradict the record.

        A randomized defense is judged over all batches, by `problems`.

        Args:
            unit: The unit, of one batch.
            record: Its record.
            adversarial: Its images.
            allowed: Number of predictions that rounding may change.
        """
        if self._run.spec.settings.randomness == "public":
            return None  # attacks and submissions have the same seed
        if record.draws:
            self._draw(unit, record, adversarial)
            return None
        served = submit_once(self._run, unit, adversarial).predictions
        changed = sum(map(operator.ne, served, record.served))
        if changed <= allowed:
            return None
        return (
            f"{unit.key}: under a seed that nobody could know, {counted(changed, 'member')} of "
            f"{len(served)} are served otherwise, although nothing is drawn at random: the defense "
            "may recognize the seeds of the run"
        )

    def _draw(self, unit: Unit, record: UnitRecord, adversarial: Tensor) -> None:
        (batch,) = batches_of(self._run.plan, unit)
        labels = batch.labels[: batch.attacked]

        def correct(predictions: Sequence[int | None]) -> int:
            return sum(map(operator.eq, predictions, labels))

        then = [correct(predictions) for predictions in record.draws]
        now = [
            correct(submit_once(self._run, unit, adversarial, draw).predictions)
            for draw in range(1, DRAWS + 1)
        ]
        self._draws.setdefault(unit.defense, []).append((then, now))

    def problems(self) -> Iterator[str]:
        """Yield the randomized defenses that are correct more often as recorded than now."""
        for name, batches in self._draws.items():
            if p_value(batches) < LEVEL / len(self._draws):
                means = [sum(fmean(batch[when]) for batch in batches) for when in (0, 1)]
                yield (
                    f"{name}: the mean number of correct members is {means[0]:.1f} over the "
                    f"recorded draws, and {means[1]:.1f} under seeds that nobody could know "
                    f"(p = {p_value(batches):.2g}): the defense may recognize the seeds of the run"
                )


def p_value(batches: Sequence[tuple[Sequence[int], Sequence[int]]]) -> float:
    """Test by a one-sided t-test, stratified by batch, whether the first counts are larger.

    Members of a batch may share a draw, so the draws are the independent units, not the members.

    Args:
        batches: Per batch, the correct members in each recorded draw and in each new draw, each of
            at least two.
    """
    gain = sum(fmean(then) - fmean(now) for then, now in batches)
    spread = sum(variance(draws) / len(draws) for pair in batches for draws in pair)
    if gain <= 0:
        return 1.0
    if not spread:
        return 0.0
    freedom = sum(len(draws) - 1 for pair in batches for draws in pair)
    return float(student.sf(gain / math.sqrt(spread), freedom))


def stronger_attacks(pairs: Mapping[str, Sequence[tuple[bool, bool]]]) -> Iterator[str]:
    """Yield the defenses that attacks break more often under another seed than as recorded.

    Args:
        pairs: By defense, for each attacked member whether it is correct as recorded, and whether
            it is correct under the attack with another seed.
    """
    for name, members in pairs.items():
        only_then = sum(then and not now for then, now in members)
        only_now = sum(now and not then for then, now in members)
        if only_then - only_now <= max(1.0, MARGIN * len(members)):
            continue
        found = binomtest(only_then, only_then + only_now, alternative="greater").pvalue
        if found < LEVEL / len(pairs):
            yield (
                f"{name}: attacks from a seed that nobody could know leave "
                f"{sum(now for _, now in members)} of {counted(len(members), 'member')} correct, "
                f"and {sum(then for then, _ in members)} are correct as recorded "
                f"(p = {found:.2g}): the defense may recognize the seeds of the run"
            )

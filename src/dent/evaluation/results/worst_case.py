"""The worst case of a defense and its difference to the static model, with intervals."""

from collections.abc import Iterable, Mapping, Sequence
from math import comb
from typing import Final, NamedTuple

from dent.evaluation.records.probe_answers import depends_on_batch, hides_dependence
from dent.evaluation.records.spec import DefenseSpec, EvaluationSpec
from dent.evaluation.results.intervals import (
    BATCHES_INDEPENDENT,
    BY_BATCH,
    of_mean,
    over_clusters,
    tango,
)
from dent.evaluation.results.result import Count, Dependence, Difference, Repeated, WorstCase
from dent.evaluation.results.scoring import (
    Rights,
    Scores,
    halves,
    worst_case,
    worst_for_clean,
    worst_submissions,
)
from dent.support.plural import agreeing, counted

MIN_CLUSTERS: Final = 8
"""With fewer batches, a bootstrap over batches is meaningless."""

INDEPENDENT: Final = Dependence(declared=False, measured=None)
"""The batch dependence of a static model."""


def dependence_of(spec: DefenseSpec, scores: Scores) -> Dependence:
    """Return whether the defense is batch-dependent, as it declares and as was measured."""
    if scores.probe is None:
        return Dependence(declared=spec.batch_dependent, measured=None)
    return Dependence(
        declared=spec.batch_dependent,
        measured=depends_on_batch(scores.probe),
        undetermined=not spec.batch_dependent and hides_dependence(scores.probe),
    )


def by_sample(dependence: Dependence) -> bool:
    """Return whether a worst case may combine members of different submissions.

    It may not if the defense declares, or was measured, to be batch-dependent.
    """
    return not dependence.declared and dependence.measured is not True


def independent_members(dependence: Dependence) -> bool:
    """Return whether an interval may treat the members of a batch as independent.

    It may not if the dependence could not be determined: randomness can hide it. The worst case may
    still be per sample then, because it is the lower one.
    """
    return by_sample(dependence) and not dependence.undetermined


def worst_of(scores: Scores, dependence: Dependence) -> WorstCase:
    """Return the worst case over all submissions, on the scored batches (`Scores.whole`)."""
    samples = by_sample(dependence)
    rights, decided = worst_case(scores, scores.whole, by_sample=samples)
    return WorstCase(
        served=count_of(rights.values()), unit="sample" if samples else "batch", by=decided
    )


def repeated_of(scores: Scores, dependence: Dependence) -> Repeated | None:
    """Return the accuracies of a randomized defense over several draws; None for other defenses."""
    draws = max((len(r.draws) for rows in scores.records.values() for r in rows), default=0)
    if not draws or not scores.whole:
        return None
    samples, (_, scoring) = by_sample(dependence), halves(draws)
    mean, always, natural, natural_always = (
        list[float](),
        list[float](),
        list[float](),
        list[float](),
    )
    for index in scores.whole:
        pieces = scores.of_batch(index)
        chosen = worst_submissions(pieces, by_sample=samples)
        mean += [pieces[name].attacked[member] for member, name in enumerate(chosen)]
        always += [pieces[name].always[member] for member, name in enumerate(chosen)]
        natural += pieces["natural"].attacked
        natural_always += pieces["natural"].always
    return Repeated(
        draws=scoring,
        natural=sum(natural) / len(natural),
        robust=sum(mean) / len(mean),
        natural_always=Count.of(round(sum(natural_always)), len(natural_always)),
        robust_always=Count.of(round(sum(always)), len(always)),
        risk=resubmission_risk(mean, scoring),
        natural_risk=resubmission_risk(natural, scoring),
    )


def resubmission_risk(rights: Sequence[float], draws: int) -> tuple[float, ...]:
    """Return the share of members that at least one of 1, 2, ... `draws` submissions gets wrong.

    For n submissions, it is the mean over all choices of n draws.

    Args:
        rights: For each member, the share of the draws in which it was correct.
        draws: Number of draws.
    """
    hits = [round(right * draws) for right in rights]
    return tuple(
        1 - sum(comb(each, n) for each in hits) / (len(hits) * comb(draws, n))
        for n in range(1, draws + 1)
    )


def difference_to(
    static: Scores,
    defended: Scores,
    dependence: Dependence,
    seed: int,
    of_static: Dependence = INDEPENDENT,
) -> Difference:
    """Return the worst case of a defense minus the static model's; see `worst_cases`."""
    ours, theirs = worst_cases(static, defended, dependence, of_static)
    theirs_by_sample = _static_samples(defended, dependence, of_static)
    independent = independent_members(dependence) and independent_members(of_static)
    return paired(
        ours, theirs, independent=independent, static_by_sample=theirs_by_sample, seed=seed
    )


def worst_cases(
    static: Scores,
    defended: Scores,
    dependence: Dependence,
    of_static: Dependence = INDEPENDENT,
) -> tuple[dict[int, Rights], dict[int, Rights]]:
    """Return the worst cases of the defense and of the static model, on the batches of both.

    The attacker of the static model must not have more freedom than the attacker of the defense. So
    if the defense's worst case is per batch and there are no assembled batches, the static model's
    is per batch as well.

    Args:
        static: The scores of the static model, or of a defense to compare with instead.
        defended: The scores of the defense.
        dependence: The batch dependence of the defense.
        of_static: The batch dependence of what `static` scores.
    """
    batches = tuple(sorted(set(static.whole) & set(defended.whole)))
    ours, _ = worst_case(defended, batches, by_sample=by_sample(dependence))
    samples = _static_samples(defended, dependence, of_static)
    theirs, _ = worst_case(static, batches, by_sample=samples)
    return ours, theirs


def natural_difference(
    static: Scores, defended: Scores, dependence: Dependence, seed: int
) -> Difference:
    """Return the difference of the clean accuracies, with an interval as for worst cases."""
    ours, theirs = (scores.submissions["natural"] for scores in (defended, static))
    batches = sorted(set(ours) & set(theirs))
    return paired(
        {index: ours[index].attacked for index in batches},
        {index: theirs[index].attacked for index in batches},
        independent=independent_members(dependence),
        static_by_sample=True,
        seed=seed,
    )


def bystander_difference(
    static: Scores, defended: Scores, dependence: Dependence, seed: int
) -> Difference | None:
    """Return the difference of the accuracies on the clean members of attacked batches.

    For both, the submission of each batch counts that leaves the fewest clean members correct.

    Returns:
        None if no scored batch has clean members.
    """
    batches = sorted(set(static.whole) & set(defended.whole))
    ours, theirs = (worst_for_clean(scores, batches) for scores in (defended, static))
    if not ours:
        return None
    return paired(
        ours,
        theirs,
        independent=independent_members(dependence),
        static_by_sample=False,
        seed=seed,
    )


def paired(
    ours: Mapping[int, Rights],
    theirs: Mapping[int, Rights],
    *,
    independent: bool,
    static_by_sample: bool,
    seed: int,
) -> Difference:
    """Return the difference of two sets of answers to the same batches: ours minus theirs.

    Args:
        ours: For each batch index, whether each member was correct.
        theirs: The same for the same members.
        independent: Whether members of one batch are independent.
        static_by_sample: Whether `theirs` is a per-sample worst case.
        seed: Seed of the bootstrap over batches.
    """
    batches = [
        [float(a) - float(b) for a, b in zip(ours[index], theirs[index], strict=True)]
        for index in ours
    ]
    differences = [difference for batch in batches for difference in batch]
    interval = _interval(batches, independent=independent, seed=seed)
    return Difference(
        value=sum(differences) / len(differences) if differences else None,
        interval=interval.ends,
        method=interval.method,
        assumes=interval.assumes,
        total=len(differences),
        only_defended=sum(map(_only_defended, differences)),
        only_static=sum(map(_only_static, differences)),
        static=count_of(theirs.values()),
        static_unit="sample" if static_by_sample else "batch",
    )


class _Interval(NamedTuple):
    """An interval of a mean difference, and what to say about it."""

    ends: tuple[float, float] | None
    method: str
    assumes: str


def _interval(batches: Sequence[Sequence[float]], *, independent: bool, seed: int) -> _Interval:
    """Return the interval of the mean of paired differences.

    Differences of a randomized defense are means of draws, so Student's interval counts as well.
    If members of one batch are not independent, the interval accounts for it from `MIN_CLUSTERS`
    batches on. A bootstrap over batches is too narrow for few of them, so Student's interval over
    batches counts as well.

    Args:
        batches: For each batch, the difference of each member.
        independent: Whether members of one batch are independent.
        seed: Seed of the bootstrap over batches.
    """
    differences = [difference for batch in batches for difference in batch]
    method, assumes = "tango", "that samples are independent"
    if not differences:
        return _Interval(None, method, assumes)
    more, less = sum(map(_only_defended, differences)), sum(map(_only_static, differences))
    ends = tango(more, less, len(differences))
    if any(difference not in (-1, 0, 1) for difference in differences):
        means = of_mean(differences)
        ends = min(ends[0], means[0]), max(ends[1], means[1])
        method = "wider of tango on the majority of draws and student on their means"
    if independent:
        return _Interval(ends, method, assumes)
    if len(batches) < MIN_CLUSTERS:
        count = f"{counted(len(batches), 'batch')} {agreeing(len(batches), 'are')}"
        assumes += (
            f", though members of one batch share an adaptation: {count} too few to draw anew "
            f"({MIN_CLUSTERS} needed)"
        )
        return _Interval(ends, method, assumes)
    sums, sizes = [sum(batch) for batch in batches], [len(batch) for batch in batches]
    ends = over_clusters(ends, sums, sizes, seed)
    return _Interval(ends, BY_BATCH.format(method), BATCHES_INDEPENDENT)


def _only_defended(difference: float) -> bool:
    return difference > 0.5


def _only_static(difference: float) -> bool:
    return difference < -0.5


def bootstrap_seed(spec: EvaluationSpec) -> int:
    """Return the seed for resampling batches, which follows from the identity of the run."""
    return int(spec.identity[:12], 16)


def _static_samples(defended: Scores, dependence: Dependence, of_static: Dependence) -> bool:
    """Return whether the static model's worst case may combine members of several submissions."""
    assembled = any(name.startswith("assembled") for name in defended.submissions)
    return by_sample(of_static) and (by_sample(dependence) or assembled)


def count_of(rights: Iterable[Rights]) -> Count:
    """Return how many members are correct, over several batches; shares of draws are summed."""
    rows = list(rights)
    return Count.of(round(sum(map(sum, rows))), sum(map(len, rows)))

"""The worst case of a defense and its difference to the static model, with intervals."""

from collections.abc import Iterable, Mapping, Sequence
from math import comb
from typing import Final

from dent.evaluation.records.readings import depends
from dent.evaluation.records.spec import DefenseSpec, EvaluationSpec
from dent.evaluation.results.intervals import (
    BATCHES_INDEPENDENT,
    BY_BATCH,
    of_mean,
    over_clusters,
    tango,
)
from dent.evaluation.results.result import Count, Dependence, Difference, Repeated, WorstCase
from dent.evaluation.results.scoring import Rights, Scores, worst_case, worst_submissions
from dent.support.plural import agreeing, counted

MIN_CLUSTERS: Final = 8
"""With fewer batches, a bootstrap over batches is meaningless."""

INDEPENDENT: Final = Dependence(declared=False, measured=None)
"""The batch dependence of a static model."""


def dependence_of(spec: DefenseSpec, scores: Scores) -> Dependence:
    """Return whether the defense is batch-dependent, as it declares and as was measured."""
    measured = None if scores.probe is None else depends(scores.probe)
    return Dependence(declared=spec.batch_dependent, measured=measured)


def by_sample(dependence: Dependence) -> bool:
    """Return whether a worst case may combine members of different submissions.

    It may not if the defense declares, or was measured, to be batch-dependent.
    """
    return not dependence.declared and dependence.measured is not True


def worst_of(scores: Scores, dependence: Dependence) -> WorstCase:
    """Return the worst case over all submissions, on the scored batches (`Scores.whole`)."""
    samples = by_sample(dependence)
    rights, decided = worst_case(scores, scores.whole, by_sample=samples)
    return WorstCase(
        served=_count(rights.values()), unit="sample" if samples else "batch", by=decided
    )


def repeated_of(scores: Scores, dependence: Dependence) -> Repeated | None:
    """Return the accuracies of a randomized defense over several draws; None for other defenses."""
    draws = max((len(r.draws) for rows in scores.records.values() for r in rows), default=0)
    if not draws or not scores.whole:
        return None
    samples, scoring = by_sample(dependence), draws - draws // 2
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
    samples = by_sample(dependence) and by_sample(of_static)
    return paired(ours, theirs, samples, theirs_by_sample, seed)


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
        by_sample(dependence),
        True,
        seed,
    )


def paired(
    ours: Mapping[int, Rights],
    theirs: Mapping[int, Rights],
    samples: bool,
    static_samples: bool,
    seed: int,
) -> Difference:
    """Return the difference of two sets of answers to the same batches: ours minus theirs.

    Args:
        ours: For each batch index, whether each member was correct.
        theirs: The same for the same members.
        samples: Whether members of one batch are independent. If not, the interval accounts for
            their dependence if there are at least `MIN_CLUSTERS` batches. A bootstrap is too narrow
            for few batches, so Student's interval over batches counts as well.
        static_samples: Whether `theirs` is a per-sample worst case.
        seed: Seed of the bootstrap over batches.
    """
    pairs = {index: list(zip(ours[index], theirs[index], strict=True)) for index in ours}
    differences = {index: [float(a) - float(b) for a, b in pairs[index]] for index in pairs}
    all_differences = [difference for rows in differences.values() for difference in rows]
    total = len(all_differences)
    only_defended, only_static = (
        sum(d > 0.5 for d in all_differences),
        sum(d < -0.5 for d in all_differences),
    )
    drawn_at_random = any(difference not in (-1, 0, 1) for difference in all_differences)
    interval, method = None, "tango"
    assumes = "that samples are independent"
    if total:
        interval = tango(only_defended, only_static, total)
    if interval is not None and drawn_at_random:
        means = of_mean(all_differences)
        interval = (min(interval[0], means[0]), max(interval[1], means[1]))
        method = "wider of tango on the majority of draws and student on their means"
    if interval is not None and not samples:
        if len(pairs) >= MIN_CLUSTERS:
            sums = [sum(differences[index]) for index in pairs]
            sizes = [len(differences[index]) for index in pairs]
            interval = over_clusters(interval, sums, sizes, seed)
            method = BY_BATCH.format(method)
            assumes = BATCHES_INDEPENDENT
        else:
            assumes += (
                ", though members of one batch share an adaptation: "
                f"{counted(len(pairs), 'batch')} {agreeing(len(pairs), 'are')} "
                f"too few to draw anew ({MIN_CLUSTERS} needed)"
            )
    return Difference(
        value=sum(all_differences) / total if total else None,
        interval=interval,
        method=method,
        assumes=assumes,
        total=total,
        only_defended=only_defended,
        only_static=only_static,
        static=_count(theirs.values()),
        static_unit="sample" if static_samples else "batch",
    )


def bootstrap_seed(spec: EvaluationSpec) -> int:
    """Return the seed for resampling batches, which follows from the identity of the run."""
    return int(spec.identity[:12], 16)


def _static_samples(defended: Scores, dependence: Dependence, of_static: Dependence) -> bool:
    """Return whether the static model's worst case may combine members of several submissions."""
    assembled = any(name.startswith("assembled") for name in defended.submissions)
    return by_sample(of_static) and (by_sample(dependence) or assembled)


def _count(rights: Iterable[Rights]) -> Count:
    rows = list(rights)
    return Count.of(round(sum(map(sum, rows))), sum(map(len, rows)))

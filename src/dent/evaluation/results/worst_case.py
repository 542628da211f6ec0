"""The worst case, and what a defense adds to the static model: with intervals."""

from collections.abc import Iterable, Mapping
from typing import Final

from dent.evaluation.records.readings import depends
from dent.evaluation.records.spec import DefenseSpec
from dent.evaluation.results.intervals import cluster_bootstrap, of_mean, tango
from dent.evaluation.results.result import Count, Dependence, Difference, Repeated, WorstCase
from dent.evaluation.results.scoring import Rights, Scores, worst_case, worst_submissions
from dent.support.plural import agreeing, counted

MIN_CLUSTERS: Final = 8
"""Below so many batches, drawing batches anew says nothing."""


def dependence_of(spec: DefenseSpec, scores: Scores) -> Dependence:
    """What the defense declares of itself, and what was measured."""
    measured = None if scores.probe is None else depends(scores.probe)
    return Dependence(declared=spec.batch_dependent, measured=measured)


def by_sample(dependence: Dependence) -> bool:
    """Whether members of different submissions may be put together in one worst case.

    Only where the defense neither declares that they touch each other, nor was seen to let them.
    """
    return not dependence.declared and dependence.measured is not True


def worst_of(scores: Scores, dependence: Dependence) -> WorstCase:
    """The worst case over all that was submitted, on the batches that are whole."""
    samples = by_sample(dependence)
    rights, decided = worst_case(scores, scores.whole, by_sample=samples)
    return WorstCase(
        served=_count(rights.values()), unit="sample" if samples else "batch", by=decided
    )


def repeated_of(scores: Scores, dependence: Dependence) -> Repeated | None:
    """What a defense that draws at random does over several submissions; None of any other."""
    draws = max((len(r.draws) for rows in scores.records.values() for r in rows), default=0)
    if not draws or not scores.whole:
        return None
    samples = by_sample(dependence)
    mean, always, natural, natural_always = (
        list[float](),
        list[float](),
        list[float](),
        list[float](),
    )
    for index in scores.whole:
        pieces = {name: by_batch[index] for name, by_batch in scores.submissions.items()}
        chosen = worst_submissions(pieces, by_sample=samples)
        mean += [pieces[name].attacked[at] for at, name in enumerate(chosen)]
        always += [pieces[name].always[at] for at, name in enumerate(chosen)]
        natural += pieces["natural"].attacked
        natural_always += pieces["natural"].always
    return Repeated(
        draws=draws - draws // 2,
        natural=sum(natural) / len(natural),
        robust=sum(mean) / len(mean),
        natural_always=Count.of(round(sum(natural_always)), len(natural_always)),
        robust_always=Count.of(round(sum(always)), len(always)),
    )


def difference_to(
    static: Scores, defended: Scores, dependence: Dependence, seed: int
) -> Difference:
    """Pair the defended worst case with the static one.

    The attacker of the static model may be allowed no more than that of the defense. Where the
    defense is taken batch by batch, and no batch was assembled from what broke its members, the
    static model is taken batch by batch as well.
    """
    batches = tuple(sorted(set(static.whole) & set(defended.whole)))
    samples = by_sample(dependence)
    static_samples = samples or "assembled" in defended.submissions
    ours, _ = worst_case(defended, batches, by_sample=samples)
    theirs, _ = worst_case(static, batches, by_sample=static_samples)
    return paired(ours, theirs, samples, static_samples, seed)


def natural_difference(
    static: Scores, defended: Scores, dependence: Dependence, seed: int
) -> Difference:
    """Pair the clean accuracies, with an interval made as that of the worst cases is."""
    ours, theirs = (scores.submissions["natural"] for scores in (defended, static))
    batches = sorted(set(ours) & set(theirs))
    return paired(
        {at: ours[at].attacked for at in batches},
        {at: theirs[at].attacked for at in batches},
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
    """The difference of two sets of answers to the same batches.

    Args:
        ours: By batch index, who was right.
        theirs: The same of the same members, which is taken off.
        samples: Whether members of one batch are independent; otherwise the interval allows for
            what they share, from `MIN_CLUSTERS` batches on.
        static_samples: Whether `theirs` was taken by sample.
        seed: Of the draws of batches.
    """
    pairs = {at: list(zip(ours[at], theirs[at], strict=True)) for at in ours}
    apart = {at: [float(a) - float(b) for a, b in pairs[at]] for at in pairs}
    every = [each for rows in apart.values() for each in rows]
    total = len(every)
    only_defended, only_static = sum(d > 0.5 for d in every), sum(d < -0.5 for d in every)
    drawn_at_random = any(each not in (-1, 0, 1) for each in every)
    interval, method = None, "tango"
    assumes = "that samples are independent"
    if total:
        interval = tango(only_defended, only_static, total)
    if interval is not None and drawn_at_random:
        means = of_mean(every)
        interval = (min(interval[0], means[0]), max(interval[1], means[1]))
        method = "wider of tango on the majority of draws and student on their means"
    if interval is not None and not samples:
        if len(pairs) >= MIN_CLUSTERS:
            drawn = cluster_bootstrap(
                [sum(apart[at]) for at in pairs], [len(apart[at]) for at in pairs], seed
            )
            interval = (min(interval[0], drawn[0]), max(interval[1], drawn[1]))
            method = f"wider of {method} and a bootstrap over batches"
            assumes = "that batches are independent; members of one may not be"
        else:
            assumes += (
                ", though members of one batch share an adaptation: "
                f"{counted(len(pairs), 'batch')} {agreeing(len(pairs), 'are')} "
                f"too few to draw anew ({MIN_CLUSTERS} needed)"
            )
    return Difference(
        value=sum(every) / total if total else None,
        interval=interval,
        method=method,
        assumes=assumes,
        total=total,
        only_defended=only_defended,
        only_static=only_static,
        static=_count(theirs.values()),
        static_unit="sample" if static_samples else "batch",
    )


def _count(rights: Iterable[Rights]) -> Count:
    rows = list(rights)
    return Count.of(round(sum(map(sum, rows))), sum(map(len, rows)))

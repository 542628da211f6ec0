"""Compare a row with the mean over views of each image, paired by sample."""

from dent.evaluation.records.spec import STATIC
from dent.evaluation.results.outside import with_challenges
from dent.evaluation.results.recorded_run import RecordedRun
from dent.evaluation.results.result import Dependence, Difference
from dent.evaluation.results.scoring import Rights, score, worst_case
from dent.evaluation.results.worst_case import (
    bootstrap_seed,
    by_sample,
    dependence_of,
    independent_members,
    paired,
)


def defense_of(run: RecordedRun) -> str:
    """Return the name of the defense in a row's run; `static` if there is no other."""
    names = [defense.name for defense in run.run.spec.defenses]
    return next((name for name in names if name != STATIC), STATIC)


def less_views(row: RecordedRun, views: RecordedRun) -> Difference | None:
    """Return the worst case of a row's defense minus the views', on the batches that both have.

    Returns:
        None if the two runs have different batches, or no scored batch in common yet.
    """
    if row.plan != views.plan:
        return None
    ours, own = _worst(row)
    theirs, of_views = _worst(views)
    batches = sorted(ours.keys() & theirs.keys())
    if not batches:
        return None
    return paired(
        {index: ours[index] for index in batches},
        {index: theirs[index] for index in batches},
        independent=independent_members(own) and independent_members(of_views),
        static_by_sample=by_sample(of_views),
        seed=bootstrap_seed(row.run.spec),
    )


def _worst(run: RecordedRun) -> tuple[dict[int, Rights], Dependence]:
    name = defense_of(run)
    own = score(run.run.spec, run.plan, run.records)
    scores = with_challenges(own, run.plan, run.challenges)[name].scores
    spec = next(defense for defense in run.run.spec.defenses if defense.name == name)
    dependence = dependence_of(spec, scores)
    rights, _ = worst_case(scores, scores.whole, by_sample=by_sample(dependence))
    return rights, dependence

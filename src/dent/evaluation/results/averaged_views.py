"""Compare defenses with a baseline of equal cost: the static model's mean over several views.

A defense that needs 13 forwards per prediction competes with the mean over 13 views of each image
(test-time transformation ensembling), which does not adapt. If a run has such a mean among its
defenses, every other defense is also compared with it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from dent.evaluation.records.spec import STATIC, DefenseSpec
from dent.evaluation.results.result import DefenseResult, OverViews
from dent.evaluation.results.scoring import Scores
from dent.evaluation.results.worst_case import dependence_of, difference_to


def number_of_views(defense: DefenseSpec) -> int | None:
    """Return the number of views that a defense averages; None unless this is all that it does."""
    settings = _settings(defense)
    views = settings.get("views")
    adapts = (
        settings.get("steps") != 0
        or settings.get("smoothing") is not None
        or settings.get("statistics", "train") != "train"
    )
    if adapts or not isinstance(views, Mapping) or views.get("predict") == "image":
        return None
    count = views.get("count")
    return count if isinstance(count, int) else None


def forwards_of(defense: DefenseSpec, relative: float | None) -> float | None:
    """Return the cost of one prediction of a defense, in forwards of the static model.

    For a configuration of `Dent`, the cost is counted: one forward and one backward (counted as
    another forward) for every step and view, and the forwards of the prediction. For any other
    defense, it is the measured cost.

    Args:
        defense: The defense.
        relative: Its measured time divided by the time of a static forward; None if not measured.
    """
    settings = _settings(defense)
    steps = settings.get("steps")
    if not isinstance(steps, int) or "granularity" not in settings:
        return relative
    views = settings.get("views")
    count = views.get("count") if isinstance(views, Mapping) else 1
    if not isinstance(count, int) or not isinstance(views, Mapping):
        return 2 * steps + 1
    return 2 * steps * count + (1 if views.get("predict") == "image" else count)


def over_views(
    defenses: Sequence[DefenseSpec],
    results: Mapping[str, DefenseResult],
    scores: Mapping[str, Scores],
    seed: int,
) -> dict[str, DefenseResult]:
    """Add to each result a comparison with the mean over views whose cost is nearest.

    Every attack must have run on both defenses, because an early stop gives only an upper bound.
    For the same reason, the run must be complete.

    Args:
        defenses: The defenses of the run.
        results: The results by defense name.
        scores: The scores by defense name.
        seed: Seed of the intervals over batches.
    """
    specs = {each.name: each for each in defenses}
    baselines = {each.name: count for each in defenses if (count := number_of_views(each))}
    compared = dict(results)
    for defense in defenses:
        name = defense.name
        forwards = forwards_of(defense, results[name].timing.get("relative"))
        rivals = {key: count for key, count in baselines.items() if key != name}
        if name == STATIC or name in baselines or forwards is None or not rivals:
            continue
        nearest = min(rivals, key=lambda key: (abs(rivals[key] - forwards), rivals[key]))
        if results[name].decided is not None or results[nearest].decided is not None:
            continue
        difference = difference_to(
            scores[nearest],
            scores[name],
            dependence_of(defense, scores[name]),
            seed,
            dependence_of(specs[nearest], scores[nearest]),
        )
        found = OverViews(baseline=nearest, views=rivals[nearest], difference=difference)
        compared[name] = results[name].model_copy(update={"over_views": found})
    return compared


def _settings(defense: DefenseSpec) -> Mapping[str, Any]:
    settings = defense.config.get("settings")
    return settings if isinstance(settings, Mapping) else {}

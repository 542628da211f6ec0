"""The baseline of equal cost: the same model's mean over as many views as a defense costs.

A defense that takes 13 forwards for an answer competes with the mean of 13 views of each image
(test-time transformation ensembling), which adapts nothing. Where a run has such a mean among its
defenses, every other defense is compared with it, too.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from dent.evaluation.records.spec import STATIC, DefenseSpec
from dent.evaluation.results.result import DefenseResult, OverViews
from dent.evaluation.results.scoring import Scores
from dent.evaluation.results.worst_case import dependence_of, difference_to


def views_of(defense: DefenseSpec) -> int | None:
    """Over how many views a defense averages without adapting; None of any other defense."""
    settings = _settings(defense)
    views = settings.get("views")
    adapts = settings.get("steps") != 0 or settings.get("smoothing") is not None
    if adapts or not isinstance(views, Mapping) or views.get("predict") == "image":
        return None
    count = views.get("count")
    return count if isinstance(count, int) else None


def forwards_of(defense: DefenseSpec, relative: float | None) -> float | None:
    """What an answer of a defense costs, in static forwards.

    Of a configuration of `Dent` it is counted: one forward and one backward for every step and
    view, and the prediction. Of any other defense it is what was measured.

    Args:
        defense: The defense.
        relative: Its measured time over that of a static forward.
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
    """Compare each defense with the mean of views whose cost is nearest to its own.

    Only where every attack ran on both: where a run stopped early, what is left is a bound.

    Args:
        defenses: The defenses of the run.
        results: By defense.
        scores: By defense.
        seed: Of intervals over batches.
    """
    baselines = {each.name: count for each in defenses if (count := views_of(each))}
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
            scores[nearest], scores[name], dependence_of(defense, scores[name]), seed
        )
        found = OverViews(baseline=nearest, views=rivals[nearest], difference=difference)
        compared[name] = results[name].model_copy(update={"over_views": found})
    return compared


def _settings(defense: DefenseSpec) -> Mapping[str, Any]:
    settings = defense.config.get("settings")
    return settings if isinstance(settings, Mapping) else {}

"""What the numbers of a run do not show, said on every page that shows them."""

from collections.abc import Iterator

from dent.evaluation.result import EvaluationResult
from dent.evaluation.spec import STATIC, EvaluationSpec
from dent.evaluation.suite import budget_of, looks_through


def limits(result: EvaluationResult) -> tuple[str, ...]:
    """Sentences on what was not run, and on what follows from it; at least one."""
    return tuple(_limits(result))


def _limits(result: EvaluationResult) -> Iterator[str]:
    spec = result.spec
    if result.status == "partial":
        yield (
            f"The run is not finished: {result.units_done} of {result.units_planned} units are "
            "recorded, and every count is over those. Worst cases and differences are over the "
            "batches of which every planned submission is recorded."
        )
    yield (
        "A robust accuracy is what these attacks left standing, an upper bound: a stronger attack "
        "can only lower it."
    )
    if not spec.attacks:
        yield "No attack was run: the numbers are natural accuracies and nothing else."
    if any(defense.name != STATIC for defense in spec.defenses):
        yield from _of_dynamic(result)
    if result.samples:
        widest = max(
            (
                found.worst.served.interval[1] - found.worst.served.interval[0]
                for found in result.defenses.values()
                if found.worst.served.interval is not None
            ),
            default=None,
        )
        if widest is not None:
            yield (
                f"{result.samples} samples were attacked: the 95% interval of a worst case is up "
                f"to {100 * widest:.1f} points wide, for other samples of the same kind, not for "
                "other attacks."
            )


def _of_dynamic(result: EvaluationResult) -> Iterator[str]:
    spec = result.spec
    missing = _known_to_break(spec)
    if spec.attacks and missing:
        yield (
            f"No {' and no '.join(missing)} has been run: other attacks follow at most the "
            "gradient of a defense's final forward, or its replies, and such attacks are known to "
            "break defenses of this kind."
        )
    if spec.attacks and spec.has_static and budget_of(spec) is None:
        yield "There is no verdict: only the whole dynamic suite (--suite dynamic) gives one."
    if not spec.has_static:
        yield "No static reference was attacked: whether a defense adds anything is not known."
    elif not spec.settings.transfer:
        yield "What was found against the static model was not submitted to the defenses."
    if any(
        item.state == "not-run" for found in result.defenses.values() for item in found.diagnostics
    ):
        yield "Some diagnostics were not run; they are listed, and count neither way."


def _known_to_break(spec: EvaluationSpec) -> list[str]:
    """The attacks known to break dynamic defenses that were not run, by what attacks record."""
    configs = [attack.config for attack in spec.attacks]
    missing = []
    if not looks_through(spec):
        missing.append("exact-gradient attack (unrolled through all adaptation steps)")
    if not any("ensemble" in config for config in configs):
        missing.append("attack on model space (GMSA)")
    return missing

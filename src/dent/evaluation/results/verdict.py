"""Derive the verdict on a defense from the dynamic suite.

A measured robust accuracy is only an upper bound, so a claim of a gain carries the burden of proof:
no gate of the defense may be open. "No gain" needs no such proof. "Harmful" claims that the
defense's numbers are not too low and the static model's not too high, so doubts about either
prevent this verdict. Too few batches for an interval prevent both.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from dent.evaluation.records.spec import STATIC, Budget, EvaluationSpec
from dent.evaluation.results.another_attack import BREAKS_MORE, NOT_COMPARED
from dent.evaluation.results.certificate import CERTIFICATE
from dent.evaluation.results.diagnostics import HUGE_EPS
from dent.evaluation.results.gates import (
    FEW_BATCHES,
    LARGE_STEPS,
    MORE_CLASSES,
    OLDER,
    UNFINISHED,
    evidence_of,
    few_batches_gates,
    gain_gates,
    gates_of,
    ground_of,
    run_gates,
    unfinished_gate,
)
from dent.evaluation.results.intervals import sign_test
from dent.evaluation.results.mistakes import AT_CHANCE
from dent.evaluation.results.power import detectable_gain
from dent.evaluation.results.result import (
    Decision,
    DefenseResult,
    Difference,
    Gate,
    Ground,
    Ruling,
    Verdict,
)
from dent.evaluation.results.scoring import Scores
from dent.evaluation.results.worst_case import (
    bootstrap_seed,
    bystander_difference,
    natural_difference,
)
from dent.evaluation.suite_attacks import VERSION
from dent.evaluation.suites import coverage_of
from dent.support.plural import counted
from dent.support.rounding import points, points_bounds

RULES: Final = 7
"""Version of these rules."""
FEW: Final = 0.05
"""A verdict of no gain states the gain that the samples can show, if it is more than this."""

_SCORING: Final = ("randomized", "served differs with gradients")
"""Diagnostics that suggest that the numbers of a defense are too low."""
_ALSO_PREVENT_HARMFUL: Final = (*_SCORING, FEW_BATCHES)
"""Gates of a defense that prevent the verdict *harmful* as well."""
_ONLY_FOR_A_GAIN: Final = (LARGE_STEPS, MORE_CLASSES, NOT_COMPARED, OLDER)
"""Gates that only a claim of a gain needs, so those of the static model do not count. Nets without
a defense curve over large steps, too."""


_LAST: Final = (CERTIFICATE, HUGE_EPS, BREAKS_MORE, UNFINISHED)
"""Gates of checks that may not have run on the static model if every defense was decided early."""


@dataclass(frozen=True)
class Differences:
    """A defense compared with the static model: its accuracies minus the static model's.

    Attributes:
        robust: The difference of the worst cases.
        natural: The difference of the clean accuracies.
        without_static_challenges: `robust` without the challenges to the static model; None if
            there are none. A gain must also hold without them, because nobody may have attacked the
            defense as hard.
        without_own_challenges: `robust` without the challenges to the defense alone; None if there
            are none. A difference below 0 must also hold without them, because nobody may have
            attacked the static model as hard.
        bystanders: The difference on the clean members of attacked batches, without challenges;
            None if batches have none.
    """

    robust: Difference
    natural: Difference
    without_static_challenges: Difference | None = None
    without_own_challenges: Difference | None = None
    bystanders: Difference | None = None


def conclude(
    budget: Budget,
    differences: Differences,
    gates: tuple[Gate, ...],
    static_gates: tuple[Gate, ...],
    *,
    ground: Ground | None,
    version: int = VERSION,
    decided: Decision | None = None,
    guessing: Sequence[str] = (),
) -> Verdict:
    """Return the verdict on a defense.

    Args:
        budget: The budget of the suite.
        differences: The defense compared with the static model.
        gates: The gates of the defense.
        static_gates: The gates of the static model.
        ground: The ground for a gain. Without one, there can be no gain.
        version: The version of the suite.
        decided: Where the attacks stopped early; None if they ran to the end.
        guessing: The names of the models (the static model, the defense) whose clean accuracy is at
            chance.
    """
    ruling, why = _ruling(differences, gates, static_gates, ground)
    if guessing and (STATIC in guessing or ruling in ("robust gain", "no gain")):
        ruling, why = "inconclusive", f"{AT_CHANCE} ({', '.join(guessing)})"
    if decided is not None:
        why = f"{_at_most(decided, differences.robust)}; {why}"
    return Verdict(
        ruling=ruling,
        version=version,
        rules=RULES,
        budget=budget,
        ground=ground if ruling == "robust gain" else None,
        gates=gates,
        static_gates=static_gates,
        natural=differences.natural,
        bystanders=differences.bystanders,
        sentence=(
            f"{ruling[0].upper()}{ruling[1:]} under the dynamic suite ({budget}): {why}. "
            f"Version {version} of the suite, version {RULES} of the rules."
        ),
    )


def _ruling(
    differences: Differences,
    gates: tuple[Gate, ...],
    static_gates: tuple[Gate, ...],
    ground: Ground | None,
) -> tuple[Ruling, str]:
    """Return the ruling and its reason, before decisions and models that guess are considered."""
    side, natural_side = _side(differences.robust), _side(differences.natural)
    opened = [gate.name for gate in gates if gate.open]
    if side == "unknown" or UNFINISHED in opened:
        why = "no batch has finished the suite"
        return "inconclusive", why if side == "unknown" else "the suite has not finished"
    unchallenged = differences.without_own_challenges
    by_challenge = unchallenged is not None and _side(unchallenged) != "below"
    ruled: tuple[Ruling, str]
    if side == "above":
        ruled = _above(differences, opened, ground)
    elif side == "below" and not by_challenge:
        ruled = _below(natural_side, opened, static_gates)
    elif natural_side == "below":
        ruled = _lower_clean_accuracy(opened, static_gates)
    elif side == "below":
        ruled = "no gain", "only challenges to the defense put the difference below 0"
    else:
        ruled = _level(differences.robust)
    if ruled[0] == "harmful" or _side(differences.bystanders) != "below":
        return ruled
    return _harms_bystanders(differences.bystanders, opened)


def _lower_clean_accuracy(
    opened: Sequence[str], static_gates: tuple[Gate, ...]
) -> tuple[Ruling, str]:
    doubts = _of_static(static_gates)  # its robust accuracy may be too high, and hide a gain
    doubts += [FEW_BATCHES] if FEW_BATCHES in opened else []
    if doubts:
        return (
            "inconclusive",
            f"its clean accuracy is lower, but gates are open: {', '.join(doubts)}",
        )
    return "harmful", "clean accuracy is lower, and no robust gain was found"


def _harms_bystanders(difference: Difference | None, opened: Sequence[str]) -> tuple[Ruling, str]:
    why = f"clean members of attacked batches are correct less often: {_shown(difference)} points"
    doubts = [name for name in opened if name in _ALSO_PREVENT_HARMFUL]
    if doubts:
        return "inconclusive", f"{why}, but gates are open: {', '.join(doubts)}"
    return "harmful", why


def _shown(difference: Difference | None) -> str:
    if difference is None or difference.value is None or difference.interval is None:
        return "not scored"
    return f"{points(difference.value)} {points_bounds(difference.interval)}"


def _level(difference: Difference) -> tuple[Ruling, str]:
    samples = counted(difference.total, "sample")
    shown = detectable_gain(difference.total)
    if shown is None:
        return "inconclusive", f"{samples} cannot show any gain"
    why = "the interval of the difference contains 0"
    if difference.interval is not None and not (
        difference.interval[0] <= 0 <= difference.interval[1]
    ):
        why = f"the difference may be chance (exact sign test, p = {_by_chance(difference):.2g})"
    if difference.value == 0 and not difference.only_defended:
        why = "the defense and the static model are correct on the same samples"
    if shown > FEW:
        why += f", and a gain below {points(shown)} points can go unseen with {samples}"
    return "no gain", why


def _at_most(decided: Decision, difference: Difference) -> str:
    most = f"at most {points(decided.at_most)}"
    if difference.interval is not None and difference.value == decided.at_most:
        most += f" {points_bounds(difference.interval)}"
    if not decided.after:
        return f"{most} after transfer from the static model"
    return f"{most} after {decided.after} of {counted(decided.of, 'attack')}"


def _above(
    differences: Differences, opened: Sequence[str], ground: Ground | None
) -> tuple[Ruling, str]:
    unchallenged = differences.without_static_challenges
    if unchallenged is not None and _side(unchallenged) != "above":
        return "no gain", "only challenges to the static model put the difference above 0"
    if detectable_gain(differences.robust.total) is None:
        samples = counted(differences.robust.total, "sample")
        return "inconclusive", f"{samples} cannot show any gain"
    if opened:
        return "inconclusive", f"its worst case is higher, but gates are open: {', '.join(opened)}"
    if ground is None:
        return "inconclusive", "its worst case is higher, but no gradient is certified"
    why = f"the whole interval of the difference lies above 0 ({ground})"
    if unchallenged is not None and _less(unchallenged, differences.robust):
        why += f"; without challenges to the static model: {_shown(unchallenged)} points"
    if _side(differences.natural) == "below":
        why += f", but clean accuracy is lower: {_shown(differences.natural)} points"
    if differences.bystanders is not None:
        why += f"; clean members of attacked batches: {_shown(differences.bystanders)} points"
    return "robust gain", why


def _below(
    natural_side: str, opened: Sequence[str], static_gates: tuple[Gate, ...]
) -> tuple[Ruling, str]:
    doubts = _of_static(static_gates)
    doubts += [name for name in opened if name in _ALSO_PREVENT_HARMFUL]
    if doubts:
        return "inconclusive", f"its worst case is lower, but gates are open: {', '.join(doubts)}"
    if natural_side == "below":
        return "harmful", "robust and clean accuracy are lower than the static model's"
    return "harmful", "robust accuracy is lower than the static model's"


def _of_static(static_gates: tuple[Gate, ...]) -> list[str]:
    return [f"{gate.name} (static model)" for gate in static_gates if gate.open]


def with_verdicts(
    results: Mapping[str, DefenseResult],
    scores: Mapping[str, Scores],
    spec: EvaluationSpec,
    *,
    complete: bool,
    without_static_challenges: Mapping[str, Difference],
    without_own_challenges: Mapping[str, Difference],
) -> dict[str, DefenseResult]:
    """Add a verdict to each defense, if the run has the whole suite and a static model.

    Args:
        results: The results by name, without verdicts.
        scores: The scores by name.
        spec: The specification.
        complete: Whether every planned unit is recorded.
        without_static_challenges: By name, the difference without the challenges to the static
            model; empty if there are no such challenges.
        without_own_challenges: By name, the difference without the challenges to the defense alone,
            for defenses that have some.
    """
    coverage = coverage_of(spec)
    if coverage is None or STATIC not in results:
        return dict(results)
    evidence = {
        name: evidence_of(result, scores[name], spec, coverage.ran_as)
        for name, result in results.items()
    }
    unfinished = () if complete else (unfinished_gate(),)
    of_run = run_gates(spec) + unfinished
    static_gates = gates_of(results[STATIC].diagnostics, evidence[STATIC]) + unfinished
    static_gates = tuple(gate for gate in static_gates if gate.name not in _ONLY_FOR_A_GAIN)
    judged = dict(results)
    for name, result in results.items():
        if result.difference is None:
            continue
        own_gates = gates_of(result.diagnostics, evidence[name])
        own_gates += few_batches_gates(result, len(scores[name].whole)) + of_run
        own, static = ((evidence[each], scores[each]) for each in (name, STATIC))
        own_gates += gain_gates(result, own, static)
        doubts = static_gates
        if result.decided is not None:  # checks that only a claim of a gain needs did not run
            own_gates = tuple(gate for gate in own_gates if gate.name in _ALSO_PREVENT_HARMFUL)
            if not result.decided.below:
                doubts = tuple(gate for gate in static_gates if gate.name not in _LAST)
        compared = (scores[STATIC], scores[name], result.dependence, bootstrap_seed(spec))
        differences = Differences(
            robust=result.difference,
            natural=natural_difference(*compared),
            without_static_challenges=without_static_challenges.get(name),
            without_own_challenges=without_own_challenges.get(name),
            bystanders=bystander_difference(*compared),
        )
        verdict = conclude(
            coverage.budget,
            differences,
            own_gates,
            doubts,
            ground=ground_of(result.diagnostics, evidence[name]),
            version=coverage.version,
            decided=result.decided,
            guessing=[each for each in (STATIC, name) if _guesses(results[each])],
        )
        judged[name] = result.model_copy(update={"verdict": verdict})
    return judged


def _guesses(result: DefenseResult) -> bool:
    return any(diagnostic.name == AT_CHANCE for diagnostic in result.raised)


def _less(first: Difference, second: Difference) -> bool:
    return (first.value or 0.0) < (second.value or 0.0)


def _side(difference: Difference | None) -> Literal["above", "below", "level", "unknown"]:
    if difference is None or difference.interval is None:
        return "unknown"
    low, high = difference.interval
    if _by_chance(difference) >= 1 - difference.level:
        return "level"
    return "above" if low > 0 else "below" if high < 0 else "level"


def _by_chance(difference: Difference) -> float:
    """Return the p-value of the sign test, which also keeps its level for few samples."""
    return sign_test(difference.only_defended, difference.only_static)

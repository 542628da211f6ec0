"""Numbers, names and findings as text, the same in every format."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Final, Literal

from dent.evaluation.records.spec import EvaluationSpec
from dent.evaluation.results.result import (
    AttackSummary,
    ChallengeSummary,
    Count,
    DefenseResult,
    Difference,
    EvaluationResult,
    Repeated,
    Verdict,
)
from dent.evaluation.results.worst_case import MIN_CLUSTERS, independent_members
from dent.evaluation.subject import threat_of
from dent.support import rounding
from dent.support.plural import counted

NOT_SCORED: Final = "not scored"

Reading = Literal["above", "below", "level", "unknown"]


def percent(share: float | None) -> str:
    """Format a share: `43.8%`, or `not scored`."""
    return NOT_SCORED if share is None else rounding.percent(share)


def interval(bounds: tuple[float, float] | None) -> str:
    """Format an interval of shares in percent: `[38.1, 49.6]`; empty without an interval."""
    return "" if bounds is None else rounding.percent_bounds(bounds)


def count(accuracy: Count) -> str:
    """Format an accuracy with its interval: `43.8% [38.1, 49.6]`."""
    return " ".join(filter(None, (percent(accuracy.share), interval(accuracy.interval))))


def of(accuracy: Count) -> str:
    """Format the counts of an accuracy: `112 of 256`."""
    return f"{accuracy.correct} of {accuracy.total}"


def points(value: float | None) -> str:
    """Format a difference in percentage points with its sign: `+1.2`, `−3.1`, `0.0`."""
    return NOT_SCORED if value is None else rounding.points(value)


def points_interval(bounds: tuple[float, float] | None) -> str:
    """Format an interval in percentage points: `[−6.2, +0.3]`; empty without an interval."""
    return "" if bounds is None else rounding.points_bounds(bounds)


def difference(paired: Difference | None) -> str:
    """Format a difference with its interval: `−3.1 [−6.2, +0.3]`; empty without one."""
    if paired is None:
        return ""
    return " ".join(filter(None, (points(paired.value), points_interval(paired.interval))))


def reading(paired: Difference | None) -> Reading:
    """Return on which side of 0 the interval of a difference lies; `level` if it contains 0."""
    if paired is None or paired.interval is None:
        return "unknown"
    low, high = paired.interval
    return "above" if low > 0 else "below" if high < 0 else "level"


READINGS: Final[dict[Reading, str]] = {
    "above": "above the static model under these attacks",
    "below": "below the static model under these attacks",
    "level": "not significantly different from the static model",
    "unknown": "not compared with a static model",
}


def findings(result: DefenseResult) -> tuple[str, ...]:
    """Return the findings about a defense, in sentences.

    They are about its challenges, the verdict, the best rung of the gradient ladder, and the
    resubmission risk.
    """
    ladder = () if result.ladder is None else (result.ladder.sentence,)
    outside = tuple(map(challenged, result.challenges))
    return outside + verdict(result.verdict) + ladder + resubmission(result.repeated)


def resubmission(repeated: Repeated | None) -> tuple[str, ...]:
    """Return one sentence with the resubmission risk; nothing if the defense is not randomized."""
    if repeated is None or not repeated.risk:
        return ()
    counts = [n for n in (1, 2, 5, 10) if n < repeated.draws] + [repeated.draws]
    shares = ", ".join(f"{percent(repeated.risk[n - 1])} in {n}" for n in counts)
    natural = f"{percent(repeated.natural_risk[-1])} in {repeated.draws}"
    what = "the share of samples that at least one of N submissions gets wrong"
    return (f"Resubmission risk, {what}: {shares}. Of natural images {natural}.",)


def indicators(result: DefenseResult) -> tuple[str, ...]:
    """Return the raised indicators of attack failure of all attacks on a defense, in sentences."""
    return tuple(
        f"{attack.attack}, {indicator.name}: {indicator.sentence}"
        for attack in result.attacks
        for indicator in attack.indicators
        if indicator.raised
    )


def challenged(entry: ChallengeSummary) -> str:
    """Return one sentence about a challenge: who made it, and how far the worst case fell."""
    day, link = entry.date[:10], f", {entry.url}" if entry.url else ""
    left = f"{entry.correct} of {counted(entry.total, 'sample')} still correct"
    if not entry.lowered:
        return f"Challenged by {entry.by} ({day}{link}): {left}, and the worst case did not fall."
    fell = counted(entry.lowered, "sample")
    return f"Broken by {entry.by} ({day}{link}): {left}, and the worst case fell by {fell}."


def verdict(ruling: Verdict | None) -> tuple[str, ...]:
    """Return a verdict in sentences: the ruling, the differences on clean images, and each gate.

    The gates are all gates of the defense and the open ones of the static model. Without a verdict,
    there are no sentences.
    """
    if ruling is None:
        return ()
    shown = [(gate, "") for gate in ruling.gates]
    shown += [(gate, " (static model)") for gate in ruling.static_gates if gate.open]
    return (
        ruling.sentence,
        f"Clean accuracy against static: {difference(ruling.natural) or NOT_SCORED} points.",
        *(
            f"Clean members of attacked batches against static: {difference(each)} points."
            for each in (ruling.bystanders,)
            if each is not None
        ),
        *(
            f"Gate {gate.name}{owner}, {'open' if gate.open else 'closed'}: {gate.sentence}"
            for gate, owner in shown
        ),
    )


def submitted(kind: str, attack: str | None, by: str | None = None) -> str:
    """Return the description of a submission. That of a challenge names who made it."""
    return {
        "natural": "natural images",
        "attack": f"{attack} through the defense",
        "transfer": f"{attack} transferred from static",
        "assembled": "assembled from the images that broke each member",
        "challenge": f"challenge by {by or attack}",
    }[kind]


def submission(summary: AttackSummary) -> str:
    """Return the description of an attack's submission."""
    return submitted(summary.kind, summary.attack, summary.by)


def decided(name: str, challenges: Sequence[ChallengeSummary] = ()) -> str:
    """Return the description of the submission that a key of `WorstCase.by` names.

    Args:
        name: The key, such as `attack/apgd-ce`.
        challenges: The challenges of the defense.
    """
    kind, _, attack = name.partition("/")
    by = next((entry.by for entry in challenges if entry.key == name), None)
    return submitted(kind, attack or None, by)


def few_batches(result: EvaluationResult, defense: DefenseResult) -> int | None:
    """Return the number of batches of a finished run if an interval over batches needs more.

    None if they are enough, or if members of a batch are independent. Also None for a run in
    progress, because its difference is over the scored batches alone, and names their number.
    """
    if independent_members(defense.dependence) or result.status != "complete":
        return None
    return result.batches if result.batches < MIN_CLUSTERS else None


def interval_of(difference: Difference, few_batches: int | None) -> str:
    """Return how the interval of a difference was made and what it assumes, in sentences.

    Args:
        difference: The difference.
        few_batches: The number of batches if they are too few for an interval over batches.
    """
    if few_batches is not None:
        method = difference.method
        return (
            f"{method[:1].upper()}{method[1:]} interval. It treats samples as independent, but "
            "members of a batch share an adaptation. A bootstrap over batches needs "
            f"{counted(MIN_CLUSTERS, 'batch')}; this run has {few_batches}."
        )
    return f"Interval: {difference.method}. It assumes {difference.assumes}."


def seconds(value: float | None) -> str:
    """Format a duration: `0.031 s`, `4.2 s`, `3 min 20 s`, `2 h 5 min`, or `not measured`."""
    if value is None:
        return "not measured"
    if value < 100:
        return f"{value:.2g} s" if value < 10 else f"{value:.0f} s"
    rounded = timedelta(seconds=round(value))
    minutes, remainder = divmod(int(rounded.total_seconds()), 60)
    if minutes < 60:
        return f"{minutes} min {remainder} s"
    return f"{minutes // 60} h {minutes % 60} min"


def nats(value: float) -> str:
    """Format an entropy: `0.935`; `<0.001` if it is small but not 0."""
    return "<0.001" if 0 < value < 0.0005 else f"{value:.3f}"


def batches(result: EvaluationResult) -> str:
    """Format the number and size of the batches of a run: `4 batches of 64`."""
    return f"{counted(result.batches, 'batch')} of {result.spec.settings.batch_size}"


def sigma(values: Sequence[float]) -> str:
    """Format sigma in pixels: one value, or one along each axis."""
    return " × ".join(f"{value:.3f}" for value in values)


def short(value: float) -> str:
    """Format the value or threshold of a diagnostic with three digits."""
    return f"{value:.3g}".replace("-", rounding.MINUS)


def title(spec: EvaluationSpec) -> str:
    """Return model, dataset and threat model of a run in one line.

    With public randomness, the line says so.
    """
    randomness = ", public randomness" if spec.settings.randomness == "public" else ""
    return f"{spec.model.name} on {spec.dataset.name}, {threat_of(spec.threat).label}{randomness}"

"""Numbers, names and findings as text, the same in every format."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Final, Literal

from dent.evaluation.records.spec import STATIC, EvaluationSpec
from dent.evaluation.results.intervals import BY_BATCH
from dent.evaluation.results.result import (
    AttackSummary,
    ChallengeSummary,
    Count,
    Decision,
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
NOTHING_YET: Final = "nothing to compare yet"
AT_MOST: Final = "at most "

_METHODS: Final = {
    "tango": "Tango's score interval for paired samples",
    "wider of tango on the majority of draws and student on their means": (
        "the wider of Tango's score interval on the majority of draws and Student's t on their "
        "means"
    ),
}
"""By the method in a record, the words for it."""

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


def bound(text: str, decided: Decision | None) -> str:
    """Say `at most` before a worst case or difference if the run stopped early on its defense.

    Args:
        text: The number; empty without one.
        decided: Where the attacks stopped; None if they did not.
    """
    return f"{AT_MOST}{text}" if decided is not None and text else text


def stop(decided: Decision) -> str:
    """Return how many attacks on a defense were complete when the run stopped on it."""
    attacks = f"{counted(decided.of, 'attack')} on it"
    if decided.after:
        return f"after {decided.after} of {attacks}"
    return f"after transfers, with 0 of {attacks} complete"


def gain(paired: Difference | None, decided: Decision | None) -> str:
    """Format a difference, and for a run that stopped early how many attacks were complete.

    Such as `at most +0.4 [−1.2, +2.0], after 3 of 16 attacks on it`; empty without a difference.
    """
    text = difference(paired)
    if decided is None or not text:
        return text
    return f"{bound(text, decided)}, {stop(decided)}"


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
    "unknown": NOTHING_YET,
}


def findings(result: DefenseResult) -> tuple[str, ...]:
    """Return the findings about a defense, in sentences.

    They are about its challenges, the verdict, the best rung of the gradient ladder, and the
    resubmission risk.
    """
    ladder = () if result.ladder is None else (result.ladder.sentence,)
    outside = tuple(challenged(entry, result.decided) for entry in result.challenges)
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


def challenged(entry: ChallengeSummary, decided: Decision | None) -> str:
    """Return one sentence about a challenge: who made it, and how far the worst case fell.

    Args:
        entry: The challenge.
        decided: Where the attacks on the defense stopped early; None if they did not.
    """
    day, link = entry.date[:10], f", {entry.url}" if entry.url else ""
    left = f"{entry.correct} of {counted(entry.total, 'sample')} still correct"
    if not entry.lowered:
        return f"Challenged by {entry.by} ({day}{link}): {left}, and the worst case did not fall."
    fell = counted(entry.lowered, "sample")
    what = "the worst case"
    if decided is not None:
        what += ", an upper bound because the run stopped early,"
    return f"Lowered by {entry.by} ({day}{link}): {left}, and {what} fell by {fell}."


def verdict(ruling: Verdict | None) -> tuple[str, ...]:
    """Return a verdict in sentences: the ruling, differences on clean images, and each doubt.

    The gates are all gates of the defense and the open ones of the static model. Without a verdict,
    there are no sentences.
    """
    if ruling is None:
        return ()
    shown = [(gate, "") for gate in ruling.gates]
    shown += [(gate, ", static model") for gate in ruling.static_gates if gate.open]
    return (
        ruling.sentence,
        f"Clean accuracy against static: {_in_points(ruling.natural)}.",
        *(
            f"Clean members of attacked batches against static: {_in_points(each)}."
            for each in (ruling.bystanders,)
            if each is not None
        ),
        *(
            f"{'Open' if gate.open else 'Settled'} doubt ({gate.name}{owner}): {gate.sentence}"
            for gate, owner in shown
        ),
    )


def _in_points(paired: Difference) -> str:
    return NOTHING_YET if paired.value is None else f"{difference(paired)} points"


def submitted(
    kind: str, attack: str | None, by: str | None = None, *, is_static: bool = False
) -> str:
    """Return the description of a submission.

    Args:
        kind: Its kind, as in `AttackSummary`.
        attack: Name of the attack. Of an assembled batch: the attack after which it was made.
        by: Who made the images of a challenge.
        is_static: Whether it was submitted to the static model.
    """
    after = f", after {attack}" if attack else ""
    return {
        "natural": "natural images",
        "attack": f"{attack} {'on the model' if is_static else 'through the defense'}",
        "transfer": f"{attack} transferred from static",
        "assembled": f"assembled from the images that broke each member{after}",
        "challenge": f"challenge by {by or attack}",
    }[kind]


def submission(summary: AttackSummary, defense: str) -> str:
    """Return the description of an attack's submission to a defense."""
    return submitted(summary.kind, summary.attack, summary.by, is_static=defense == STATIC)


def decided(
    name: str, challenges: Sequence[ChallengeSummary] = (), *, is_static: bool = False
) -> str:
    """Return the description of the submission that a key of `WorstCase.by` names.

    Args:
        name: The key, such as `attack/apgd-ce`. All assembled batches have one description.
        challenges: The challenges of the defense.
        is_static: Whether it was submitted to the static model.
    """
    kind, _, attack = name.partition("/")
    by = next((entry.by for entry in challenges if entry.key == name), None)
    attack = "" if kind == "assembled" else attack
    return submitted(kind, attack or None, by, is_static=is_static)


def deciders(result: DefenseResult, defense: str) -> dict[str, int]:
    """Return how many samples or batches each kind of submission decided, by its description."""
    counts: dict[str, int] = {}
    for name, count in result.worst.by.items():
        what = decided(name, result.challenges, is_static=defense == STATIC)
        counts[what] = counts.get(what, 0) + count
    return counts


def attacked_and_broken(summary: AttackSummary) -> str:
    """Return how many members an attack attacked itself, and how many of these it broke: `425, 3`.

    Other members had already fallen to earlier attacks, and count in its accuracy.
    """
    served = summary.served
    broken = served.total - served.correct - summary.carried
    return f"{served.total - summary.carried}, {max(broken, 0)}"


def carries(result: EvaluationResult) -> tuple[str, ...]:
    """Return the defenses on which attacks left out members that earlier attacks broke."""
    return tuple(
        name
        for name, defense in result.defenses.items()
        if any(attack.carried for attack in defense.attacks)
    )


def carried(result: EvaluationResult) -> str:
    """Return a sentence on attacks that left out members; empty if there are none."""
    names = carries(result)
    if not names:
        return ""
    return (
        f"On {', '.join(names)}, an attack leaves out members that earlier attacks of its kind "
        "broke, and its accuracy includes them. So do not compare one attack between defenses: "
        "compare worst cases."
    )


def not_run(result: EvaluationResult, defense: str) -> str:
    """Return a sentence with the attacks that did not run on a defense; empty without any."""
    found = result.defenses[defense]
    names = [each.attack or "" for each in found.attacks if each.kind == "attack"]
    missing = [name for name in names if not found.attack(name).batches]
    if not missing:
        return ""
    if found.decided is not None:
        return f"Not run, because the run stopped: {', '.join(missing)}."
    if result.status == "partial":
        return f"Not run yet: {', '.join(missing)}."
    return f"Not run, because nothing was left to attack: {', '.join(missing)}."


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
        method = _method(difference)
        return (
            f"Interval: {method}. It treats samples as independent, but "
            "members of a batch share an adaptation. A bootstrap over batches needs "
            f"{counted(MIN_CLUSTERS, 'batch')}; this run has {few_batches}."
        )
    return f"Interval: {_method(difference)}. It assumes {difference.assumes}."


def _method(difference: Difference) -> str:
    """Return the method of an interval in the words of a reader. Records keep shorter ones."""
    before, after = BY_BATCH.split("{}")
    inner = difference.method.removeprefix(before).removesuffix(after)
    method = _METHODS.get(inner, inner)
    if inner == difference.method:
        return method
    return f"the widest of {method}, a bootstrap over batches, and Student's t on batch means"


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


def attacks(spec: EvaluationSpec) -> str:
    """Return the attacks of a run with their protocol, which is said once if all have the same."""
    protocols = {attack.protocol for attack in spec.attacks}
    if len(spec.attacks) > 1 and len(protocols) == 1:
        names = ", ".join(attack.name for attack in spec.attacks)
        return f"{names} (all {protocols.pop()})"
    return ", ".join(f"{attack.name} ({attack.protocol})" for attack in spec.attacks) or "none"


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

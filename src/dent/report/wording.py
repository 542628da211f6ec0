"""How numbers and names are said, the same in every format."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Final, Literal

from dent.evaluation.records.spec import EvaluationSpec
from dent.evaluation.results.result import (
    AttackSummary,
    Count,
    DefenseResult,
    Difference,
    EvaluationResult,
    Verdict,
)
from dent.evaluation.subject import threat_of
from dent.support import rounding
from dent.support.plural import counted

NOT_SCORED: Final = "not scored"

Reading = Literal["above", "below", "level", "unknown"]


def percent(share: float | None) -> str:
    """`43.8%`; `not scored` where there is nothing to take a share of."""
    return NOT_SCORED if share is None else rounding.percent(share)


def interval(bounds: tuple[float, float] | None) -> str:
    """`[38.1, 49.6]`, in percent; empty where there is none."""
    return "" if bounds is None else rounding.percent_bounds(bounds)


def count(found: Count) -> str:
    """`43.8% [38.1, 49.6]`."""
    return " ".join(filter(None, (percent(found.share), interval(found.interval))))


def of(found: Count) -> str:
    """`112 of 256`."""
    return f"{found.correct} of {found.total}"


def points(value: float | None) -> str:
    """A difference in percentage points, its sign always shown: `+1.2`, `−3.1`, `0.0`."""
    return NOT_SCORED if value is None else rounding.points(value)


def points_interval(bounds: tuple[float, float] | None) -> str:
    """`[−6.2, +0.3]`, in percentage points."""
    return "" if bounds is None else rounding.points_bounds(bounds)


def difference(found: Difference | None) -> str:
    """`−3.1 [−6.2, +0.3]`."""
    if found is None:
        return ""
    return " ".join(filter(None, (points(found.value), points_interval(found.interval))))


def reading(found: Difference | None) -> Reading:
    """On which side of the static worst case the whole interval lies."""
    if found is None or found.interval is None:
        return "unknown"
    low, high = found.interval
    return "above" if low > 0 else "below" if high < 0 else "level"


READINGS: Final[dict[Reading, str]] = {
    "above": "above the static model under these attacks",
    "below": "below the static model under these attacks",
    "level": "not told apart from the static model by these samples",
    "unknown": "not compared with a static model",
}


def findings(found: DefenseResult) -> tuple[str, ...]:
    """The verdict on a defense, and which rung of the gradient ladder won, in sentences."""
    ladder = () if found.ladder is None else (found.ladder.sentence,)
    return verdict(found.verdict) + ladder


def verdict(found: Verdict | None) -> tuple[str, ...]:
    """A verdict in sentences: it, the clean accuracies, and each gate; none where there is none.

    The static model's gates are among them where they are open.
    """
    if found is None:
        return ()
    shown = [(gate, "") for gate in found.gates]
    shown += [(gate, " of the static model") for gate in found.static_gates if gate.open]
    return (
        found.sentence,
        f"Clean accuracy against static: {difference(found.natural) or NOT_SCORED} points.",
        *(
            f"Gate {gate.name}{whose}, {'open' if gate.open else 'closed'}: {gate.sentence}"
            for gate, whose in shown
        ),
    )


def submitted(kind: str, attack: str | None) -> str:
    """What was submitted to a defense, in words."""
    return {
        "natural": "natural images",
        "attack": f"{attack} through the defense",
        "transfer": f"{attack} transferred from static",
        "assembled": "assembled from what broke each member",
    }[kind]


def submission(found: AttackSummary) -> str:
    """What an attack submitted, in words."""
    return submitted(found.kind, found.attack)


def decided(name: str) -> str:
    """A key of `WorstCase.by`, in words."""
    kind, _, attack = name.partition("/")
    return submitted(kind, attack or None)


def seconds(value: float | None) -> str:
    """`0.031 s`, `4.2 s`, `3 min 20 s`, `2 h 5 min`."""
    if value is None:
        return "not measured"
    if value < 100:
        return f"{value:.2g} s" if value < 10 else f"{value:.0f} s"
    whole = timedelta(seconds=round(value))
    minutes, rest = divmod(int(whole.total_seconds()), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def nats(value: float) -> str:
    """An entropy: `0.935`; one that is small but not 0 says so."""
    return "<0.001" if 0 < value < 0.0005 else f"{value:.3f}"


def batches(result: EvaluationResult) -> str:
    """`4 batches of 64`."""
    return f"{counted(result.batches, 'batch')} of {result.spec.settings.batch_size}"


def sigma(values: Sequence[float]) -> str:
    """Sigma in pixels: one, or one along each axis."""
    return " × ".join(f"{value:.3f}" for value in values)


def short(value: float) -> str:
    """Three digits: the value or threshold of a diagnostic."""
    return f"{value:.3g}".replace("-", rounding.MINUS)


def title(spec: EvaluationSpec) -> str:
    """What a run evaluated, in one line."""
    return f"{spec.model.name} on {spec.dataset.name}, {threat_of(spec.threat).label}"

"""The headline of a result as one value, which every format draws with the same figures.

A row is a defense; a column is what is known of it. A cell has its figure as a number and as it is
written, so that no format rounds for itself. `tests/report/test_report_headline.py` holds the
terminal, Markdown, HTML and the picture to it.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Final

from dent.evaluation import AttackSummary, Count, DefenseResult, Difference, EvaluationResult
from dent.evaluation.records.spec import STATIC
from dent.report import wording
from dent.report.flags import Flag, Flags, of_one
from dent.support import rounding

NATURAL: Final = "natural"
BYSTANDERS: Final = "bystanders"
WORST: Final = "worst"
STATIC_WORST: Final = "static"
DIFFERENCE: Final = "difference"
VERDICT: Final = "verdict"
COST: Final = "cost"

_SUBMITTED: Final = {"attack": "{}", "transfer": "{} replayed", "assembled": "assembled"}


@dataclass(frozen=True)
class Column:
    """What is known of every defense.

    Attributes:
        key: It, for programs: `natural`, `attack/apgd-ce`, `worst`, ...
        title: It, for people.
    """

    key: str
    title: str


@dataclass(frozen=True)
class Cell:
    """One figure, or why there is none.

    Attributes:
        text: The figure as it is written; where there is none, the reason, or nothing.
        value: The figure: a share of 1, a difference of shares, or a factor.
        interval: Its 95% interval.
        interval_text: The interval as it is written.
        of: What it is a share of: `112 of 256`.
        beside: Of a batch attacked in part, the figure of its other members.
        marks: The flags that throw doubt on it.
    """

    text: str = ""
    value: float | None = None
    interval: tuple[float, float] | None = None
    interval_text: str = ""
    of: str = ""
    beside: str = ""
    marks: tuple[Flag, ...] = ()

    @property
    def full(self) -> str:
        """The figure with its interval: `43.8% [38.1, 49.6]`."""
        return " ".join(filter(None, (self.text, self.interval_text)))


@dataclass(frozen=True)
class Row:
    """A defense.

    Attributes:
        defense: Its name.
        unit: What its worst case is taken per: sample or batch.
        marks: Its flags.
        cells: By the key of the column; every column has one.
    """

    defense: str
    unit: str
    marks: tuple[Flag, ...]
    cells: Mapping[str, Cell]


@dataclass(frozen=True)
class Headline:
    """The table.

    Attributes:
        columns: In order: clean accuracy, what was submitted, the worst case, the static one, the
            difference, the verdict, the cost.
        rows: The defenses, in the order of the evaluation.
    """

    columns: tuple[Column, ...]
    rows: tuple[Row, ...]

    @property
    def submitted(self) -> tuple[Column, ...]:
        """The columns of what was submitted to the defenses."""
        return tuple(each for each in self.columns if each.key.partition("/")[0] in _SUBMITTED)

    def title(self, key: str) -> str:
        """The title of a column."""
        return next(each.title for each in self.columns if each.key == key)

    def has(self, key: str) -> bool:
        """Whether there is such a column."""
        return any(each.key == key for each in self.columns)

    def row(self, defense: str) -> Row:
        """The row of a defense."""
        return next(each for each in self.rows if each.defense == defense)


def headline(result: EvaluationResult, flags: Flags | None = None) -> Headline:
    """The headline of a result.

    Args:
        result: It.
        flags: All flags of the page; those of this result alone if None.
    """
    flags = flags or of_one(result)
    columns = tuple(_columns(result))
    rows = []
    for name, found in result.defenses.items():
        marks = flags.marks(result, name)
        both = flags.marks_of_difference(result, name)
        known = dict(_cells(found, marks, both))
        if found.difference is not None:
            known[STATIC_WORST] = of_count(found.difference.static, flags.marks(result, STATIC))
        cells = {each.key: known.get(each.key, Cell()) for each in columns}
        rows.append(Row(name, found.worst.unit, marks, cells))
    return Headline(columns, tuple(rows))


def _columns(result: EvaluationResult) -> Iterator[Column]:
    defenses = result.defenses.values()
    yield Column(NATURAL, "clean")
    if any(found.bystanders.total for found in defenses):
        yield Column(BYSTANDERS, "clean members")
    kinds = dict.fromkeys((each.kind, each.attack) for found in defenses for each in found.attacks)
    for kind, attack in sorted(kinds, key=lambda each: list(_SUBMITTED).index(each[0])):
        yield Column(_key(kind, attack), _SUBMITTED[kind].format(attack))
    yield Column(WORST, "worst case")
    if STATIC in result.defenses:
        yield Column(STATIC_WORST, "static")
    yield Column(DIFFERENCE, "against static, points")
    if any(found.verdict for found in defenses):
        yield Column(VERDICT, "verdict")
    yield Column(COST, "cost")


def _cells(
    found: DefenseResult, marks: tuple[Flag, ...], both: tuple[Flag, ...]
) -> Iterator[tuple[str, Cell]]:
    yield NATURAL, of_count(found.natural, marks)
    if found.bystanders.total:
        yield BYSTANDERS, of_count(found.bystanders, marks)
    for attack in found.attacks:
        yield _key(attack.kind, attack.attack), _of_attack(attack, marks)
    yield WORST, of_count(found.worst.served, marks)
    yield DIFFERENCE, of_difference(found.difference, both)
    if found.verdict is not None:
        yield VERDICT, Cell(found.verdict.ruling, marks=marks)
    yield COST, _of_cost(found.timing.get("relative"), marks)


def _key(kind: str, attack: str | None) -> str:
    return kind if attack is None else f"{kind}/{attack}"


def of_count(found: Count, marks: tuple[Flag, ...] = ()) -> Cell:
    """The cell of a share; of what was not scored it says so."""
    return Cell(
        text=wording.percent(found.share),
        value=found.share,
        interval=found.interval,
        interval_text=wording.interval(found.interval),
        of=wording.of(found) if found.total else "",
        marks=marks,
    )


def of_difference(found: Difference | None, marks: tuple[Flag, ...] = ()) -> Cell:
    """The cell of a difference; empty where nothing is compared."""
    if found is None:
        return Cell()
    return Cell(
        text=wording.points(found.value),
        value=found.value,
        interval=found.interval,
        interval_text=wording.points_interval(found.interval),
        marks=marks,
    )


def _of_attack(found: AttackSummary, marks: tuple[Flag, ...]) -> Cell:
    beside = wording.percent(found.bystanders.share) if found.bystanders.total else ""
    return replace(of_count(found.served, marks), beside=beside)


def _of_cost(relative: float | None, marks: tuple[Flag, ...]) -> Cell:
    if relative is None:
        return Cell()
    return Cell(rounding.factor(relative), relative, marks=marks)

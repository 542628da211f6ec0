"""The headline table of a result as one object, which every format draws.

A row is a defense, and a column is one figure for it. A cell has the figure both as a number and as
text, so that no format rounds it again. `tests/report/test_report_headline.py` checks that the
terminal, Markdown, HTML and the picture agree with it.

The terminal and Markdown show every column. The templates `run.html.j2` and `compare.html.j2` and
the picture (`figures.py`) choose columns by key, so a new column must be added there. CSV and JSON
have rows of their own, in `rows.py`.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Final

from dent.evaluation import AttackSummary, Count, DefenseResult, Difference, EvaluationResult
from dent.evaluation.records.spec import STATIC, EvaluationSpec
from dent.evaluation.results.result import Decision, OverViews
from dent.report import wording
from dent.report.flags import Flag, Flags, of_one
from dent.support import rounding

NATURAL: Final = "natural"
BYSTANDERS: Final = "bystanders"
WORST: Final = "worst"
STATIC_WORST: Final = "static"
DIFFERENCE: Final = "difference"
OVER_VIEWS: Final = "over-views"
VERDICT: Final = "verdict"
COST: Final = "cost"

_SUBMITTED: Final = {
    "attack": "{}",
    "transfer": "{}, transferred",
    "assembled": "assembled",
    "challenge": "challenge by {}",
}


@dataclass(frozen=True)
class Column:
    """A column of the table: one figure for every defense.

    Attributes:
        key: Name of the column for programs: `natural`, `attack/apgd-ce`, `worst`, ...
        title: Heading of the column.
    """

    key: str
    title: str


@dataclass(frozen=True)
class Cell:
    """One figure, or why there is none.

    Attributes:
        text: The figure as text. Without a figure, the reason, or empty.
        value: The figure: a share between 0 and 1, a difference of shares, or a factor.
        interval: Its confidence interval.
        interval_text: The interval as text.
        of: The counts of a share: `112 of 256`.
        beside: The accuracy of the clean members as text, if only part of the batch is attacked.
        marks: The flags of the figure.
        bound: Whether it is an upper bound, because the run stopped early on the defense.
        carried: Of an attack, whether it left out members that earlier attacks broke.
    """

    text: str = ""
    value: float | None = None
    interval: tuple[float, float] | None = None
    interval_text: str = ""
    of: str = ""
    beside: str = ""
    marks: tuple[Flag, ...] = ()
    bound: bool = False
    carried: bool = False

    @property
    def shown(self) -> str:
        """The figure: `43.8%`, or `at most 43.8%`."""
        return f"{wording.AT_MOST}{self.text}" if self.bound and self.text else self.text

    @property
    def full(self) -> str:
        """The figure with its interval: `43.8% [38.1, 49.6]`, or `at most 43.8% [38.1, 49.6]`."""
        return " ".join(filter(None, (self.shown, self.interval_text)))


@dataclass(frozen=True)
class Row:
    """The row of a defense.

    Attributes:
        defense: Name of the defense.
        unit: Whether its worst case is per `sample` or per `batch`.
        marks: Its flags.
        cells: The cell of every column, by the column's key.
    """

    defense: str
    unit: str
    marks: tuple[Flag, ...]
    cells: Mapping[str, Cell]


@dataclass(frozen=True)
class Headline:
    """The headline table.

    Attributes:
        columns: In order: clean accuracy, each submission, the worst case, the static model's worst
            case, the difference to it, the difference to averaged views, the verdict, the cost.
        rows: The defenses, in the order of the evaluation.
    """

    columns: tuple[Column, ...]
    rows: tuple[Row, ...]

    @property
    def submitted(self) -> tuple[Column, ...]:
        """The columns that each show one submission."""
        return tuple(
            column for column in self.columns if column.key.partition("/")[0] in _SUBMITTED
        )

    def title(self, key: str) -> str:
        """Return the title of a column."""
        return next(column.title for column in self.columns if column.key == key)

    def has(self, key: str) -> bool:
        """Return whether the table has a column with this key."""
        return any(column.key == key for column in self.columns)

    def row(self, defense: str) -> Row:
        """Return the row of a defense."""
        return next(row for row in self.rows if row.defense == defense)


def headline(result: EvaluationResult, flags: Flags | None = None) -> Headline:
    """Return the headline table of a result.

    Args:
        result: The result.
        flags: All flags of the page; by default, only those of this result.
    """
    flags = flags or of_one(result)
    columns = tuple(_columns(result))
    rows = []
    for name, defense in result.defenses.items():
        marks = flags.marks(result, name)
        marks_of_both = flags.marks_of_difference(result, name)
        cells_by_key = dict(_cells(defense, result.spec, marks, marks_of_both))
        if defense.difference is not None:
            cells_by_key[STATIC_WORST] = of_count(
                defense.difference.static, flags.marks(result, STATIC)
            )
        cells = {column.key: cells_by_key.get(column.key, Cell()) for column in columns}
        rows.append(Row(name, defense.worst.unit, marks, cells))
    return Headline(columns, tuple(rows))


def _columns(result: EvaluationResult) -> Iterator[Column]:
    defenses = result.defenses.values()
    yield Column(NATURAL, "clean")
    if any(defense.bystanders.total for defense in defenses):
        yield Column(BYSTANDERS, "clean members")
    keys = dict.fromkeys(key for defense in defenses for key in submitted(defense, result.spec))
    makers = {each.attack: each.by for defense in defenses for each in defense.attacks if each.by}
    for kind, attack in sorted(keys, key=lambda submission: list(_SUBMITTED).index(submission[0])):
        yield Column(_key(kind, attack), _SUBMITTED[kind].format(makers.get(attack, attack)))
    yield Column(WORST, "worst case")
    if STATIC in result.defenses:
        yield Column(STATIC_WORST, "static, worst case")
    yield Column(DIFFERENCE, "against static, points")
    if any(defense.over_views for defense in defenses):
        yield Column(OVER_VIEWS, "against averaged views, points")
    if any(defense.verdict for defense in defenses):
        yield Column(VERDICT, "verdict")
    yield Column(COST, "cost")


def submitted(
    defense: DefenseResult, spec: EvaluationSpec
) -> dict[tuple[str, str | None], AttackSummary]:
    """Return the submissions to a defense, by kind and attack, as tables show them.

    With the schedule `by-attack`, batches are assembled after every attack, and the last ones
    count. Attacks that did not run there, because nothing was left to decide, are left out.
    """
    if spec.schedule == "by-batch":
        return {(each.kind, each.attack): each for each in defense.attacks}
    shown: dict[tuple[str, str | None], AttackSummary] = {}
    for each in defense.attacks:
        key = (each.kind, None if each.kind == "assembled" else each.attack)
        if each.batches:
            shown.pop(key, None)  # the last assembled batch keeps its place
            shown[key] = each
    return shown


def _cells(
    defense: DefenseResult,
    spec: EvaluationSpec,
    marks: tuple[Flag, ...],
    marks_of_both: tuple[Flag, ...],
) -> Iterator[tuple[str, Cell]]:
    yield NATURAL, of_count(defense.natural, marks)
    if defense.bystanders.total:
        yield BYSTANDERS, of_count(defense.bystanders, marks)
    for (kind, name), attack in submitted(defense, spec).items():
        yield _key(kind, name), _of_attack(attack, marks)
    decided = defense.decided
    yield WORST, replace(of_count(defense.worst.served, marks), bound=decided is not None)
    yield DIFFERENCE, of_difference(defense.difference, marks_of_both, decided)
    if defense.over_views is not None:
        yield OVER_VIEWS, _of_views(defense.over_views, marks_of_both)
    if defense.verdict is not None:
        yield VERDICT, Cell(defense.verdict.ruling, marks=marks)
    yield COST, _of_cost(defense.timing.get("relative"), marks)


def _key(kind: str, attack: str | None) -> str:
    return kind if attack is None else f"{kind}/{attack}"


def of_count(count: Count, marks: tuple[Flag, ...] = ()) -> Cell:
    """Return the cell of an accuracy, or of the reason if nothing was scored."""
    return Cell(
        text=wording.percent(count.share),
        value=count.share,
        interval=count.interval,
        interval_text=wording.interval(count.interval),
        of=wording.of(count) if count.total else "",
        marks=marks,
    )


def of_difference(
    difference: Difference | None,
    marks: tuple[Flag, ...] = (),
    decided: Decision | None = None,
) -> Cell:
    """Return the cell of a difference; empty if there is none.

    Args:
        difference: The difference.
        marks: Its flags.
        decided: Where the run stopped early, so that it is an upper bound; None if it did not.
    """
    if difference is None:
        return Cell()
    return Cell(
        text=wording.points(difference.value),
        value=difference.value,
        interval=difference.interval,
        interval_text=wording.points_interval(difference.interval),
        marks=marks,
        bound=decided is not None,
    )


def _of_views(compared: OverViews, marks: tuple[Flag, ...]) -> Cell:
    cell = of_difference(compared.difference, marks)
    return replace(cell, of=f"over {compared.views} views ({compared.baseline})")


def _of_attack(summary: AttackSummary, marks: tuple[Flag, ...]) -> Cell:
    beside = wording.percent(summary.bystanders.share) if summary.bystanders.total else ""
    return replace(of_count(summary.served, marks), beside=beside, carried=summary.carried > 0)


def _of_cost(relative: float | None, marks: tuple[Flag, ...]) -> Cell:
    if relative is None:
        return Cell()
    return Cell(rounding.factor(relative), relative, marks=marks)

"""A table of the paper as data: its printed figures, their settings, and the paper's claims."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from dent.config import DentConfig
from dent.paper.defenses import parse_defense
from dent.threat import Norm, ThreatModel

Measure = Literal[
    "robust",
    "natural",
    "transfer",
    "relative-time",
    "sigma-before",
    "sigma-after",
    "seconds",
    "gflops",
    "relative-flops",
]
SHARES: Final = ("robust", "natural", "transfer")
"""Measures that are accuracies, published in percent."""
Kind = Literal["higher", "at-least", "about", "not-lower", "at-most", "factor"]
_LIMITS: Final[Mapping[Kind, tuple[str, ...]]] = {
    "higher": (),
    "at-least": ("bound", "ratio"),
    "about": ("within",),
    "not-lower": ("within",),
    "at-most": ("bound",),
    "factor": ("factor",),
}
"""For each kind of claim, the fields of which it has exactly one."""


class Strict(BaseModel):
    """A frozen pydantic model that refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Fields(Strict):
    """The settings of a figure, merged from the table's defaults, its column and its row."""

    model: str | None = None
    """Name of a model in models.toml."""
    threat: str | None = None
    """Norm and radius: `linf 8/255`."""
    defense: str | None = None
    """The defense, as `parse_defense` reads it."""
    attack: str | None = None
    """Name of an attack in the scale's `attacks`; `autoattack` if none is named."""
    batch_size: int | None = Field(default=None, ge=1)
    """Batch size, if the table states one; otherwise the scale's."""
    mix: float | None = Field(default=None, gt=0, le=1)
    """Attacked share of each batch."""
    measure: Measure | None = None
    """The measured quantity; `robust` if none is named."""
    through: str | None = None
    """The last part of the attack that counts, with all parts before it."""
    only: str | None = None
    """The only part of the attack that counts."""
    from_row: str | None = None
    """For the static model: the row from whose runs it is read, instead of a run of its own."""


class TableColumn(Fields):
    """A column of the table."""

    id: str
    label: str
    """The printed heading."""


class TableRow(Fields):
    """A row of the table."""

    id: str
    label: str
    """The printed heading."""
    group: str = ""
    """The heading of its group."""
    note: str = ""
    published: tuple[str, ...]
    """One text per column, exactly as printed; empty if the paper prints none."""
    each: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """For fields that differ by column: one value per column, as the text of the setting."""

    @field_validator("each")
    @classmethod
    def _check_each(cls, each: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
        for name, values in each.items():
            for value in values:
                Fields.model_validate({name: value}, strict=True)
        return each


class Claim(Strict):
    """A claim of the paper about its table.

    `higher`: the first cell of a pair is above the second by at least half the published
    difference. `at-least`: the sentence itself states a size; the first is above the second by at
    least `bound`, or is at least `ratio` times the second. `about`: the two differ by at most
    `within`. `not-lower`: the first is below the second by at most `within`. `at-most`: a cell is
    at most `bound`. `factor`: a cell is within a `factor` of the published figure. `within` and
    `bound` are in the unit of the cells (percentage points, percent).
    """

    id: str
    says: str
    kind: Kind
    rows: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    across: Literal["rows", "columns"] = "rows"
    """`rows`: one pair per row, from two columns. `columns`: one pair per column, from two rows."""
    pairs: tuple[tuple[str, str], ...] = ()
    """Pairs of cells, each named `row/column`."""
    cells: tuple[str, ...] = ()
    within: float | None = Field(default=None, ge=0)
    bound: float | None = Field(default=None, ge=0)
    ratio: float | None = Field(default=None, gt=0)
    factor: float | None = Field(default=None, gt=1)

    @model_validator(mode="after")
    def _complete(self) -> Self:
        limits = _LIMITS[self.kind]
        fields = ("within", "bound", "ratio", "factor")
        given = [name for name in fields if getattr(self, name) is not None]
        if len(given) != min(1, len(limits)) or not set(given) <= set(limits):
            needed = " or ".join(limits) or "no limit"
            raise ValueError(
                f"claim {self.id}: {self.kind} needs {needed}, not {', '.join(given) or 'none'}"
            )
        single = self.kind in ("at-most", "factor")
        if single != bool(self.cells) or single == bool(self.compared()):
            raise ValueError(f"claim {self.id}: {self.kind} needs {'cells' if single else 'pairs'}")
        return self

    def compared(self) -> tuple[tuple[str, str], ...]:
        """Return all pairs of cells; `higher` and `at-least` are about the first of each."""
        if self.pairs or not (self.rows and self.columns):
            return self.pairs
        if self.across == "rows":
            first, second = self.columns
            return tuple((f"{row}/{first}", f"{row}/{second}") for row in self.rows)
        first, second = self.rows
        return tuple((f"{first}/{column}", f"{second}/{column}") for column in self.columns)


class TableChart(Strict):
    """A line chart of some of the cells."""

    title: str
    x_label: str
    along: Literal["rows", "columns"]
    """Whether each curve runs over columns or over rows."""
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    x: tuple[float, ...] | None = None
    """Positions of the values; evenly spaced if not given."""

    @model_validator(mode="after")
    def _placed(self) -> Self:
        places = len(self.columns if self.along == "columns" else self.rows)
        if self.x is not None and len(self.x) != places:
            raise ValueError(f"chart {self.title}: {len(self.x)} x for {places} values")
        return self


class Suite(Strict):
    """The defended cells on which the dynamic suite runs."""

    cells: tuple[str, ...]


class Profile(Strict):
    """The settings of a table about computation (Table 14)."""

    model: str
    """An architecture of torchvision, with random weights."""
    classes: int = Field(ge=1)
    size: int = Field(ge=1)
    """Height and width in pixels."""
    batch_size: int = Field(ge=1)
    rounds: int = Field(ge=1)


@dataclass(frozen=True)
class TableCell:
    """One figure of a table, with the paper's settings.

    Attributes:
        key: `row/column`.
        published: As printed.
        model: Name of a model in models.toml; empty in a profile.
        norm: Norm of the threat model.
        eps: Radius of the threat model, as written.
        defense: Configuration of the defense.
        attack: Name of an attack in the scale.
        measure: The measured quantity.
        batch_size: Batch size, if the table sets one.
        mix: Share of each batch that is attacked.
        through: See `Fields`.
        only: See `Fields`.
        from_row: See `Fields`.
    """

    key: str
    published: str
    model: str
    norm: Norm
    eps: str
    defense: DentConfig
    attack: str
    measure: Measure
    batch_size: int | None
    mix: float | None
    through: str | None
    only: str | None
    from_row: str | None

    @property
    def value(self) -> float | None:
        """The published figure as a number; None if there is none."""
        text = self.published.rstrip("×")
        return None if text in ("", "-") else float(text)


class Table(Strict):
    """One table or figure of the paper."""

    id: str
    title: str
    source: str
    """The place in the paper: `Table 4`."""
    section: str
    notes: tuple[str, ...] = ()
    """What the paper leaves open, and how we read it."""
    defaults: Fields = Fields()
    columns: tuple[TableColumn, ...]
    rows: tuple[TableRow, ...]
    claims: tuple[Claim, ...] = ()
    charts: tuple[TableChart, ...] = ()
    suite: Suite = Suite(cells=())
    profile: Profile | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for parts in (self.columns, self.rows, self.claims):
            ids = [item.id for item in parts]
            if len(set(ids)) < len(ids):
                raise ValueError(f"{self.id}: an id stands twice among {', '.join(ids)}")
        for row in self.rows:
            for name, values in {"published": row.published, **row.each}.items():
                if len(values) != len(self.columns):
                    raise ValueError(
                        f"{self.id}: row {row.id} has {len(values)} {name} for "
                        f"{len(self.columns)} columns"
                    )
        keys = set(self.cells)
        for key in self._named():
            if key not in keys:
                raise ValueError(f"{self.id}: there is no cell {key}")
        for claim in self.claims:
            compared = [self.cells[cell].measure for pair in claim.compared() for cell in pair]
            if claim.ratio is not None and not set(compared) <= set(SHARES):
                raise ValueError(f"{self.id}: claim {claim.id} has a ratio of no accuracies")
        return self

    @cached_property
    def cells(self) -> Mapping[str, TableCell]:
        """All cells by `row/column`, row by row.

        Raises:
            ValueError: A field is missing, or a row and a column contradict each other.
            ConfigError: A threat model or a defense is invalid.
        """
        return {
            f"{row.id}/{column.id}": self._cell(row, column, index)
            for row in self.rows
            for index, column in enumerate(self.columns)
        }

    def _named(self) -> Iterator[str]:
        """Yield every cell that another cell, a claim, a chart or the suite names."""
        yield from self.suite.cells
        for key, cell in self.cells.items():
            if cell.from_row is not None:
                yield f"{cell.from_row}/{key.partition('/')[2]}"
        for claim in self.claims:
            yield from claim.cells
            for pair in claim.compared():
                yield from pair
        for chart in self.charts:
            for row in chart.rows:
                for column in chart.columns:
                    yield f"{row}/{column}"

    def _cell(self, row: TableRow, column: TableColumn, index: int) -> TableCell:
        fields = self._merged(row, column, index)
        key = f"{row.id}/{column.id}"
        required = ("defense",) if self.profile else ("model", "threat", "defense")
        for name in required:
            if name not in fields:
                raise ValueError(f"{self.id}: cell {key} has no {name}")
        norm, _, eps = fields.get("threat", "linf 0").partition(" ")
        return TableCell(
            key=key,
            published=row.published[index],
            model=fields.get("model", ""),
            norm=ThreatModel(norm, eps).norm,
            eps=eps,
            defense=parse_defense(fields["defense"]),
            attack=fields.get("attack", "autoattack"),
            measure=fields.get("measure", "robust"),
            batch_size=fields.get("batch_size"),
            mix=fields.get("mix"),
            through=fields.get("through"),
            only=fields.get("only"),
            from_row=fields.get("from_row"),
        )

    def _merged(self, row: TableRow, column: TableColumn, index: int) -> dict[str, Any]:
        of_row = {**_given(row), **{name: values[index] for name, values in row.each.items()}}
        of_column = _given(column)
        for name in of_row.keys() & of_column.keys():
            if of_row[name] != of_column[name]:
                raise ValueError(
                    f"{self.id}: row {row.id} has {name} {of_row[name]!r}, column {column.id} "
                    f"{of_column[name]!r}"
                )
        return {**_given(self.defaults), **of_column, **of_row}


def _given(fields: Fields) -> dict[str, Any]:
    values = {name: getattr(fields, name) for name in Fields.model_fields}
    return {name: value for name, value in values.items() if value is not None}

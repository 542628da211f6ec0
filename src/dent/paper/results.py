"""What a table came to: figures, judgements and what the dynamic suite leaves, as plain records."""

from typing import Literal

from dent.evaluation.results.result import Count, Difference
from dent.storage.canonical import Record

Interval = tuple[float, float]
Unit = Literal["%", "×", "s", "pixels", "GFLOPs"]
Ruling = Literal["reproduced", "not reproduced", "cannot be told", "not measured"]


class CellResult(Record):
    """One figure, published and measured."""

    row: str
    column: str
    published: str
    """As printed; empty where the paper prints none."""
    unit: Unit
    value: float | None
    """Measured, in the unit; null where nothing is."""
    interval: Interval | None
    """Its confidence interval: of an accuracy or of a median."""
    count: Count | None
    """Of an accuracy."""
    state: Literal["measured", "partial", "not run", "not at this scale"]
    why: str
    """Why it is not measured."""
    model: str
    """What was run."""
    stands_for: str
    """What the paper calls the model it stands for; empty where it is that one."""
    defense: str
    attacks: tuple[str, ...]
    flags: tuple[str, ...]
    """Diagnostics raised."""
    run: str | None
    """The run folder, below the output folder."""
    command: str | None
    """What does, and resumes, that run."""
    as_in: str | None
    """An earlier cell that is read off the same records: not another piece of evidence."""


class Judgement(Record):
    """A claim of the paper about one pair of cells, or one cell, held against the records."""

    claim: str
    says: str
    kind: str
    cells: tuple[str, ...]
    published: float | None
    """The difference of the published figures, or the published figure."""
    measured: float | None
    interval: Interval | None
    unit: Unit
    method: str
    """How the interval was made, and what it assumes."""
    ruling: Ruling
    sentence: str
    as_in: str | None
    """The cells of an earlier judgement of the same claim on the same records."""


class SuiteResult(Record):
    """What the dynamic suite leaves of a defended cell."""

    cell: str
    model: str
    defense: str
    threat: str
    budget: str
    samples: int
    static: Count | None
    worst: Count | None
    difference: Difference | None
    ruling: str | None
    """Of the engine's verdict; null where the suite was not run to its end."""
    sentence: str
    flags: tuple[str, ...]
    run: str
    command: str
    as_in: str | None
    """An earlier cell with the same run."""


class TableResult(Record):
    """A table at a scale."""

    schema_version: Literal[1] = 1
    id: str
    title: str
    source: str
    section: str
    scale: str
    notes: tuple[str, ...]
    cells: tuple[CellResult, ...]
    judgements: tuple[Judgement, ...]
    suite: tuple[SuiteResult, ...]
    status: Literal["complete", "partial", "not run"]
    command: str
    """What runs, and resumes, the table."""

"""The results of a table: figures, judgements and the dynamic suite, as plain records."""

from typing import Literal

from dent.evaluation.results.result import Count, Decision, Difference
from dent.storage.canonical import Record

Interval = tuple[float, float]
Unit = Literal["%", "% of the second", "×", "s", "pixels", "GFLOPs"]
ClaimRuling = Literal[
    "reproduced", "not reproduced", "cannot be told", "not finished", "not measured"
]


class CellResult(Record):
    """One figure, published and measured."""

    row: str
    column: str
    published: str
    """The printed figure; empty if the paper prints none."""
    unit: Unit
    value: float | None
    """The measured figure; null if nothing was measured."""
    interval: Interval | None
    """Confidence interval of an accuracy or of a median."""
    count: Count | None
    """The counts of an accuracy."""
    state: Literal["measured", "partial", "not run", "not at this scale"]
    why: str
    """Why the figure was not measured; empty if the plan measures it."""
    model: str
    """Name of the model that was run."""
    stands_for: str
    """The paper's model that it replaces; empty if it is that model."""
    defense: str
    attacks: tuple[str, ...]
    flags: tuple[str, ...]
    """Raised diagnostics."""
    run: str | None
    """The run folder, relative to the output folder."""
    command: str | None
    """The command that starts or resumes the run."""
    as_in: str | None
    """An earlier cell with the same records, if any. Then this cell is no additional evidence."""


class Judgement(Record):
    """The ruling on a claim of the paper about one pair of cells, or one cell."""

    claim: str
    says: str
    kind: str
    cells: tuple[str, ...]
    published: float | None
    """The difference or the ratio of the published figures, or the published figure."""
    measured: float | None
    interval: Interval | None
    unit: Unit
    method: str
    """Method and assumptions of the interval."""
    ruling: ClaimRuling
    sentence: str
    as_in: str | None
    """The cells of the judgement that counts in place of this one, if several judgements of a claim
    use the same records. It is the first one with the ruling that is worst for the claim."""


class SuiteResult(Record):
    """The result of the dynamic suite for a defended cell."""

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
    """The ruling of the verdict; null without a verdict."""
    sentence: str
    flags: tuple[str, ...]
    run: str
    command: str
    as_in: str | None
    """An earlier cell with the same run, if any."""
    decided: Decision | None = None
    """Where the run stopped early, so that `worst` and `difference` are upper bounds; else null."""


class TableResult(Record):
    """The results of a table at a scale."""

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
    """The command that runs or resumes the table."""

"""The report in Markdown, for a README, an issue or a paper's appendix."""

import html
import re
from collections.abc import Iterator, Sequence
from typing import Final

from dent.evaluation.results.result import AttackSummary, DefenseResult, EvaluationResult
from dent.report import wording
from dent.report.commands import commands
from dent.report.flags import Flag, Flags
from dent.report.headline import VERDICT, WORST, Cell, headline, submitted
from dent.report.limits import limits
from dent.report.loading import NamedRun
from dent.report.plots import traces
from dent.report.series import Series, differing, find_series
from dent.support.plural import counted
from dent.support.printable import printable

_SPECIAL: Final = re.compile(r"([\\`*_\[\]|~${}])")


def to_markdown(runs: Sequence[NamedRun]) -> str:
    """Return the report on one or several runs in GitHub's Markdown.

    Flags are letters in brackets beside the numbers. A section at the end explains them.
    """
    return "\n".join(_document(runs)) + "\n"


def escape(text: object) -> str:
    """Return a text that Markdown shows unchanged, on one line."""
    plain = printable(" ".join(str(text).split()))
    # Entities for <, > and &, because not every Markdown renderer takes a backslash before them.
    return html.escape(_SPECIAL.sub(r"\\\1", plain), quote=False)


def code(text: object) -> str:
    """Return a text in a code span. It may contain backticks and pipes."""
    plain = printable(" ".join(str(text).split())).replace("|", r"\|")
    longest = max((len(ticks) for ticks in re.findall("`+", plain)), default=0)
    fence = "`" * (longest + 1)
    pad = " " if longest or not plain else ""
    return f"{fence}{pad}{plain}{pad}{fence}"


def _document(runs: Sequence[NamedRun]) -> Iterator[str]:
    flags = Flags(runs)
    several = len(runs) > 1
    yield f"# {f'{len(runs)} runs side by side' if several else _title(runs[0].result)}"
    yield ""
    if several:
        for run in runs:
            yield f"- **{escape(run.name)}**: {_title(run.result)}"
        yield ""
        for series in find_series(runs):
            yield from _series(series, flags)
        yield from _differing(runs)
    for run in runs:
        if several:
            yield f"## {escape(run.name)}"
            yield ""
        yield from _run(run, flags, "###" if several else "##")
    yield from _flags(flags)


def _run(run: NamedRun, flags: Flags, level: str) -> Iterator[str]:
    result = run.result
    if result.status == "partial":
        yield (
            f"**Not finished: {result.units_done} of {counted(result.units_planned, 'unit')}. All "
            "numbers use these units only.**"
        )
        yield ""
    yield from _headline(result, flags)
    yield f"{level} What these numbers do not show"
    yield ""
    yield from (f"- {escape(sentence)}" for sentence in limits(result))
    yield ""
    yield f"{level} Robust accuracy by attack"
    yield ""
    if said := wording.carried(result):
        yield escape(said)
        yield ""
    for name, defense in result.defenses.items():
        yield from _attacks(result, name, flags.marks(result, name))
        yield from _indicators(defense)
    yield f"{level} Entropy (nats) and sigma (pixels)"
    yield ""
    yield from _adaptation(result, flags)
    yield f"{level} Diagnostics"
    yield ""
    yield from _diagnostics(result)
    yield f"{level} What was run"
    yield ""
    yield from _provenance(run)


def _title(result: EvaluationResult) -> str:
    spec = result.spec
    return escape(
        f"{wording.title(spec)}: {counted(result.samples, 'sample')} in {wording.batches(result)}, "
        f"attacks: {wording.attacks(spec)}"
    )


def _headline(result: EvaluationResult, flags: Flags) -> Iterator[str]:
    table = headline(result, flags)
    # Another table below has the accuracy of each submission, with the claim of the attack.
    columns = [column for column in table.columns if column not in table.submitted]
    yield from _header("defense", *(escape(column.title) for column in columns), "worst case per")
    for row in table.rows:
        cells = (_cell(column.key, row.cells[column.key]) for column in columns)
        yield _row(f"{escape(row.defense)}{_marks(row.marks)}", *cells, row.unit)
    yield ""
    for name, defense in result.defenses.items():
        if defense.difference is not None:
            yield (
                f"- **{escape(name)}** is {wording.READINGS[wording.reading(defense.difference)]} "
                f"({wording.bound(wording.difference(defense.difference), defense.decided)} points"
                f"{_marks(flags.marks_of_difference(result, name))}). "
                f"{wording.interval_of(defense.difference, wording.few_batches(result, defense))}"
            )
        for sentence in wording.findings(defense):
            yield f"- **{escape(name)}**: {escape(sentence)}"
        for raised in flags.of(result, name):
            scope = "the whole run, " if raised.of_run else ""
            yield (
                f"- **{escape(name)}** raises [{raised.letter}] {escape(raised.diagnostic.name)} "
                f"({scope}{_short(raised.diagnostic.value)} > "
                f"{_short(raised.diagnostic.threshold)}): "
                f"{escape(raised.diagnostic.sentence)}"
            )
    yield ""


def _cell(key: str, cell: Cell) -> str:
    if not cell.text:
        return ""
    if key == VERDICT:
        return f"**{escape(cell.text)}**"
    of = f" ({cell.of})" if key == WORST else ""
    return f"{cell.full}{_marks(cell.marks)}{of}"


def _attacks(result: EvaluationResult, name: str, flagged: Sequence[Flag]) -> Iterator[str]:
    defense, marks = result.defenses[name], _marks(flagged)
    yield f"**{escape(name)}**{marks}"
    yield ""
    columns = ["claimed", "claimed fooled, but correct", "wrong, but not claimed"]
    if carries := bool(wording.carried(result)):
        columns.insert(0, "attacked, broken")
    blank = [""] * len(columns)
    yield from _header("submitted", "correct", *columns)
    yield _row("natural images", f"{wording.count(defense.natural)}{marks}", *blank)
    for attack in submitted(defense, result.spec).values():
        own = wording.attacked_and_broken(attack) + marks if attack.kind == "attack" else ""
        yield _row(
            escape(wording.submission(attack, name)),
            f"{wording.count(attack.served)}{marks}",
            *([own] if carries else []),
            *_claimed(attack, marks),
        )
    worst = f"{wording.bound(wording.count(defense.worst.served), defense.decided)}{marks}"
    yield _row(f"**worst case, per {defense.worst.unit}**", worst, *blank)
    yield ""
    if said := wording.not_run(result, name):
        yield escape(said)
        yield ""


def _indicators(defense: DefenseResult) -> Iterator[str]:
    sentences = wording.indicators(defense)
    yield from (f"- {escape(sentence)}" for sentence in sentences)
    if sentences:
        yield ""


def _claimed(attack: AttackSummary, marks: str) -> tuple[str, str, str]:
    if attack.claimed is None:
        return "", "", ""
    return (
        f"{wording.percent(attack.claimed.share)}{marks}",
        f"{attack.claimed_but_served}{marks}",
        f"{attack.served_wrong_unclaimed}{marks}",
    )


def _adaptation(result: EvaluationResult, flags: Flags) -> Iterator[str]:
    yield from _header("defense", "batches of", "entropy by step", "sigma by step")
    for name in result.defenses:
        marks = _marks(flags.marks(result, name))
        for what, trace in traces(result, name):
            steps = " → ".join(map(wording.nats, trace.entropy or ()))
            sigmas = trace.sigma_by_step or ([trace.sigma] if trace.sigma else [])
            sigma = " → ".join(map(wording.sigma, sigmas))
            yield _row(
                f"{escape(name)}{marks}",
                escape(what),
                f"{steps}{marks}" if steps else "not recorded",
                f"{sigma}{marks}" if sigma else "",
            )
    yield ""


def _diagnostics(result: EvaluationResult) -> Iterator[str]:
    yield from _header("defense", "diagnostic", "state", "value", "threshold", "meaning")
    of_defenses = [
        (name, item) for name, defense in result.defenses.items() for item in defense.diagnostics
    ]
    for name, item in [*of_defenses, *(("the run", item) for item in result.diagnostics)]:
        yield _row(
            escape(name),
            escape(item.name),
            f"**{item.state}**" if item.raised else item.state,
            _short(item.value),
            _short(item.threshold),
            escape(item.sentence),
        )
    yield ""


def _provenance(run: NamedRun) -> Iterator[str]:
    spec, typed = run.result.spec, commands(run.loaded)
    yield f"- repeat the run: {code(typed.again)}"
    for caveat in typed.caveats:
        yield f"  - you must supply {escape(caveat)}"
    yield f"- verify the records: {code(typed.verify)}"
    if typed.code:
        yield f"  - only if you trust this code: {', '.join(map(code, typed.code))}"
    yield f"- model {escape(spec.model.name)}, weights {code(spec.model.weights)}"
    yield f"- dataset {escape(spec.dataset.name)}, digest {code(spec.dataset.digest)}"
    yield f"- specification {code(run.result.identity)}, plan {code(run.loaded.run.plan)}"
    for session in run.result.sessions:
        versions = ", ".join(f"{name} {version}" for name, version in session.versions.items())
        yield (
            f"- session of {escape(session.started)}: "
            f"{escape(session.outcome or 'running, or killed')}, {counted(session.units, 'unit')}, "
            f"{escape(session.device)}, {escape(session.platform)}; {escape(versions)}"
        )
    yield ""


def _series(series: Series, flags: Flags) -> Iterator[str]:
    label = f" ({escape(series.label)})" if series.label else ""
    yield f"## Worst case against {series.over}{label}"
    yield ""
    yield from _header(series.over, *map(escape, series.defenses))
    for place in series.places:
        result = place.run.result
        yield _row(
            escape(place.text),
            *(
                f"{wording.bound(wording.count(found.worst.served), found.decided)}"
                f"{_marks(flags.marks(result, name))}"
                for name in series.defenses
                for found in (result.defenses[name],)
            ),
        )
    yield ""


def _differing(runs: Sequence[NamedRun]) -> Iterator[str]:
    fields = differing(runs)
    yield "## Differences between the runs"
    yield ""
    if not fields:
        yield "None: the runs are the same evaluation."
    else:
        yield from _header("field", *(escape(run.name) for run in runs))
        yield from (_row(code(name), *map(escape, values)) for name, values in fields.items())
    yield ""


def _flags(flags: Flags) -> Iterator[str]:
    yield "## Flags"
    yield ""
    if not flags.all:
        yield "No diagnostic was raised."
    for flag in flags.all:
        raised_by = escape(", ".join(flag.raised_by))
        sentence = f"{escape(flag.sentence)} Raised by {raised_by}."
        yield f"- [{flag.letter}] **{escape(flag.name)}**: {sentence}"


def _marks(flags: Sequence[Flag]) -> str:
    return f" [{','.join(flag.letter for flag in flags)}]" if flags else ""


def _short(value: float | None) -> str:
    return "" if value is None else wording.short(value)


def _header(*columns: str) -> Iterator[str]:
    yield _row(*columns)
    yield _row(*("---" for _ in columns))


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"

"""Print recorded runs and samples: a line for each defense, a table for a sample."""

from rich.markup import escape

from dent.cli import console
from dent.report import RunSummary, SampleStory, wording
from dent.report.story import DefenseStory
from dent.support.plural import counted
from dent.support.printable import one_line


def show_run(run: RunSummary) -> None:
    """Print a line for a run, and one for each of its defenses."""
    about = "unreadable"
    if not run.error:
        done = f"{run.units_done}/{run.units_planned}"
        if run.status == "complete" and run.units_done < run.units_planned:
            done = f"(stopped early, {done})"
        images = f"{counted(run.samples, 'image')} of {run.dataset}"
        about = f"{run.status} {done}, {run.model}, {images}, {run.threat}"
    console.OUT.print(
        f"[bold]{escape(one_line(run.path))}[/]  {escape(one_line(about))}", soft_wrap=True
    )
    for line in run.defenses:
        gained = wording.bound(wording.difference(line.difference), line.decided)
        worst = wording.bound(wording.count(line.worst), line.decided)
        console.say(
            f"    {one_line(line.name)}: clean {wording.percent(line.natural.share)}, "
            f"worst case {worst}"
            + (f", against static {gained}" if gained else "")
            + (f": {line.ruling}" if line.ruling else "")
        )
        if line.broken_by:
            makers = one_line(", ".join(line.broken_by))
            console.say(f"        lowered by: {makers}")
        if line.flags:
            console.say(f"        flags: {', '.join(line.flags)}")


def show_sample(sample: SampleStory) -> None:
    """Print what every attack did to one sample."""
    title = f"Sample {sample.sample}, class {sample.label_name}"
    for defense in sample.defenses:
        _table(title, defense)
        if defense.flags:
            console.say(f"(!) {one_line(defense.defense)}: {', '.join(defense.flags)}")


def _table(title: str, defense: DefenseStory) -> None:
    """Print what was submitted to one defense; the title names a batch that all rows share."""
    rows = [
        (
            f"challenge by {answer.by}"
            if answer.by
            else " ".join(filter(None, (answer.kind, answer.attack))),
            str(answer.batch),
            "yes" if answer.attacked else "no",
            answer.predicted_name or "none",
            "correct" if answer.correct else "wrong",
            "" if answer.claimed is None else ("fooled" if answer.claimed else "not fooled"),
        )
        for answer in defense.answers
    ]
    table: list[tuple[str, ...]] = [
        ("submitted", "batch", "attacked", "served", "is", "claim"),
        *rows,
    ]
    title = f"{title}, {defense.defense}"
    batches = {answer.batch for answer in defense.answers}
    if len(batches) == 1:
        title = f"{title}, batch {batches.pop()}"
        table = [(row[0], *row[2:]) for row in table]
    console.print_table(title, table[0], table[1:])

"""Consistent wording: plurals, percentages, class names and pronouns."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from dent.support.plural import agreeing, counted, first_few, listed
from dent.support.rounding import factor, percent, percent_bounds, points, points_bounds

SOURCES = sorted((Path(__file__).parents[1] / "src/dent").rglob("*.py"))


@pytest.mark.parametrize(
    ("number", "noun", "said"),
    [
        (1, "batch", "1 batch"),
        (2, "batch", "2 batches"),
        (0, "query", "0 queries"),
        (1, "query", "1 query"),
        (3, "day", "3 days"),
        (2, "class", "2 classes"),
        (5, "attacked member", "5 attacked members"),
    ],
)
def test_a_number_agrees_with_its_noun(number: int, noun: str, said: str) -> None:
    assert counted(number, noun) == said


def test_a_verb_agrees_with_its_number() -> None:
    verbs = ("are", "were", "have", "stand")
    assert [agreeing(1, verb) for verb in verbs] == ["is", "was", "has", "stands"]
    assert [agreeing(2, verb) for verb in verbs] == list(verbs)
    assert counted(2, "person", "people") == "2 people"


def test_a_long_list_says_how_many_items_follow() -> None:
    assert listed(["a", "b"], 2) == "a, b"
    assert listed(range(5), 2) == "0, 1, and 3 more"
    assert listed({"a": 1, "b": 2}, 1) == "a and 1 more"
    assert listed([], 3) == ""
    assert first_few(("a", "b", "c"), 2) == ["a", "b", "and 1 more"]
    assert first_few(("a", "b"), 2) == ["a", "b"]


def test_no_list_in_a_message_is_cut_without_saying_so() -> None:
    """The exceptions cut lines of an error message, and one list whose length follows it."""
    cut = re.compile(r"join\(.*\[:(_SHOWN|[0-9]+)\]")
    found = {path.name for path in SOURCES if cut.search(path.read_text(encoding="utf-8"))}
    assert found == {"dent.py", "npm_source.py", "ray_pool.py", "story.py"}


def test_shares_and_differences_have_one_decimal() -> None:
    assert (percent(0.4375), percent(1.0), percent_bounds((0.3806, 0.4961))) == (
        "43.8%",
        "100.0%",
        "[38.1, 49.6]",
    )
    assert [points(at) for at in (0.0118, -0.031, 0.0, -0.0001, 0.0001)] == [
        "+1.2",
        "−3.1",
        "0.0",
        "0.0",
        "0.0",
    ]
    assert points_bounds((-0.062, 0.003)) == "[−6.2, +0.3]"
    assert factor(25.34) == "25.3×"


def test_percentages_with_decimals_are_formatted_only_by_the_helpers() -> None:
    """Ticks of an axis and progress bars show whole percentages and need no helper."""
    found = {
        path.name: hits
        for path in SOURCES
        if (hits := re.findall(r"\.[1-9]f\}%", path.read_text(encoding="utf-8")))
    }
    assert found == {}


def test_counts_that_may_be_one_are_written_by_the_helper() -> None:
    """Looks at plural nouns after a computed number; the exceptions are verbs or never 1."""
    nouns = re.compile(
        r" (batches|runs|units|samples|images|members|workers|requests|steps|attacks"
        r"|bytes)\b"
    )
    assert {hit for path in SOURCES for hit in plain_counts(path, nouns)} <= NEVER_ONE


def test_public_class_names_are_unique() -> None:
    places: dict[str, list[str]] = {}
    for path in SOURCES:
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places.setdefault(node.name, []).append(path.name)
    assert {name: files for name, files in places.items() if len(files) > 1} == {}


def test_sources_and_docs_contain_no_archaic_pronouns() -> None:
    root = Path(__file__).parents[1]
    texts = [*SOURCES, *root.glob("*.md"), *root.glob("docs/**/*.md")]
    old = re.compile(r"\b(whom|whoever|whomever|lest|whence|thereof)\b", re.IGNORECASE)
    assert {
        f"{path.name}: {word}"
        for path in texts
        for word in old.findall(path.read_text(encoding="utf-8"))
    } == set()


def plain_counts(path: Path, nouns: re.Pattern[str]) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.JoinedStr):
            for number, text in zip(node.values, node.values[1:], strict=False):
                if isinstance(number, ast.FormattedValue) and isinstance(text, ast.Constant):
                    noun = nouns.match(str(text.value))
                    if noun is not None:
                        yield f"{path.name}: {ast.unparse(number.value)}{noun[0]}"


NEVER_ONE = {
    "announcement.py: len(costs) runs",  # "this run" is written out
    "consistency.py: MOST_UNITS units",
    "markdown.py: len(runs) runs",  # several
    "merging.py: out runs",  # a verb
    "planning.py: scale.id runs",  # a verb
    "render.py: before runs",  # "one run" is written out
    "attack_effort.py: MANY members",
    "plan.py: size images",
    "store.py: len(content) bytes",
    "card_page.py: weights['bytes'] bytes",
    "demo.py: SAMPLES images",
    "turns.py: MOST_OF_ADDRESS runs",
    "turns.py: MOST_WAITING runs",
}

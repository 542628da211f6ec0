"""Test how tables and warnings are printed in a terminal."""

import ast
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

from dent.cli import console
from dent.cli.console import ERR, OUT, print_table, warnings_as_messages
from dent.cli.output.runs import show_sample
from dent.errors import SmallBatchWarning
from dent.report.story import DefenseStory, SampleStory, StoryAnswer

CLI = Path(console.__file__).parent


@pytest.mark.parametrize("length", [10, 40, 41, 200])
def test_long_defense_name_does_not_truncate_the_numbers_in_a_table(
    length: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(OUT, "width", 80)
    print_table("t", ("defense", "static", "dent+"), [("n" * length, "73.4%", "[44, 56]")])
    printed = capsys.readouterr().out
    assert "73.4%" in printed
    assert "[44, 56]" in printed
    assert printed.count("n") >= length
    assert max(map(len, printed.splitlines())) <= 80


def test_table_and_consoles_print_names_that_look_like_markup_or_emoji(
    capsys: pytest.CaptureFixture[str],
) -> None:
    names = ["[/i]", "[cat]", "[bold]x[/]", ":cat:", "\\"]
    for name in names:
        print_table(name, (name, "n"), [(name, name)])
        assert capsys.readouterr().out.count(name) == 4
        OUT.print(name, markup=False)
        assert capsys.readouterr().out == f"{name}\n"


def test_sample_story_prints_class_and_defense_names_that_look_like_markup(
    capsys: pytest.CaptureFixture[str],
) -> None:
    answer = StoryAnswer(
        kind="attack",
        attack="[/attack]",
        batch=0,
        member=0,
        attacked=True,
        predicted=1,
        predicted_name="[dog]",
        correct=False,
        claimed=True,
        mismatch=False,
    )
    told = DefenseStory(defense="[/defense]", answers=(answer,), broken_by=(), flags=("[/flag]",))
    story = SampleStory(
        sample=1, label=0, label_name="[/i]", batches=(0,), defenses=(told,), status="complete"
    )
    show_sample(story)
    printed = capsys.readouterr().out
    assert all(name in printed for name in ("[/attack]", "[dog]", "[/defense]", "[/i]", "[/flag]"))


@pytest.mark.parametrize("printed", [console.say, console.note])
def test_say_and_note_print_a_long_text_as_it_is(
    printed: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for stream in (OUT, ERR):
        monkeypatch.setattr(stream, "width", 20)
    text = "[bold]a name[/] :cat: " + "with many words " * 10
    printed(text)
    assert "".join(capsys.readouterr()) == f"{text}\n"


def test_sample_story_keeps_the_flags_of_a_defense_on_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(OUT, "width", 40)
    flags = ("zero gradient", "more iterations still help")
    told = DefenseStory(defense="dent", answers=(), broken_by=(), flags=flags)
    show_sample(
        SampleStory(
            sample=1, label=0, label_name="cat", batches=(), defenses=(told,), status="complete"
        )
    )
    flagged = "(!) dent: zero gradient, more iterations still help"
    assert flagged in capsys.readouterr().out.splitlines()


def calls_with_values(module: Path, *functions: str) -> list[str]:
    """Return the calls of functions in a module that print a value, as source text."""
    tree = ast.parse(module.read_text())
    return [
        ast.unparse(node)
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and ast.unparse(node.func).removeprefix("console.") in functions
        and any(isinstance(part, ast.FormattedValue) for part in ast.walk(node))
    ]


def test_every_command_prints_values_as_plain_text_or_beside_its_own_markup() -> None:
    modules = list(CLI.rglob("*.py"))
    assert (
        len([call for module in modules for call in calls_with_values(module, "say", "note")]) > 30
    )
    marked = [
        call for module in modules for call in calls_with_values(module, "OUT.print", "ERR.print")
    ]
    assert [call for call in marked if "[bold]" not in call] == []


def test_own_warning_is_printed_once_and_other_warnings_pass_through(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with warnings.catch_warnings(record=True) as left, warnings_as_messages():
        warnings.simplefilter("always")
        for _ in range(2):
            warnings.warn("a batch [of] one", SmallBatchWarning, stacklevel=1)
        warnings.warn("a stranger's", UserWarning, stacklevel=1)
    told = capsys.readouterr()
    assert (told.err, told.out) == ("dent: warning: a batch [of] one\n", "")
    assert [str(each.message) for each in left] == ["a stranger's"]

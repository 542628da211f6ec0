"""Control characters in names are never printed."""

import csv
import html
import io
import os
import re
import shutil
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dent import Dent
from dent.cli.console import ERR, OUT, print_table
from dent.cli.output.result import show_result
from dent.evaluation import Settings, evaluate, load_run
from dent.report import write_report
from dent.report.markdown import escape
from dent.support.printable import one_line, printable
from tests.cli.here import dent
from tests.evaluation.subjects import make_model, make_subject

C0 = "".join(map(chr, [*range(0x20), 0x7F]))
C1 = "".join(map(chr, range(0x80, 0xA0)))
BIDI = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
EVIL = f"<b>dent\x1b[2J\x1b]0;owned\x07\x9b31m{BIDI}\x7f\x00\nverified</b>"


def orders(text: str) -> set[str]:
    """Oracle: the control and direction characters of a text, by their Unicode properties."""
    found = {each for each in text if unicodedata.category(each) in ("Cc", "Cs", "Zl", "Zp")}
    turning = {"AL", "LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI", "L", "R"}
    found |= {
        each
        for each in text
        if unicodedata.category(each) == "Cf" and unicodedata.bidirectional(each) in turning
    }
    return found - {"\n", "\t"}


@given(st.text(st.characters(codec=None)))
def test_printable_replaces_control_characters_and_nothing_else(text: str) -> None:
    plain = printable(text)
    assert not orders(plain)
    assert len(plain) == len(text)
    assert all(a == b or a in orders(text) for a, b in zip(text, plain, strict=True))
    assert printable(plain) == plain
    assert not set(one_line(text)) & {"\n", "\t"}


def test_all_control_characters_are_found_and_replaced() -> None:
    assert orders(C0 + C1 + BIDI) == set(C0 + C1 + BIDI) - {"\n", "\t"}
    assert set(printable(C0 + C1 + BIDI)) == {"\ufffd", "\n", "\t"}
    assert not orders(printable("\ud800\u2028\u2029"))


def test_consoles_print_no_control_characters_of_texts(capsys: pytest.CaptureFixture[str]) -> None:
    for console in (OUT, ERR):
        console.print(EVIL, markup=False)
        console.print(f"[bold]{EVIL}[/]")
    print_table(EVIL, (EVIL, "n"), [(EVIL, EVIL)])
    printed = capsys.readouterr()
    assert "verified" in printed.out
    assert "verified" in printed.err
    assert not orders(printed.out + printed.err)


@pytest.fixture(scope="module")
def evil(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with control characters in all of its names."""
    path = tmp_path_factory.mktemp("evil") / "run"
    model = make_model()
    subject = make_subject({EVIL: Dent(model)}, model=model)
    for attack in subject.attacks:
        object.__setattr__(attack, "name", attack.name + EVIL)
    dataset = subject.dataset
    object.__setattr__(dataset, "name", EVIL)
    object.__setattr__(dataset, "classes", tuple(f"{EVIL}{each}" for each in dataset.classes))
    evaluate(subject, Settings(n=4, batch_size=4), out=path)
    return path


def test_no_command_prints_control_characters(evil: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(evil, tmp_path / "\x1b[2Jrun"))
    for arguments in (
        ("list", str(tmp_path)),
        ("show", str(folder)),
        ("show", str(folder), "--sample", "100"),
        ("verify", str(folder), "--records-only"),
        ("verify", str(folder), "--allow-code"),
        ("show", str(folder / "\x9bnothing")),
        ("report", str(folder), "-o", str(tmp_path / "page.\x1b")),
        ("list", str(tmp_path), "--json"),
    ):
        ran = dent(*arguments)
        assert ran.out + ran.err
        assert not orders(ran.out + ran.err), arguments


@pytest.mark.skipif(os.name == "nt", reason="names are UTF-16 there")
@pytest.mark.parametrize("suffix", [".html", ".md", ".csv", ".json"])
def test_a_folder_name_that_is_not_utf_8_is_reported(
    evil: Path, tmp_path: Path, suffix: str
) -> None:
    folder = Path(shutil.copytree(evil, tmp_path / os.fsdecode(b"run\xff")))
    assert write_report([folder], tmp_path / f"page{suffix}").read_text(encoding="utf-8")


def test_a_line_break_in_a_name_does_not_start_a_new_line(
    evil: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    show_result(load_run(evil).result, "run")
    lines = capsys.readouterr().out.splitlines()
    assert any("verified" in line for line in lines)
    assert not [line for line in lines if line.startswith("verified")]


@pytest.mark.parametrize("suffix", ["html", "md", "csv", "json"])
def test_no_report_contains_control_characters(suffix: str, evil: Path, tmp_path: Path) -> None:
    text = write_report([evil], tmp_path / f"page.{suffix}").read_text()
    assert "verified" in text
    assert not orders(text)
    if suffix == "md":  # no HTML outside of code, which is not rendered
        assert not re.search("<(?!-)", re.sub("(`+).*?\\1", "", text))
    if suffix == "csv":
        assert len(list(csv.DictReader(io.StringIO(text)))) > 10


def test_markdown_escape_escapes_html() -> None:
    assert escape('<img src=x onerror="1">') == '&lt;img src=x onerror="1"&gt;'
    assert html.unescape(escape("a & b")) == "a & b"

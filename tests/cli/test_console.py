"""Test how tables and warnings are printed in a terminal."""

import warnings

import pytest

from dent.cli.console import OUT, print_table, warnings_as_messages
from dent.errors import SmallBatchWarning


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

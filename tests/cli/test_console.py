"""Tables in a terminal: figures stay whole, whatever the names."""

import pytest

from dent.cli.console import OUT, print_table


@pytest.mark.parametrize("length", [10, 40, 41, 200])
def test_a_long_name_never_costs_a_figure(
    length: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(OUT, "width", 80)
    print_table("t", ("defense", "static", "dent+"), [("n" * length, "73.4%", "[44, 56]")])
    printed = capsys.readouterr().out
    assert "73.4%" in printed
    assert "[44, 56]" in printed
    assert printed.count("n") >= length
    assert max(map(len, printed.splitlines())) <= 80

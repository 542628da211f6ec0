"""Test how durations are formatted, and the progress lines printed without a terminal."""

import pytest

from dent.cli import runner
from dent.cli.console import ERR
from dent.cli.output import training
from dent.support.durations import between, duration
from dent.training import RECIPES, TrainingProgress


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0.01, "1 second"),
        (1.0, "1 second"),
        (40.4, "40 seconds"),
        (89.0, "89 seconds"),
        (90.0, "1.5 minutes"),
        (60.0 * 12, "12 minutes"),
        (3600.0 * 2.5, "2.5 hours"),
        (86400.0 + 16 * 3600 + 55 * 60 + 3, "1.7 days"),
        (86400.0 * 12.3, "12 days"),
    ],
)
def test_duration_has_one_unit_and_two_significant_digits(seconds: float, said: str) -> None:
    assert duration(seconds) == said


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [
        (170.0, 310.0, "2.8 to 5.2 minutes"),
        (60.0, 89.0, "60 to 89 seconds"),
        (0.2, 40.0, "1 to 40 seconds"),
        (40.0, 130.0, "40 seconds to 2.2 minutes"),
        (60.0 * 52, 86400.0 * 4, "52 minutes to 4 days"),
        (0.0, 250.0, "1 second to 4.2 minutes"),
        (718.0, 722.0, "12 minutes"),
        (0.1, 0.2, "1 second"),
        (59.7 * 60, 60.2 * 60, "60 minutes"),
    ],
)
def test_duration_range_uses_the_unit_of_its_upper_end_unless_the_lower_is_below_one(
    low: float, high: float, said: str
) -> None:
    assert between(low, high) == said


def test_clean_accuracy_without_a_terminal_prints_a_line_every_minute(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert not ERR.is_terminal
    now = 1000.0
    monkeypatch.setattr(runner.time, "monotonic", lambda: now)
    with runner.progress() as report:
        for done in range(0, 9985, 256):  # ten seconds per batch
            report.clean(done, 9984)
            now += 10
    assert capsys.readouterr().err.splitlines()[:2] == [
        "Measuring clean accuracy, 0 of 9984 images",
        "Measuring clean accuracy, 1536 of 9984 images",
    ]


def test_training_without_a_terminal_prints_a_progress_line_every_minute(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert not ERR.is_terminal
    now = 1000.0
    monkeypatch.setattr(training.time, "monotonic", lambda: now)
    with training.training_progress(RECIPES["fast-nominal"]) as report:
        for step in range(1, 131):  # one second per step
            report(TrainingProgress(step, 500, 1, 10, 2.0, 0.1, None))
            now += 1
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[0] for line in lines] == ["[1/500]", "[61/500]", "[121/500]"]
    assert lines[0] == "[1/500] epoch 1/10, loss 2.000"

"""Flags: raised diagnostics, as letters beside every number that may be wrong."""

from collections.abc import Sequence
from dataclasses import dataclass
from string import ascii_lowercase
from typing import Final, Protocol

from dent.evaluation.records.spec import STATIC
from dent.evaluation.results.result import Diagnostic, EvaluationResult

RUN_WIDE: Final = "the run"


class Named(Protocol):
    """A result on a page, with its name on that page."""

    @property
    def name(self) -> str:
        """Name of the result."""
        ...

    @property
    def result(self) -> EvaluationResult:
        """The result."""
        ...


@dataclass(frozen=True)
class Flag:
    """One kind of raised diagnostic on a page.

    Attributes:
        letter: Its letter, unique on the page.
        name: Name of the diagnostic.
        sentence: Its meaning. If the sentences of the defenses differ, each one with its defenses.
        raised_by: The defenses that raised it, or `RUN_WIDE`. If the page shows several runs, each
            entry also names its run.
    """

    letter: str
    name: str
    sentence: str
    raised_by: tuple[str, ...]


@dataclass(frozen=True)
class Raised:
    """A raised diagnostic of one defense.

    Attributes:
        letter: The letter of its flag.
        diagnostic: The diagnostic.
        of_run: Whether it concerns the whole run, not only the defense.
    """

    letter: str
    diagnostic: Diagnostic
    of_run: bool


class Flags:
    """All raised diagnostics of the runs on a page.

    Args:
        runs: The runs, in the order in which they are shown.
    """

    def __init__(self, runs: Sequence[Named]) -> None:
        several = len(runs) > 1
        names: dict[str, list[tuple[str, str]]] = {}
        for run in runs:
            where = f" ({run.name})" if several else ""
            for defense, defense_result in run.result.defenses.items():
                for diagnostic in defense_result.raised:
                    names.setdefault(diagnostic.name, []).append(
                        (f"{defense}{where}", diagnostic.sentence)
                    )
            for diagnostic in run.result.diagnostics:
                if diagnostic.raised:
                    names.setdefault(diagnostic.name, []).append(
                        (f"{RUN_WIDE}{where}", diagnostic.sentence)
                    )
        self._letters = {name: letter(index) for index, name in enumerate(names)}
        self.all = tuple(
            Flag(self._letters[name], name, _sentence(raised), tuple(who for who, _ in raised))
            for name, raised in names.items()
        )

    def of(self, result: EvaluationResult, defense: str) -> tuple[Raised, ...]:
        """Return the raised diagnostics of a defense and of the whole run, ordered by letter."""
        of_defense = [(item, False) for item in result.defenses[defense].raised]
        of_run = [(item, True) for item in result.diagnostics if item.raised]
        raised = [Raised(self._letters[item.name], item, run) for item, run in of_defense + of_run]
        return tuple(sorted(raised, key=lambda item: (len(item.letter), item.letter)))

    def marks(self, result: EvaluationResult, defense: str) -> tuple[Flag, ...]:
        """Return the flags to show beside every number of a defense."""
        letters = {raised.letter for raised in self.of(result, defense)}
        return tuple(flag for flag in self.all if flag.letter in letters)

    def marks_of_difference(self, result: EvaluationResult, defense: str) -> tuple[Flag, ...]:
        """Return the flags of a difference: those of the defense and those of the static model."""
        letters = {flag.letter for flag in self.marks(result, defense)}
        if STATIC in result.defenses:
            letters |= {flag.letter for flag in self.marks(result, STATIC)}
        return tuple(flag for flag in self.all if flag.letter in letters)


def _sentence(raised: Sequence[tuple[str, str]]) -> str:
    """Return the common sentence, or every sentence after the names of those that it is about."""
    names: dict[str, list[str]] = {}
    for who, sentence in raised:
        names.setdefault(sentence, []).append(who)
    if len(names) == 1:
        return next(iter(names))
    return " ".join(f"{', '.join(whose)}: {sentence}" for sentence, whose in names.items())


@dataclass(frozen=True)
class _Only:
    """A result that is shown without others."""

    name: str
    result: EvaluationResult


def of_one(result: EvaluationResult) -> Flags:
    """Return the flags of a result that is shown without others."""
    return Flags([_Only("", result)])


def letters(flags: Sequence[Flag]) -> str:
    """Return the letters of flags, such as `a,c`."""
    return ",".join(flag.letter for flag in flags)


def letter(index: int) -> str:
    """Return the mark of a flag, by its number from 0: a, ..., z, a2, ..., z2, a3, ..."""
    turn, position = divmod(index, len(ascii_lowercase))
    return ascii_lowercase[position] + (str(turn + 1) if turn else "")

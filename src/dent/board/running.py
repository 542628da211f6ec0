"""Prepare an evaluation on a track: its attacks, and checks that the run follows the track."""

from typing import Final

from dent.attacks import Attack
from dent.board.tracks import VIEWS, Track
from dent.errors import ConfigError, DataError, WeightsError
from dent.evaluation.records.spec import STATIC, EvaluationSpec
from dent.evaluation.subject import Subject
from dent.evaluation.suite_attacks import name_of
from dent.evaluation.suites import suite
from dent.models.weights import weights_digest

_AVERAGES: Final = ("tte", "tte-13")
"""Names, in the description, of defenses that only average over views."""


def attacks_of(chosen: Track, variant: str) -> tuple[Attack, ...]:
    """Return the attacks of a variant of a track.

    Raises:
        UnknownNameError: There is no such variant.
    """
    settings = chosen.settings(variant)
    version = name_of(chosen.suite)
    return suite(version, chosen.budget, mixed=settings.mix is not None)


def check_subject(chosen: Track, subject: Subject) -> None:
    """Check that the base model and the dataset are the track's.

    Raises:
        WeightsError: The base model has other weights.
        DataError: The dataset has other content.
    """
    weights = weights_digest(subject.model)
    if chosen.weights is not None and weights != chosen.weights:
        raise WeightsError(
            f"the base model of {chosen.name} is {chosen.model} with the digest {chosen.weights}, "
            f"but what is here has {weights}: rows of other weights cannot be compared"
        )
    if chosen.digest is not None and subject.dataset.digest != chosen.digest:
        raise DataError(
            f"{chosen.name} is on {chosen.dataset} with the digest {chosen.digest}, but what is "
            f"here has {subject.dataset.digest}: rows on other images cannot be compared"
        )


def check_defenses(chosen: Track, variant: str, spec: EvaluationSpec) -> None:
    """Check that a variant of a row may evaluate these defenses.

    Raises:
        ConfigError: There is more than one defense beside the static model, or the variant `views`
            does not evaluate an average over views.
    """
    others = [defense for defense in spec.defenses if defense.name != STATIC]
    if len(others) > 1:
        raise ConfigError(
            f"a row of {chosen.name} has one defense beside the static model, got "
            f"{', '.join(defense.name for defense in others)}"
        )
    if variant == VIEWS and not (others and others[0].config.get("name") in _AVERAGES):
        got = others[0].name if others else STATIC
        raise ConfigError(
            f"the variant {VIEWS} takes a mean over views, such as tte or tte-13 (as many views as "
            f"the row's defense costs forwards), got {got}"
        )

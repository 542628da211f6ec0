"""The rules of a track: the attacks of a run, and checks that the run follows the track."""

from collections.abc import Iterator, Sequence
from typing import Final

from dent.attacks import Attack
from dent.board.tracks import VIEWS, Track
from dent.defenses import registry
from dent.errors import ConfigError, DataError, WeightsError
from dent.evaluation.attack_specs import attack_spec
from dent.evaluation.records.spec import STATIC, DefenseSpec, EvaluationSpec
from dent.evaluation.subject import Subject, threat_of
from dent.evaluation.suite_attacks import name_of
from dent.evaluation.suites import coverage_of, named_suite, suite
from dent.kinds import recorded_kind
from dent.models.weights import weights_digest

_AVERAGES: Final = ("tte", "tte-13")
"""Names of the defenses that only average over views."""
_EARLIER: Final = ("adaptive-transfer", "zero-update", "surrogates")
"""The attacks with which version 3 of the suite began at first. It has the same attacks."""
_FREE = ("until", "ids", "n", "tensors")
"""Settings that a row may choose, or that are compared separately."""


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
    if variant == VIEWS and not (others and _is_average(others[0])):
        got = others[0].name if others else STATIC
        raise ConfigError(
            f"the variant {VIEWS} takes a mean over views, such as tte or tte-13 (as many views as "
            f"the row's defense costs forwards), got {got}"
        )


def _is_average(defense: DefenseSpec) -> bool:
    """Return whether a defense is one of `_AVERAGES`, not only called so in its description."""
    return defense.kind == recorded_kind("dent") and any(
        defense.config.get("settings") == registry.CONFIGS[name].to_dict() for name in _AVERAGES
    )


def departures(
    chosen: Track, variant: str, nonce: str | None, spec: EvaluationSpec
) -> tuple[str, ...]:
    """Return how a run differs from what its track prescribes; empty if it does not.

    Args:
        chosen: The track.
        variant: Name of the track's variant.
        nonce: Nonce that drew the second half of the samples; None if there is only the fixed half.
        spec: Specification of the run.
    """
    return tuple(_departures(chosen, variant, nonce, spec))


def _departures(
    chosen: Track, variant: str, nonce: str | None, spec: EvaluationSpec
) -> Iterator[str]:
    pairs = (
        ("the base model", spec.model.name, chosen.model),
        ("the weights of the base model", spec.model.weights, chosen.weights),
        ("the dataset", spec.dataset.name, chosen.dataset),
        ("the content of the dataset", spec.dataset.digest, chosen.digest),
        ("the split", spec.dataset.split, chosen.split),
        ("the norm", spec.threat.norm, chosen.norm),
        ("eps", spec.threat.eps, chosen.eps),
        ("the pixel bounds", spec.threat.bounds, (0.0, 1.0)),
    )
    for what, got, expected in pairs:
        if expected is not None and got != expected:
            yield f"{what}: the track says {expected}, the run has {got}"
    for defense in spec.defenses:
        if defense.name == STATIC and defense.weights != spec.model.weights:
            yield (
                f"the static model: the base model has the weights {spec.model.weights}, the "
                f"static model has {defense.weights}"
            )
    settings = chosen.settings(variant, nonce)
    expected_settings, got_settings = settings.to_json(), spec.settings.to_json()
    for name, value in expected_settings.items():
        if name not in _FREE and got_settings[name] != value:
            yield f"{name}: the track says {value}, the run has {got_settings[name]}"
    if spec.settings.ids != settings.ids:
        yield _of_ids(settings.ids or (), spec.settings.ids or ())
    yield from _of_suite(chosen, spec)


def _of_ids(expected: tuple[int, ...], got: tuple[int, ...]) -> str:
    shared = len(set(expected) & set(got))
    return (
        f"samples: the run has {len(got)}, and {shared} of the {len(expected)} that the track and "
        "the nonce say"
    )


def _of_suite(chosen: Track, spec: EvaluationSpec) -> Iterator[str]:
    """Yield how the attacks differ from the suite of the track, which fixes them exactly.

    Attacks that are longer or added could attack the static model alone, and so raise a difference.
    In another order, a run that stops early could begin with the weakest attacks: it would stop
    after more of them, and with a larger upper bound.
    """
    if named_suite(spec) == (name_of(chosen.suite), chosen.budget):
        order = tuple(attack.name for attack in spec.attacks)
        if order not in _orders(chosen, spec):
            yield f"the order of the attacks: the run has {', '.join(order)}"
        return
    wanted = f"the suite: the track says version {chosen.suite}, {chosen.budget}"
    coverage = coverage_of(spec)
    if coverage is None:
        yield f"{wanted}, and the run has no whole suite"
    elif coverage.version != chosen.suite:
        yield f"{wanted}, the run has version {coverage.version}"
    elif named_suite(spec) is not None:
        yield f"{wanted}, the run has the budget {coverage.budget}"
    else:
        yield f"{wanted}, and the run has other attacks: {', '.join(_other_attacks(chosen, spec))}"


def _orders(chosen: Track, spec: EvaluationSpec) -> Iterator[tuple[str, ...]]:
    """Yield the orders in which a run of the track's suite may have its attacks.

    For defenses without steps, those that run on the static model come first (`scheduled`).
    """
    mixed = spec.settings.mix is not None
    whole = [attack.name for attack in suite(name_of(chosen.suite), chosen.budget, mixed=mixed)]
    for names in (whole, sorted(whole, key=lambda name: _earlier(name, whole))):
        yield tuple(names)
        yield tuple(sorted(names, key=lambda name: name in spec.same_on_static))


def _earlier(name: str, whole: Sequence[str]) -> int:
    return _EARLIER.index(name) if name in _EARLIER else len(_EARLIER) + whole.index(name)


def _other_attacks(chosen: Track, spec: EvaluationSpec) -> list[str]:
    """Return the names of attacks that the suite of the track does not have like this."""
    mixed = spec.settings.mix is not None
    whole = suite(name_of(chosen.suite), chosen.budget, mixed=mixed)
    expected = {attack.name: attack_spec(attack, threat_of(spec.threat)) for attack in whole}
    return [
        attack.name
        for attack in spec.attacks
        if attack.name not in expected
        or (attack.attack, attack.settings)
        != (expected[attack.name].attack, expected[attack.name].settings)
    ]

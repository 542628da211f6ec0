"""The checks of a row that need no model: its submission, its records, and its track."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from scipy.stats import ttest_ind

from dent.board.board_row import BoardRow, defense_of
from dent.board.pack import declared_of
from dent.board.row_folder import take_over
from dent.board.submission import reads_like
from dent.board.track_rules import check_defenses
from dent.board.tracks import VIEWS, Track
from dent.defenses import registry
from dent.errors import ConfigError
from dent.evaluation.records.spec import STATIC, EvaluationSpec
from dent.evaluation.results.recorded_run import RecordedRun
from dent.evaluation.results.scoring import score, worst_case
from dent.evaluation.results.worst_case import by_sample, dependence_of
from dent.evaluation.verification.outcome import Check
from dent.support.plural import counted

HALVES_LEVEL: Final = 0.001
"""Significance level of the test that compares the two halves of the samples."""
_CLAIM: Final = Check(
    name="halves",
    state="not-run",
    looked_at=0,
    problems=("there is only the fixed half, which is a claim: a maintainer draws the other half",),
)


def checks_of(row: BoardRow) -> tuple[Check, ...]:
    """Return the checks of a row that do not need its model.

    - `submission`: the row has a submission, for this track and run, and its name is not that of
      another known defense.
    - `manifest`: the records have not changed since the submission.
    - `track`: every run follows the track.
    - `defense`: every run but the views evaluates the same defense, which the submission names. The
      views run evaluates a mean over views. Every run has the static model beside its defense.
    - `halves`: the gain on the drawn half is not far below the gain on the fixed half. Without a
      nonce, there is no drawn half, and the check does not run.
    """
    named = (
        ("submission", _of_submission(row)),
        ("manifest", _of_manifest(row)),
        ("track", _of_track(row)),
        ("defense", _of_defense(row)),
    )
    halves = _CLAIM if row.nonce is None else _check("halves", list(_of_halves(row)))
    return (*(_check(name, list(found)) for name, found in named), halves)


def _check(name: str, problems: list[str]) -> Check:
    return Check(
        name=name,
        state="failed" if problems else "passed",
        looked_at=1,
        problems=tuple(problems),
    )


def _of_submission(row: BoardRow) -> Iterator[str]:
    submission = row.submission
    if submission is None:
        own = "" if row.nonce is None else f", from that of the claim: {take_over()}"
        yield f"there is no submission.json: `dent board submit` writes it{own}"
        return
    identity = row.headline.result.identity
    if submission.track != row.track.name:
        yield f"the submission names the track {submission.track}, the row has {row.track.name}"
    if submission.identity != identity:
        yield f"the submission names the run {submission.identity}, the headline run is {identity}"
    if row.headline.result.status != "complete":
        yield "the headline run is not finished"
    read = reads_like(submission.name)
    for known in registry.names():
        if reads_like(known) == read and _called(submission.factory) != known:
            yield (
                f"the row is called {submission.name!r}, which reads like {known}, a defense of "
                f"torch-dent, and its factory is {submission.factory}: give it another name"
            )


def _of_manifest(row: BoardRow) -> Iterator[str]:
    submission = row.submission
    if submission is None:
        return
    found = declared_of(row.folder)
    if submission.manifest != found:
        yield f"the records have the digest {found}, the submission says {submission.manifest}"


def _of_track(row: BoardRow) -> Iterator[str]:
    for run in row.runs:
        for departure in run.departures:
            yield f"{run.name}: {departure}"


def _of_defense(row: BoardRow) -> Iterator[str]:
    specs = {
        variant.name: _others(variant.result.spec) for variant in (row.headline, *row.variants)
    }
    headline = specs[row.headline.name]
    if len(headline) > 1:
        yield f"the headline run evaluates {counted(len(headline), 'defense')}, expected one"
    for name, found in specs.items():
        if found != headline:
            yield f"{name}: it evaluates another defense than the headline run does"
    submission = row.submission
    name = row.headline.defense_name
    if submission is not None and _called(submission.factory) != name:
        yield (
            f"the submission names the defense {submission.factory}, "
            f"the headline run evaluates {name}"
        )
    yield from (
        f"{run.name}: there is no static model to compare with"
        for run in row.runs
        if not run.result.spec.has_static
    )
    if row.views is not None:
        yield from _of_views(row.track, row.views.result.spec)


def _of_views(chosen: Track, spec: EvaluationSpec) -> Iterator[str]:
    try:
        check_defenses(chosen, VIEWS, spec)
    except ConfigError as error:
        yield str(error)


def _called(factory: str) -> str:
    """Return the name of a factory's defense in a run."""
    return Path(factory).stem if factory.lower().endswith(".json") else factory


def _others(spec: EvaluationSpec) -> list[dict[str, Any]]:
    return [defense.to_json() for defense in spec.defenses if defense.name != STATIC]


def _of_halves(row: BoardRow) -> Iterator[str]:
    """Detect a defense that was tuned on the fixed half, which is public."""
    fixed, drawn = gains_of_halves(row)
    p_value = above(fixed, drawn)
    if p_value is not None and p_value < HALVES_LEVEL:
        means = [100 * sum(half) / len(half) for half in (fixed, drawn)]
        yield (
            f"the gain is {means[0]:+.1f} points on the fixed half and {means[1]:+.1f} on the half "
            f"that was drawn (p = {p_value:.2g}): was the defense made with the fixed half?"
        )


def gains_of_halves(row: BoardRow) -> tuple[list[float], list[float]]:
    """Return the gain on each sample of the fixed half and of the drawn half of a row.

    Both are empty if there is no defense or no static model.
    """
    run = row.headline.run
    if row.headline.defense_name == STATIC or not run.run.spec.has_static:
        return [], []
    fixed_ids, gains = set(row.track.fixed_ids), gain_by_id(run)
    fixed = [gain for id_, gain in gains.items() if id_ in fixed_ids]
    return fixed, [gain for id_, gain in gains.items() if id_ not in fixed_ids]


def above(fixed: list[float], drawn: list[float]) -> float | None:
    """Test by Welch's one-sided t-test whether the mean of `fixed` is above the mean of `drawn`.

    Returns:
        The p-value; None if either has fewer than two values.
    """
    if min(len(fixed), len(drawn)) < 2:
        return None
    if len(set(fixed)) == len(set(drawn)) == 1:  # no variance: the test has no answer
        return 0.0 if fixed[0] > drawn[0] else 1.0
    return float(ttest_ind(fixed, drawn, equal_var=False, alternative="greater").pvalue)


def gain_by_id(run: RecordedRun) -> dict[int, float]:
    """Return, by sample id, the defense's worst-case correctness minus the static model's."""
    name, spec = defense_of(run), run.run.spec
    scores = score(spec, run.plan, run.records)
    rights = {}
    for each in (STATIC, name):
        described = next(defense for defense in spec.defenses if defense.name == each)
        samples = by_sample(dependence_of(described, scores[each]))
        rights[each], _ = worst_case(scores[each], scores[each].whole, by_sample=samples)
    gains: dict[int, float] = {}
    for batch in run.plan.batches:
        if batch.index in rights[name] and batch.index in rights[STATIC]:
            pairs = zip(rights[name][batch.index], rights[STATIC][batch.index], strict=True)
            gains |= {
                id_: float(ours) - float(theirs)
                for id_, (ours, theirs) in zip(batch.ids, pairs, strict=False)
            }
    return gains

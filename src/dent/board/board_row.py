"""One row of the board: its runs, what it says about them, and how far it was checked."""

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from dent.board.submission import RowSubmission
from dent.board.tracks import Track
from dent.board.trust import State, TrustEntry, state_of
from dent.evaluation.records.schema import ChallengeRecord
from dent.evaluation.records.spec import STATIC
from dent.evaluation.results.outside import with_challenges
from dent.evaluation.results.recorded_run import RecordedRun
from dent.evaluation.results.result import (
    ChallengeSummary,
    Decision,
    DefenseResult,
    Dependence,
    Difference,
    EvaluationResult,
)
from dent.evaluation.results.scoring import Rights, score, worst_case
from dent.evaluation.results.summary import without_static_challenges
from dent.evaluation.results.worst_case import (
    bootstrap_seed,
    by_sample,
    dependence_of,
    independent_members,
    paired,
)
from dent.evaluation.suite_attacks import VERSION
from dent.evaluation.suites import coverage_of
from dent.evaluation.verification.outcome import Check

RowRuling = Literal["robust gain", "no gain", "harmful", "inconclusive", "the reference", "none"]


@dataclass(frozen=True)
class VariantResult:
    """The result of one run of a row.

    Attributes:
        name: Name of the variant.
        result: The result, derived from the records.
        run: The records, without challenges that nobody checked.
        departures: How the run differs from what the track prescribes; empty if it does not.
        unchecked: The challenges that no check in `trust.json` covers. They do not count.
    """

    name: str
    result: EvaluationResult
    run: RecordedRun
    departures: tuple[str, ...]
    unchecked: tuple[ChallengeRecord, ...] = ()

    @property
    def finished(self) -> bool:
        """Whether the run went to its end or stopped early, so that nothing of it is left to do."""
        return self.result.status == "complete"

    @property
    def defense_name(self) -> str:
        """Name of the run's defense; `static` if there is no other."""
        return next((name for name in self.result.defenses if name != STATIC), STATIC)

    @property
    def defense(self) -> DefenseResult:
        """The result of this defense."""
        return self.result.defenses[self.defense_name]

    @property
    def decided(self) -> Decision | None:
        """Where its attacks stopped early, so that its difference is an upper bound; else None."""
        return self.defense.decided

    @cached_property
    def difference(self) -> Difference | None:
        """The difference to the static model, or the one without challenges to it, if smaller."""
        found, run = self.defense.difference, self.run
        if not run.challenges or found is None or found.value is None:
            return found
        others = without_static_challenges(run.run.spec, run.plan, run.records, run.challenges)
        other = others.get(self.defense_name, found)
        return other if other.value is not None and other.value < found.value else found

    def to_json(self) -> dict[str, Any]:
        """Return the run's difference and departures as plain JSON values."""
        difference = self.difference
        return {
            "name": self.name,
            "status": self.result.status,
            "defense": self.defense_name,
            "difference": None if difference is None else difference.to_json(),
            "decided": None if self.decided is None else self.decided.to_json(),
            "departures": list(self.departures),
        }


@dataclass(frozen=True)
class BoardRow:
    """One row of the board.

    Attributes:
        folder: Folder of the row.
        track: Track of the row.
        nonce: Nonce that drew half of the samples; None if only the fixed half was evaluated.
        submission: The submitter's statements; None if nothing was submitted.
        headline: The run that the row is ranked by.
        variants: The other runs, except the views.
        views: The run of the mean over views; None if there is none.
        checks: Checks that the headline run has passed with the present files of the row.
        row_checks: The checks of the row that need no model. If any has not passed, `checks` does
            not count.
        unbound: Why no check counts although there are some; None otherwise.
        void: Why the row does not count; None if it does.
    """

    folder: Path
    track: Track
    nonce: str | None
    submission: RowSubmission | None
    headline: VariantResult
    variants: tuple[VariantResult, ...]
    views: VariantResult | None
    checks: tuple[TrustEntry, ...]
    row_checks: tuple[Check, ...] = ()
    unbound: str | None = None
    void: str | None = None

    @property
    def name(self) -> str:
        """Name of the row."""
        return self.headline.defense_name if self.submission is None else self.submission.name

    @property
    def runs(self) -> tuple[VariantResult, ...]:
        """All runs of the row: the headline, the variants and the views."""
        views = () if self.views is None else (self.views,)
        return (self.headline, *self.variants, *views)

    @property
    def ruling(self) -> RowRuling:
        """The ruling of the verdict; `none` without one, `the reference` for the static model."""
        if self.headline.defense_name == STATIC:
            return "the reference"
        verdict = self.headline.defense.verdict
        return "none" if verdict is None else verdict.ruling

    @property
    def difference(self) -> Difference | None:
        """Worst-case difference to the base model, over official and outside attacks.

        Challenges to the base model may not raise it: the smaller of the differences with and
        without them counts. If the run stopped early, it is an upper bound.
        """
        return self.headline.difference

    @property
    def natural(self) -> Difference | None:
        """Difference of the clean accuracies; None without a verdict."""
        verdict = self.headline.defense.verdict
        return None if verdict is None else verdict.natural

    @property
    def less_views(self) -> Difference | None:
        """Worst-case difference to the mean over views; None unless both runs went to the end."""
        beside = self.headline.defense.over_views
        if beside is not None:
            return beside.difference
        if self.views is None or self.stopped or not self.finished:
            return None
        return difference_to_views(self.headline.run, self.views.run)

    @property
    def finished(self) -> bool:
        """Whether its run and the views' run are complete; a part gives only an upper bound."""
        return all(run.finished for run in (self.headline, self.views) if run is not None)

    @property
    def stopped(self) -> bool:
        """Whether its run or the views' run stopped early, which gives only an upper bound."""
        views = () if self.views is None else (self.views.defense,)
        return any(each.decided is not None for each in (self.headline.defense, *views))

    @property
    def cost(self) -> float | None:
        """Cost of one prediction, in forwards of the static model; None if it was not measured."""
        return self.headline.defense.timing.get("relative")

    @property
    def dependence(self) -> Dependence:
        """Whether its predictions depend on the other members of the batch."""
        return self.headline.defense.dependence

    @property
    def depends_on_batch(self) -> bool:
        """Whether this dependence is declared or measured."""
        return not by_sample(self.dependence)

    @property
    def decided_by(self) -> str | None:
        """The submission that decided most of the worst case."""
        by = self.headline.defense.worst.by
        return max(by, key=by.__getitem__) if by else None

    @property
    def suite(self) -> int | None:
        """Version of the suite; None if the run does not have the whole suite."""
        coverage = coverage_of(self.headline.result.spec)
        return None if coverage is None else coverage.version

    @property
    def stale(self) -> bool:
        """Whether there is a newer version of the suite than the row's."""
        return self.suite is not None and self.suite < VERSION

    @property
    def broken_by(self) -> tuple[ChallengeSummary, ...]:
        """The checked challenges (outside attacks) that lowered its worst case."""
        return self.headline.defense.broken_by

    @cached_property
    def had_gain(self) -> bool:
        """Whether it would have the verdict of a robust gain without attacks from outside."""
        result = replace(self.headline.run, challenges=()).result
        verdict = result.defenses[self.headline.defense_name].verdict
        return verdict is not None and verdict.ruling == "robust gain"

    @property
    def challenged_by(self) -> tuple[str, ...]:
        """The makers of challenges that do not count, because no maintainer has checked them."""
        unchecked = (challenge for run in self.runs for challenge in run.unchecked)
        return tuple(dict.fromkeys(challenge.by for challenge in unchecked))

    @property
    def nonce_source(self) -> str | None:
        """Where the nonce comes from and who drew it, by the last check; None if not stated."""
        for entry in reversed(self.checks):
            if entry.nonce_source is not None:
                drawn_by = "" if entry.nonce_by is None else f", by {entry.nonce_by}"
                return f"{entry.nonce_source}{drawn_by}"
        return None

    @property
    def problems(self) -> tuple[str, ...]:
        """What the checks that need no model found, or why they did not run."""
        return tuple(
            f"{check.name}: {problem}"
            for check in self.row_checks
            if check.state != "passed"
            for problem in check.problems
        )

    @property
    def state(self) -> State:
        """How far the row has been checked."""
        return "claimed" if self.problems else state_of(self.checks)

    @property
    def trust(self) -> str:
        """The state in words, with the names of the people who broke or lowered the row."""
        words: str = self.state
        if words == "re-attacked":
            last = max(self.checks, key=lambda entry: entry.units)
            words = f"re-attacked ({last.attacks})"
        if self.broken_by:
            verb = "broken" if self.had_gain else "lowered"
            words += f", {verb} by {', '.join(each.by for each in self.broken_by)}"
        if self.challenged_by:
            words += f", challenged by {', '.join(self.challenged_by)} (not checked)"
        return words

    def to_json(self) -> dict[str, Any]:
        """Return the row as plain JSON values."""
        differences = {
            "difference": self.difference,
            "natural": self.natural,
            "less_views": self.less_views,
        }
        plain = {
            name: None if each is None else each.to_json() for name, each in differences.items()
        }
        return {
            "name": self.name,
            "folder": str(self.folder),
            "track": self.track.name,
            "practice": self.track.practice,
            "nonce": self.nonce,
            "nonce_source": self.nonce_source,
            "identity": self.headline.result.identity,
            "status": self.headline.result.status,
            "defense": self.headline.defense_name,
            "ruling": self.ruling,
            "samples": self.headline.result.samples,
            **plain,
            "decided": None if self.headline.decided is None else self.headline.decided.to_json(),
            "cost": self.cost,
            "dependence": self.dependence.to_json(),
            "decided_by": self.decided_by,
            "suite": self.suite,
            "stale": self.stale,
            "trust": self.trust,
            "unbound": self.unbound,
            "problems": list(self.problems),
            "broken_by": [
                {"by": each.by, "digest": each.digest, "url": each.url} for each in self.broken_by
            ],
            "challenged_by": list(self.challenged_by),
            "void": self.void,
            "departures": list(self.headline.departures),
            "variants": [each.to_json() for each in self.variants],
            "views": None if self.views is None else self.views.to_json(),
            "submission": None if self.submission is None else self.submission.to_json(),
        }


def defense_of(run: RecordedRun) -> str:
    """Return the name of the defense in a row's run; `static` if there is no other."""
    names = [defense.name for defense in run.run.spec.defenses]
    return next((name for name in names if name != STATIC), STATIC)


def difference_to_views(row: RecordedRun, views: RecordedRun) -> Difference | None:
    """Return the worst case of a row's defense minus the views', on the batches that both have.

    Returns:
        None if the two runs have different batches, or no scored batch in common yet.
    """
    if row.plan != views.plan:
        return None
    ours, own = _worst(row)
    theirs, of_views = _worst(views)
    batches = sorted(ours.keys() & theirs.keys())
    if not batches:
        return None
    return paired(
        {index: ours[index] for index in batches},
        {index: theirs[index] for index in batches},
        independent=independent_members(own) and independent_members(of_views),
        static_by_sample=by_sample(of_views),
        seed=bootstrap_seed(row.run.spec),
    )


def _worst(run: RecordedRun) -> tuple[dict[int, Rights], Dependence]:
    name = defense_of(run)
    own = score(run.run.spec, run.plan, run.records)
    scores = with_challenges(own, run.plan, run.challenges)[name].scores
    spec = next(defense for defense in run.run.spec.defenses if defense.name == name)
    dependence = dependence_of(spec, scores)
    rights, _ = worst_case(scores, scores.whole, by_sample=by_sample(dependence))
    return rights, dependence

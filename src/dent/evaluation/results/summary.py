"""Derive the result of a run from its records."""

from collections.abc import Mapping, Sequence
from statistics import median

from dent.evaluation.attack_kinds import has_exact_attack, is_black_box, kinds_of_attacks
from dent.evaluation.records.folder import RunFolder
from dent.evaluation.records.plan import Plan
from dent.evaluation.records.schema import (
    ChallengeRecord,
    JournalRecord,
    Session,
    UnitRecord,
)
from dent.evaluation.records.spec import STATIC, AttackSpec, DefenseSpec, EvaluationSpec
from dent.evaluation.results import diagnostics
from dent.evaluation.results.attack_effort import effort_diagnostics
from dent.evaluation.results.attack_failure import curve_of, indicators_of
from dent.evaluation.results.averaged_views import over_views
from dent.evaluation.results.decision import decisions, units_left
from dent.evaluation.results.gradient_comparison import compare_gradients
from dent.evaluation.results.ladder import ladder_of
from dent.evaluation.results.mistakes import suspicions
from dent.evaluation.results.outside import WithOutside, summaries, with_challenges
from dent.evaluation.results.result import (
    AttackSummary,
    Count,
    Decision,
    DefenseResult,
    Dependence,
    Diagnostic,
    Difference,
    EvaluationResult,
)
from dent.evaluation.results.scoring import Scores, score
from dent.evaluation.results.verdict import RULES, with_verdicts
from dent.evaluation.results.worst_case import (
    bootstrap_seed,
    by_sample,
    count_of,
    dependence_of,
    difference_to,
    repeated_of,
    worst_of,
)
from dent.evaluation.submission.submission import merge_traces


def summarize(
    spec: EvaluationSpec,
    plan: Plan,
    records: Mapping[str, JournalRecord],
    planned: int,
    sessions: Sequence[Session],
    challenges: Sequence[ChallengeRecord] = (),
) -> EvaluationResult:
    """Derive the result of a run; equal records give equal results.

    Args:
        spec: The specification.
        plan: Its batches.
        records: The records of the finished units, by key.
        planned: The number of planned units.
        sessions: The processes that worked on the run.
        challenges: Adversarial images from outside the run, in the order of submission.
    """
    scores = score(spec, plan, records)
    challenged = with_challenges(scores, plan, challenges)
    decided = {} if len(records) == planned else decisions(spec, plan, records)
    complete = len(records) == planned or not units_left(spec, plan, records, decided)
    defenses = {
        defense.name: _defense(
            defense, scores[defense.name], challenged, spec, decided.get(defense.name)
        )
        for defense in spec.defenses
    }
    if decided:  # the static model may lack its certificate as well
        defenses = {
            name: each.model_copy(update={"diagnostics": diagnostics.stopped(each.diagnostics)})
            if name in decided or name == STATIC
            else each
            for name, each in defenses.items()
        }
    with_outside = {name: each.scores for name, each in challenged.items()}
    if complete:
        defenses = over_views(spec.defenses, defenses, with_outside, bootstrap_seed(spec))
    return EvaluationResult(
        schema_version=spec.written_as,
        status="complete" if complete else "partial",
        rules=RULES,
        identity=spec.identity,
        spec=spec,
        samples=plan.attacked,
        batches=len(plan.batches),
        units_done=len(records),
        units_planned=planned,
        defenses=with_verdicts(
            defenses,
            scores,
            spec,
            complete=complete,
            without_static_challenges=_without_static_challenges(scores, challenged, spec),
            without_own_challenges=_without_own_challenges(scores, challenged, spec, plan),
        ),
        diagnostics=diagnostics.of_run(spec, uneven=plan.uneven, sessions=sessions),
        sessions=tuple(sessions),
        timing=_total_timing(sessions, list(records.values())),
    )


def summarize_folder(folder: RunFolder, plan: Plan) -> EvaluationResult:
    """Derive the result of the run in a folder that is open for writing.

    Args:
        folder: The folder.
        plan: The batches of the run.
    """
    run = folder.run
    return summarize(run.spec, plan, folder.done, run.units, run.sessions, folder.challenges)


def without_static_challenges(
    spec: EvaluationSpec,
    plan: Plan,
    records: Mapping[str, JournalRecord],
    challenges: Sequence[ChallengeRecord],
) -> dict[str, Difference]:
    """Return, by defense, the difference without the challenges to the static model.

    Such challenges lower the static model, and so may raise the difference, perhaps only because
    nobody has attacked the defense as hard. Empty if there are none.
    """
    scores = score(spec, plan, records)
    return _without_static_challenges(scores, with_challenges(scores, plan, challenges), spec)


def _defense(
    defense: DefenseSpec,
    scores: Scores,
    challenged: Mapping[str, WithOutside],
    spec: EvaluationSpec,
    decided: Decision | None,
) -> DefenseResult:
    """Return the result of one defense, without a verdict.

    Args:
        defense: Its description.
        scores: The scores of its own records.
        challenged: For every defense, the scores that also count images from outside.
        spec: The specification.
        decided: Where the attacks on it stopped early; None if they did not.
    """
    own = challenged[defense.name]
    dependence = dependence_of(defense, scores)
    natural = list(scores.submissions["natural"].values())
    missing = sum(piece.missing for piece in natural)
    specs = {attack.name: attack for attack in spec.attacks}
    attacks = tuple(
        _attack(name, scores, specs) for name in scores.submissions if name != "natural"
    )
    outside = summaries(own, dependence)
    difference = None
    if defense.name != STATIC and STATIC in challenged:
        static = challenged[STATIC].scores
        difference = difference_to(static, own.scores, dependence, bootstrap_seed(spec))
    unattacked = count_of([piece.attacked for piece in natural])
    return DefenseResult(
        natural=unattacked,
        bystanders=count_of([piece.clean for piece in natural]),
        attacks=attacks
        + tuple(_attack(entry.key, own.scores, specs, by=entry.by) for entry in outside),
        worst=worst_of(own.scores, dependence),
        difference=difference,
        dependence=dependence,
        trace=merge_traces([record.trace for record in scores.records["natural"]]),
        non_finite=missing,
        diagnostics=_diagnostics(defense, scores, dependence, attacks, missing, spec)
        + suspicions(unattacked, len(spec.dataset.classes), scores)
        + effort_diagnostics(defense, scores, spec.attacks),
        timing=_timing(scores),
        ladder=None if defense.name == STATIC else ladder_of(spec, attacks),
        repeated=repeated_of(own.scores, dependence),
        decided=decided,
        challenges=outside,
    )


def _diagnostics(
    defense: DefenseSpec,
    scores: Scores,
    dependence: Dependence,
    attacks: Sequence[AttackSummary],
    missing: int,
    spec: EvaluationSpec,
) -> tuple[Diagnostic, ...]:
    """Return the diagnostics of a defense, from its probe and from the attacks of the run."""
    on_static = defense.name == STATIC
    ran = {summary.attack for summary in attacks if summary.ran and summary.attack is not None}
    return diagnostics.of_defense(
        defense.name,
        scores.probe,
        dependence,
        attacks,
        missing,
        has_static=spec.has_static,
        has_exact_attack=has_exact_attack(spec),
        kinds=kinds_of_attacks(spec.attacks, ran, on_static=on_static),
        comparison=compare_gradients(
            scores, spec, by_sample=by_sample(dependence), on_static=on_static
        ),
        apart=_apart(scores),
    )


def _without_static_challenges(
    scores: Mapping[str, Scores], challenged: Mapping[str, WithOutside], spec: EvaluationSpec
) -> dict[str, Difference]:
    """Return the differences without the challenges to the static model, if there are any."""
    if STATIC not in challenged or not challenged[STATIC].challenges:
        return {}
    return {
        defense.name: difference_to(
            scores[STATIC],
            challenged[defense.name].scores,
            dependence_of(defense, scores[defense.name]),
            bootstrap_seed(spec),
        )
        for defense in spec.defenses
        if defense.name != STATIC
    }


def _without_own_challenges(
    scores: Mapping[str, Scores],
    challenged: Mapping[str, WithOutside],
    spec: EvaluationSpec,
    plan: Plan,
) -> dict[str, Difference]:
    """Return the differences without challenges to a defense alone, for defenses that have some.

    Images that were submitted to the static model, too, stay.
    """
    if STATIC not in challenged:
        return {}
    static = challenged[STATIC]
    shared = {challenge.digest for challenge in static.challenges}
    alone = {
        name: any(challenge.digest not in shared for challenge in own.challenges)
        for name, own in challenged.items()
    }
    every = [challenge for own in challenged.values() for challenge in own.challenges]
    both = with_challenges(scores, plan, [each for each in every if each.digest in shared])
    return {
        defense.name: difference_to(
            static.scores,
            both[defense.name].scores,
            dependence_of(defense, scores[defense.name]),
            bootstrap_seed(spec),
        )
        for defense in spec.defenses
        if defense.name != STATIC and alone[defense.name]
    }


def _apart(scores: Scores) -> dict[str, float]:
    """Return the largest distance between the answers of each view and the submission."""
    furthest: dict[str, float] = {}
    for records in scores.records.values():
        for record in records:
            for name, value in record.apart.items():
                furthest[name] = max(value, furthest.get(name, 0.0))
    return furthest


def _attack(
    name: str, scores: Scores, specs: Mapping[str, AttackSpec], by: str | None = None
) -> AttackSummary:
    """Summarize the submissions of one kind to a defense.

    Args:
        name: Their name, such as `attack/apgd-ce`.
        scores: The scores of the defense.
        specs: The attacks of the run, by name.
        by: Who made the images of a challenge.
    """
    kind, _, attack = name.partition("/")
    records = scores.records[name]
    pieces = list(scores.submissions[name].values())
    rights = [hit > 0.5 for piece in pieces for hit in piece.attacked]
    fooled = [claim for record in records for claim in record.claimed or ()]
    is_attack = kind == "attack"
    claims = list(zip(fooled, rights, strict=True)) if is_attack else []
    return AttackSummary(
        kind=kind,  # type: ignore[arg-type]
        attack=attack or None,
        by=by,
        served=count_of([piece.attacked for piece in pieces]),
        bystanders=count_of([piece.clean for piece in pieces]),
        claimed=Count.of(len(fooled) - sum(fooled), len(fooled)) if is_attack else None,
        claimed_but_served=sum(claim and right for claim, right in claims),
        served_wrong_unclaimed=sum(not claim and not right for claim, right in claims),
        after=_claimed_after(records, len(fooled)),
        black_box=is_attack
        and bool(records)
        and is_black_box(specs[attack], took_gradients=any(record.backwards for record in records)),
        carried=sum(sum(record.carried or ()) for record in records),
        queries=sum(record.queries for record in records),
        backwards=sum(record.backwards for record in records),
        non_finite=sum(piece.missing for piece in pieces),
        non_finite_in_attack=sum(record.non_finite for record in records),
        trace=merge_traces([record.trace for record in records]),
        notes=tuple(dict.fromkeys(note for record in records for note in record.notes)),
        batches=len(pieces),
        timing={
            "attack": sum(record.timing.attack for record in records),
            "serve": sum(record.timing.serve for record in records),
        },
        curve=curve_of(records),
        indicators=indicators_of(records),
    )


def _claimed_after(records: Sequence[UnitRecord], total: int) -> dict[str, Count]:
    """Return how many of `total` members were correct after each part of an attack, by its claim.

    The counts are by the name of the part.
    """
    parts = dict.fromkeys((part for record in records for part in record.claimed_after or {}), 0)
    for record in records:
        # If every member was fooled before, no part of the attack ran.
        before = dict.fromkeys(parts, sum(record.claimed or ()))
        for part, fooled in (record.claimed_after or before).items():
            parts[part] += fooled
    return {part: Count.of(total - fooled, total) for part, fooled in parts.items()}


def _timing(scores: Scores) -> dict[str, float]:
    natural = [record.timing for record in scores.records["natural"]]
    totals = [record.timing.total for records in scores.records.values() for record in records]
    timing = {"total_seconds": sum(totals), "batches": float(len(natural))}
    if natural:
        timing["seconds"] = median(unit.serve for unit in natural)
    # The static model is compared with itself: it was not timed twice.
    pairs = [(unit.serve, unit.static or unit.serve) for unit in natural if unit.serve > 0]
    if pairs:
        timing["static_seconds"] = median(static for _, static in pairs)
        timing["relative"] = median(seconds / static for seconds, static in pairs)
    return timing


def _total_timing(
    sessions: Sequence[Session], records: Sequence[JournalRecord]
) -> dict[str, float]:
    """Return the seconds of the run; of its units if sessions lack some, as after a SIGKILL."""
    names = ("total", "attack", "serve", "probe")
    timing = {name: sum(session.timing.get(name, 0.0) for session in sessions) for name in names}
    probes = [record.timing.total for record in records if not isinstance(record, UnitRecord)]
    of_units = {
        "total": sum(record.timing.total for record in records),
        "attack": sum(record.timing.attack for record in records),
        "serve": sum(record.timing.serve + (record.timing.static or 0.0) for record in records),
        "probe": sum(probes),
    }
    if sum(session.units for session in sessions) < len(records):
        timing = {name: max(seconds, of_units[name]) for name, seconds in timing.items()}
    if timing["total"] > 0:
        rest = timing["total"] - timing["attack"] - timing["serve"] - timing["probe"]
        timing["overhead"] = max(rest, 0.0) / timing["total"]
    return timing

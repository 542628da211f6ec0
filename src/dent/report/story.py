"""Everything about one sample, for `dent show RUN --sample ID`."""

from collections.abc import Mapping
from typing import Literal

from dent.evaluation.records.spec import EvaluationSpec
from dent.evaluation.results.recorded_run import RecordedRun, SampleAnswer
from dent.storage.canonical import Record
from dent.storage.errors import RecordError


class StoryAnswer(Record):
    """The prediction of a defense for one submission of the sample's batch."""

    kind: Literal["natural", "attack", "transfer", "assembled", "challenge"]
    attack: str | None
    by: str | None = None
    """Who made the images of a challenge; null for the run's own attacks."""
    batch: int
    """Index of the sample's batch."""
    member: int
    """Position of the sample in the batch."""
    attacked: bool
    """Whether the sample was attacked; false for clean members and natural batches."""
    predicted: int | None
    """Predicted class; null without a prediction, which counts as wrong."""
    predicted_name: str | None
    correct: bool
    claimed: bool | None
    """Whether the attack claims to have fooled the defense; null without an attack on the defense.
    """
    mismatch: bool
    """Whether the attack's claim differs from the prediction on submission."""


class DefenseStory(Record):
    """The predictions of one defense for the sample."""

    defense: str
    answers: tuple[StoryAnswer, ...]
    """Natural submissions first, then in the order of the records."""
    broken_by: tuple[str, ...]
    """The submissions in which the attacked sample was predicted wrong, such as `attack/apgd-ce`.
    """
    flags: tuple[str, ...]
    """Raised diagnostics of the defense and of the run."""


class SampleStory(Record):
    """All predictions for one sample in a run."""

    sample: int
    """Id of the sample: its position in the full split."""
    label: int
    label_name: str
    batches: tuple[int, ...]
    """Batches with the sample, as an attacked or a clean member."""
    defenses: tuple[DefenseStory, ...]
    status: Literal["complete", "partial"]
    """`partial`: units of the run are missing, so predictions may be missing."""


def sample_story(run: RecordedRun, sample_id: int) -> SampleStory:
    """Return all predictions for one sample, natural and under every attack.

    Args:
        run: From `load_run`.
        sample_id: The sample's position in the full split. A sample keeps its id in every subset.

    Raises:
        RecordError: No batch of the run contains the sample. The message lists some ids of the run.
    """
    places = [batch for batch in run.plan.batches if sample_id in batch.ids]
    if not places:
        raise RecordError(f"{run.path} has no sample with the id {sample_id}; it has {_held(run)}")
    label = places[0].labels[places[0].ids.index(sample_id)]
    answers = run.sample(sample_id)
    spec, result = run.run.spec, run.result
    of_run = tuple(flag.name for flag in result.diagnostics if flag.raised)
    makers = {entry.short: entry.by for entry in run.challenges}
    return SampleStory(
        sample=sample_id,
        label=label,
        label_name=class_name(spec, label),
        batches=tuple(batch.index for batch in places),
        defenses=tuple(
            _of_defense(
                spec,
                name,
                [answer for answer in answers if answer.record.defense == name],
                makers,
                tuple(flag.name for flag in result.defenses[name].raised) + of_run,
            )
            for name in result.defenses
        ),
        status=result.status,
    )


def class_name(spec: EvaluationSpec, label: int) -> str:
    """Return the name of a class; `class 12` if the dataset does not name it."""
    classes = spec.dataset.classes
    return classes[label] if 0 <= label < len(classes) else f"class {label}"


def _of_defense(
    spec: EvaluationSpec,
    name: str,
    samples: list[SampleAnswer],
    makers: Mapping[str, str],
    flags: tuple[str, ...],
) -> DefenseStory:
    answers = tuple(_answer(spec, sample, makers) for sample in samples)
    return DefenseStory(
        defense=name,
        answers=tuple(sorted(answers, key=lambda answer: answer.kind != "natural")),
        broken_by=tuple(
            answer.kind if answer.attack is None else f"{answer.kind}/{answer.attack}"
            for answer in answers
            if answer.attacked and not answer.correct and answer.kind != "natural"
        ),
        flags=flags,
    )


def _answer(spec: EvaluationSpec, sample: SampleAnswer, makers: Mapping[str, str]) -> StoryAnswer:
    record = sample.record
    return StoryAnswer(
        kind=record.kind,
        attack=record.attack,
        by=makers.get(record.attack or "") if record.kind == "challenge" else None,
        batch=sample.batch.index,
        member=sample.member,
        attacked=sample.member < sample.batch.attacked and record.kind != "natural",
        predicted=sample.predicted,
        predicted_name=None if sample.predicted is None else class_name(spec, sample.predicted),
        correct=sample.correct,
        claimed=sample.claimed,
        mismatch=sample.claimed is not None and sample.claimed == sample.correct,
    )


def _held(run: RecordedRun) -> str:
    ids = sorted({sample_id for batch in run.plan.batches for sample_id in batch.ids})
    shown = ", ".join(map(str, ids[:6]))
    return shown if len(ids) <= 6 else f"{shown}, ... ({len(ids)} in all, up to {ids[-1]})"

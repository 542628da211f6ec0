"""The responses to clients."""

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, Field

from dent.serving.engine import NO_PREDICTION, NO_STEP, OWN_STATISTICS, ServedAnswer
from dent.support.plural import counted


class Prediction(BaseModel):
    """The answer for one image. A field is null if there is no prediction or no known value."""

    label: int | None = Field(description="The class, or null without a prediction.")
    name: str | None = Field(description="The name of the class, where names are known.")
    probability: float | None = Field(
        description="Probability of that class, by softmax of the logits."
    )
    entropy_before: float | None = Field(description="In nats, before the first step.")
    entropy_after: float | None = Field(description="In nats, of this prediction.")
    status: str = Field(
        description="adapted; step-non-finite or reverted (trained parameters were served); "
        f"{NO_STEP} (no gradient step moved anything); {OWN_STATISTICS} (a single image was "
        f"normalized by its own statistics: noise); {NO_PREDICTION}; or answered, where the "
        "defense does not say."
    )
    logits: list[float | None] | None = Field(
        default=None, description="Only with ?logits=true; null is minus infinity or not a number."
    )


class PredictResponse(BaseModel):
    """The answer to a request."""

    predictions: list[Prediction] = Field(description="One for each image, in order.")
    steps: int | None = Field(description="Gradient steps taken; null if the defense has none.")
    steps_configured: int | None = Field(description="Gradient steps of a full answer.")
    degraded: bool = Field(description="Fewer steps were taken than configured.")
    late: bool = Field(description="The deadline was missed all the same.")
    notes: list[str] = Field(description="Remarks about this answer.")
    seconds: float = Field(description="From the request's arrival to this answer.")


class Failure(BaseModel):
    """The reason why a request was not answered."""

    code: str = Field(description="Short name of the reason.")
    message: str = Field(description="What was expected, what came, and what to do.")
    image: int | None = Field(default=None, description="Position of the image at fault.")


class FailureResponse(BaseModel):
    """The body of every response to a request that failed."""

    error: Failure


def respond(
    answer: ServedAnswer,
    *,
    classes: Sequence[str],
    configured: int | None,
    late: bool,
    seconds: float,
    logits: bool,
) -> PredictResponse:
    """Return the response to a request.

    Args:
        answer: the answer to the request's images.
        classes: names of the classes by label; empty if unknown.
        configured: gradient steps of a full answer; None if the defense has none.
        late: whether the deadline was missed.
        seconds: from the request's arrival to its answer.
        logits: whether to include the logits.
    """
    degraded = answer.steps is not None and configured is not None and answer.steps < configured
    notes = []
    if degraded:
        notes.append(
            f"{answer.steps} of {counted(configured or 0, 'step')} fitted into the deadline."
        )
    if configured and NO_STEP in answer.statuses:
        notes.append(
            "Information maximization of a single image is constant: this is the static model's "
            "answer. Send several images in one request."
        )
    if OWN_STATISTICS in answer.statuses:
        notes.append(
            "A single image is normalized by its own statistics, which makes its prediction "
            "noise. Send 32 images or more in one request."
        )
    return PredictResponse(
        predictions=_predictions(answer, classes, logits=logits),
        steps=answer.steps,
        steps_configured=configured,
        degraded=degraded,
        late=late,
        notes=notes,
        seconds=seconds,
    )


def _predictions(answer: ServedAnswer, classes: Sequence[str], *, logits: bool) -> list[Prediction]:
    probabilities, labels = answer.logits.softmax(1).max(1)
    rows: list[Any] = answer.logits.tolist() if logits else [None] * len(answer)
    predictions = []
    for index, (label, probability) in enumerate(
        zip(labels.tolist(), probabilities.tolist(), strict=True)
    ):
        status = answer.statuses[index]
        no_prediction = status == NO_PREDICTION
        predictions.append(
            Prediction(
                label=None if no_prediction else label,
                name=classes[label] if classes and not no_prediction else None,
                probability=None if no_prediction else probability,
                entropy_before=answer.entropy_before[index],
                entropy_after=answer.entropy_after[index],
                status=status,
                logits=rows[index],
            )
        )
    return predictions

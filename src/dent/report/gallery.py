"""A few samples: natural image, adversarial image, perturbation, and predictions."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from torch import Tensor

from dent.evaluation.records.plan import Batch
from dent.evaluation.records.schema import TENSORS, UnitRecord
from dent.evaluation.records.spec import STATIC
from dent.evaluation.results.recorded_run import RecordedRun, SampleAnswer
from dent.evaluation.results.result import EvaluationResult
from dent.report import pictures, wording
from dent.report.natural import NaturalImages, natural_images
from dent.report.plots import strongest
from dent.report.story import class_name
from dent.storage.disk import is_there
from dent.storage.errors import RecordError

SAMPLES: Final = 6
"""Number of samples that a page shows for each run."""
_EACH: Final = 2
_UNPERTURBED: Final = "no perturbation"
_WITHOUT: Final = (
    "These records come without the adversarial images, so only natural ones are shown."
)
_LARGEST: Final = 2**29
"""Largest number of values in a tensor that is read: 2 GiB of float32."""
_OUTCOMES: Final = (
    "static model correct, every defense fooled",
    "static model fooled, every defense correct",
    "correct with some, fooled with others",
    "fooled",
    "correct",
    "wrong without an attack",
)


@dataclass(frozen=True)
class Picture:
    """An image with a description.

    Attributes:
        source: A data URI.
        alt: The description.
        caption: The text below it.
    """

    source: str
    alt: str
    caption: str


@dataclass(frozen=True)
class ExhibitAttempt:
    """One submission of a sample to one defense.

    Attributes:
        defense: Name of the defense.
        submitted: Description of the submission; empty if there is none.
        pictures: Adversarial image, perturbation and smoothed input, if available.
        natural: Predicted class of the natural image; None without a prediction.
        adversarial: Predicted class of the adversarial image; None without a prediction.
        natural_right: Whether `natural` is the label.
        adversarial_right: Whether `adversarial` is the label.
        claimed: Whether the attack claims to have fooled the defense; None if it did not attack it.
        transferred: Whether the attack was on the static model.
    """

    defense: str
    submitted: str
    pictures: tuple[Picture, ...]
    natural: str | None
    adversarial: str | None
    natural_right: bool
    adversarial_right: bool
    claimed: bool | None
    transferred: bool = False

    @property
    def unperturbed(self) -> str:
        """Why the attack submitted the natural image; empty if it did not."""
        if not any(picture.caption == _UNPERTURBED for picture in self.pictures):
            return ""
        if self.transferred:
            return "No perturbation: the attack on the static model left this image unchanged."
        if not self.natural_right:
            return "No perturbation: the defense already misclassifies the natural image."
        return "No perturbation: the attack found nothing better than the natural image."

    @property
    def mismatch(self) -> bool:
        """Whether the attack's claim differs from the prediction on submission."""
        return self.claimed is not None and self.claimed == self.adversarial_right


@dataclass(frozen=True)
class Exhibit:
    """One sample of a gallery.

    Attributes:
        sample: Its id in the full split.
        label: Name of its class.
        why: Why it was chosen.
        natural: The natural image; None if it could not be loaded.
        attempts: One submission per defense.
    """

    sample: int
    label: str
    why: str
    natural: Picture | None
    attempts: tuple[ExhibitAttempt, ...]


@dataclass(frozen=True)
class Gallery:
    """The samples of a run that a page shows.

    Attributes:
        exhibits: The samples; empty if nothing can be shown.
        missing: Sentences about what is missing, and why.
        note: A sentence about what is left out on purpose; empty if nothing is.
    """

    exhibits: tuple[Exhibit, ...]
    missing: tuple[str, ...]
    note: str = ""


def gallery(loaded: RecordedRun, data_root: Path | None = None) -> Gallery:
    """Choose samples of a run and draw them from its records.

    Args:
        loaded: The run.
        data_root: Folder of datasets, for the natural images.
    """
    chosen = _choose(loaded)
    if not chosen:
        return Gallery((), ("No sample was attacked yet.",))
    images = natural_images(loaded.run.spec.dataset, data_root)
    drawing = _Drawing(loaded, images)
    exhibits = tuple(drawing.exhibit(batch, member, why) for batch, member, why in chosen)
    missing = [f"Natural images are missing: {images.missing}."] if images.missing else []
    return Gallery(exhibits, (*missing, *drawing.missing), _WITHOUT if drawing.without else "")


def _choose(loaded: RecordedRun) -> list[tuple[Batch, int, str]]:
    """Choose samples of every kind of outcome: the first ones of each kind, in plan order."""
    shown = {name: _shown(loaded.result, name) for name in loaded.result.defenses}
    kinds: dict[str, list[tuple[Batch, int]]] = {kind: [] for kind in _OUTCOMES}
    for batch in loaded.plan.batches:
        before = {name: _served(loaded, name, ("natural", None), batch) for name in shown}
        after = {name: _served(loaded, name, shown[name], batch) for name in shown}
        if None in after.values():
            continue
        for member in range(batch.attacked):
            natural, attacked = (
                {
                    name: predictions[member] == batch.labels[member]
                    for name, predictions in by_defense.items()
                    if predictions
                }
                for by_defense in (before, after)
            )
            kinds[_outcome(natural, attacked)].append((batch, member))
    first_of_each = [
        (batch, member, kind) for kind in kinds for batch, member in kinds[kind][:_EACH]
    ]
    more = [(batch, member, kind) for kind in kinds for batch, member in kinds[kind][_EACH:]]
    chosen = [*first_of_each, *more][:SAMPLES]
    return sorted(chosen, key=lambda item: (item[0].index, item[1]))


def _outcome(natural: Mapping[str, bool], attacked: Mapping[str, bool]) -> str:
    if not any(natural.values()):
        return "wrong without an attack"
    others = [hit for name, hit in attacked.items() if name != STATIC]
    if STATIC in attacked and set(others) == {not attacked[STATIC]}:
        return _OUTCOMES[0 if attacked[STATIC] else 1]
    if len(set(attacked.values())) > 1:
        return "correct with some, fooled with others"
    return "correct" if all(attacked.values()) else "fooled"


def _shown(result: EvaluationResult, defense: str) -> tuple[str, str | None] | None:
    """Return kind and attack of the strongest submission to a defense; None if none was scored.

    Assembled batches are left out, because they record no images of their own.
    """
    summary = strongest(
        result.defenses[defense].model_copy(
            update={
                "attacks": tuple(
                    attack
                    for attack in result.defenses[defense].attacks
                    if attack.kind != "assembled"
                )
            }
        )
    )
    return None if summary is None else (summary.kind, summary.attack)


def _served(
    loaded: RecordedRun, defense: str, shown: tuple[str, str | None] | None, batch: Batch
) -> Sequence[int | None] | None:
    """Return a defense's predictions for one batch of a submission; None if not recorded."""
    if shown is None:
        return None
    kind, attack = shown
    for index in (batch.index, None):
        record = loaded.unit(f"{kind}/{index}/{defense}/{attack}")
        if record is not None:
            before = loaded.plan.batches[: batch.index] if index is None else ()
            start = sum(earlier_batch.size for earlier_batch in before)
            return record.served[start : start + batch.size]
    return None


class _Drawing:
    """Draws samples, and loads each tensor once."""

    def __init__(self, loaded: RecordedRun, images: NaturalImages) -> None:
        self._loaded = loaded
        self._images = images
        self._tensors: dict[str, Tensor | None] = {}
        self._shown = {name: _shown(loaded.result, name) for name in loaded.result.defenses}
        self._makers = {entry.short: entry.by for entry in loaded.challenges}
        self._configs = {
            spec.name: pictures.smoothing_of(spec.config.get("settings"))
            for spec in loaded.run.spec.defenses
        }
        self.missing: list[str] = []
        kept = loaded.run.spec.settings.tensors != "drop" and bool(loaded.kept())
        self.without = kept and not is_there(loaded.path / TENSORS)
        """Whether the folder of images, which the run kept, is not there: they are not shipped."""

    def exhibit(self, batch: Batch, member: int, why: str) -> Exhibit:
        sample = batch.ids[member]
        natural = self._natural(batch.positions[member])
        label = class_name(self._loaded.run.spec, batch.labels[member])
        answers = [
            answer
            for answer in self._loaded.sample(sample)
            if answer.batch.index == batch.index and answer.member == member
        ]
        picture = None
        if natural is not None:
            alt = f"Natural image of sample {sample}, {label}"
            picture = Picture(pictures.data_uri(natural), alt, "natural")
        return Exhibit(
            sample=sample,
            label=label,
            why=why,
            natural=picture,
            attempts=tuple(self._attempt(name, answers, natural, sample) for name in self._shown),
        )

    def _attempt(
        self, name: str, answers: Sequence[SampleAnswer], natural: Tensor | None, sample: int
    ) -> ExhibitAttempt:
        shown = self._shown[name]
        of_defense = [answer for answer in answers if answer.record.defense == name]
        before = next((answer for answer in of_defense if answer.record.kind == "natural"), None)
        after = next(
            (
                answer
                for answer in of_defense
                if shown == (answer.record.kind, answer.record.attack)
            ),
            None,
        )
        words = ""
        if after is not None and shown is not None:
            by = self._makers.get(shown[1] or "")
            words = wording.submitted(*shown, by=by, is_static=name == STATIC)
        return ExhibitAttempt(
            defense=name,
            submitted=words,
            pictures=()
            if after is None
            else tuple(self._pictures(after, natural, f"sample {sample}, {words}")),
            natural=self._class(before),
            adversarial=self._class(after),
            natural_right=before is not None and before.correct,
            adversarial_right=after is not None and after.correct,
            claimed=None if after is None else after.claimed,
            transferred=after is not None and after.record.kind == "transfer",
        )

    def _pictures(
        self, answer: SampleAnswer, natural: Tensor | None, what: str
    ) -> Iterator[Picture]:
        tensor = self._adversarial(answer.record)
        if tensor is None or answer.row is None:
            return
        adversarial = tensor[answer.row]
        yield Picture(pictures.data_uri(adversarial), f"Adversarial image of {what}", "adversarial")
        if natural is not None and natural.shape == adversarial.shape:
            picture, factor = pictures.enlarged(adversarial, natural)
            caption = f"perturbation ×{factor:.0f}" if factor else _UNPERTURBED
            yield Picture(pictures.data_uri(picture), f"Perturbation of {what}", caption)
        smoothing = self._configs[answer.record.defense]
        sigma = answer.record.trace.sigma
        if smoothing is not None and sigma is not None:
            picture = pictures.smoothed(adversarial, sigma, smoothing["covariance"])
            values = " × ".join(f"{value:.2f}" for value in sigma)
            yield Picture(
                pictures.data_uri(picture), f"Smoothed input of {what}", f"smoothed, σ {values} px"
            )

    def _natural(self, position: int) -> Tensor | None:
        if self._images.dataset is None:
            return None
        image = self._images.dataset.batch([position])[0][0]
        return image if image.shape[0] in pictures.CHANNELS else None

    def _adversarial(self, record: UnitRecord) -> Tensor | None:
        if record.key not in self._tensors:
            self._tensors[record.key] = self._load(record)
        return self._tensors[record.key]

    def _load(self, record: UnitRecord) -> Tensor | None:
        if record.tensor is None or self.without:
            return None
        if self._loaded.run.spec.settings.tensors == "drop" and record.kind != "challenge":
            self._miss("Adversarial images are missing: the run did not keep them.")
            return None
        if math.prod(record.tensor.shape) > _LARGEST:
            self._miss(f"Adversarial images of {record.key} are too large for a page.")
            return None
        try:
            tensor = self._loaded.adversarial(record)
        except RecordError as error:
            self._miss(f"Adversarial images of {record.key} are missing: {error}.")
            return None
        if tensor.shape[1] not in pictures.CHANNELS:
            self._miss(f"Images with {tensor.shape[1]} channels cannot be drawn.")
            return None
        return tensor

    def _miss(self, sentence: str) -> None:
        if sentence not in self.missing:
            self.missing.append(sentence)

    def _class(self, answer: SampleAnswer | None) -> str | None:
        if answer is None or answer.predicted is None:
            return None
        return class_name(self._loaded.run.spec, answer.predicted)

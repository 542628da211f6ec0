"""The model card: how weights were trained, and their measured accuracies."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from dent import models
from dent.attacks import make
from dent.errors import ConfigError
from dent.evaluation import Settings, Subject, evaluate
from dent.storage.disk import read, write_atomically
from dent.support.plural import counted
from dent.threat import ThreatModel
from dent.training.card_page import page
from dent.training.state import stored_dtype
from dent.training.train import RUN, TrainingResult
from dent.training.watch import measure

if TYPE_CHECKING:
    import torch
    from torch import nn

    from dent.data import ImageDataset
    from dent.evaluation.engine.progress import OnProgress
    from dent.training.spec import DataIdentity, TrainingSpec
    from dent.training.watch import OnMeasured

CARD: Final = "card.json"
PAGE: Final = "card.md"
SCHEMA: Final = 1
NOMINAL_THREAT: Final = ThreatModel("linf", "1.5/255")
"""The threat model for nominal models (paper section 4.4). At 8/255, robust accuracy would be 0."""
_SHOWN: Final = {"pgd": "PGD-20", "standard": "AutoAttack (standard)"}


@dataclass(frozen=True)
class Measured:
    """The numbers of images that a card measures.

    Attributes:
        pgd: images under PGD-20; 0 measures none.
        autoattack: images under AutoAttack (standard); 0 measures none.
        batch_size: images attacked at once; this only affects speed, because the model is static.
    """

    pgd: int = 1000
    autoattack: int = 256
    batch_size: int = 128


def check_measured(measured: Measured, test: ImageDataset, watched: int) -> int:
    """Return the number of images of `test` that are not watched, which a card may use.

    Raises:
        ConfigError: `measured` requests more images than this number.
    """
    watched = min(watched, len(test))
    free = len(test) - watched
    if not max(measured.pgd, measured.autoattack, 1) <= free:
        raise ConfigError(
            f"{test.name} has {counted(free, 'image')} apart from the {watched} watched ones, "
            "too few to "
            f"measure {measured.pgd} under PGD and {measured.autoattack} under AutoAttack: measure "
            "fewer (--pgd, --autoattack), or watch fewer (--watched)."
        )
    return free


def write_card(
    result: TrainingResult,
    test: ImageDataset,
    device: torch.device,
    measured: Measured = Measured(),
    progress: OnProgress | None = None,
    on_clean: OnMeasured | None = None,
) -> Path:
    """Measure the best weights of a training run, and write the card beside them.

    Clean accuracy is measured on all of `test` except the watched images, by which the weights were
    chosen. Robust accuracy is measured on the first images (of a dataset in the order of its
    classes: on drawn images), together with their clean accuracy.
    PGD-20 is also measured on AutoAttack's images, so that numbers on the same images can be
    compared. The measurements are kept in folders beside the weights, so that an interrupted call
    can be resumed.

    Args:
        result: The training run.
        test: The dataset of the watched images.
        device: The device to compute on.
        measured: What is measured under attack.
        progress: Called before, during and after every unit of a measurement under attack.
        on_clean: Called while clean accuracy is measured, with the number of measured images and
            of all.

    Returns:
        The card's path; a readable page is beside it.

    Raises:
        ConfigError: `test` is not the dataset of the watched images, or `measured` requests more
            images than there are besides the watched ones.
        RecordError: the folder cannot be written to.
    """
    spec = result.spec
    _check_same(test, spec.watch)
    free = check_measured(measured, test, spec.watched)
    model = models.build(spec.model, spec.train.classes, weights=result.best).to(device).eval()
    order = spec.arranged(len(test))
    natural = measure(
        model, test, order[:free], None, None, device=device, seed=0, progress=on_clean
    )
    threat = spec.read_recipe().threat or NOMINAL_THREAT
    accuracies = [_accuracy(natural.natural, natural.total, _whose(test, spec, natural.total))]
    for count in sorted({measured.pgd, measured.autoattack} - {0}, reverse=True):
        attacks = [make("pgd", iterations=20)] if measured.pgd else []
        if count == measured.autoattack:
            attacks.append(make("standard", protocol="published"))
        subject = Subject(model, test, {}, attacks, threat, spec.model)
        ids = tuple(int(test.sample_ids[position]) for position in order[:count])
        chosen = Settings(
            **({"ids": ids} if spec.drawn else {"n": count}),
            batch_size=min(measured.batch_size, count),
            transfer=False,
        )
        whose = _whose(test, spec, count)
        folder = result.folder / f"measured-{count}"
        evaluated = evaluate(subject, chosen, out=folder, progress=progress).defenses["static"]
        if count != natural.total:  # robust accuracy needs clean accuracy on the same images
            accuracies.append(_accuracy(evaluated.natural.correct, count, whose))
        for attack in attacks:
            served = evaluated.attack(attack.name).served
            accuracies.append(
                _accuracy(served.correct, count, whose, threat.label, _SHOWN[attack.name])
            )
    card = _card(result, model, accuracies)
    path = result.folder / CARD
    write_atomically(path, (json.dumps(card, indent=1, allow_nan=False) + "\n").encode())
    write_atomically(result.folder / PAGE, page(card).encode())
    return path


def _check_same(test: ImageDataset, watch: DataIdentity) -> None:
    """Refuse other images than those of training, whose watched images the card would measure."""
    if test.digest != watch.digest:
        raise ConfigError(
            f"expected the {watch.name} whose images training watched (digest "
            f"{watch.digest[:12]}), got {test.name} with the digest {test.digest[:12]}: pass the "
            "same images, for a folder with --data FOLDER."
        )


def _accuracy(
    correct: int,
    total: int,
    whose: str,
    threat: str | None = None,
    attack: str | None = None,
) -> dict[str, Any]:
    return {
        "correct": correct,
        "total": total,
        "threat": threat,
        "attack": attack,
        "provenance": f"measured by dent train on {whose}",
    }


def _whose(test: ImageDataset, spec: TrainingSpec, count: int) -> str:
    """Return which images were measured, in words."""
    which = f"{count} drawn images" if spec.drawn else f"the first {count}"
    return f"{which} of {test.name} {test.split}"


def _card(
    result: TrainingResult, model: nn.Module, accuracies: list[dict[str, Any]]
) -> dict[str, Any]:
    spec, recipe = result.spec, result.spec.read_recipe()
    content = read(result.best)
    sittings = json.loads(read(result.folder / RUN))["sittings"]
    norm = next((m for m in model.modules() if isinstance(m, models.Normalize)), None)
    return {
        "schema": SCHEMA,
        "name": f"{spec.model}-{recipe.name}",
        "architecture": spec.model,
        "dataset": spec.train.name,
        "num_classes": spec.train.classes,
        "mean": None if norm is None else [round(v, 6) for v in norm.mean.flatten().tolist()],
        "std": None if norm is None else [round(v, 6) for v in norm.std.flatten().tolist()],
        "threat": None if recipe.threat is None else recipe.threat.label,
        "recipe": spec.recipe,
        "seed": spec.seed,
        "images": spec.used,
        "data": {"digest": spec.train.digest, "images": spec.train.images},
        "initial": {"digest": spec.initial, "file": spec.started_from},
        "best_epoch": result.best_epoch,
        "stopped": result.stopped,
        "watched": {"images": spec.watched, "of": spec.watch.name, "digest": spec.watch.digest},
        "metrics": result.metrics,
        "seconds": round(result.seconds),
        "precision": spec.precision,
        "processes": spec.processes,
        "versions": sittings[-1]["versions"],
        "device": sittings[-1]["device"],
        "identity": spec.identity,
        "weights": {
            "file": result.best.name,
            "sha256": hashlib.sha256(content).hexdigest(),
            "bytes": len(content),
            "dtype": str(stored_dtype(content)).removeprefix("torch."),
        },
        "accuracies": accuracies,
    }

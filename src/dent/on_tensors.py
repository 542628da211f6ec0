"""Evaluate a defense on tensors in one call, like AutoAttack's `run_standard_evaluation`."""

from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn

from dent import defenses as reference
from dent import evaluation, models
from dent.attacks import Attack, Defense, make_from
from dent.data.tensors import TensorDataset, as_images
from dent.errors import ConfigError
from dent.evaluation import EvaluationResult, Settings, Subject
from dent.evaluation.engine.progress import OnProgress
from dent.evaluation.records.spec import STATIC
from dent.evaluation.suites import Budget, SuiteName
from dent.support.devices import device_of
from dent.threat import ThreatModel

_NAME: Final = "defense"


def evaluate(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    defense: str | Defense | Sequence[str] | Mapping[str, Defense] = "dent+",
    norm: str = "linf",
    eps: str | float | Fraction = "8/255",
    attack: str | Attack | Sequence[str | Attack] | None = None,
    suite: SuiteName | None = None,
    budget: Budget = "small",
    batch_size: int = 128,
    seed: int = 0,
    out: str | Path | None = None,
    progress: OnProgress | None = None,
) -> EvaluationResult:
    """Attack a model with and without a defense, and judge what the defense adds.

    The static model is attacked with the same budget, and its adversarial images are submitted to
    the defense as well. Without `attack`, the whole dynamic suite runs, and gives a verdict.

    Args:
        model: The static classifier, in eval mode, on the device to compute on: images in [0, 1]
            to logits.
        images: Float (N, C, H, W) in [0, 1].
        labels: Integers (N,).
        defense: A name such as `"dent+"`, or several; a defense, such as `Dent(model)`, which the
            result calls `"defense"`; or defenses by name.
        norm: `"linf"`, `"l2"` or `"l1"`, in any usual form.
        eps: The radius, as `"8/255"` or `0.5`.
        attack: A name such as `"apgd-ce"` or `"autoattack"`, with settings if wanted
            (`"pgd:iterations=100"`); an attack; or several. It replaces the suite.
        suite: `"dynamic"`, the default without `attack`.
        budget: Budget of the suite: `"small"`, `"standard"` or `"full"`.
        batch_size: Images that are submitted together. Predictions of some defenses depend on it.
        seed: Seed of all random draws.
        out: A folder for records and adversarial images. The same call on it resumes the run.
        progress: Called before, within and after every unit of the work.

    Returns:
        The result: `result.defenses["dent+"]` has `natural`, `worst`, `difference` and `verdict`.

    Raises:
        InputError: Images or labels are other tensors, or a defense is invalid.
        ConfigError: An argument is out of range, or contradicts another.
        UnknownNameError: There is no defense, attack or suite of that name.
        UnsupportedModelError: The model does not return logits, or cannot be defended.
        RecordError: `out` contains another run, or something else.

    Example:
        >>> result = dent.evaluate(model, images, labels, defense="dent+", eps="8/255")
        >>> result.defenses["dent+"].verdict.ruling
    """
    if attack is not None and suite is not None:
        raise ConfigError(
            f"suite={suite!r} is all of its attacks: leave out attack={attack!r}, or the suite"
        )
    threat = ThreatModel(norm, eps)
    chosen = evaluation.suite(suite or "dynamic", budget) if attack is None else _attacks(attack)
    images = as_images(images)
    dataset = TensorDataset(images, labels, _classes(model, images[:2].to(device_of(model))))
    subject = Subject(model, dataset, _defenses(defense, model), chosen, threat)
    settings = Settings(batch_size=batch_size, seed=seed)
    return evaluation.evaluate(
        subject, settings, out=None if out is None else Path(out), progress=progress
    )


def _classes(model: nn.Module, images: Tensor) -> int:
    """How many logits a model gives; refused where it is no classifier."""
    try:
        with torch.no_grad():
            logits = model(images.clone())
    except Exception:  # check_model runs it again, and says what it raised
        logits = None
    classes = logits.shape[1] if isinstance(logits, Tensor) and logits.ndim == 2 else 0
    models.check_model(model, classes, images)
    return classes


def _attacks(attack: str | Attack | Sequence[str | Attack]) -> tuple[Attack, ...]:
    several = [attack] if isinstance(attack, str | Attack) else attack
    return tuple(
        make_from(one_attack) if isinstance(one_attack, str) else one_attack
        for one_attack in several
    )


def _defenses(
    defense: str | Defense | Sequence[str] | Mapping[str, Defense], model: nn.Module
) -> dict[str, Defense]:
    if isinstance(defense, Mapping):
        return dict(defense)
    names = [defense] if isinstance(defense, str) else defense
    if not isinstance(names, Sequence) or isinstance(names, nn.Module):
        return {_NAME: names}
    if len(set(names)) < len(names):
        raise ConfigError(f"a defense is named twice: {', '.join(names)}")
    return {name: model if name == STATIC else reference.make(name, model) for name in names}

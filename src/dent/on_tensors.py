"""Evaluate a defense on tensors in one call, like AutoAttack's `run_standard_evaluation`."""

import sys
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn

from dent import evaluation, models
from dent.attacks import Attack, Defense, make_from
from dent.data.tensors import TensorDataset, as_images
from dent.defenses import registry
from dent.errors import ConfigError
from dent.evaluation import EvaluationResult, Settings, Subject
from dent.evaluation.announcement import AnnouncedRun, UnitLines, announcement
from dent.evaluation.engine.progress import OnProgress
from dent.evaluation.records.spec import STATIC, Budget
from dent.evaluation.suite_attacks import SuiteName
from dent.models.check import check_is_module
from dent.support.devices import device_of
from dent.threat import ThreatModel, usual_eps

_NAME: Final = "defense"


@torch.inference_mode(mode=False)  # a caller's would block gradients
def evaluate(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    defense: str | Defense | Sequence[str] | Mapping[str, str | Defense] = "dent+",
    norm: str = "linf",
    eps: str | float | Fraction | None = None,
    attack: str | Attack | Sequence[str | Attack] | None = None,
    suite: SuiteName | None = None,
    budget: Budget | None = None,
    batch_size: int = 128,
    seed: int = 0,
    out: str | Path | None = None,
    progress: bool | OnProgress | None = None,
) -> EvaluationResult:
    """Attack a model with and without a defense, and judge what the defense adds.

    The static model is attacked with the same budget, and its adversarial images are submitted to
    the defense as well. Without `attack`, the whole dynamic suite runs, and gives a verdict.

    Args:
        model: The static classifier, in eval mode, on the device to compute on. It takes images in
            [0, 1] and returns logits.
        images: Float (N, C, H, W) in [0, 1].
        labels: Integers (N,).
        defense: A name such as `"dent+"`, or several names; a defense, such as `Dent(model)`, which
            the result calls `"defense"`; or a dict of names or defenses, whose keys are the names
            in the result.
        norm: `"linf"`, `"l2"` or `"l1"`, in any usual form.
        eps: The radius, such as `"8/255"` or `0.5`. The default is 8/255 in linf and 0.5 in l2; l1
            has no default.
        attack: A name such as `"apgd-ce"` or `"autoattack"`, optionally with settings
            (`"pgd:iterations=100"`); an attack; or several. It replaces the suite.
        suite: `"dynamic"`, the default without `attack`.
        budget: Budget of the suite: `"small"`, the default, `"standard"` or `"full"`.
        batch_size: Number of images that are submitted together. Predictions of some defenses
            depend on it.
        seed: Seed of all random draws.
        out: A folder for records and adversarial images. The same call with the same folder resumes
            the run.
        progress: True prints the largest cost before the run starts, and a line for each unit, to
            stderr. A function is called before, during and after every unit.

    Returns:
        The result: `result.defenses["dent+"]` has `natural`, `worst`, `difference` and `verdict`.

    Raises:
        InputError: Images or labels are not such tensors, or a defense is invalid.
        ConfigError: An argument is out of range, or contradicts another.
        UnknownNameError: No defense, attack or suite has a given name.
        UnsupportedModelError: The model does not return logits, or cannot be defended.
        RecordError: `out` contains another run or other files.

    Example:
        >>> result = dent.evaluate(model, images, labels, defense="dent+", eps="8/255")
        >>> result.defenses["dent+"].verdict.ruling
    """
    if attack is not None and suite is not None:
        raise ConfigError(
            f"suite={suite!r} is all of its attacks: leave out attack={attack!r}, or the suite"
        )
    if attack is not None and budget is not None:
        raise ConfigError(
            f"budget={budget!r} is for the suite, and attack={attack!r} has its own settings: "
            "leave out budget, or attack"
        )
    check_is_module(model)
    threat = ThreatModel(norm, usual_eps(norm) if eps is None else eps)
    if attack is None:
        chosen = evaluation.suite(suite or "dynamic", budget or "small")
    else:
        chosen = _attacks(attack)
    images = as_images(images)
    dataset = TensorDataset(images, labels, _classes(model, images[:2].to(device_of(model))))
    subject = Subject(model, dataset, _defenses(defense, model), chosen, threat)
    settings = Settings(batch_size=batch_size, seed=seed)
    folder = None if out is None else Path(out)
    report = None if progress is False else progress
    if not (report is None or report is True or callable(report)):
        raise ConfigError(
            "progress must be True, or a function that takes a dent.evaluation.Progress, got "
            f"{progress!r}"
        )
    if report is True:
        for sentence in announcement(AnnouncedRun(subject, settings, folder)):
            _say(sentence)
        report = UnitLines(_say)
    return evaluation.evaluate(subject, settings, out=folder, progress=report)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)  # noqa: T201


def _classes(model: nn.Module, images: Tensor) -> int:
    """Return the number of logits that a model gives, after a check that it is a classifier."""
    try:
        with torch.no_grad():
            logits = model(images.clone())
    except Exception:  # check_model runs the model again, and reports its error
        logits = None
    classes = logits.shape[1] if isinstance(logits, Tensor) and logits.ndim == 2 else 0
    models.check_model(model, classes, images)
    return classes


def _attacks(attack: str | Attack | Sequence[str | Attack]) -> tuple[Attack, ...]:
    several = attack if isinstance(attack, Sequence) and not isinstance(attack, str) else [attack]
    for one_attack in several:
        if not isinstance(one_attack, str | Attack):
            got = (
                f"the class {one_attack.__name__}: pass {one_attack.__name__}()"
                if isinstance(one_attack, type)
                else repr(one_attack)
            )
            raise ConfigError(
                "attack must be a name such as 'apgd-ce', a dent.attacks.Attack, or a list of "
                f"these, got {got}"
            )
    return tuple(
        make_from(one_attack) if isinstance(one_attack, str) else one_attack
        for one_attack in several
    )


def _defenses(
    defense: str | Defense | Sequence[str] | Mapping[str, str | Defense], model: nn.Module
) -> dict[str, Defense]:
    if isinstance(defense, Mapping):
        return {
            name: _named(item, model) if isinstance(item, str) else item
            for name, item in defense.items()
        }
    names = [defense] if isinstance(defense, str) else defense
    if not isinstance(names, Sequence) or isinstance(names, nn.Module):
        return {_NAME: names}
    for name in names:
        if not isinstance(name, str):
            raise ConfigError(
                f"a list of defenses takes names such as 'dent+', got {type(name).__name__}: pass "
                "a dict of defenses by name"
            )
    if len(set(names)) < len(names):
        raise ConfigError(f"a defense is named twice: {', '.join(names)}")
    return {name: _named(name, model) for name in names}


def _named(name: str, model: nn.Module) -> Defense:
    return model if name == STATIC else registry.make(name, model)

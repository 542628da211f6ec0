"""Try the smallest batch of a run before it starts: a defense may fail on some batch sizes."""

import copy
from collections.abc import Iterable

import torch
from torch import nn

from dent.attacks import Defense
from dent.defenses.dent import Dent
from dent.errors import InputError
from dent.evaluation.records.plan import Batch, Plan, Unit
from dent.evaluation.records.spec import Settings
from dent.evaluation.subject import Prepared, Subject
from dent.evaluation.submission.submission import submit
from dent.support.devices import device_of
from dent.support.plural import counted


def rehearse(prepared: Prepared, left: Iterable[Unit]) -> None:
    """Submit the smallest batch to copies of the defenses that will receive it.

    If the first batch has the same size, nothing is tried, because the run submits it soon anyway.
    A defense that cannot be copied is not tried, because the query might change its later answers.

    Args:
        prepared: The prepared evaluation.
        left: Units that will run.

    Raises:
        InputError: A defense fails on the smallest batch.
    """
    subject, plan, settings = prepared.subject, prepared.plan, prepared.spec.settings
    smallest = min(plan.batches, key=lambda batch: batch.size)
    if smallest.size == plan.batches[0].size:
        return
    names = {unit.defense for unit in left if unit.batch in (None, smallest.index)}
    for name, defense in subject.lineup(settings).items():
        error = _failure(subject, defense, smallest) if name in names else None
        # A defense that also fails on the first batch is reported when that batch runs.
        if error is not None and _failure(subject, defense, plan.batches[0]) is None:
            raise InputError(_refusal(name, smallest, plan, settings, error)) from error


def _failure(subject: Subject, defense: Defense, batch: Batch) -> Exception | None:
    """Return the exception that a defense raises on a batch, if any."""
    instance = _apart(defense)
    if instance is None:
        return None
    x, _ = subject.dataset.batch(batch.positions)
    try:
        submit(instance, x.to(device_of(subject.model)), seed=0)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # a defense may raise anything
        return error
    return None


def _apart(defense: Defense) -> Defense | None:
    """Return a copy to try without affecting the run; None if the defense cannot be copied."""
    if type(defense) is Dent:  # not a subclass, which may keep state
        return defense  # queries do not change it
    try:
        copied = copy.deepcopy(defense)
    except Exception:  # some hold objects that cannot be copied
        return None
    return copied.eval() if isinstance(copied, nn.Module) else copied


def _refusal(name: str, batch: Batch, plan: Plan, settings: Settings, error: Exception) -> str:
    images = counted(batch.size, "image")
    reason = str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"
    batches = f"{counted(plan.attacked, 'sample')} in batches of {settings.batch_size}"
    return (
        f"the defense {name!r} fails on a batch of {images}, the smallest of this run "
        f"({batches}): {reason.rstrip('.')}. Choose the number of samples (n) or the batch size so "
        "that no batch is that small"
    )

"""Submit a batch to a defense once, and extract from its answer what records need."""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from typing import Any, Final

import torch
from torch import Tensor

from dent.adaptation.adaptation import Status
from dent.adaptation.objectives import entropy
from dent.adaptation.random_state import global_draws, kept_generators, seeded_generators
from dent.attacks import Defense, DynamicDefense
from dent.attacks.base import isolated_random_state
from dent.attacks.protocol import as_queried, taking
from dent.errors import InputError
from dent.evaluation.records.schema import Trace
from dent.evaluation.submission.fresh import states_of
from dent.outputs import advice, check_plain, described
from dent.support.devices import synchronize, wide
from dent.support.plural import counted
from dent.support.predictions import is_prediction

_TINY: Final = 1e-12
_SPREAD: Final = 32
"""In honest models, the largest margin is at most about this multiple of the second class's."""
_FEW: Final = 4
"""With fewer members or fewer classes than this, there is no typical margin."""


@dataclass(frozen=True)
class Submission:
    """The answer of a defense to one batch.

    Attributes:
        logits: (N, classes), detached.
        predictions: Predicted class of each member; None if its logits are not a prediction.
        trace: Entropy, sigma and statuses of its adaptation, over the attacked members.
        seconds: Wall time of the answer.
        drew: Whether random numbers were drawn during the answer.
        adaptation: What the defense's `adapt` returned; None for a plain module.
    """

    logits: Tensor
    predictions: tuple[int | None, ...]
    trace: Trace
    seconds: float
    drew: bool = False
    adaptation: Any = None


def submit(
    defense: Defense,
    x: Tensor,
    *,
    seed: int,
    attacked: int | None = None,
    gradients: bool = False,
) -> Submission:
    """Submit a whole batch. A dynamic defense adapts to it.

    Args:
        defense: Dynamic or static.
        x: Images (N, C, H, W).
        seed: Seed of the global generators and of the ones that the defense keeps, during the
            answer. Their state is restored after it.
        attacked: Number of members, from the first, that the trace covers; all if None.
        gradients: Whether to query as a gradient attack does, with a graph to the images.

    Raises:
        InputError: The answer does not have one row of at least two logits per member.
    """
    generators = kept_generators(defense, everywhere=True)
    with (
        isolated_random_state(seed, x.device),
        seeded_generators(defense, seed),
        torch.inference_mode(mode=False),
        torch.set_grad_enabled(gradients),
    ):
        x = as_queried(x.detach().requires_grad_(gradients))
        before = global_draws(x.device), states_of(generators)
        start = clock(x.device)
        adaptation = None
        if isinstance(defense, DynamicDefense):
            adaptation = defense.adapt(x)
            logits = defense.predict(x, adaptation)
        else:
            with taking(defense, x):
                logits = defense(x)
        seconds = clock(x.device) - start
        drew = before != (global_draws(x.device), states_of(generators))
    check_plain(logits, type(defense).__name__, x)
    logits = check_answer(defense, logits, len(x)).detach().float()
    are_predictions = is_prediction(logits).tolist()
    classes = logits.argmax(dim=1).tolist()
    return Submission(
        logits=logits,
        predictions=tuple(
            predicted if has_prediction else None
            for predicted, has_prediction in zip(classes, are_predictions, strict=True)
        ),
        trace=_trace(adaptation, logits, len(x) if attacked is None else attacked),
        seconds=seconds,
        drew=drew,
        adaptation=adaptation,
    )


def check_answer(defense: Defense, logits: object, rows: int, classes: int = 2) -> Tensor:
    """Return the answer of a defense to a batch, if it has the shape of logits.

    Args:
        defense: The defense, for the message.
        logits: Its answer.
        rows: Number of images.
        classes: Number of classes of the dataset, if the answer must have a logit for each.

    Raises:
        InputError: The answer does not have one row of at least two logits per image, or lacks
            logits of some classes.
    """
    name = type(defense).__name__
    if not isinstance(logits, Tensor) or logits.ndim != 2 or logits.shape[0] != rows:
        raise InputError(
            f"{name} must return logits ({rows}, classes) for {counted(rows, 'image')}, "
            f"got {described(logits)}.{advice(logits)}"
        )
    if logits.shape[1] < 2:
        raise InputError(f"{name} returned logits of a single class")
    if logits.shape[1] < classes:
        raise InputError(
            f"{name} returned logits of {counted(logits.shape[1], 'class')}, the dataset has "
            f"{classes}: return one logit for every class"
        )
    return logits


def apart(first: Tensor, second: Tensor, *natural: Tensor) -> float | None:
    """Return the distance between two answers (N, classes): the largest change of a margin.

    A margin is the logit of the class that the first answer predicts minus the logit of another
    class. Its change is relative to the margin, or to the usual size of margins if that is larger.
    So a distance of 1 is enough to change a prediction, except for near ties. A huge logit of
    another class hides no change. A row that is not a prediction in both answers counts as
    equal, and so does a class that both exclude.

    Args:
        first: Logits.
        second: Logits of the same members.
        natural: Answers to natural images, each of which limits the usual size of margins; `first`
            if there are none.

    Returns:
        The distance; None if only one of the answers has a prediction in a row, or excludes a class
        there.
    """
    rows = is_prediction(first)
    if not rows.equal(is_prediction(second)):
        return None
    first_rows, second_rows = first[rows], second[rows]
    excluded = first_rows.isneginf()
    if not excluded.equal(second_rows.isneginf()):
        return None
    if not len(first_rows):
        return 0.0
    predicted = first_rows.argmax(dim=1, keepdim=True)
    before, after = (_margins(logits, predicted) for logits in (first_rows, second_rows))
    excluded = excluded.to(before.device)
    before, after = before.masked_fill(excluded, 0.0), after.masked_fill(excluded, 0.0)
    natural = natural or (first,)
    largest = max(_largest(first), min(map(_largest, natural)))
    usual = min(largest, _typical(first), *map(_sure, natural))
    return float(((after - before).abs() / before.clamp(min=max(usual, _TINY))).amax())


def _largest(logits: Tensor) -> float:
    margins = _sorted_margins(logits)
    return float(margins.amax()) if len(margins) else 0.0


def _sure(natural: Tensor) -> float:
    """Return an upper limit for honest margins: `_SPREAD` times the second class's median margin.

    A defense can only raise it by being that sure of most natural images.
    """
    margins = _sorted_margins(natural)
    if len(margins) < _FEW:  # they may all be near ties
        return _typical(natural)
    return _SPREAD * float(margins[:, 0].median()) or _typical(natural)


def _typical(logits: Tensor) -> float:
    """Return an upper limit for honest margins: `_SPREAD` times the median class's median margin.

    It is not low if most members are near ties, as with the images of some attacks.
    """
    margins = _sorted_margins(logits)
    if not len(margins) or margins.shape[1] < _FEW - 1:
        return inf
    return _SPREAD * float(margins.median(dim=1).values.median()) or inf


def _sorted_margins(logits: Tensor) -> Tensor:
    """Return the margins of all other classes in ascending order, (predictions, classes - 1).

    An excluded class has the largest finite margin of its row.
    """
    logits = logits[is_prediction(logits)]
    margins = _margins(logits, logits.argmax(dim=1, keepdim=True))
    excluded = margins.isinf()
    largest = margins.masked_fill(excluded, 0.0).amax(dim=1, keepdim=True)
    margins = torch.where(excluded, largest, margins)
    return margins.sort(dim=1).values[:, 1:]


def _margins(logits: Tensor, of: Tensor) -> Tensor:
    logits = wide(logits)
    return logits.gather(1, of.to(logits.device)) - logits


def statuses(adaptation: Any) -> list[str]:
    """Return the adaptation's status of each member, as in records; empty if it has none."""
    status = getattr(adaptation, "status", None)
    if not isinstance(status, Tensor) or status.ndim != 1:
        return []
    names = {int(member): member.name.lower().replace("_", "-") for member in Status}
    return [names.get(int(code), str(code)) for code in status.tolist()]


def clock(device: torch.device) -> float:
    """Wait for all queued work of the device, and return the time in seconds."""
    synchronize(device)
    return time.perf_counter()


def merge_traces(traces: Sequence[Trace]) -> Trace:
    """Merge the traces of several batches, each weighted by its rows."""
    status: Counter[str] = Counter()
    for trace in traces:
        status.update(trace.status)
    return Trace(
        rows=sum(trace.rows for trace in traces),
        entropy=_weighted([(trace.entropy, trace.rows) for trace in traces]),
        sigma=_weighted([(trace.sigma, trace.rows) for trace in traces]),
        sigma_by_step=_merge_steps(traces),
        status=dict(sorted(status.items())),
    )


def _merge_steps(traces: Sequence[Trace]) -> tuple[tuple[float, ...], ...] | None:
    recorded = [(trace.sigma_by_step, trace.rows) for trace in traces if trace.sigma_by_step]
    if not recorded or len({len(steps) for steps, _ in recorded}) > 1:
        return None
    columns = zip(*(steps for steps, _ in recorded), strict=True)
    rows = [rows for _, rows in recorded]
    merged = [_weighted(list(zip(column, rows, strict=True))) for column in columns]
    return None if None in merged else tuple(step for step in merged if step is not None)


def _weighted(values: Sequence[tuple[tuple[float, ...] | None, int]]) -> tuple[float, ...] | None:
    recorded = [(value, rows) for value, rows in values if value is not None and rows]
    total = sum(rows for _, rows in recorded)
    if not recorded or len({len(value) for value, _ in recorded}) > 1:
        return None
    columns = zip(*(value for value, _ in recorded), strict=True)
    return tuple(
        sum(x * rows for x, (_, rows) in zip(column, recorded, strict=True)) / total
        for column in columns
    )


def _trace(adaptation: Any, logits: Tensor, attacked: int) -> Trace:
    entropies = entropy(logits[:attacked]).unsqueeze(0)
    steps = getattr(adaptation, "entropy", None)
    if isinstance(steps, Tensor) and steps.ndim == 2 and steps.shape[1] == len(logits):
        entropies = torch.cat([steps[:, :attacked].detach().to(entropies), entropies])
    finite = entropies.isfinite().all(dim=0)
    rows = int(finite.sum())
    means = wide(entropies[:, finite]).mean(dim=1).tolist() if rows else None
    return Trace(
        rows=rows,
        entropy=None if means is None else tuple(means),
        sigma=_sigma(adaptation, finite, attacked),
        sigma_by_step=_sigma_by_step(adaptation, finite, attacked),
        status=dict(sorted(Counter(statuses(adaptation)[:attacked]).items())),
    )


def _sigma(adaptation: Any, finite: Tensor, attacked: int) -> tuple[float, ...] | None:
    sigma = getattr(adaptation, "sigma", None)
    if not isinstance(sigma, Tensor):
        return None
    means = _mean_sigma(adaptation, sigma.unsqueeze(0), finite, attacked)
    return None if means is None else means[0]


def _sigma_by_step(
    adaptation: Any, finite: Tensor, attacked: int
) -> tuple[tuple[float, ...], ...] | None:
    steps = getattr(adaptation, "sigma_by_step", None)
    if not isinstance(steps, Tensor) or not len(steps):
        return None
    return _mean_sigma(adaptation, steps, finite, attacked)


def _mean_sigma(
    adaptation: Any, sigma: Tensor, finite: Tensor, attacked: int
) -> tuple[tuple[float, ...], ...] | None:
    """Return the mean of sigma (steps, [N,] [axes]) over members; None unless all is finite."""
    sigma = wide(sigma.detach())
    if getattr(adaptation, "sample_wise", False):
        sigma = sigma[:, :attacked][:, finite.to(sigma.device)]
        if not sigma.shape[1]:
            return None
        sigma = sigma.mean(dim=1)
    sigma = sigma.reshape(len(sigma), -1)
    return tuple(map(tuple, sigma.tolist())) if bool(sigma.isfinite().all()) else None

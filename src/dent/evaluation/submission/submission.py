"""Submit a batch to a defense once, and read off all that is recorded of it."""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from dent.adaptation.adaptation import Status
from dent.adaptation.objectives import entropy
from dent.adaptation.random_state import kept_generators, seeded_generators
from dent.attacks import Defense, DynamicDefense
from dent.attacks.base import global_draws, isolated_random_state
from dent.errors import InputError
from dent.evaluation.records.schema import Trace
from dent.evaluation.submission.fresh import states_of
from dent.outputs import advice, described
from dent.support.devices import synchronize, wide
from dent.support.plural import counted

_TINY: Final = 1e-12


@dataclass(frozen=True)
class Submission:
    """What a defense answered to one batch.

    Attributes:
        logits: (N, classes), detached.
        predictions: Per member, the class; None where the logits are not finite.
        trace: How its adaptation went, over the attacked members.
        seconds: Wall time of the answer.
        drew: Whether a global generator drew meanwhile.
        adaptation: What the defense's `adapt` returned; None of a plain module.
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
    """Submit a whole batch, adapted afresh.

    Args:
        defense: Dynamic or static.
        x: Images (N, C, H, W).
        seed: Of the global generators, and of those that the defense's modules keep, while it
            answers; they are restored after.
        attacked: How many members, from the first, the trace is over; all if None.
        gradients: Ask as an attack by gradients does, with a graph to the images.

    Raises:
        InputError: The answer is not one row of at least two logits per member.
    """
    own = kept_generators(defense, everywhere=True)
    with (
        isolated_random_state(seed, x.device),
        seeded_generators(defense, seed),
        torch.inference_mode(mode=False),
        torch.set_grad_enabled(gradients),
    ):
        if gradients:
            x = x.detach().clone().requires_grad_()
        before = global_draws(x.device), states_of(own)
        start = clock(x.device)
        adaptation = None
        if isinstance(defense, DynamicDefense):
            adaptation = defense.adapt(x)
            logits = defense.predict(x, adaptation)
        else:
            logits = defense(x)
        seconds = clock(x.device) - start
        drew = before != (global_draws(x.device), states_of(own))
    _check(defense, logits, len(x))
    logits = logits.detach().float()
    finite = logits.isfinite().all(dim=1)
    classes = logits.argmax(dim=1).tolist()
    return Submission(
        logits=logits,
        predictions=tuple(
            at if ok else None for at, ok in zip(classes, finite.tolist(), strict=True)
        ),
        trace=_trace(adaptation, logits, len(x) if attacked is None else attacked),
        seconds=seconds,
        drew=drew,
        adaptation=adaptation,
    )


def apart(one: Tensor, other: Tensor) -> float | None:
    """How far two answers (N, classes) lie apart: the largest change of a logit.

    Both less their mean over classes, which says nothing about the prediction, and relative to the
    largest logit of the first. Rows that are no prediction in either are alike.

    Returns:
        None where a row is a prediction in one of them alone.
    """
    finite = one.isfinite().all(dim=1)
    if not finite.equal(other.isfinite().all(dim=1)):
        return None
    before, after = (_centred(logits[finite]) for logits in (one, other))
    if not len(before):
        return 0.0
    return float((before - after).abs().amax() / before.abs().amax().clamp(min=_TINY))


def _centred(logits: Tensor) -> Tensor:
    logits = wide(logits)
    return logits - logits.mean(dim=1, keepdim=True)


def reset(defense: Defense) -> None:
    """Let a defense that keeps something between batches forget it, if it offers `reset()`.

    Called before every unit, so that no unit depends on which ran before it.
    """
    forget = getattr(defense, "reset", None)
    if callable(forget):
        forget()


def statuses(adaptation: Any) -> list[str]:
    """Per member how its adaptation ended, as in records; empty where it does not say."""
    status = getattr(adaptation, "status", None)
    if not isinstance(status, Tensor) or status.ndim != 1:
        return []
    names = {int(member): member.name.lower().replace("_", "-") for member in Status}
    return [names.get(int(code), str(code)) for code in status.tolist()]


def clock(device: torch.device) -> float:
    """Seconds, after all work queued on the device is done."""
    synchronize(device)
    return time.perf_counter()


def merge_traces(traces: Sequence[Trace]) -> Trace:
    """Put the traces of several batches together, each weighted by its rows."""
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
    known = [(trace.sigma_by_step, trace.rows) for trace in traces if trace.sigma_by_step]
    if not known or len({len(steps) for steps, _ in known}) > 1:
        return None
    columns = zip(*(steps for steps, _ in known), strict=True)
    rows = [rows for _, rows in known]
    merged = [_weighted(list(zip(column, rows, strict=True))) for column in columns]
    return None if None in merged else tuple(step for step in merged if step is not None)


def _weighted(values: Sequence[tuple[tuple[float, ...] | None, int]]) -> tuple[float, ...] | None:
    known = [(value, rows) for value, rows in values if value is not None and rows]
    total = sum(rows for _, rows in known)
    if not known or len({len(value) for value, _ in known}) > 1:
        return None
    columns = zip(*(value for value, _ in known), strict=True)
    return tuple(
        sum(x * rows for x, (_, rows) in zip(column, known, strict=True)) / total
        for column in columns
    )


def _check(defense: Defense, logits: object, rows: int) -> None:
    if not isinstance(logits, Tensor) or logits.ndim != 2 or logits.shape[0] != rows:
        raise InputError(
            f"{type(defense).__name__} must return logits ({rows}, classes) for "
            f"{counted(rows, 'image')}, "
            f"got {described(logits)}.{advice(logits)}"
        )
    if logits.shape[1] < 2:
        raise InputError(f"{type(defense).__name__} returned logits of a single class")


def _trace(adaptation: Any, logits: Tensor, attacked: int) -> Trace:
    last = entropy(logits[:attacked]).unsqueeze(0)
    steps = getattr(adaptation, "entropy", None)
    if isinstance(steps, Tensor) and steps.ndim == 2 and steps.shape[1] == len(logits):
        last = torch.cat([steps[:, :attacked].detach().to(last), last])
    finite = last.isfinite().all(dim=0)
    rows = int(finite.sum())
    means = wide(last[:, finite]).mean(dim=1).tolist() if rows else None
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
    found = _mean_sigma(adaptation, sigma.unsqueeze(0), finite, attacked)
    return None if found is None else found[0]


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
    """Mean over members of (steps, [N,] [axes]); None where a value is not finite."""
    sigma = wide(sigma.detach())
    if getattr(adaptation, "sample_wise", False):
        sigma = sigma[:, :attacked][:, finite.to(sigma.device)]
        if not sigma.shape[1]:
            return None
        sigma = sigma.mean(dim=1)
    sigma = sigma.reshape(len(sigma), -1)
    return tuple(map(tuple, sigma.tolist())) if bool(sigma.isfinite().all()) else None

"""A defense that answers one batch at a time, exactly as the evaluation submits it."""

import math
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dent.adaptation.norm import normalizes_by_batch
from dent.adaptation.objectives import entropy
from dent.attacks import DynamicDefense
from dent.attacks.adaptive.capabilities import SupportsSteps
from dent.defenses import describe
from dent.defenses.dent import Dent
from dent.errors import ConfigError
from dent.evaluation.probe.questions import Probe
from dent.evaluation.records.probe_answers import changed
from dent.evaluation.submission.fresh import Origin, reset
from dent.evaluation.submission.submission import statuses, submit
from dent.serving.cost import StepCost
from dent.support.devices import wide
from dent.support.predictions import is_prediction

if TYPE_CHECKING:
    from dent.serving.requests import Shape

Clock = Callable[[], float]

NO_STEP = "no-step"
"""Status of an image for which no gradient step changed the model."""

OWN_STATISTICS = "own-statistics"
"""Status of a single image that was normalized by its own statistics, which are noise."""

NO_PREDICTION = "no-prediction"
"""Status of an image whose logits are not finite."""

_PROBED = 8


@dataclass(frozen=True)
class ServedAnswer:
    """The answer of a defense to a batch of N images.

    Attributes:
        logits: (N, classes), float32 on the CPU.
        statuses: N values of `dent.Status`, or `no-step`, `own-statistics`, `no-prediction`,
            `answered`.
        entropy_before: N entropies in nats before the first step; None if the defense does not
            record it.
        entropy_after: N entropies in nats of the answer; None without a prediction.
        sigma: in pixels, one for each image or one for all; empty without smoothing.
        steps: gradient steps taken; None if the defense has no number of steps.
        seconds: from the start of the batch to its end.
    """

    logits: Tensor
    statuses: tuple[str, ...]
    entropy_before: tuple[float | None, ...]
    entropy_after: tuple[float | None, ...]
    sigma: tuple[float, ...]
    steps: int | None
    seconds: float

    def __len__(self) -> int:
        return len(self.logits)

    def __getitem__(self, part: slice) -> "ServedAnswer":
        """Return the answer to some of the images."""
        return ServedAnswer(
            logits=self.logits[part],
            statuses=self.statuses[part],
            entropy_before=self.entropy_before[part],
            entropy_after=self.entropy_after[part],
            sigma=self.sigma[part] if len(self.sigma) == len(self) else self.sigma,
            steps=self.steps,
            seconds=self.seconds,
        )

    def confidences(self) -> list[float]:
        """Return the confidence in each image before any step, in [0, 1].

        It is 1 - H / ln(classes), where H is the entropy before the first step, or that of the
        answer if the defense does not record the former. Images without either are left out.
        """
        entropies = zip(self.entropy_before, self.entropy_after, strict=True)
        initial = [after if before is None else before for before, after in entropies]
        return [
            1 - value / math.log(self.logits.shape[1]) for value in initial if value is not None
        ]


class Engine:
    """A defense that answers batches; use it from one thread at a time.

    The engine measures whether requests may share a batch, and does not only rely on what the
    defense declares. The defense must declare itself batch-independent, not stateful and not
    randomized. In addition, a few images must get the same logits alone, beside noise, in reverse
    order, with another seed, and after many queries.

    Args:
        defense: answers the batches. A stateful one is reset before every batch.
        images: at least 2 images (N, C, H, W) like those that will be served, for the probe.
        device: the device of the model.
        clock: returns the time in seconds; for tests.
        seeds: draws the seed of each batch, for randomized defenses; for tests.

    Raises:
        ConfigError: the defense keeps state between batches and has no `reset()`, so one client's
            requests would change another's answers.
    """

    def __init__(
        self,
        defense: DynamicDefense,
        images: Tensor,
        *,
        device: torch.device | str = "cpu",
        clock: Clock = time.perf_counter,
        seeds: Callable[[], int] = lambda: secrets.randbits(63),
    ) -> None:
        self.description: dict[str, Any] = describe(defense)
        if self.description["stateful"] and not callable(getattr(defense, "reset", None)):
            raise ConfigError(
                f"{self.description['name']} keeps state between batches and has no reset(), so "
                "one client's requests would change another's answers: give it a reset() that "
                "returns it to its trained state, or serve another defense."
            )
        self.shape: Shape = (images.shape[1], images.shape[2], images.shape[3])
        self.cost = StepCost()
        self._defense = defense
        self._device = torch.device(device)
        self._clock, self._seeds = clock, seeds
        self._fewer: dict[int, DynamicDefense] = {}
        probed = images[:_PROBED].to(self._device)
        submit(defense, probed, seed=0)  # so that no client waits for the work of a first batch
        reset(defense)
        self.shares = self._measure(probed)

    @property
    def steps(self) -> int:
        """The number of steps of a full answer; 0 if the defense cannot run with fewer steps."""
        return self._defense.steps if isinstance(self._defense, SupportsSteps) else 0

    def adapts(self, images: int) -> bool:
        """Return whether steps can change the model for a batch of this many images.

        Information maximization is constant for one image, so dent+ is then the static model.
        """
        if not isinstance(self._defense, Dent):
            return True
        config = self._defense.config
        alone = images == 1 and config.objective == "information-maximization"
        return config.steps > 0 and not alone

    def run(self, images: Tensor, steps: int | None = None) -> ServedAnswer:
        """Return the answer to a batch.

        Args:
            images: (N, C, H, W), float32 in [0, 1].
            steps: number of steps, at most those of the defense; all of them by default.
        """
        start = self._clock()
        defense = self._with(self.steps if steps is None else steps)
        reset(defense)
        served = submit(defense, images.to(self._device), seed=self._seeds())
        answer = self._read(served.logits.cpu(), served.adaptation, defense)
        seconds = self._clock() - start
        self.cost.observe(len(images), answer.steps or 0, seconds)
        return ServedAnswer(**(vars(answer) | {"seconds": seconds}))

    def _with(self, steps: int) -> DynamicDefense:
        if steps == self.steps or not isinstance(self._defense, SupportsSteps):
            return self._defense
        if steps not in self._fewer:
            self._fewer[steps] = self._defense.with_steps(steps)
        return self._fewer[steps]

    def _read(self, logits: Tensor, adaptation: Any, defense: DynamicDefense) -> ServedAnswer:
        count = len(logits)
        predicted = is_prediction(logits)
        status = statuses(adaptation) or ["answered"] * count
        if not self.adapts(count):
            status = [NO_STEP] * count
        if (
            count == 1
            and isinstance(defense, Dent)
            and normalizes_by_batch(defense.model, defense.config)
        ):
            status = [OWN_STATISTICS]
        entropies = getattr(adaptation, "entropy", None)
        initial = torch.full((count,), math.nan)
        if isinstance(entropies, Tensor) and entropies.ndim == 2 and entropies.shape[1] == count:
            initial = entropies[0] if len(entropies) else initial
        return ServedAnswer(
            logits=logits,
            statuses=tuple(
                name if has_prediction else NO_PREDICTION
                for name, has_prediction in zip(status, predicted.tolist(), strict=True)
            ),
            entropy_before=_known(initial),
            entropy_after=_known(entropy(logits)),
            sigma=_sigma(adaptation),
            steps=defense.steps if isinstance(defense, SupportsSteps) else None,
            seconds=0.0,
        )

    def _measure(self, images: Tensor) -> bool:
        description = self.description
        if description["batch_dependent"] or description["stateful"] or description["randomized"]:
            return False
        labels = torch.zeros(len(images), dtype=torch.int64, device=images.device)
        probe = Probe(Origin(self._defense), images, labels, (0.0, 1.0), seed=0)
        readings = (probe.alone(), probe.strangers(), probe.permuted(), probe.repeated())
        experienced, _ = probe.again()
        return not any(
            reading is not None and changed(reading) for reading in (*readings, experienced)
        )


def _known(values: Tensor) -> tuple[float | None, ...]:
    return tuple(value if math.isfinite(value) else None for value in values.tolist())


def _sigma(adaptation: Any) -> tuple[float, ...]:
    sigma = getattr(adaptation, "sigma", None)
    if not isinstance(sigma, Tensor):
        return ()
    rows = wide(sigma.detach())
    if getattr(adaptation, "sample_wise", False):
        rows = rows.reshape(len(rows), -1).mean(1)
    else:
        rows = rows.mean().reshape(1)
    return tuple(rows.tolist())

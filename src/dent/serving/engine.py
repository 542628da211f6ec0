"""One defense that answers one batch at a time, exactly as the evaluation submits it."""

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
from dent.evaluation.records.readings import moved
from dent.evaluation.submission.fresh import Origin
from dent.evaluation.submission.submission import reset, statuses, submit
from dent.serving.cost import StepCost
from dent.support.devices import wide

if TYPE_CHECKING:
    from dent.serving.requests import Shape

Clock = Callable[[], float]

NO_STEP = "no-step"
OWN_STATISTICS = "own-statistics"
"""Status of an image for which no gradient step changed the model."""

NO_PREDICTION = "no-prediction"
"""Status of an image whose logits are not finite."""

_PROBED = 8


@dataclass(frozen=True)
class ServedAnswer:
    """The answer of a defense to a batch of N images.

    Attributes:
        logits: (N, classes), float32 on the CPU.
        statuses: N, by `dent.Status`, or `no-step`, `own-statistics`, `no-prediction`, `answered`.
        entropy_before: N, in nats, before the first step; None where the defense does not say.
        entropy_after: N, in nats, of the answer; None where that is no prediction.
        sigma: in pixels, one for each image or one for all; empty without smoothing.
        steps: gradient steps taken; None where the defense has none to count.
        seconds: from the batch's start to its end.
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
        """Return how sure the model was of each image before any step, from 0 to 1.

        1 - H / ln(classes) for H the entropy before the first step, or of the answer where the
        defense does not record it. Images without either are left out.
        """
        entropies = zip(self.entropy_before, self.entropy_after, strict=True)
        initial = [after if before is None else before for before, after in entropies]
        return [
            1 - value / math.log(self.logits.shape[1]) for value in initial if value is not None
        ]


class Engine:
    """Runs batches on one defense; use it from one thread at a time.

    The engine measures whether requests may share a batch, and does not only rely on what the
    defense declares. The defense must declare itself batch-independent, not stateful and not
    randomized, and a few images must get the same logits alone, in another batch, and twice.

    Args:
        defense: answers the batches. A stateful one is reset before every batch.
        images: images (N, C, H, W) like those that will be served, at least 2; the probe uses them.
        device: where the model lies.
        clock: seconds; for tests.
        seeds: draws the seed of each batch, for defenses that draw numbers; for tests.

    Raises:
        ConfigError: the defense keeps state between batches and offers no `reset()`, so that one
            client's requests would change another's answers.
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
        submit(defense, probed, seed=0)  # a trial in the first batch is not at a client's expense
        reset(defense)
        self.shares = self._measure(probed)

    @property
    def steps(self) -> int:
        """The steps of a full answer; 0 if the number of steps cannot be reduced."""
        return self._defense.steps if isinstance(self._defense, SupportsSteps) else 0

    def adapts(self, images: int) -> bool:
        """Return whether steps can change the model for a batch of that size.

        Information maximization is constant for one image, so that dent+ is the static model then.
        """
        if not isinstance(self._defense, Dent):
            return True
        config = self._defense.config
        alone = images == 1 and config.objective == "information-maximization"
        return config.steps > 0 and not alone

    def run(self, images: Tensor, steps: int | None = None) -> ServedAnswer:
        """Answer a batch.

        Args:
            images: (N, C, H, W), float32 in [0, 1].
            steps: fewer than the defense has; all by default.
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
        finite = logits.amax(1).isfinite()
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
                name if is_finite else NO_PREDICTION
                for name, is_finite in zip(status, finite.tolist(), strict=True)
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
            reading is not None and moved(reading) for reading in (*readings, experienced)
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

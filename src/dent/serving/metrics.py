"""The Prometheus metrics of a server."""

import math
from collections import Counter, deque
from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Gauge, Histogram
from prometheus_client import Counter as Total

from dent.serving.engine import ServedAnswer

WINDOW = 1000
"""Number of images over which the confidence of the inputs is averaged."""

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
_NATS = (0.01, 0.03, 0.1, 0.3, 0.6, 1, 1.5, 2, 2.3, 3, 4, 5, 7)
_PIXELS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 1.5, 2, 3)


class Metrics:
    """The metrics of one replica, in their own registry.

    Args:
        reference: confidences of reference inputs, with which later ones are compared; by default
            those of the first `WINDOW` inputs that are served.
    """

    def __init__(self, reference: Sequence[float] = ()) -> None:
        self.registry = CollectorRegistry(auto_describe=True)
        self._window: deque[float] = deque(maxlen=WINDOW)
        self._reference = list(reference)
        self._settled = bool(reference)
        self._define_requests(self.registry)
        self._define_batches(self.registry)
        self._define_inputs(self.registry)

    def _define_requests(self, registry: CollectorRegistry) -> None:
        self._responses = Total(
            "dent_responses",
            "Responses, by route and status.",
            ["route", "status"],
            registry=registry,
        )
        self._refused = Total(
            "dent_refused",
            "Requests to predict that were refused, by reason.",
            ["reason"],
            registry=registry,
        )
        self._request_seconds = Histogram(
            "dent_request_seconds",
            "From a request's arrival to its answer, answered ones alone.",
            buckets=_SECONDS,
            registry=registry,
        )
        self._degraded = Total(
            "dent_degraded",
            "Requests answered with fewer steps than configured.",
            registry=registry,
        )
        self._late = Total(
            "dent_late", "Requests answered after their deadline all the same.", registry=registry
        )
        self.requests_inside = Gauge(
            "dent_requests_inside", "Requests taken in and not yet answered.", registry=registry
        )
        self.images_waiting = Gauge(
            "dent_images_waiting", "Images whose batch has not started.", registry=registry
        )

    def _define_batches(self, registry: CollectorRegistry) -> None:
        self._queue_seconds = Histogram(
            "dent_queue_seconds",
            "From a request's arrival to its batch's start.",
            buckets=_SECONDS,
            registry=registry,
        )
        self._batch_seconds = Histogram(
            "dent_batch_seconds", "Computing one batch.", buckets=_SECONDS, registry=registry
        )
        self._batch_images = Histogram(
            "dent_batch_images", "Images in a batch.", buckets=_SIZES, registry=registry
        )
        self._batch_requests = Histogram(
            "dent_batch_requests",
            "Requests in a batch; 1 unless the defense is batch-independent.",
            buckets=_SIZES,
            registry=registry,
        )
        self._steps = Total("dent_steps", "Gradient steps taken, by batch.", registry=registry)

    def _define_inputs(self, registry: CollectorRegistry) -> None:
        self._images = Total(
            "dent_images",
            "Images answered, by how their adaptation ended.",
            ["status"],
            registry=registry,
        )
        self._non_finite = Total(
            "dent_non_finite_inputs",
            "Requests refused because an image contains NaN or infinity.",
            registry=registry,
        )
        self._entropy_before = Histogram(
            "dent_entropy_before_nats",
            "Entropy of a prediction before the first step.",
            buckets=_NATS,
            registry=registry,
        )
        self._entropy_after = Histogram(
            "dent_entropy_after_nats",
            "Entropy of a prediction as served.",
            buckets=_NATS,
            registry=registry,
        )
        self._sigma = Histogram(
            "dent_sigma_pixels",
            "Smoothing's sigma after adaptation, by image or by batch.",
            buckets=_PIXELS,
            registry=registry,
        )
        Gauge(
            "dent_confidence",
            f"Mean confidence of the last {WINDOW} inputs, before any step.",
            registry=registry,
        ).set_function(lambda: _mean(self._window))
        Gauge(
            "dent_confidence_reference",
            "Mean confidence of the reference inputs.",
            registry=registry,
        ).set_function(lambda: _mean(self._reference) if self._settled else math.nan)
        Gauge(
            "dent_confidence_drift",
            "dent_confidence minus dent_confidence_reference.",
            registry=registry,
        ).set_function(self.drift)

    def drift(self) -> float:
        """Return mean recent confidence minus mean reference confidence; NaN if unknown."""
        return _mean(self._window) - _mean(self._reference) if self._settled else math.nan

    def responded(self, route: str, status: int) -> None:
        """Count a response."""
        self._responses.labels(route, str(status)).inc()

    def refused(self, code: str) -> None:
        """Count a request to predict that was refused."""
        self._refused.labels(code).inc()
        if code == "non-finite":
            self._non_finite.inc()

    def answered(self, seconds: float, *, degraded: bool, late: bool) -> None:
        """Count a request that was answered."""
        self._request_seconds.observe(seconds)
        self._degraded.inc(degraded)
        self._late.inc(late)

    def batch_starts(self, waited: Sequence[float]) -> None:
        """Record the seconds that each request of a batch waited."""
        for seconds in waited:
            self._queue_seconds.observe(seconds)

    def batch_ends(self, answer: ServedAnswer, requests: int) -> None:
        """Record the answer to a batch."""
        self._batch_seconds.observe(answer.seconds)
        self._batch_images.observe(len(answer))
        self._batch_requests.observe(requests)
        self._steps.inc(answer.steps or 0)
        for status, count in Counter(answer.statuses).items():
            self._images.labels(status).inc(count)
        for histogram, values in (
            (self._entropy_before, answer.entropy_before),
            (self._entropy_after, answer.entropy_after),
            (self._sigma, answer.sigma),
        ):
            for value in values:
                if value is not None:
                    histogram.observe(value)
        self._compare(answer.confidences())

    def _compare(self, confidences: Sequence[float]) -> None:
        self._window.extend(confidences)
        if not self._settled:
            self._reference.extend(confidences[: WINDOW - len(self._reference)])
            self._settled = len(self._reference) == WINDOW


def _mean(values: Sequence[float] | deque[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan

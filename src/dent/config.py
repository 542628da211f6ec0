"""Configuration of a dynamic defense: frozen, validated, and convertible to JSON."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Final, Literal, Self, get_args

from dent.errors import ConfigError, UnknownNameError
from dent.support.checks import check_choice, check_count, check_flag, read_number
from dent.support.suggest import did_you_mean

OptimizerName = Literal["adam", "adamod", "sgd"]
ObjectiveName = Literal["entropy", "information-maximization", "agreement"]
Granularity = Literal["batch", "sample"]
Statistics = Literal["train", "test", "moving"]
Reduction = Literal["mean", "sum"]
Covariance = Literal["spherical", "diagonal", "full"]
ViewsPrediction = Literal["logits", "probabilities", "image"]


class JSONConfig:
    """Base of frozen dataclasses that convert to JSON and back. Unknown keys are refused."""

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain JSON types."""
        return json.loads(json.dumps(asdict(self)))  # type: ignore[call-overload, no-any-return]

    def to_json(self) -> str:
        """Return the fields as one line of JSON with sorted keys."""
        return json.dumps(self.to_dict(), sort_keys=True)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Build from a mapping of field names to values; missing fields take their defaults.

        Raises:
            ConfigError: a key is unknown, a value is out of range, or two contradict each other, or
                `values` is not a mapping.
        """
        if not isinstance(values, Mapping):
            raise ConfigError(
                f"{cls.__name__} expected a mapping of field names to values, "
                f"got {type(values).__name__}."
            )
        names = [field.name for field in fields(cls)]  # type: ignore[arg-type]
        for key in values:
            if key not in names:
                hint = did_you_mean(str(key), names) or f" Known: {', '.join(names)}."
                raise ConfigError(f"{cls.__name__} has no field {key!r}.{hint}")
        return cls(**values)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Build from JSON text, as `from_dict` does.

        Raises:
            ConfigError: it is not text or not JSON, has a key twice, or `from_dict` refuses its
                content.
        """
        given: object = text
        if not isinstance(given, str | bytes | bytearray):
            raise ConfigError(
                f"{cls.__name__}.from_json expected text, got {type(given).__name__}: for a "
                "mapping, there is from_dict"
            )
        try:
            values = json.loads(text, object_pairs_hook=_once)
        except json.JSONDecodeError as error:
            raise ConfigError(
                f"{cls.__name__} expected JSON, got text that is not: {error}."
            ) from error
        return cls.from_dict(values)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ConfigError(f"the key {twice!r} is there twice: leave one out")
    return values


@dataclass(frozen=True)
class SmoothingConfig(JSONConfig):
    """Gaussian smoothing of the input (Σ, paper section 3.2).

    Attributes:
        sigma: standard deviation in pixels, greater than 0; the initial value if it is learned.
        learn: learn sigma jointly with the model's parameters under the same objective.
        lr: learning rate of sigma's logarithm (0.25 in the paper); sigma therefore stays positive.
        covariance: one sigma ("spherical"), one per axis ("diagonal"), or a full 2 x 2 covariance.
    """

    sigma: float = 0.5
    learn: bool = True
    lr: float = 0.25
    covariance: Covariance = "spherical"

    def __post_init__(self) -> None:
        """Check every field."""
        object.__setattr__(self, "sigma", read_number("smoothing.sigma", self.sigma, 0.0))
        object.__setattr__(self, "lr", read_number("smoothing.lr", self.lr, 0.0))
        check_flag("smoothing.learn", self.learn)
        check_choice("smoothing.covariance", self.covariance, get_args(Covariance))


@dataclass(frozen=True)
class ViewsConfig(JSONConfig):
    """Several views of every image: the image, its mirror image, and shifted crops of both.

    The order is fixed, and the first `count` views are used: the image, its mirror image, four
    crops shifted diagonally, the same four mirrored, four crops shifted along one axis, the same
    four mirrored, and then the same crops with twice the shift, three times the shift, and so on. A
    crop is shifted by whole pixels, and is 0 (black) beyond the image.

    Attributes:
        count: number of views, at least 2.
        shift: number of pixels by which the first crops are shifted, at least 1.
        flip: whether to use mirror images, too.
        predict: how to predict: by the mean of the views' "logits" or "probabilities", or only from
            the "image". The objectives "entropy" and "information-maximization" always use the mean
            of the probabilities.
    """

    count: int = 6
    shift: int = 2
    flip: bool = True
    predict: ViewsPrediction = "logits"

    def __post_init__(self) -> None:
        """Check every field."""
        check_count("views.count", self.count, 2)
        check_count("views.shift", self.shift, 1)
        check_flag("views.flip", self.flip)
        check_choice("views.predict", self.predict, get_args(ViewsPrediction))


@dataclass(frozen=True)
class DentConfig(JSONConfig):
    """Settings that determine what a defense predicts (`Performance` has settings for speed).

    The defaults are the preset `DENT`. Meaningless combinations are refused.

    Attributes:
        steps: gradient steps per batch, at least 0. 0 takes no step: with test statistics or
            static smoothing this is still a defense (paper Table 4 and Table 8), otherwise it is
            the static model.
        lr: learning rate of the normalization layers' scale and shift.
        optimizer: "adam", "adamod" (Ding et al. 2019) or "sgd" (with momentum), all without weight
            decay.
        betas: decay of the first and second moment; for "sgd" the first is the momentum and the
            second is unused.
        beta3: decay of AdaMod's learning-rate average; required for AdaMod, refused for others.
        objective: "entropy" (equation 3) or "information-maximization" (Table 12, dent+), which
            subtracts the entropy of the batch's mean prediction. With `views` both use the mean
            prediction over the views (MEMO, Zhang et al. 2022). "agreement" needs `views`: it
            is the Jensen-Shannon divergence between their predictions.
        granularity: one set of parameters per "batch" (dent) or one per "sample" (dent+).
        statistics: normalize by the model's running statistics ("train", the paper's ×) or by the
            current batch's, at every forward ("test", the paper's √). Or "moving", as in the
            paper's Listing 1: each step normalizes by the batch statistics, and moves the running
            ones toward them with the layer's momentum; the prediction normalizes by the moved ones.
            The statistics belong to the batch even if scales and shifts belong to samples.
        adapt_affine: update scale γ and shift β.
        last_layers: adapt only this many of the last normalization layers, in the order in which
            the model registers them. Everything before them is computed once. None: adapt all, as
            published.
        views: adapt to several views of each image, and predict as `views.predict` says. None: only
            the image, as published. With steps=0 this is test-time transformation ensembling.
        reduction: "mean" over the batch, as published, or "sum", which makes sample-wise entropy
            minimization independent of the batch.
        smoothing: Gaussian smoothing of the input, or None.
    """

    steps: int = 30
    lr: float = 1e-3
    optimizer: OptimizerName = "adam"
    betas: tuple[float, float] = (0.9, 0.999)
    beta3: float | None = None
    objective: ObjectiveName = "entropy"
    granularity: Granularity = "batch"
    statistics: Statistics = "train"
    adapt_affine: bool = True
    reduction: Reduction = "mean"
    smoothing: SmoothingConfig | None = None
    last_layers: int | None = None
    views: ViewsConfig | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain JSON types; `last_layers` and `views` only if set."""
        values = super().to_dict()
        for name in ("last_layers", "views"):
            if values[name] is None:  # so that older records, which lack it, still compare equal
                del values[name]
        return values

    def __post_init__(self) -> None:
        """Check every field, then their combinations."""
        check_count("steps", self.steps, 0)
        object.__setattr__(self, "lr", read_number("lr", self.lr, 0.0))
        check_choice("optimizer", self.optimizer, get_args(OptimizerName))
        check_choice("objective", self.objective, get_args(ObjectiveName))
        check_choice("granularity", self.granularity, get_args(Granularity))
        check_choice("statistics", self.statistics, get_args(Statistics))
        check_choice("reduction", self.reduction, get_args(Reduction))
        check_flag("adapt_affine", self.adapt_affine)
        self._check_betas()
        self._check_smoothing()
        self._check_last_layers()
        self._check_views()
        self._check_moving()
        if self.steps and not self.learns:
            raise ConfigError(
                f"steps={self.steps} has nothing to update: adapt_affine is False and no smoothing "
                "is learned. Set steps=0, adapt_affine=True, or smoothing with learn=True."
            )

    def _check_betas(self) -> None:
        pair: object = self.betas
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise ConfigError(f"betas must be two numbers in [0, 1), got {pair!r}.")
        betas = (
            read_number("betas[0]", pair[0], 0, 1, closed_low=True),
            read_number("betas[1]", pair[1], 0, 1, closed_low=True),
        )
        object.__setattr__(self, "betas", betas)
        if self.optimizer == "adamod":
            if self.beta3 is None:
                raise ConfigError("optimizer='adamod' needs beta3 in [0, 1); the paper's is 0.6.")
            object.__setattr__(
                self, "beta3", read_number("beta3", self.beta3, 0, 1, closed_low=True)
            )
        elif self.beta3 is not None:
            raise ConfigError(
                f"beta3={self.beta3!r} needs optimizer='adamod', but the optimizer is "
                f"{self.optimizer!r}. Remove beta3 or choose 'adamod'."
            )

    def _check_smoothing(self) -> None:
        if isinstance(self.smoothing, Mapping):
            object.__setattr__(self, "smoothing", SmoothingConfig.from_dict(self.smoothing))
        elif self.smoothing is not None and not isinstance(self.smoothing, SmoothingConfig):
            raise ConfigError(
                f"smoothing must be a SmoothingConfig or None, got {self.smoothing!r}."
            )

    def _check_last_layers(self) -> None:
        if self.last_layers is None:
            return
        check_count("last_layers", self.last_layers, 1)
        if not self.adapt_affine:
            raise ConfigError(
                f"last_layers={self.last_layers} says which scales and shifts are adapted, and "
                "adapt_affine is False. Remove last_layers or set adapt_affine=True."
            )

    def _check_views(self) -> None:
        if isinstance(self.views, Mapping):
            object.__setattr__(self, "views", ViewsConfig.from_dict(self.views))
        elif self.views is not None and not isinstance(self.views, ViewsConfig):
            raise ConfigError(f"views must be a ViewsConfig or None, got {self.views!r}.")
        if self.views is None and self.objective == "agreement":
            raise ConfigError(
                "objective='agreement' compares several views of an image, and views is None. "
                "Set views=ViewsConfig(), or minimize the 'entropy'."
            )

    def _check_moving(self) -> None:
        beside = [name for name in ("views", "last_layers") if getattr(self, name) is not None]
        if self.statistics == "moving" and beside:
            raise ConfigError(
                f"statistics='moving' moves the statistics of every layer once per step, and "
                f"{beside[0]} is set. Remove {beside[0]}, or choose statistics='test'."
            )

    def with_steps(self, steps: int, *, size: float = 1.0) -> Self:
        """Return the same defense with another number of steps.

        Args:
            steps: the new number of steps.
            size: factor of all learning rates.

        Raises:
            ConfigError: `steps` or `size` is out of range.
        """
        size = read_number("size", size, 0.0)
        changed = replace(self, steps=steps, lr=size * self.lr)
        if self.smoothing is None:
            return changed
        return replace(changed, smoothing=replace(self.smoothing, lr=size * self.smoothing.lr))

    @property
    def learns(self) -> bool:
        """Whether a step has anything to update."""
        return self.adapt_affine or (self.smoothing is not None and self.smoothing.learn)

    @property
    def moves_statistics(self) -> bool:
        """Whether steps move the running statistics."""
        return self.statistics == "moving" and self.steps > 0

    @property
    def batch_dependent(self) -> bool:
        """Whether a prediction can depend on the other members of the batch, or on their number.

        Always true with test statistics, and with moving ones if steps are taken. Otherwise false
        only if no step is taken or each sample is adapted by its own loss: sample granularity,
        entropy or agreement, and `reduction="sum"`. With `reduction="mean"` the batch size scales
        every gradient, which Adam undoes almost but not exactly.
        """
        if self.statistics == "test" or self.moves_statistics:
            return True
        alone = (
            self.granularity == "sample"
            and self.objective != "information-maximization"
            and self.reduction == "sum"
        )
        return self.steps > 0 and not alone


DENT = DentConfig()
"""dent (paper section 4.1, Table 1): batch-wise, Adam, entropy, train statistics, 30 steps."""

DENT_PLUS = DentConfig(
    steps=6,
    lr=6e-3,
    optimizer="adamod",
    betas=(0.99, 0.999),
    beta3=0.6,
    objective="information-maximization",
    granularity="sample",
)
"""dent+ (paper section 4.1, Table 1): sample-wise, AdaMod, information maximization, 6 steps."""

DENT_NOMINAL = DentConfig(steps=10, statistics="test", smoothing=SmoothingConfig(sigma=0.5))
"""dent for nominally trained models (paper Table 4, last row): batch-wise, test statistics,
learned Gaussian smoothing, 10 steps."""

PRESETS: Final[Mapping[str, DentConfig]] = {
    "dent": DENT,
    "dent+": DENT_PLUS,
    "dent-nominal": DENT_NOMINAL,
}
"""Configurations of the paper by name."""


def preset(name: str) -> DentConfig:
    """Return a configuration of the paper by its name, in upper or lower case.

    `dent_plus` is also read as `dent+`, and `DENT_NOMINAL` as `dent-nominal`.

    Raises:
        UnknownNameError: no configuration has this name.
    """
    plain = name.strip().lower().replace("_", "-").replace("dent-plus", "dent+")
    if plain not in PRESETS:
        raise UnknownNameError(
            f"there is no configuration {name!r} of Dent.{did_you_mean(plain, PRESETS)} Expected "
            f"one of {', '.join(PRESETS)}, or a DentConfig. Other defenses are made by "
            "dent.defenses.make(name, model)."
        )
    return PRESETS[plain]

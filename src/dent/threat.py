"""Threat models: what an attacker may do to an image, and whether an image is within the limits.

Distances and checks are computed in float64 for any data type, so that anyone who checks a record
gets the same result.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from dent.errors import BudgetWarning, ConfigError, InputError
from dent.support.checks import is_number
from dent.support.devices import wide

Norm = Literal["linf", "l2", "l1"]
NORMS: tuple[Norm, ...] = get_args(Norm)

_LONGEST = 80  # characters of the text of a radius
_EPS = re.compile(rf"(?!.*e[+-]?\d{{4}})[0-9.eE+/_-]{{1,{_LONGEST}}}", re.IGNORECASE)
_ULP = 2.0**-23  # spacing of float32 just above 1
#: Other ways to write the norms: in RobustBench, AutoAttack and papers.
_ALIASES: dict[str, Norm] = {
    "inf": "linf", "l-inf": "linf", "l_inf": "linf", "l∞": "linf", "ℓ∞": "linf",
    "2": "l2", "l_2": "l2", "ℓ2": "l2", "1": "l1", "l_1": "l1", "ℓ1": "l1",
}  # fmt: skip
_USUAL_EPS: dict[Norm, str] = {"linf": "8/255", "l2": "0.5"}
_WIDE = {"linf": 0.5, "l2": 0.2, "l1": 0.2}  # share of the diameter that raises a warning
_HUGE = 1e9  # eps in pixel ranges above which it is refused in any norm


@dataclass(frozen=True, init=False, repr=False)
class ThreatModel:
    """Limits of an attack: each image within `eps` of its natural image, each pixel in `bounds`.

    Equality and hash are by value: `ThreatModel("linf", "8/255") == ThreatModel("linf", 8 / 255)`.

    Attributes:
        norm: `"linf"`, `"l2"` or `"l1"`, over all channels and pixels of one image.
        eps: The radius, in units of a pixel's value.
        bounds: Smallest and largest value that a pixel may have.
        written: The radius as text for readers: `"8/255"`.
    """

    norm: Norm
    eps: float
    bounds: tuple[float, float]
    written: str = field(compare=False)

    def __init__(
        self,
        norm: Norm | str,
        eps: str | float | Fraction,
        bounds: tuple[float, float] = (0.0, 1.0),
    ) -> None:
        """Parse and check the norm, the radius and the bounds.

        Args:
            norm: `"linf"`, `"l2"` or `"l1"`, in upper or lower case; also `"inf"`, `"l∞"`.
            eps: The radius. `"8/255"`, `"1.5/255"` and `"0.5"` are read exactly and printed as
                written. A number is printed as `k/255` if it equals such a fraction and this is
                shorter than its digits: `8 / 255` as `8/255`, `0.5` as `0.5`.
            bounds: Smallest and largest value of a pixel.

        Raises:
            ConfigError: If the norm is unknown, `eps` is negative, not a number, or larger than
                any image could use (in linf, larger than the range of a pixel), or the bounds are
                invalid.
        """
        norm = as_norm(norm)
        low, high = read_bounds(bounds)
        if not (math.isfinite(low) and math.isfinite(high)):
            raise ConfigError(f"bounds must be finite, got {bounds!r}")
        radius, written = _read_eps(eps)
        _check_size(norm, radius, written, high - low)
        object.__setattr__(self, "norm", norm)
        object.__setattr__(self, "eps", radius)
        object.__setattr__(self, "bounds", (low, high))
        object.__setattr__(self, "written", written)

    @property
    def label(self) -> str:
        """Norm and radius for readers: `"linf 8/255"`, with the bounds if they are not [0, 1]."""
        low, high = self.bounds
        inside = "" if self.bounds == (0.0, 1.0) else f" in [{low:g}, {high:g}]"
        return f"{self.norm} {self.written}{inside}"

    def __str__(self) -> str:
        return self.label

    def __repr__(self) -> str:
        return f"ThreatModel({self.norm!r}, {self.written!r}, bounds={self.bounds!r})"

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values, which `from_dict` takes."""
        return {"norm": self.norm, "eps": self.written, "bounds": list(self.bounds)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ThreatModel:
        """Build a threat model from the result of `to_dict`.

        Raises:
            ConfigError: If a key is unknown or missing, or a value is out of range.
        """
        unknown = sorted(set(values) - {"norm", "eps", "bounds"})
        missing = sorted({"norm", "eps"} - set(values))
        if unknown or missing:
            raise ConfigError(
                "a threat model has the keys norm, eps and bounds (optional); "
                f"unknown: {unknown or 'none'}, missing: {missing or 'none'}"
            )
        return cls(values["norm"], values["eps"], values.get("bounds", (0.0, 1.0)))

    def check_reach(self, shape: Sequence[int], *, warn: bool = False) -> None:
        """Check that `eps` is a plausible radius for images of a shape, in pixel units.

        Args:
            shape: Shape of one image, (C, H, W).
            warn: Whether to warn of a radius that is possible but probably a mistake.

        Raises:
            ConfigError: If `eps` exceeds the largest distance between two images of that shape.

        Warns:
            BudgetWarning: If `warn` is set and `eps` is a large share of that distance: more than
                half in linf, or a fifth in l2 and l1.
        """
        values = math.prod(shape)
        low, high = self.bounds
        spread = {"linf": 1.0, "l2": math.sqrt(values), "l1": float(values)}[self.norm]
        farthest = (high - low) * spread
        reach = (
            f"images of shape {'x'.join(map(str, shape))} in [{low:g}, {high:g}] are at most "
            f"{farthest:.4g} apart in {self.norm}"
        )
        suggestion = "" if "/" in self.written else f"; did you mean '{self.written}/255'?"
        if self.eps > farthest * (1 + _ULP):
            raise ConfigError(
                f"eps {self.written} in {self.norm} is larger than any image could use: {reach}, "
                f"and pixels are not in 0..255 here{suggestion}"
            )
        if warn and self.eps > farthest * _WIDE[self.norm]:
            warnings.warn(
                f"eps {self.written} in {self.norm} is {self.eps / farthest:.0%} of the largest "
                f"distance that there is: {reach}{suggestion}",
                BudgetWarning,
                stacklevel=2,
            )

    def distance(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """Return the distance of every row of `x_adv` from the same row of `x` in this norm.

        Args:
            x_adv: Perturbed images, (N, ...).
            x: Natural images, of the same shape.

        Returns:
            float64 (N,), on the CPU if the device has no float64. The distance of a row with a NaN
            is infinite.

        Raises:
            InputError: If the shapes differ or there is no batch dimension.
        """
        difference = (_rows(x_adv, x) - _rows(x, x_adv)).abs()
        if self.norm == "linf":
            far = difference.amax(dim=1) if difference.shape[1] else difference.sum(dim=1)
        elif self.norm == "l2":
            far = difference.square().sum(dim=1).sqrt()
        else:
            far = difference.sum(dim=1)
        return far.nan_to_num(nan=math.inf, posinf=math.inf)

    @property
    def slack(self) -> float:
        """How far a pixel may lie beyond the bounds: one spacing of float32 of the larger one.

        A bound such as 2.64 has no exact float32, so images clamped to it may lie beyond.
        """
        return _ULP * max(abs(bound) for bound in self.bounds)

    def tolerance(self, pixels: int) -> float:
        """Return how far beyond `eps` a row may lie and still count as inside.

        Storing an image in float32 rounds each value by at most half a spacing of float32. The sum
        that an attack computed before (`x + eps`) adds as much again: together one spacing
        `u = 2**-23` of the largest value `s` that the bounds allow. For `n` values, rounding can
        add at most `u s` in linf, `u s sqrt(n)` in l2 and `u s n` in l1. Rounding `eps` itself to
        float32 adds `u eps`. For 32 x 32 x 3 images in [0, 1], the tolerance is 1.2e-7 in linf at
        8/255, and 6.7e-6 in l2 at 0.5.

        Args:
            pixels: Number of values in one image, over channels and pixels.
        """
        scale = max(abs(bound) for bound in self.bounds)
        spread = {"linf": 1.0, "l2": math.sqrt(pixels), "l1": float(pixels)}[self.norm]
        return _ULP * (scale * spread + self.eps)

    def check(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """Return how far every row lies outside this threat model, in float64.

        Args:
            x_adv: Perturbed images, (N, ...).
            x: Natural images, of the same shape.

        Returns:
            float64 (N,), on the device of `distance`. 0 for a row inside norm and bounds, up to
            `tolerance`. Otherwise the larger of its excess over `eps` and the largest excess of a
            pixel over the bounds; infinite if a value is NaN. `check(...).any()` says whether any
            row is outside.

        Raises:
            InputError: If the shapes differ.
        """
        rows = _rows(x_adv, x)
        low, high = self.bounds
        excess = self.distance(x_adv, x) - self.eps
        excess = torch.where(excess > self.tolerance(rows.shape[1]), excess, 0.0)
        if rows.shape[1]:
            beyond = torch.maximum(low - rows, rows - high).amax(dim=1)
            excess = excess.maximum(torch.where(beyond > self.slack, beyond, 0.0))
        return excess.nan_to_num(nan=math.inf, posinf=math.inf)

    def project(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """Return the nearest images (in Euclidean distance) inside this threat model.

        The projection is exact onto the intersection of ball and bounds, instead of onto one after
        the other: in l1 this makes a difference (Croce & Hein, 2021). l1 uses the simplex algorithm
        (Duchi et al., 2008) with a cap on every value; l2 uses the same idea with a scale instead
        of a threshold. Both sort once, and compute in float64.

        Args:
            x_adv: Images to move, (N, ...), finite, float32 or float64. Other types round by more
                than `tolerance` allows.
            x: Natural images, of the same shape, inside the bounds.

        Returns:
            A new tensor of `x_adv`'s shape and dtype, which `check` finds inside.

        Raises:
            InputError: If the shapes differ, `x_adv` has another data type, or a value is not
                finite.
        """
        if x_adv.dtype not in (torch.float32, torch.float64):
            raise InputError(
                f"project expects float32 or float64 images, got {x_adv.dtype}: pass x_adv.float()"
            )
        rows, center = _rows(x_adv, x), _rows(x, x_adv)
        delta = rows - center
        if not bool(torch.isfinite(delta).all()):
            raise InputError("project expects finite images, got a value that is not a number")
        low, high = self.bounds
        room = torch.where(delta > 0, high - center, center - low).clamp(min=0)
        size = delta.abs()
        if self.norm == "linf":
            size = size.minimum(room).clamp(max=self.eps)
        elif self.norm == "l2":
            size = _shrink_l2(size, room, self.eps)
        else:
            size = _shrink_l1(size, room, self.eps)
        moved = (center + delta.sign() * size).clamp(low, high)
        return moved.reshape(x_adv.shape).to(x_adv.dtype).to(x_adv.device)


def as_norm(name: object) -> Norm:
    """Return the norm that a text names in any usual form: `L2`, `Linf`, `inf`, `l∞`.

    Raises:
        ConfigError: If it names no known norm.
    """
    written = name.strip().lower() if isinstance(name, str) else ""
    normalized = _ALIASES.get(written, written)
    for norm in NORMS:
        if normalized == norm:
            return norm
    raise ConfigError(f"norm must be one of {', '.join(NORMS)}, got {name!r}")


def usual_eps(norm: Norm | str) -> str:
    """Return the usual radius of a norm, used as the default: 8/255 in linf, 0.5 in l2.

    Raises:
        ConfigError: If the norm is unknown, or is l1, which has no usual radius.
    """
    norm = as_norm(norm)
    if norm not in _USUAL_EPS:
        raise ConfigError(f"eps has no default in {norm}: pass one, such as 12 for CIFAR-10")
    return _USUAL_EPS[norm]


def _shrink_l1(size: Tensor, room: Tensor, eps: float) -> Tensor:
    """Return `min(max(size - t, 0), room)` with the smallest t >= 0 that gives sums up to eps."""
    # Each row's sum falls piecewise linearly in t: a value starts to fall below its cap at
    # t = size - room, and reaches zero at t = size. Find the piece in which the sum reaches eps.
    knots, order = torch.cat([(size - room).clamp(min=0), size], dim=1).sort(dim=1)
    turn = torch.cat([torch.full_like(size, -1.0), torch.ones_like(size)], dim=1)
    slope = turn.gather(1, order).cumsum(dim=1)
    total = size.minimum(room).sum(dim=1, keepdim=True)
    steps = knots.diff(dim=1, prepend=torch.zeros_like(knots[:, :1]))
    before = torch.cat([torch.zeros_like(slope[:, :1]), slope[:, :-1]], dim=1)
    value = total + (before * steps).cumsum(dim=1)
    piece = ((value >= eps).sum(dim=1, keepdim=True) - 1).clamp(min=0)
    fall = -slope.gather(1, piece)
    extra = (value.gather(1, piece) - eps) / fall.clamp(min=1.0)
    threshold = knots.gather(1, piece) + torch.where(fall > 0, extra, 0.0)
    shrunk = (size - threshold).clamp(min=0).minimum(room)
    return torch.where(total <= eps, size.minimum(room), shrunk)


def _shrink_l2(size: Tensor, room: Tensor, eps: float) -> Tensor:
    """Return `min(s * size, room)` with the largest s <= 1 that gives row norms up to eps."""
    ratio, order = torch.where(size > 0, room / size, math.inf).sort(dim=1)
    capped = room.gather(1, order).square().cumsum(dim=1)
    free = size.gather(1, order).square().flip(1).cumsum(dim=1).flip(1)
    # Entry k: the k values with the smallest ratios are at their caps, the others are scaled.
    first = torch.zeros_like(capped[:, :1])
    capped = torch.cat([first, capped], dim=1)
    free = torch.cat([free, first], dim=1)
    knots = torch.cat([first, ratio], dim=1)
    length = capped + torch.where(free > 0, knots.square() * free, 0.0)
    piece = ((length <= eps**2).sum(dim=1, keepdim=True) - 1).clamp(min=0)
    rest = (eps**2 - capped.gather(1, piece)).clamp(min=0)
    scale = (rest / free.gather(1, piece).clamp(min=torch.finfo(size.dtype).tiny)).sqrt()
    inside = size.minimum(room)
    fits = inside.square().sum(dim=1, keepdim=True) <= eps**2
    return torch.where(fits, inside, (scale * size).minimum(room))


def _rows(images: Tensor, like: Tensor) -> Tensor:
    """Return one float64 row per image, after a check that both batches have the same shape."""
    if images.shape != like.shape or images.ndim < 2:
        raise InputError(
            "expected two batches of images of one shape (N, ...), "
            f"got {tuple(images.shape)} and {tuple(like.shape)}"
        )
    return wide(images.detach()).flatten(1)


def _read_eps(eps: str | float | Fraction) -> tuple[float, str]:
    """Return the radius as a number and as it is printed."""
    hint = "eps must be a number or a fraction such as '8/255', '1.5/255' or '0.5', got"
    if isinstance(eps, bool) or not isinstance(eps, str | int | float | Fraction):
        raise ConfigError(f"{hint} {eps!r}")
    if isinstance(eps, str):
        written = "".join(eps.split())
        if not _EPS.fullmatch(written):  # also refuses 1e9999999, which would take minutes
            raise ConfigError(f"{hint} {eps[:_LONGEST]!r}")
        try:
            top, *bottom = (Fraction(part) for part in written.split("/"))
            value = top / bottom[0] if bottom else top
        except (ValueError, ZeroDivisionError):
            raise ConfigError(f"{hint} {eps!r}") from None
        if len(bottom) > 1:
            raise ConfigError(f"{hint} {eps!r}")
        return _as_float(value, hint), written
    if isinstance(eps, Fraction):
        return _as_float(eps, hint), _shortest(_as_float(eps, hint), str(eps))
    if not is_number(eps):
        raise ConfigError(f"{hint} {eps!r}")
    return _as_float(Fraction(eps), hint), _shortest(float(eps), f"{float(eps)!r}")


def _as_float(value: Fraction, hint: str) -> float:
    try:
        return float(value)
    except OverflowError:
        raise ConfigError(f"{hint} one beyond every float") from None


def _shortest(value: float, digits: str) -> str:
    """Return `k/255` if it equals `value` (k in quarters) and is shorter, else `digits`."""
    digits = digits.removesuffix(".0")
    quarters = round(value * 255 * 4)
    exact = float(Fraction(quarters, 4 * 255)) == value
    fraction = f"{quarters / 4:g}/255"
    return fraction if exact and len(fraction) < len(digits) else digits


def read_bounds(bounds: tuple[float, float]) -> tuple[float, float]:
    """Return the smallest and the largest value of a pixel.

    Raises:
        ConfigError: They are not two numbers in ascending order.
    """
    try:
        low, high = (float(bound) for bound in bounds)
    except (TypeError, ValueError, OverflowError):
        raise ConfigError(f"bounds must be two numbers (low, high), got {bounds!r}") from None
    if not low < high:
        raise ConfigError(f"bounds must be (low, high) with low < high, got {bounds!r}")
    return low, high


def _check_size(norm: Norm, eps: float, written: str, span: float) -> None:
    if eps < 0:
        raise ConfigError(f"eps must not be negative, got {written}")
    if norm == "linf" and eps > span:
        raise ConfigError(
            f"eps {written} in linf exceeds the range of a pixel ({span:g}): pixels are not in "
            f"0..255 here; did you mean '{written}/255'?"
        )
    if eps > _HUGE * span:
        raise ConfigError(f"eps {written} in {norm} is larger than any image could use")

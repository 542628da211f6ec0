"""Read adversarial images from outside, and check them before anything is submitted."""

import hashlib
import io
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from dent.errors import InputError
from dent.evaluation.records.plan import Batch, Plan
from dent.evaluation.records.tensor_files import ENTRY
from dent.storage.disk import read
from dent.support.plural import agreeing, counted, first_few, listed
from dent.threat import ThreatModel

IDS: Final = "ids"
_SUFFIXES: Final = (".safetensors", ".npy")
_NPY: Final = b"\x93NUMPY"
"""The first bytes of every .npy file."""
_OVERHEAD: Final = 2**20
"""Maximum bytes of a file in addition to its images and ids."""
_WIDEST: Final = 8
"""Bytes of a float64 and of an id."""
_SHOWN: Final = 5
_ABOVE_ONE: Final = 1.5
"""Pixels in [0, 1] may exceed 1 by mistake, but not this value. Larger ones are in 0..255."""
_ROUNDING: Final = 0.01
"""Share of eps. Rounding to float16 or a missing projection exceeds eps by less."""


@dataclass(frozen=True)
class Given:
    """The content of a file of images.

    Attributes:
        of_file: SHA-256 of the file. Older records have it as the digest of the challenge.
        images: float32 (N, C, H, W).
        ids: For each image, the id of its sample; None if the file has no ids.
    """

    of_file: str
    images: Tensor
    ids: tuple[int, ...] | None = None


def read_images(path: Path, plan: Plan, image: tuple[int, ...]) -> Given:
    """Read adversarial images from a file.

    Args:
        path: `.npy` with an array (N, C, H, W), or `.safetensors` with the entry `adversarial` of
            this shape and, if it has only some batches, `ids` (N,).
        plan: The batches of the run.
        image: Shape of an image (C, H, W).

    Raises:
        InputError: The file does not hold such images.
        RecordError: The file is missing or cannot be read.
    """
    if path.suffix.lower() not in _SUFFIXES:
        raise InputError(
            f"{path}: expected a file of images named {' or '.join(_SUFFIXES)}, got "
            f"{path.suffix or 'no suffix'}. To convert a tensor x of images: "
            'numpy.save("broken.npy", x.cpu().numpy())'
        )
    content = read(path.expanduser().resolve(), _most(plan, image))
    of_file = hashlib.sha256(content).hexdigest()
    try:
        if path.suffix.lower() == ".npy":
            images, ids = _from_npy(path, content), None
        else:
            images, ids = _from_safetensors(path, load(content))
    except (SafetensorError, ValueError, EOFError, OSError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} is no {path.suffix} file: {error}") from None
    return Given(of_file, _as_float32(path, images, image), ids)


def given_by(images: Mapping[int, Tensor], plan: Plan) -> Given:
    """Return images of whole batches as if they had been read from a file.

    Args:
        images: The images of the attacked members, by batch index.
        plan: The batches of the run.
    """
    tensor = torch.cat([images[index].detach().cpu().float() for index in images]).contiguous()
    ids = tuple(sample for index in images for sample in plan.batches[index].attacked_ids)
    content = save({ENTRY: tensor, IDS: torch.tensor(ids)})
    return Given(hashlib.sha256(content).hexdigest(), tensor, ids)


def by_batch(given: Given, plan: Plan) -> dict[int, Tensor]:
    """Sort images into the batches of a run.

    Images without ids must be one per attacked sample, in ascending order of the samples' ids.

    Returns:
        The images of the attacked members, in the order of the batch, by batch index.

    Raises:
        InputError: The number of images is wrong, an id is unknown or occurs twice, or only some
            images of a batch are given.
    """
    every = sorted(sample for batch in plan.batches for sample in batch.attacked_ids)
    ids = _ids(given, every)
    rows = {sample: row for row, sample in enumerate(ids)}
    laid = {}
    for batch in plan.batches:
        members = batch.attacked_ids
        missing = [sample for sample in members if sample not in rows]
        if missing and len(missing) < len(members):
            raise InputError(
                f"a batch is submitted as a whole, and batch {batch.index} lacks the images of "
                f"{counted(len(missing), 'sample')} of {len(members)}: "
                f"{listed(missing, _SHOWN)}. Give the natural image where you have no other, or "
                "leave the whole batch out"
            )
        if not missing:
            laid[batch.index] = given.images[[rows[sample] for sample in members]]
    return laid


def refuse_outside(
    images: Mapping[int, Tensor],
    plan: Plan,
    threat: ThreatModel,
    natural: Callable[[Batch], Tensor],
    given: Given,
) -> None:
    """Check in float64 that all images are inside the threat model.

    Args:
        images: The images of the attacked members, (attacked members, C, H, W), by batch index.
        plan: The batches of the run.
        threat: The threat model of the run.
        natural: A function that returns the natural images of a batch.
        given: The images as they were given, to find out whether only their order is wrong.

    Raises:
        InputError: Some images are outside. The message says what is probably wrong, or names the
            samples and how far they lie outside.
    """
    outside: dict[int, str] = {}
    total, farthest = 0, 0.0
    for index, rows in images.items():
        batch = plan.batches[index]
        clean = natural(batch)[: batch.attacked].cpu()
        excess = threat.check(rows, clean).tolist()
        total, farthest = total + len(rows), max(farthest, *excess)
        for member, sample in enumerate(batch.attacked_ids):
            if excess[member] > 0:
                why = _why(rows[member : member + 1], clean[member : member + 1], threat)
                outside[sample] = why
    if not outside:
        return
    told = (
        f"{counted(len(outside), 'image')} {agreeing(len(outside), 'lie')} outside the threat "
        f"model {threat}; nothing was submitted or written"
    )
    most = float(given.images.max())
    if threat.bounds == (0.0, 1.0) and _ABOVE_ONE < most < math.inf:
        raise InputError(f"{told}. Their values go up to {most:g}: divide pixels of 0..255 by 255")
    order = None
    if given.ids is None and 2 * len(outside) > total:
        order = _fitting_order(given.images, plan, threat, natural)
    if order is not None:
        raise InputError(
            f"{told}. In the order of {order} all images lie inside, but the file must be in "
            "ascending order of the samples' ids. Reorder it, images[numpy.argsort(ids)], with the "
            f"ids of the attacked samples in the order of {order}; or write these ids as {IDS!r} "
            "into a .safetensors file"
        )
    hint = ""
    if farthest <= _ROUNDING * threat.eps:
        hint = ". Rounding may be the cause: project again, x_adv = threat.project(x_adv, x)"
    problems = [f"sample {sample}: {why}" for sample, why in outside.items()]
    raise InputError("\n  ".join([f"{told}{hint}:", *first_few(problems, _SHOWN)]))


def _fitting_order(
    images: Tensor, plan: Plan, threat: ThreatModel, natural: Callable[[Batch], Tensor]
) -> str | None:
    """Return the name of another common order in which all images are inside the threat model.

    None if there is no such order.
    """
    members = [
        (sample, position)
        for batch in plan.batches
        for sample, position in zip(batch.attacked_ids, batch.positions, strict=False)
    ]
    in_dataset = [sample for sample, _ in sorted(members, key=lambda member: member[1])]
    for order, ids in (
        ("plan.json", [sample for sample, _ in members]),
        ("the dataset", in_dataset),
    ):
        rows = {sample: row for row, sample in enumerate(ids)}
        if all(
            not threat.check(
                images[[rows[sample] for sample in batch.attacked_ids]],
                natural(batch)[: batch.attacked].cpu(),
            ).any()
            for batch in plan.batches
        ):
            return order
    return None


def _why(image: Tensor, natural: Tensor, threat: ThreatModel) -> str:
    if not bool(image.isfinite().all()):
        return "a value is not finite"
    low, high = threat.bounds
    found = []
    distance = float(threat.distance(image, natural))
    if distance - threat.eps > threat.tolerance(image[0].numel()):
        found.append(
            f"its {threat.norm} distance is {distance:.6g}, {distance - threat.eps:.3g} more than "
            f"eps {threat.written}"
        )
    least, most = float(image.min()), float(image.max())
    if min(least - low, high - most) < 0:
        found.append(f"its values are from {least:.6g} to {most:.6g}, expected {low:g} to {high:g}")
    return ", and ".join(found)


def _ids(given: Given, every: list[int]) -> tuple[int, ...]:
    """Return the id of the sample of each image."""
    count = len(given.images)
    if not count:
        raise InputError("expected the images of at least one batch, got no image")
    if given.ids is None:
        if count != len(every):
            raise InputError(
                f"expected {counted(len(every), 'image')}, one for each attacked sample in "
                f"ascending order of their ids, got {count}. For some batches alone, write a "
                f".safetensors file with {ENTRY!r} and {IDS!r}"
            )
        return tuple(every)
    if len(given.ids) != count:
        raise InputError(
            f"expected one id for each of {counted(count, 'image')}, got {len(given.ids)}"
        )
    if len(set(given.ids)) < count:
        twice = [sample for sample in sorted(set(given.ids)) if given.ids.count(sample) > 1]
        raise InputError(f"two images have the id of one sample: {listed(twice, _SHOWN)}")
    unknown = sorted(set(given.ids) - set(every))
    if unknown:
        raise InputError(
            f"the run attacks no sample with the id {listed(unknown, _SHOWN)}; its ids are from "
            f"{every[0]} to {every[-1]} (plan.json lists them)"
        )
    return given.ids


def _from_npy(path: Path, content: bytes) -> Tensor:
    if not content.startswith(_NPY):
        raise InputError(f"{path} is not a .npy file: write it by numpy.save, or .safetensors")
    array = np.load(io.BytesIO(content), allow_pickle=False)
    if not isinstance(array, np.ndarray):  # .npz under another name
        raise InputError("expected one array, got several")
    if array.dtype.kind not in "fiub" or array.dtype.itemsize > _WIDEST:
        raise InputError(f"{path}: expected an array of float32 or float64, got {array.dtype}")
    return torch.from_numpy(np.ascontiguousarray(array.astype(array.dtype.newbyteorder("="))))


def _from_safetensors(
    path: Path, entries: Mapping[str, Tensor]
) -> tuple[Tensor, tuple[int, ...] | None]:
    if ENTRY not in entries or set(entries) - {ENTRY, IDS}:
        raise InputError(
            f"{path}: expected the entry {ENTRY!r} and, for some batches alone, {IDS!r}; got "
            f"{', '.join(map(repr, sorted(entries))) or 'none'}"
        )
    ids = entries.get(IDS)
    if ids is None:
        return entries[ENTRY], None
    if ids.ndim != 1 or ids.dtype not in (torch.int64, torch.int32):
        raise InputError(f"{path}: {IDS!r} must be int64 (N,), got {ids.dtype} {tuple(ids.shape)}")
    return entries[ENTRY], tuple(ids.tolist())


def _as_float32(path: Path, images: Tensor, image: tuple[int, ...]) -> Tensor:
    if not images.is_floating_point():
        raise InputError(
            f"{path}: expected floats in [0, 1], got {images.dtype}: divide pixels of 0..255 by 255"
        )
    if images.ndim != len(image) + 1 or tuple(images.shape[1:]) != image:
        expected = ", ".join(("N", *map(str, image)))
        hint = ""
        if images.ndim == 4 and tuple(images.permute(0, 3, 1, 2).shape[1:]) == image:
            hint = ", with the channels last: images.transpose(0, 3, 1, 2) puts them second"
        raise InputError(f"{path}: expected images ({expected}), got {tuple(images.shape)}{hint}")
    return images.float().contiguous()


def _most(plan: Plan, image: tuple[int, ...]) -> int:
    values = plan.attacked
    for side in image:
        values *= side
    return _OVERHEAD + _WIDEST * (values + plan.attacked)

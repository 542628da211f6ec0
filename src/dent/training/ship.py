"""Put a trained model's weights and card among those that the package carries.

python -m dent.training.ship runs/train/resnet-14-2-fast-linf resnet-14-2-linf
"""

import hashlib
import json
import sys
from pathlib import Path
from typing import Final

from dent import models
from dent.errors import ConfigError, DentError
from dent.storage.disk import read, write_atomically
from dent.training.card import CARD
from dent.training.card_page import page

SHIPPED: Final = Path(models.__file__).parent / "shipped"
TERMS: Final = "mit"
"""The license of what the package carries, as the Hugging Face hub writes it."""


def ship(folder: Path, name: str, target: Path = SHIPPED) -> Path:
    """Copy best weights and card under a name.

    Returns:
        The card's new path.

    Raises:
        ConfigError: the folder has no card, or the weights are not those it was written for.
        RecordError: a file cannot be read or written.
    """
    if not (folder / CARD).exists():
        raise ConfigError(f"{folder} has no {CARD}: run its `dent train` to the end first.")
    card = json.loads(read(folder / CARD))
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


if __name__ == "__main__":
    try:
        print(ship(Path(sys.argv[1]), sys.argv[2]))  # noqa: T201
    except DentError as error:
        sys.exit(f"{error}")
    except IndexError:
        sys.exit(__doc__)

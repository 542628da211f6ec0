"""The example of docs/evaluation/streams.md: online Tent in an attacked stream, at two rates.

    OMP_NUM_THREADS=1 python benchmarks/streams.py    two minutes; writes JSON and the picture

The number of threads changes the last bits, and Tent at ten times its rate amplifies them.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Final

from dent import ThreatModel, data, models
from dent.attacks import make
from dent.defenses import TentOnline
from dent.evaluation import stream
from dent.report import stream_figure

PAGES: Final = Path(__file__).parent.parent / "docs/evaluation"
RATES: Final = (0.001, 0.01)


def main() -> None:
    """Run both streams, print them, and write their results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=PAGES)
    options = parser.parse_args()
    images, labels = data.load("cifar10-sample").batch(range(256))
    tent = TentOnline(models.load("resnet-14-2-linf"))
    for rate in RATES:
        result = stream(
            TentOnline(tent.unwrap(), replace(tent.config, lr=rate)),
            images,
            labels,
            [make("apgd-ce", iterations=5)],
            ThreatModel("linf", "8/255"),
            batch_size=32,
            poisoned=4,
            aim="later",
        )
        print(f"{rate}: {result.sentence}")
        folder = options.out / "streams"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{rate}.json").write_text(json.dumps(result.to_json(), indent=1) + "\n")
    stream_figure(result, options.out / "streams.svg")


if __name__ == "__main__":
    main()

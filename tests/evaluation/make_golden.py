"""Write tests/evaluation/golden/v1. Do not run this again after a release with that folder.

`python -m tests.evaluation.make_golden`
"""

import shutil
from pathlib import Path

from dent import Dent, DentConfig, SmoothingConfig
from dent.evaluation import Settings, evaluate
from tests.evaluation.subjects import Broken, Guess, Push, make_model, make_subject


def main() -> None:
    path = Path(__file__).parent / "golden" / "v1"
    shutil.rmtree(path, ignore_errors=True)
    model = make_model()
    config = DentConfig(steps=2, statistics="test", smoothing=SmoothingConfig(sigma=0.5))
    defenses = {"dent": Dent(model, config), "broken": Broken(model)}
    subject = make_subject(defenses, [Push(), Guess()], model=model)
    asked = Settings(n=5, batch_size=4, mix=0.5, diagnostics="full")
    evaluate(subject, asked, out=path)
    (path / "lock").unlink()


if __name__ == "__main__":
    main()

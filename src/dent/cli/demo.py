"""`dent demo`: the main job on what the package carries."""

from pathlib import Path
from typing import Annotated, Final

import typer

from dent.cli import early, options
from dent.cli.console import ERR, OUT, print_json

MODEL: Final = "resnet-14-2-linf"
DATASET: Final = "cifar10-sample"
DEFENSES: Final = ("dent+",)
EPS: Final = "8/255"
SAMPLES: Final = 48
SUITE: Final = "dynamic"
BUDGET: Final = "small"


def demo_command(
    out: Annotated[Path, typer.Option(help="Run folder; the same command resumes it.")] = Path(
        "runs/demo"
    ),
    as_json: Annotated[bool, options.as_json()] = False,
) -> None:
    """Static against dent+ on bundled CIFAR-10 images, under the dynamic suite; ends in a verdict.

    An adversarially trained ResNet-14-2 is attacked as it is, at linf eps 8/255, by every attack of
    the suite. What breaks it is replayed on dent+; then attack after attack meets dent+ itself,
    until no gain is possible any more.
    """
    early.folder(out)
    from dent.cli import resolve, running, showing
    from dent.cli.durations import lasting
    from dent.evaluation import Settings, suite
    from dent.report import figure, write_report
    from dent.threat import ThreatModel

    ERR.print(
        f"{MODEL}, {SAMPLES} bundled CIFAR-10 test images as one batch, the suite {SUITE} "
        f"({BUDGET}) at linf eps {EPS}, against static and {' and '.join(DEFENSES)}.",
        soft_wrap=True,
    )
    images = resolve.dataset(DATASET, None)
    wrapped = resolve.model(MODEL, None, images, resolve.device("cpu"))
    subject = resolve.subject(
        MODEL,
        images,
        wrapped,
        resolve.defenses(DEFENSES, wrapped),
        suite(SUITE, BUDGET),
        ThreatModel("linf", EPS),
    )
    settings = Settings(n=SAMPLES, batch_size=SAMPLES)
    running.announce(subject, settings, out)
    result = running.run(subject, settings, out)
    if as_json:
        print_json(result.to_json())
        return
    showing.show(result, str(out))
    figure(result, out / "figure.png")
    page = write_report([out], out / "report.html")
    OUT.print(f"Page: {page}    Figure: {out / 'figure.png'}", markup=False, soft_wrap=True)
    OUT.print(
        f"Computed in {lasting(result.timing['total'])}. These are {SAMPLES} images and the "
        "smallest budget, chosen to finish soon: they show how a defense is evaluated, not that "
        "this one is robust. For figures to rely on: dent evaluate --suite dynamic --help",
        soft_wrap=True,
    )

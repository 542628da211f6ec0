"""`dent demo`: an evaluation of the bundled model and images."""

from pathlib import Path
from typing import Annotated, Final

import typer

from dent.cli import console, options, preflight

MODEL: Final = "resnet-14-2-linf"
DATASET: Final = "cifar10-sample"
DEFENSES: Final = ("dent+",)
EPS: Final = "8/255"
SAMPLES: Final = 48
SUITE: Final = "dynamic"
BUDGET: Final = "small"


def demo_command(
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Run folder; the same command resumes it.")
    ] = Path("runs/demo"),
    as_json: Annotated[bool, options.as_json()] = False,
) -> None:
    """Compare dent+ with the static model on bundled CIFAR-10 images, and print a verdict.

    Every attack of the dynamic suite first attacks the static model, an adversarially trained
    ResNet-14-2, at linf eps 8/255. The adversarial images are submitted to dent+. Then one attack
    after the other attacks dent+ itself, until a gain can no longer be shown with these images.
    """
    preflight.check_folder(out)
    from dent.cli import resolve, runner
    from dent.cli.output.result import show_result
    from dent.evaluation import Settings, suite
    from dent.evaluation.restoration import checked_model
    from dent.report import figure, write_report
    from dent.support.devices import usable_device
    from dent.support.durations import duration
    from dent.threat import ThreatModel

    console.note(
        f"{MODEL}, {SAMPLES} bundled CIFAR-10 test images as one batch, the suite {SUITE} "
        f"({BUDGET}) at linf eps {EPS}, against static and {' and '.join(DEFENSES)}."
    )
    images = resolve.dataset(DATASET, None)
    static_model = checked_model(MODEL, None, images, usable_device("cpu"))
    subject = resolve.subject(
        MODEL,
        images,
        static_model,
        resolve.defenses(DEFENSES, static_model),
        suite(SUITE, BUDGET),
        ThreatModel("linf", EPS),
    )
    settings = Settings(n=SAMPLES, batch_size=SAMPLES)
    runner.announce(subject, settings, out)
    result = runner.run(subject, settings, out)
    figure(result, out / "figure.png")
    page = write_report([out], out / "report.html")
    if as_json:
        console.print_json(result.to_json())
        return
    show_result(result, str(out))
    console.say(f"Page: {page}    Figure: {out / 'figure.png'}")
    console.say(
        f"Computed in {duration(result.timing['total'])}. These are {SAMPLES} images and the "
        "smallest budget: they show how an evaluation works, not how robust this defense is. For "
        "reliable numbers: dent evaluate --suite dynamic --help"
    )

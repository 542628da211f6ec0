"""`dent serve`: a defense behind an HTTP API, on Ray Serve."""

import os
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError

from dent import names
from dent.cli import completion, console, options, preflight
from dent.errors import ConfigError
from dent.serving.limits import Limits
from dent.serving.options import ServerOptions
from dent.support import listening
from dent.support.extras import check, require

_SERVED = "What is served"
_LIMITS = "Limits"
_WHERE = "Where"
_DEFAULT = Limits()


def serve_command(
    model: Annotated[
        str,
        typer.Option(
            help="As in dent evaluate.",
            autocompletion=completion.models,
            rich_help_panel=_SERVED,
        ),
    ] = "resnet-14-2-linf",
    weights: Annotated[Path | None, options.weights(_SERVED)] = None,
    defense: Annotated[
        str,
        typer.Option(
            help="static, dent, dent+, another name from docs/defenses.md, a JSON configuration, "
            "or module:factory.",
            autocompletion=completion.defenses,
            rich_help_panel=_SERVED,
        ),
    ] = "dent+",
    dataset: Annotated[
        str | None,
        typer.Option(
            help="Dataset of the model, or module:factory. It gives the class names, the image "
            "shape, and the reference for the confidence. Default: cifar10-sample, unless --shape.",
            autocompletion=completion.datasets,
            rich_help_panel=_SERVED,
        ),
    ] = None,
    root: Annotated[Path | None, options.data(_SERVED)] = None,
    shape: Annotated[
        str | None,
        typer.Option(help="Image shape instead of a dataset: 3x224x224.", rich_help_panel=_SERVED),
    ] = None,
    max_batch_size: Annotated[
        int, typer.Option(help="Images in a batch, and in a request.", rich_help_panel=_LIMITS)
    ] = _DEFAULT.max_batch_size,
    max_body_bytes: Annotated[
        int, typer.Option(help="Bytes in a request's body.", rich_help_panel=_LIMITS)
    ] = _DEFAULT.max_body_bytes,
    max_requests: Annotated[
        int,
        typer.Option(help="Requests in a replica. More get 503.", rich_help_panel=_LIMITS),
    ] = _DEFAULT.max_requests,
    timeout: Annotated[
        float,
        typer.Option(
            help="Seconds for a body to arrive, and for its batch to start.",
            rich_help_panel=_LIMITS,
        ),
    ] = _DEFAULT.timeout,
    deadline: Annotated[
        float | None,
        typer.Option(
            help="Seconds to answer a request without its own deadline, with fewer steps if "
            "necessary. Default: take all steps.",
            rich_help_panel=_LIMITS,
        ),
    ] = _DEFAULT.deadline,
    max_wait: Annotated[
        float,
        typer.Option(
            help="Seconds to wait for more requests, if requests may share a batch.",
            rich_help_panel=_LIMITS,
        ),
    ] = _DEFAULT.max_wait,
    host: Annotated[
        str,
        typer.Option(
            help="Address to listen on. There is no authentication.", rich_help_panel=_WHERE
        ),
    ] = "127.0.0.1",
    port: Annotated[int, options.port(_WHERE)] = 8000,
    allowed_host: Annotated[
        list[str] | None,
        options.allowed_host(_WHERE),
    ] = None,
    replicas: Annotated[int, typer.Option(help="Copies of the model.", rich_help_panel=_WHERE)] = 1,
    threads: Annotated[
        int | None,
        typer.Option(
            help="Threads per replica. Default: all cores, divided by --replicas.",
            rich_help_panel=_WHERE,
        ),
    ] = None,
    device: Annotated[
        str | None,
        options.device(_WHERE),
    ] = None,
    num_gpus: Annotated[float, typer.Option(help="GPUs per replica.", rich_help_panel=_WHERE)] = 0,
    as_json: Annotated[
        bool,
        options.as_json(_WHERE, "one document when ready,"),
    ] = False,
) -> None:
    """Serve a defense over HTTP until SIGTERM or Ctrl-C, then answer accepted requests and stop.

    POST images to /v1/predict. /openapi.json describes the API. Requests share a batch only if the
    defense is batch-independent. Otherwise every request is a separate batch.
    """
    names.check(model=model, dataset=dataset, defenses=(defense,), own=True)
    preflight.check_model(model)
    preflight.check_files_exist(weights, (defense,))
    check("ray", "serving", extra="ray", package="Ray Serve")
    preflight.check_reachable()
    listening.check_names(allowed_host or ())
    if dataset is not None and shape is not None:
        raise ConfigError("--dataset and --shape exclude each other: leave one out.")
    preflight.check_data_folder(dataset, root)
    server_options = _server_options(
        model=model,
        weights=_absolute(weights),
        defense=str(Path(defense).resolve()) if defense.lower().endswith(".json") else defense,
        dataset=dataset or (None if shape else "cifar10-sample"),
        data_root=_absolute(root),
        shape=_shape(shape),
        device=device,
        replicas=replicas,
        threads=threads,
        num_gpus=num_gpus,
        limits={
            "max_batch_size": max_batch_size,
            "max_body_bytes": max_body_bytes,
            "max_requests": max_requests,
            "timeout": timeout,
            "deadline": deadline,
            "max_wait": max_wait,
        },
    )
    launch, loading = (
        require(f"dent.serving.{module}", "serving", extra="ray", package="Ray Serve")
        for module in ("launch", "loading")
    )
    if device is not None and not os.environ.get("RAY_ADDRESS"):  # else it is another machine's
        from dent.support.devices import usable_device

        usable_device(device)
    # Ray opens the port itself. This only checks the port, or finds a free one.
    with listening.listen(host, port) as listener:
        port = listener.getsockname()[1]
    url = listening.url(host, port)
    console.note(f"Loading {model} with {defense}, and starting Ray ...")
    loading.check(server_options)

    def announce() -> None:
        if as_json:
            console.print_json({"url": url, **server_options.model_dump(mode="json")})
        console.note(
            f"{defense} of {model} at {url}/v1/predict, described by {url}/openapi.json. "
            "Ctrl-C stops it."
        )

    launch.run(server_options, host, port, announce, allowed=allowed_host or ())
    console.note("Stopped. All accepted requests were answered.")


def _shape(text: str | None) -> list[int] | None:
    if text is None:
        return None
    sides = text.lower().split("x")
    if len(sides) != 3 or not all(side.isdecimal() and int(side) for side in sides):
        raise ConfigError(
            f"--shape expected CHANNELSxHEIGHTxWIDTH, such as 3x224x224, got {text!r}."
        )
    return [int(side) for side in sides]


def _absolute(path: Path | None) -> str | None:
    return None if path is None else str(path.expanduser().resolve())


def _server_options(**values: object) -> ServerOptions:
    try:
        return ServerOptions.model_validate(values)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        # Name the option: each limit is an option, and --shape is one for all of its parts.
        fields = [str(part) for part in problem["loc"] if part != "limits"]
        option = f"--{fields[0].replace('_', '-')}" if fields else "options"
        message = problem["msg"].removeprefix("Value error, ")
        raise ConfigError(f"{option}: {message}, got {problem['input']!r}.") from None

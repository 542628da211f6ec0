"""Test the options of `dent evaluate` for Ray and for shards."""

import sys

import pytest
import typer

from dent.cli import resolve
from dent.cli.app import main
from dent.cli.typer_classes import AddressMayBeLeftOut
from dent.distributed import Cluster


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--workers", "2"], "--workers: add --ray"),
        (["--gpus-per-worker", "1", "--cpus-per-worker", "2"], "--cpus-per-worker, --gpus"),
        (["--ray", "--device", "cuda"], "--device cuda cannot be combined with --ray"),
        (["--ray", "--gpus-per-worker", "1", "--device", "cpu"], "--device cpu cannot be combined"),
        (["--ray", "ray://host:10001"], "Ray's client"),
        (["--shard", "4/3"], "there is no shard 4/3"),
        (["--shard", "3"], "expected a shard as I/K"),
    ],
)
def test_invalid_ray_and_shard_options_are_refused(
    options: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("sys.argv", ["dent", "evaluate", *options])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    assert message in capsys.readouterr().err


def test_missing_ray_is_refused_with_the_install_command(
    tmp_path: object, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    asked = ["--model", "resnet-14-2-nominal", "--n", "2", "--defense", "static", "--ray"]
    monkeypatch.setattr("sys.argv", ["dent", "evaluate", *asked, "--out", f"{tmp_path}/run"])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    assert 'pip install "torch-dent[ray]"' in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "address"),
    [
        ([], None),
        (["--ray"], ""),
        (["--ray", "--workers", "3"], ""),
        (["--ray", "head:6379"], "head:6379"),
        (["--workers", "3", "--ray", "auto"], "auto"),
        (["--ray=auto"], "auto"),
    ],
)
def test_ray_option_takes_an_optional_address(arguments: list[str], address: str | None) -> None:
    app = typer.Typer()
    seen: list[str | None] = []

    @app.command(cls=AddressMayBeLeftOut)
    def _command(ray: str | None = None, workers: int = 1) -> None:
        del workers
        seen.append(ray)

    app(arguments, standalone_mode=False)
    assert seen == [address]


def test_ray_options_are_resolved_to_a_cluster() -> None:
    assert resolve.cluster(None, None, None, None, "cuda") is None
    assert resolve.cluster("", 2, None, 0.5, "cuda") == Cluster(workers=2, gpus_per_worker=0.5)
    assert resolve.cluster("a:1", None, 4, None, None) == Cluster("a:1", cpus_per_worker=4)

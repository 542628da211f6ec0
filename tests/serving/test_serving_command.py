"""`dent serve` without a running server: refused options, loading, metrics and signals."""

import re
import signal
import sys
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from fastapi.testclient import TestClient
from ray.exceptions import RayActorError
from ray.serve.exceptions import RayServeException
from typer.testing import CliRunner

from dent import data
from dent.cli.app import app
from dent.errors import ConfigError, DataError, DentError, MissingExtraError, UnknownNameError
from dent.serving import launch, loading
from dent.serving.app import STATUSES
from dent.serving.deployment import application, merge
from dent.serving.metrics import Metrics
from dent.serving.options import ServerOptions

STATIC = {"model": "resnet-14-2-linf", "defense": "static", "device": "cpu"}


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        (["--max-requests", "0"], ConfigError, "--max-requests.*greater than or equal to 1"),
        (["--timeout", "nan"], ConfigError, "--timeout"),
        (["--shape", "3xx"], ConfigError, "^--shape expected CHANNELSxHEIGHTxWIDTH, .* got '3xx'"),
        (["--shape", "3x32"], ConfigError, "^--shape expected .*3x224x224, got '3x32'"),
        (
            ["--shape", "3x32x32", "--dataset", "cifar10-sample"],
            ConfigError,
            "^--dataset and --shape exclude each",
        ),
        (["--shape", "3x60000x60000"], ConfigError, "^--shape: .*at most 16777216 are served"),
        (["--defense", "dnet"], UnknownNameError, "dnet"),
        (["--model", "nothing"], UnknownNameError, "nothing"),
        (["--host", "203.0.113.9"], ConfigError, "cannot listen at 203.0.113.9.*choose a --host"),
        (["--host", "nosuch.invalid"], ConfigError, "cannot listen at nosuch.*choose a --host"),
        (["--host", ""], ConfigError, "^--host is empty"),
        (["--allowed-host", "http://x"], ConfigError, "^--allowed-host .* got 'http://x'"),
        (["--device", "bogus"], ConfigError, "^device 'bogus' cannot be used here"),
        (["--device", "meta"], ConfigError, "^device 'meta' computes no values"),
    ],
)
def test_invalid_options_are_refused_before_ray_starts(
    arguments: list[str], error: type[DentError], match: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "run", lambda *_: pytest.fail("it was started"))
    result = CliRunner().invoke(app, ["serve", "--port", "0", *arguments])
    assert isinstance(result.exception, error), result.exception
    assert result.exception.args[0]
    with pytest.raises(error, match=match):
        raise result.exception


def test_an_error_of_a_replica_is_passed_on_in_its_own_words() -> None:
    text = (
        "Deploying application dent failed: The deployment failed to start 3 times in a row.\n"
        "  File 'x.py', line 6, in <module>\nValueError: something\n"
        "\nThe above exception was the direct cause of the following exception:\n"
        "dent.errors.ConfigError: device 'cuda' cannot be used here: no driver\n"
    )
    with pytest.raises(DentError) as raised, launch._explained():
        raise RuntimeError(text)
    said = "the replica did not start: device 'cuda' cannot be used here: no driver"
    assert str(raised.value) == said
    with pytest.raises(DentError, match="Ray Serve did not start"), launch._explained():
        raise RuntimeError("a port was taken")


def test_error_without_ray_names_the_extra_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "dent.serving.launch")
    monkeypatch.setitem(sys.modules, "ray", None)
    result = CliRunner().invoke(app, ["serve"])
    assert isinstance(result.exception, MissingExtraError)
    assert 'pip install "torch-dent[ray]"' in str(result.exception)


def test_load_server_sets_classes_shape_batch_costs_and_drift_reference() -> None:
    server = loading.load_server(ServerOptions(**STATIC, dataset="cifar10-sample", threads=1))
    assert server.classes[6] == "frog"
    assert server.about()["shape"] == [3, 32, 32]
    assert server.engine.shares
    assert server.engine.cost.seconds(1, 0) > 0
    assert server.metrics.drift() != server.metrics.drift()
    images, _ = data.load("cifar10-sample").batch(range(128))
    server.metrics.batch_ends(server.engine.run(images), 1)
    assert server.metrics.drift() == pytest.approx(0, abs=1e-6)  # the reference images


def test_the_drift_reference_of_a_dataset_in_class_order_is_from_all_classes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sample = cast("data.ArrayDataset", data.load("cifar10-sample"))
    labels = np.sort(np.arange(200) % 10)
    pixels = (
        np.zeros((200, 32, 32, 3), dtype=np.uint8) + labels.astype(np.uint8)[:, None, None, None]
    )
    ordered = data.ArrayDataset("ordered", "test", sample.classes, pixels, labels)
    monkeypatch.setattr(data, "load", lambda *_, **__: ordered)
    images, _ = loading._images(ServerOptions(**STATIC, dataset="cifar10-sample"))
    found = (images[:, 0, 0, 0] * 255).round().int().tolist()
    assert len(found) == 128
    assert min(map(found.count, range(10))) >= 12


@pytest.mark.filterwarnings("error")
def test_the_asgi_application_on_the_page_loads_without_a_warning() -> None:
    page = (Path(__file__).parents[2] / "docs" / "serving.md").read_text()
    block = re.search(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert block is not None
    names: dict[str, Any] = {}
    exec(block[1], names)  # noqa: S102
    with TestClient(names["app"]) as client:
        assert client.get("/v1/model").json()["defense"]["name"] == "dent+"


def test_a_server_takes_a_dataset_factory() -> None:
    dataset = "tests.serving.test_serving_command:pictures"
    server = loading.load_server(ServerOptions(**STATIC, dataset=dataset, threads=1))
    assert server.classes[0] == "kind 0"
    assert server.about()["shape"] == [3, 8, 8]


def test_a_server_refuses_an_empty_dataset_by_its_name() -> None:
    dataset = "tests.serving.test_serving_command:nothing"
    with pytest.raises(DataError, match=r"command:nothing' is empty: .* pass --shape"):
        loading.load_server(ServerOptions(**STATIC, dataset=dataset, threads=1))


def nothing() -> data.ImageDataset:
    return data.ArrayDataset(
        "nothing", "test", ("a", "b"), np.zeros((0, 8, 8, 3), np.uint8), np.zeros(0, np.int64)
    )


def pictures() -> data.ImageDataset:
    classes = tuple(f"kind {index}" for index in range(10))
    pixels = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)
    return data.ArrayDataset("pictures", "test", classes, pixels, np.arange(6))


def test_ray_deployment_has_the_configured_replicas_and_limits() -> None:
    options = ServerOptions(**STATIC, shape=(3, 32, 32), replicas=3)
    deployment = application(options)._bound_deployment
    assert deployment.num_replicas == 3
    assert deployment.max_ongoing_requests > options.limits.max_requests
    assert deployment._deployment_config.graceful_shutdown_timeout_s >= options.limits.timeout


def test_merged_metrics_are_labeled_by_replica() -> None:
    text = '# HELP a_total Of a.\n# TYPE a_total counter\na_total{kind="x"} %d\n'
    merged = merge([("one", text % 1), ("two", text % 2)]).decode()
    assert merged.splitlines() == [
        "# HELP a_total Of a.",
        "# TYPE a_total counter",
        'a_total{kind="x",replica="one"} 1.0',
        'a_total{kind="x",replica="two"} 2.0',
    ]


def test_docs_name_every_metric_every_status_and_the_limit_options() -> None:
    page = (Path(__file__).parents[2] / "docs" / "serving.md").read_text()
    for family in Metrics().registry.collect():
        assert family.name in page
    for status in STATUSES:
        assert f"| {status} |" in page
    for option in ("max-batch-size", "max-body-bytes", "max-requests", "timeout", "deadline"):
        assert f"--{option}" in page


class Replicas:
    """A handle of replicas, whose drain has an outcome each, or fails as a whole."""

    def __init__(self, *outcomes: object, error: Exception | None = None) -> None:
        self.outcomes, self.error, self.drained = outcomes, error, False

    def broadcast(self, name: str) -> "Replicas":
        self.drained = name == "drain"
        return self

    def results(self, *, return_exceptions: bool = False) -> list[object]:
        failed = next((each for each in self.outcomes if isinstance(each, Exception)), None)
        if self.error is not None or (failed is not None and not return_exceptions):
            raise self.error or failed or AssertionError
        return list(self.outcomes)


@pytest.mark.parametrize(
    "replicas",
    [
        Replicas(None, None),
        Replicas(None, RayActorError(error_msg="it has died")),
        Replicas(error=RayServeException("no replica runs")),
        Replicas(error=RayActorError(error_msg="it restarts")),
    ],
)
def test_a_server_stops_while_a_replica_is_down(
    replicas: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "_FLUSH", 0)
    launch._serve(replicas, lambda: signal.raise_signal(signal.SIGTERM))
    assert replicas.drained


def test_a_drain_that_fails_for_another_reason_is_reported() -> None:
    with pytest.raises(KeyError):
        launch._drain(cast("Any", Replicas(None, KeyError("a bug"))))


def test_replicas_that_need_more_gpus_than_there_are_do_not_wait_for_them() -> None:
    two = ServerOptions(shape=(3, 8, 8), replicas=2, num_gpus=0.5)
    launch._check_gpus(two, 1.0)
    with pytest.raises(ConfigError, match=r"2 replicas with --num-gpus 0\.5 need 1 .* finds 0"):
        launch._check_gpus(two, 0.0)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_stop_signals_set_the_event_and_their_handlers_are_restored(number: int) -> None:
    before = signal.getsignal(number)
    with launch._stop_signals() as stopped:
        assert not stopped.is_set()
        signal.raise_signal(number)
        assert stopped.wait(20)
    assert signal.getsignal(number) is before

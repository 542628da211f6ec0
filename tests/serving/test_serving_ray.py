"""`dent serve` as a process on Ray Serve: the API over HTTP, killed replicas, and SIGTERM."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
import torch
from servers import TOGETHER, logits_of, make_images, make_model, npy

from dent import Dent

pytestmark = pytest.mark.slow
REPLICAS = 2
LIMIT = 6


class Process:
    """A running server, with methods to send requests to it."""

    def __init__(self, process: subprocess.Popen[str], url: str) -> None:
        self.process, self.url = process, url

    def post(self, body: bytes, kind: str = "application/x-npy") -> httpx.Response:
        return httpx.post(
            f"{self.url}/v1/predict?logits=true",
            content=body,
            headers={"content-type": kind},
            timeout=120,
        )

    def get(self, path: str) -> httpx.Response:
        return httpx.get(self.url + path, timeout=60)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    here = Path(__file__).parent
    errors = tmp_path_factory.mktemp("serve") / "stderr"
    command = [
        *(sys.executable, "-m", "dent", "serve", "--json", "--port", "0", "--shape", "3x8x8"),
        *("--model", "toys:model", "--defense", "toys:defense", "--device", "cpu"),
        *("--max-requests", str(LIMIT), "--replicas", str(REPLICAS), "--max-body-bytes", "100000"),
    ]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    paths = [str(here), environment.get("PYTHONPATH", "")]
    with (
        errors.open("w") as log,
        subprocess.Popen(
            command,
            cwd=here,
            env=environment | {"PYTHONPATH": os.pathsep.join(paths)},
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            start_new_session=True,
        ) as process,
    ):
        try:
            yield Process(process, json.loads(printed(process))["url"])
        except ValueError:
            pytest.fail(errors.read_text())
        finally:
            process.terminate()
            process.wait(timeout=120)


def printed(process: subprocess.Popen[str]) -> str:
    """Return the first JSON document that a process prints, or all output if it ends early."""
    assert process.stdout is not None
    text = ""
    for line in process.stdout:
        text += line
        if line == "}\n":
            break
    return text


def test_process_serves_the_same_logits_as_the_library(server: Process) -> None:
    images = make_images(4)
    answer = server.post(npy(images))
    assert answer.status_code == 200, answer.text
    expected = Dent(make_model(), TOGETHER)(images)
    torch.testing.assert_close(logits_of(answer.json()), expected.detach())


def test_responses_keep_their_status_through_the_proxy(server: Process) -> None:
    assert server.post(b"no").status_code == 400
    assert server.post(b"0" * 100_001).status_code == 413
    assert server.post(b"no", "text/plain").status_code == 415
    refused = server.post(npy(make_images(1) * 2))
    assert refused.status_code == 422
    assert refused.json()["error"]["image"] == 0
    assert server.get("/nowhere").status_code == 404
    assert server.get("/healthz").status_code == server.get("/readyz").status_code == 200
    assert "/v1/predict" in server.get("/openapi.json").json()["paths"]


def test_metrics_cover_all_replicas(server: Process) -> None:
    text = server.get("/metrics").text
    lines = [line for line in text.splitlines() if line.startswith("dent_batch_images_count")]
    assert len(lines) == REPLICAS
    assert all('replica="' in line for line in lines)
    assert text.count("# TYPE dent_batch_images histogram") == 1


def test_overload_is_refused_with_a_503_and_retry_after(server: Process) -> None:
    with ThreadPoolExecutor(40) as pool:
        answers = [*pool.map(server.post, [npy(make_images(2))] * 40)]
    statuses = [answer.status_code for answer in answers]
    assert set(statuses) == {200, 503}
    assert statuses.count(200) >= LIMIT
    assert all("retry-after" in a.headers for a in answers if a.status_code == 503)


def inside(server: Process) -> float:
    """Return the number of requests that the replicas have accepted and not yet answered."""
    lines = server.get("/metrics").text.splitlines()
    return sum(
        float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith("dent_requests_inside{")
    )


def replicas_of(server: Process) -> list[int]:
    """Return the process ids of the replicas of this server only."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # the process has ended
            if b"ServeReplica:dent" not in (folder / "cmdline").read_bytes():
                continue
            pid = int(folder.name)
            while pid > 1 and pid != server.process.pid:
                pid = int(
                    (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[1]
                )
            if pid == server.process.pid:
                found.append(int(folder.name))
    return found


def test_predict_gives_a_503_with_retry_after_until_a_killed_replica_is_back(
    server: Process,
) -> None:
    replicas = replicas_of(server)
    assert len(replicas) == REPLICAS
    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(server.post, npy(make_images(2))) for _ in range(4)]
        for pid in replicas:
            os.kill(pid, signal.SIGKILL)
        answers = [each.result() for each in asked]
    until = time.monotonic() + 120
    while time.monotonic() < until:
        answers.append(server.post(npy(make_images(2))))
        if answers[-1].status_code == 200:
            break
        time.sleep(0.2)
    assert answers[-1].status_code == 200
    refused = [answer for answer in answers if answer.status_code != 200]
    assert refused
    for answer in refused:
        assert answer.status_code == 503
        assert answer.json()["error"]["code"] in ("replica-lost", "no-replica")
        assert int(answer.headers["retry-after"]) >= 1
    for _ in range(600):  # the tests below need all replicas
        if (
            len(replicas_of(server)) == REPLICAS
            and server.get("/metrics").text.count("dent_requests_inside{") == REPLICAS
        ):
            return
        time.sleep(0.1)


def test_ray_token_is_accessible_only_to_its_owner(server: Process) -> None:
    token = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    assert token.stat().st_mode & 0o077 == 0


def test_sigterm_answers_accepted_requests_before_the_server_ends(server: Process) -> None:
    """Must be the last test of this module, since it stops the server."""
    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(server.post, npy(make_images(2))) for _ in range(8)]
        while not (taken_in := inside(server)):
            time.sleep(0.01)
        os.kill(server.process.pid, signal.SIGTERM)
        seen = []
        while not all(each.done() for each in asked):
            response = server.get("/readyz")
            seen.append(response.status_code)
            if response.status_code == 503:
                refused = server.post(npy(make_images(1)))
                assert (refused.status_code, refused.json()["error"]["code"]) == (503, "draining")
            time.sleep(0.05)
        answers = [each.result() for each in asked]  # raises if a connection was cut off
    answered = [answer for answer in answers if answer.status_code == 200]
    assert len(answered) >= taken_in
    for answer in answers:
        if answer.status_code != 200:  # the request came after the signal
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "draining")
    assert 503 in seen
    assert server.process.wait(timeout=120) == 0

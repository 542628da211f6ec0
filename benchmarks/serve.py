"""How much of the machine's throughput `dent serve` keeps, and how it behaves at twice its load.

    python benchmarks/serve.py               a few minutes
    python benchmarks/serve.py --minutes 10  the overload for ten minutes

A server runs as a process on 127.0.0.1, and is stopped at the end. Everything is bounded in count
and time. The script measures three things:

- **saturation**: in turns, the raw loop (`submit` on the same batch, in this process, while the
  server is idle) and a few clients that always have a request open. The figure is the median over
  rounds of the ratio of images per second. Loop and server compute with the same number of threads.
- **overload**: for `--minutes`, requests at twice the rate just measured, sent without waiting for
  answers. It records statuses, the latency of answers, and the memory of replica and proxy.
- **drain**: SIGTERM under load. Every admitted request must be answered.
"""

import argparse
import http.client
import io
import json
import os
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import numpy as np
import torch
from torch import Tensor

from dent import data, models
from dent import defenses as reference
from dent.evaluation.submission.submission import submit

_MOST_OPEN: Final = 128
_WATCHED: Final = {"replica": "ServeReplica", "proxy": "ProxyActor"}


@dataclass(frozen=True)
class Reply:
    """The outcome of one request.

    Attributes:
        status: HTTP status of the response; 0 if there was none.
        seconds: duration as measured by the client.
        inside: duration as measured by the server, from the request's arrival at the replica; 0
            unless it was answered.
    """

    status: int
    seconds: float
    inside: float = 0.0


class Target:
    """The server under load, and the request that is sent to it."""

    def __init__(self, process: subprocess.Popen[str], url: str, images: Tensor) -> None:
        self.process = process
        self._host, self._port = urlsplit(url).hostname or "", urlsplit(url).port
        stream = io.BytesIO()
        np.save(stream, images.numpy())
        self._body = stream.getvalue()
        self._local = threading.local()

    def ask(self) -> Reply:
        """Send the request on this thread's connection, and return the outcome."""
        start = time.perf_counter()
        try:
            connection = getattr(self._local, "connection", None)
            if connection is None:
                connection = http.client.HTTPConnection(self._host, self._port or 80, timeout=120)
                self._local.connection = connection
            headers = {"content-type": "application/x-npy"}
            connection.request("POST", "/v1/predict", self._body, headers)
            response = connection.getresponse()
            body = response.read()
            taken = time.perf_counter() - start
            answered = response.status == http.HTTPStatus.OK
            return Reply(response.status, taken, json.loads(body)["seconds"] if answered else 0.0)
        except (OSError, http.client.HTTPException):
            self._local.connection = None
            return Reply(0, time.perf_counter() - start)


@contextmanager
def server(options: argparse.Namespace, images: Tensor) -> Iterator[Target]:
    """Run a server process, and stop it at the end."""
    command = [
        *(sys.executable, "-m", "dent", "serve", "--json", "--port", "0"),
        *("--model", options.model, "--defense", options.defense),
        *("--threads", str(options.threads), "--device", "cpu"),
        *("--max-requests", str(options.max_requests), "--timeout", "120"),
    ]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    process = subprocess.Popen(  # noqa: S603 - our own command
        command, stdout=subprocess.PIPE, text=True, env=environment, start_new_session=True
    )
    try:
        assert process.stdout is not None
        text = ""
        for line in process.stdout:
            text += line
            if line == "}\n":
                break
        else:
            raise SystemExit("the server did not start")
        yield Target(process, json.loads(text)["url"], images)
    finally:
        if process.poll() is None:
            process.terminate()
        process.wait(timeout=180)


def raw(defense: Any, images: Tensor, seconds: float) -> float:
    """Return the images per second of a bare loop."""
    start, done = time.perf_counter(), 0
    while time.perf_counter() - start < seconds or not done:
        submit(defense, images, seed=0)
        done += len(images)
    return done / (time.perf_counter() - start)


def closed(target: Target, clients: int, seconds: float) -> list[Reply]:
    """Run clients that always have one request open, for about `seconds`; return the replies."""
    until = time.perf_counter() + seconds

    def client() -> list[Reply]:
        replies = [target.ask()]
        while time.perf_counter() < until:
            replies.append(target.ask())
        return replies

    with ThreadPoolExecutor(clients) as pool:
        futures = [pool.submit(client) for _ in range(clients)]
        return [reply for future in futures for reply in future.result()]


def saturate(target: Target, defense: Any, images: Tensor, options: argparse.Namespace) -> Any:
    """Measure the server and the raw loop in turns."""
    raw(defense, images, 1)
    closed(target, options.clients, 1)
    rounds, replies = [], []
    for _ in range(options.rounds):
        bare = raw(defense, images, options.seconds)
        start = time.perf_counter()
        found = closed(target, options.clients, options.seconds)
        served = len(images) * len(found) / (time.perf_counter() - start)
        replies += found
        rounds.append({"raw": bare, "served": served, "ratio": served / bare})
        print(f"  raw {bare:.1f}, served {served:.1f} images a second: {served / bare:.1%}")
    single = closed(target, 1, options.seconds)
    return {
        "ratio": statistics.median(each["ratio"] for each in rounds),
        "requests_per_second": statistics.median(each["served"] for each in rounds) / len(images),
        "rounds": rounds,
        "saturated": summary(replies),
        "one_client": summary(single),
    }


def overload(target: Target, rate: float, seconds: float) -> Any:
    """Send requests at a fixed rate without waiting for answers, and record the memory."""
    replies: list[Reply] = []
    skipped, sizes = 0, list[dict[str, float]]()
    start, sent = time.perf_counter(), 0
    open_ = threading.Semaphore(_MOST_OPEN)

    def client() -> None:
        replies.append(target.ask())
        open_.release()

    with ThreadPoolExecutor(_MOST_OPEN) as pool:
        while (now := time.perf_counter() - start) < seconds:
            if now >= 5 * len(sizes):
                sizes.append(memory(target.process.pid))
            if sent > now * rate:
                time.sleep(min(sent / rate - now, 0.5))
                continue
            sent += 1
            if open_.acquire(blocking=False):
                pool.submit(client)
            else:
                skipped += 1
    sizes.append(memory(target.process.pid))
    return {
        "sent_per_second": sent / seconds,
        "not_sent_for_open_connections": skipped,
        **summary(replies),
        "memory_mb": sizes,
        "memory_growth_mb": {name: growth([each[name] for each in sizes]) for name in _WATCHED},
    }


def growth(values: Sequence[float]) -> float:
    """Return the growth in MB: the median of the last quarter minus that of the second.

    The first quarter is the warm-up.
    """
    quarter = max(1, len(values) // 4)
    return statistics.median(values[-quarter:]) - statistics.median(values[quarter : 2 * quarter])


def drain(target: Target, clients: int) -> Any:
    """Send SIGTERM while requests are open, and return what becomes of them."""
    with ThreadPoolExecutor(clients) as pool:
        futures = [pool.submit(target.ask) for _ in range(clients)]
        time.sleep(0.5)
        target.process.send_signal(signal.SIGTERM)
        found = summary([future.result() for future in futures])
    return found | {"exit_status": target.process.wait(timeout=180)}


def summary(replies: Sequence[Reply]) -> dict[str, Any]:
    """Return the count of each status, and the latency of answers and refusals."""
    counted = Counter(str(reply.status) for reply in replies)
    return {
        "statuses": dict(sorted(counted.items())),
        "answered": quantiles([reply.seconds for reply in replies if reply.status == 200]),
        "answered_inside": quantiles([reply.inside for reply in replies if reply.status == 200]),
        "refused": quantiles([reply.seconds for reply in replies if reply.status == 503]),
    }


def quantiles(seconds: Sequence[float]) -> dict[str, float] | None:
    """Return p50 and p99; None if there are no values."""
    if not seconds:
        return None
    p50, p99 = np.quantile(seconds, [0.5, 0.99])
    return {"p50": float(p50), "p99": float(p99)}


def memory(server_pid: int) -> dict[str, float]:
    """Return the resident MB of the server's replica and proxy, among its descendant processes."""
    found = dict.fromkeys(_WATCHED, 0.0)
    page = os.sysconf("SC_PAGE_SIZE") / 2**20
    for pid, name in _family(server_pid):
        for kind, word in _WATCHED.items():
            if word in name:
                resident = Path(f"/proc/{pid}/statm").read_text().split()[1]
                found[kind] += int(resident) * page
    return found


def _family(ancestor: int) -> list[tuple[int, str]]:
    """Return a process and its descendants, each with its command line."""
    parents: dict[int, int] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            after_name = (folder / "stat").read_text().rpartition(")")[2]
        except OSError:  # it has ended
            continue
        parents[int(folder.name)] = int(after_name.split()[1])
    family, found = {ancestor}, []
    grown = True
    while grown:
        children = {pid for pid, parent in parents.items() if parent in family} - family
        family |= children
        grown = bool(children)
    for pid in family:
        try:
            found.append((pid, Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")))
        except OSError:
            continue
    return found


def main() -> None:
    """Measure, print, and write the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default="resnet-14-2-linf")
    parser.add_argument("--defense", default="dent+")
    parser.add_argument("--images", type=int, default=8, help="of one request")
    parser.add_argument("--clients", type=int, default=4, help="at saturation")
    parser.add_argument("--threads", type=int, default=1, help="of the replica and the raw loop")
    parser.add_argument("--max-requests", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=15, help="of each turn")
    parser.add_argument("--minutes", type=float, default=1, help="of the overload; at most 60")
    parser.add_argument("--out", type=Path, default=Path("runs/bench-serve.json"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    images, _ = data.load("cifar10-sample").batch(range(options.images))
    defense = reference.make(options.defense, models.load(options.model))
    settings = {key: str(value) for key, value in vars(options).items()}
    figures: dict[str, Any] = {}

    def keep(name: str, found: Any) -> None:
        figures[name] = found
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps({"settings": settings, "figures": figures}, indent=2))

    with server(options, images) as target:
        print(f"{options.defense} of {options.model}, {options.images} images a request:")
        keep("saturation", saturate(target, defense, images, options))
        rate = 2 * figures["saturation"]["requests_per_second"]
        print(f"  overload at {rate:.2f} requests a second ...", flush=True)
        keep("overload", overload(target, rate, 60 * min(options.minutes, 60)))
        keep("drain", drain(target, options.clients))
    show(figures)


def show(figures: dict[str, Any]) -> None:
    """Print the main figures."""
    saturation, over = figures["saturation"], figures["overload"]
    print(f"throughput at saturation   {saturation['ratio']:.1%} of the raw loop")
    for name in ("one_client", "saturated"):
        taken = saturation[name]
        print(f"{name:26} {taken['statuses']}, {_shown(taken['answered'])}")
    print(f"{'twice the load':26} {over['statuses']}, answered {_shown(over['answered'])}")
    print(f"{'':26} of which in the replica {_shown(over['answered_inside'])}")
    print(f"{'':26} refused {_shown(over['refused'])}")
    print(f"{'memory growth (MB)':26} {over['memory_growth_mb']}")
    print(f"{'drain':26} {figures['drain']['statuses']}, exit {figures['drain']['exit_status']}")


def _shown(found: dict[str, float] | None) -> str:
    return "none" if found is None else f"p50 {found['p50']:.3f} s, p99 {found['p99']:.3f} s"


if __name__ == "__main__":
    main()

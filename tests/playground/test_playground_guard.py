"""The guard of the playground: which files, routes and runs a visitor may request."""

import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from importlib import import_module
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from dent.playground import guard, server
from dent.playground.guard import COOKIE
from dent.playground.turns import MOST_OF_ADDRESS
from tests.playground.serving import (
    API,
    PATIENCE,
    USUAL,
    Browser,
    Site,
    eventually,
    file_data,
    needs_gradio,
    png,
    served,
)

pytestmark = needs_gradio


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
        with served(seconds=60) as found:
            yield found


@pytest.fixture
def browser(site: Site) -> Iterator[Browser]:
    found = Browser(site).open()
    yield found
    found.http.close()


def test_visitor_can_upload_and_pick_an_image(browser: Browser) -> None:
    (path,) = browser.upload(png()).json()
    assert browser.join("drop", file_data(path, url="http://x/y")).status_code == 200
    done = browser.completed()
    assert done["success"], done
    assert browser.http.get(f"{API}/file={path}").content == png()


@pytest.mark.parametrize(
    "kind", ["picture", "passwd", "zero", "fifo", "address", "other", "dots", "link", "cached"]
)
def test_requests_naming_any_file_but_the_visitors_own_upload_are_refused(
    site: Site, browser: Browser, tmp_path: Path, kind: str
) -> None:
    theirs = Path(Browser(site).open().upload(png(41)).json()[0])
    mine = Path(browser.upload(png()).json()[0])
    (tmp_path / "secret.png").write_bytes(png(32))
    os.mkfifo(tmp_path / "fifo.png")
    (tmp_path / "link.png").symlink_to(tmp_path / "secret.png")
    path = {
        "picture": tmp_path / "secret.png",
        "passwd": "/etc/passwd",
        "zero": "/dev/zero",
        "fifo": tmp_path / "fifo.png",
        "address": f"{site.url}/theme.css",
        "other": theirs,
        "dots": f"{mine.parent}/../{theirs.parent.name}/{theirs.name}",
        "link": tmp_path / "link.png",
        "cached": next(path for path in site.files() if path.name.startswith("image")),
    }[kind]
    named, before = file_data(path, url=f"{site.url}/theme.css"), site.files()
    for asked in (
        browser.join("drop", named),
        browser.join("drop", [named]),
        browser.join("drop", {"url": str(path), "meta": named["meta"]}),
        browser.join("for_model", named),
    ):
        assert asked.status_code == 403, asked.text
        assert "Only a file that you have just uploaded" in asked.json()["detail"]
    assert site.files() == before
    assert browser.http.get("/theme.css").status_code == 200


def test_files_named_in_event_data_are_ignored(site: Site, browser: Browser) -> None:
    before = site.files()
    value = {"image": file_data("/etc/passwd")}
    assert browser.join("pick", event_data={"index": 3, "value": value}).status_code == 200
    assert browser.completed()["success"]
    assert site.files() == before


def test_gradio_check_of_uploaded_files_is_also_active(site: Site) -> None:
    """A second protection, in case a request gets past the guard."""
    current = import_module("gradio.context").LocalContext.blocks
    check = import_module("gradio.processing_utils")._check_allowed
    refused = import_module("gradio.exceptions").InvalidPathError
    token = current.set(site.blocks)
    try:
        with pytest.raises(refused, match="was not uploaded by a user"):
            check("/etc/passwd", check_in_upload_folder=True)
    finally:
        current.reset(token)


def test_only_the_visitors_own_upload_can_be_downloaded(
    site: Site, browser: Browser, tmp_path: Path
) -> None:
    (tmp_path / "secret.png").write_bytes(png(32))
    theirs = Browser(site).open().upload(png(42)).json()[0]
    mine = browser.upload(png()).json()[0]
    cache = site.visitors.cache
    for path in (
        *(tmp_path / "secret.png", "/etc/passwd", theirs, f"{cache}/../secret.png", "secret.png"),
        *(f"{cache}/x/../../../etc/passwd", f"{site.url}/theme.css"),
    ):
        assert browser.http.get(f"{API}/file={path}").status_code == 404, path
        assert browser.http.get(f"{API}/file={quote(str(path), safe='')}").status_code == 404
    assert browser.http.get(f"{API}/file={mine}").status_code == 200


def test_gradio_routes_that_the_page_does_not_use_give_a_404(site: Site, browser: Browser) -> None:
    used = re.compile(
        r"/|/favicon\.ico|/theme\.css|/(assets|static)/.*"
        rf"|{API}/(queue/(join|data)|upload|upload_progress|file=.*|heartbeat/.*)"
    )
    source = Path(str(import_module("gradio.routes").__file__)).read_text()
    routes = re.findall(r"@(app|router)\.(get|head|post)\(\s*f?\"(/[^\"]*)\"", source)
    assert len(routes) > 50
    for where, method, route in routes:
        path = re.sub(r"\{.*?\}", "x", route)
        path = f"{API}{path}" if where == "router" else path
        if not used.fullmatch(path):
            assert browser.http.request(method, path).status_code == 404, (method, path)


def test_requests_without_a_valid_cookie_of_the_page_are_refused(site: Site) -> None:
    stranger = Browser(site)
    assert stranger.join("_describe", None, *USUAL).status_code == 403
    assert stranger.upload(png()).status_code == 403
    assert stranger.http.get(f"{API}/heartbeat/{stranger.session}").status_code == 403
    stranger.http.cookies.set(COOKIE, "guessed")
    assert stranger.upload(png()).status_code == 403
    welcome = stranger.http.get("/").headers["set-cookie"]
    assert re.fullmatch(rf"{COOKIE}=[\w-]{{32}}; Path=/; HttpOnly; SameSite=Strict", welcome)


def test_session_of_another_visitor_is_refused(site: Site, browser: Browser) -> None:
    assert browser.join("for_defense", "dent").status_code == 200
    other = Browser(site).open()
    other.session = browser.session
    assert other.join("for_defense", "dent").status_code == 403
    with other.listen() as stream:
        assert stream.status_code == 403
    assert other.http.get(f"{API}/heartbeat/{browser.session}").status_code == 403
    assert browser.completed()["success"]


@pytest.mark.parametrize(
    ("host", "status"),
    [
        *(("127.0.0.1", 200), ("localhost:7860", 200), ("[::1]:80", 200), ("LOCALHOST", 200)),
        *(("evil.example", 421), ("127.0.0.1.evil.example", 421), ("localhost:80@evil", 421)),
        *(("127.0.0.1:80:80", 421), ("[::1", 421), ("", 421), ("10.0.0.1", 421)),
    ],
)
def test_unknown_host_names_are_refused(site: Site, host: str, status: int) -> None:
    asked = Browser(site).http.get("/theme.css", headers={"host": host})
    assert asked.status_code == status
    assert "default-src 'self'" in asked.headers["content-security-policy"]


def test_oversized_and_malformed_bodies_are_refused(browser: Browser) -> None:
    def post(body: Any, where: str = "queue/join") -> tuple[int, str]:
        answer = browser.http.post(f"{API}/{where}", content=body)
        return answer.status_code, answer.json()["detail"]

    assert post(b"[" * 50_000) == (400, "The body is no JSON.")
    assert post(b" " * 70_000)[0] == 413
    fine = {"data": [], "fn_index": 0, "session_hash": browser.session, "trigger_id": None}
    for wrong in (
        *([], {}, fine | {"data": {}}, fine | {"fn_index": "0"}, fine | {"session_hash": None}),
        *(fine | {"data": [{"a": 1}]}, fine | {"data": [[[1]]]}, fine | {"session_hash": "x"}),
    ):
        assert post(json.dumps(wrong).encode())[0] in (400, 403), wrong
    assert browser.upload(bytes(20_100_000)).status_code == 413


def test_body_that_arrives_too_slowly_gets_a_408(
    browser: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard, "SECONDS", 0.2)

    address = (browser.site.url.partition("//")[2]).split(":")
    cookie = f"{COOKIE}={browser.http.cookies[COOKIE]}"
    with socket.create_connection((address[0], int(address[1])), timeout=PATIENCE) as half:
        half.sendall(
            f"POST {API}/queue/join HTTP/1.1\r\nHost: localhost\r\nCookie: {cookie}\r\n"
            "Content-Length: 100\r\n\r\n{".encode()
        )
        answer = b"".join(iter(lambda: half.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.1 408")
    assert b"took more than 0.2 s to arrive" in answer


def test_only_the_last_upload_of_a_visitor_is_kept(site: Site, browser: Browser) -> None:
    first = Path(browser.upload(png(33)).json()[0])
    second = Path(browser.upload(png(34)).json()[0])
    assert (first.exists(), second.exists()) == (False, True)
    other = Browser(site).open()
    assert Path(other.upload(png(34)).json()[0]) == second  # the same content has the same name
    browser.upload(png(35))
    assert second.exists()
    other.upload(png(36))
    assert not second.exists()
    several = [("files", (f"{at}.png", png(50 + at))) for at in range(5)]
    paths = browser.http.post(f"{API}/upload", files=several).json()
    assert [Path(path).exists() for path in paths] == [False] * 4 + [True]


def long_run(browser: Browser) -> int:
    slowest = list(USUAL)
    slowest[6], slowest[7], slowest[8] = 40, 30, 32
    return browser.join("start", None, None, *slowest).status_code


def test_run_stops_when_its_visitor_disconnects(site: Site, browser: Browser) -> None:
    assert long_run(browser) == 200
    with browser.listen():
        assert eventually(lambda: any(turn.begun for turn in site.turns._queue))
    assert eventually(lambda: not site.turns._queue)


def test_runs_are_limited_per_visitor_and_per_address(site: Site) -> None:
    browsers = [Browser(site).open() for _ in range(MOST_OF_ADDRESS + 1)]
    with ExitStack() as streams:
        for each in browsers[:-1]:
            before = len(site.turns._queue)
            assert long_run(each) == 200
            streams.enter_context(each.listen())
            assert eventually(lambda before=before: len(site.turns._queue) > before)
        twice, late = browsers[1], browsers[-1]
        assert long_run(late) == 200
        assert f"{MOST_OF_ADDRESS} runs from this address" in json.dumps(late.completed())
        other = Browser(site, cookies=twice.http.cookies)
        assert long_run(other) == 200
        assert "one run at a time" in json.dumps(other.completed())
        assert len(site.turns._queue) == MOST_OF_ADDRESS
        assert sum(turn.begun for turn in site.turns._queue) == 1
    assert eventually(lambda: not site.turns._queue)


def test_cache_folder_is_private_and_deleted_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "asked" / "for"))
    with suppress(KeyboardInterrupt), server._private_cache():
        folder = Path(os.environ["GRADIO_TEMP_DIR"])
        assert folder.parent == tmp_path / "asked" / "for"
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        (folder / "uploaded.png").touch()
        raise KeyboardInterrupt
    assert not folder.exists()
    assert os.environ["GRADIO_TEMP_DIR"] == str(tmp_path / "asked" / "for")


@pytest.mark.slow
def test_sigterm_stops_the_page_and_deletes_its_cache(tmp_path: Path) -> None:
    environment = {**os.environ, "GRADIO_TEMP_DIR": str(tmp_path)}
    command = [sys.executable, "-m", "dent", "playground", "--port", "0", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line == "}\n":
                break
        (cache,) = tmp_path.iterdir()
        assert cache.name.startswith("dent-playground-")
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 143
    assert list(tmp_path.iterdir()) == []

"""`dent playground` reports in one sentence why it cannot start, and ends without an error."""

import socket
import sys
from collections.abc import Callable

import pytest

from dent import ConfigError, MissingExtraError
from dent.playground import serve
from tests.cli.here import dent


@pytest.mark.parametrize("host", ["127.0.0.1", "192.0.2.1"])
def test_unavailable_address_is_refused(host: str) -> None:
    pytest.importorskip("gradio")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"cannot listen at {host}, port {port}"):
            serve(host, port, print)


def test_error_without_gradio_names_the_extra_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
    for name in [name for name in sys.modules if name.startswith("dent.playground.")]:
        if name.endswith((".app", ".page", ".controls")):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(MissingExtraError, match=r'pip install "torch-dent\[playground\]"'):
        serve("127.0.0.1", 0, print)


@pytest.mark.parametrize(("is_ready", "code"), [(True, 0), (False, 130)])
def test_ctrl_c_ends_the_page_without_an_error(
    is_ready: bool, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("gradio")

    def served(host: str, port: int, ready: Callable[[str], None], **_: object) -> None:
        if is_ready:
            ready("http://127.0.0.1:1/")
        raise KeyboardInterrupt  # as uvicorn does after its shutdown

    monkeypatch.setattr("dent.playground.serve", served)
    ran = dent("playground")
    assert ran.code == code
    assert ("dent: interrupted" in ran.err) is not is_ready
    assert ("Stopped." in ran.err) is is_ready

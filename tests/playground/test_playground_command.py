"""`dent playground` reports in one sentence why it cannot start."""

import socket
import sys

import pytest

from dent import ConfigError, MissingExtraError
from dent.playground import serve


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

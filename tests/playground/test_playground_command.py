"""`dent playground` refuses in one sentence."""

import socket
import sys
from pathlib import Path

import pytest

from dent import MissingExtraError
from dent.playground import serve
from tests.cli.process import dent


def test_a_port_that_is_taken_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("gradio")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        refused = dent("playground", "--port", str(port), cwd=tmp_path)
    assert refused.returncode == 2
    assert f"cannot listen at 127.0.0.1, port {port}" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert not refused.stdout


def test_without_gradio_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
    for name in [name for name in sys.modules if name.startswith("dent.playground.")]:
        if name.endswith((".app", ".page", ".controls")):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'torch-dent\[playground\]'"):
        serve("127.0.0.1", 0, print)

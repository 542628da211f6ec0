"""Where servers of this package listen, and what they are called."""

import socket

import pytest

from dent import ConfigError, listening


def test_a_free_port_is_taken_and_a_taken_one_refused() -> None:
    with listening.listen("127.0.0.1", 0) as listener:
        host, port = listener.getsockname()
        assert port > 0
        with pytest.raises(ConfigError, match=rf"cannot listen at {host}, port {port} \("):
            listening.listen(host, port)


@pytest.mark.parametrize(
    ("host", "family", "url"),
    [
        ("127.0.0.1", socket.AF_INET, "http://127.0.0.1:80"),
        ("localhost", socket.AF_INET, "http://localhost:80"),
        ("::1", socket.AF_INET6, "http://[::1]:80"),
    ],
)
def test_addresses_of_either_kind(
    host: str, family: socket.AddressFamily, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []
    monkeypatch.setattr(socket, "create_server", lambda at, family: asked.append((at, family)))
    listening.listen(host, 80)
    assert asked == [((host, 80), family)]
    assert listening.url(host, 80) == url

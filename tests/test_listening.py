"""Addresses and host names of the servers of the package."""

import socket

import pytest

from dent import ConfigError
from dent.support import listening


def test_a_free_port_is_chosen_and_a_port_in_use_is_refused() -> None:
    with listening.listen("127.0.0.1", 0) as listener:
        host, port = listener.getsockname()
        assert port > 0
        with pytest.raises(ConfigError, match=rf"cannot listen at {host}, port {port} \(.*--port"):
            listening.listen(host, port)


@pytest.mark.parametrize(
    ("host", "family", "url"),
    [
        ("127.0.0.1", socket.AF_INET, "http://127.0.0.1:80"),
        ("localhost", socket.AF_INET, "http://localhost:80"),
        ("::1", socket.AF_INET6, "http://[::1]:80"),
    ],
)
def test_ipv4_and_ipv6_hosts_get_the_right_socket_family_and_url(
    host: str, family: socket.AddressFamily, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []
    monkeypatch.setattr(socket, "create_server", lambda at, family: asked.append((at, family)))
    listening.listen(host, 80)
    assert asked == [((host, 80), family)]
    assert listening.url(host, 80) == url


@pytest.mark.parametrize(
    "name", ["http://demo.example", "demo.example:443", "demo.example/", "*.example", "", "a b"]
)
def test_a_name_that_no_host_header_can_match_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"--allowed-host expected a name .* without scheme"):
        listening.Hosts("127.0.0.1", ["demo.example", name])


@pytest.mark.parametrize(
    ("host", "allowed", "header", "permitted"),
    [
        *(("127.0.0.1", (), each, True) for each in ("127.0.0.1:80", "localhost", "[::1]:8000")),
        *(("127.0.0.1", (), each, False) for each in ("evil.example", "127.0.0.1.x", "[::2]")),
        *(("127.0.0.1", (), each, False) for each in ("localhost@x", "a localhost", "x:localhost")),
        ("127.0.0.9", (), "127.0.0.9:1", True),
        ("::1", (), "localhost", True),
        ("LocalHost", (), "evil.example", False),
        ("127.0.0.1", ("Demo.example",), "demo.EXAMPLE:443", True),
        ("127.0.0.1", ("demo.example",), "evil.example", False),
        ("192.0.2.1", (), "evil.example", True),
        *(
            ("192.0.2.1", ("demo.example",), each, True)
            for each in ("demo.example", "127.0.0.1:80")
        ),
        *(("192.0.2.1", ("demo.example",), each, False) for each in ("evil.example", "192.0.2.2")),
        ("myhost", (), "evil.example", True),
        ("127.0.0.1", ("[2001:db8::1]", "192.0.2.2"), "[2001:db8::1]:8000", True),
        ("127.0.0.1", ("2001:db8::1",), "[2001:db8::1]", True),
    ],
)
def test_a_loopback_server_permits_only_local_or_allowed_host_headers(
    host: str, allowed: tuple[str, ...], header: str, permitted: bool
) -> None:
    hosts = listening.Hosts(host, allowed)
    assert hosts.permits([header]) == permitted
    if listening.is_loopback(host):
        assert not hosts.permits([])
        assert not hosts.permits([header, header])

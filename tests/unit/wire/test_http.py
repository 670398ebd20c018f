"""Which proxy the environment means for an address, as curl and urllib have it; and none to this machine."""

import pytest

from dekag.types import InputError
from dekag.wire.http import client_options, is_loopback, proxy_for, through

PROXY = "http://user:secret@proxy.example:3128/"
NAMES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "REQUEST_METHOD")


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """No proxy of whoever runs the tests."""
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.mark.parametrize(
    ("variables", "url", "expected"),
    [
        ({}, "http://cloud.example", None),
        ({"HTTP_PROXY": PROXY}, "http://cloud.example", "http://proxy.example:3128"),
        ({"http_proxy": PROXY}, "http://cloud.example/registry", "http://proxy.example:3128"),
        ({"HTTP_PROXY": PROXY}, "https://cloud.example", None),
        ({"HTTPS_PROXY": "proxy.example"}, "https://cloud.example:8443", "http://proxy.example"),
        ({"ALL_PROXY": "socks5://proxy:1080"}, "https://cloud.example", "socks5://proxy:1080"),
        ({"ALL_PROXY": "http://a:1", "HTTP_PROXY": "http://b:2"}, "http://cloud.example", "http://b:2"),
        ({"HTTP_PROXY": "http://[fd00::1]:3128"}, "http://cloud.example", "http://[fd00::1]:3128"),
        ({"HTTP_PROXY": ""}, "http://cloud.example", None),
    ],
)
def test_the_proxy_of_the_environment(
    variables: dict[str, str], url: str, expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Never with its password."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert proxy_for(url) == expected
    assert through(url) == ("" if expected is None else f" through the proxy {expected}")
    options = client_options(url)
    assert options["trust_env"] is False
    assert (options["proxy"] is None) == (expected is None)


def test_the_client_is_given_the_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", PROXY)
    assert client_options("http://cloud.example")["proxy"] == PROXY


@pytest.mark.parametrize(
    "host",
    ["localhost", "LOCALHOST", "localhost.", "127.0.0.1", "127.9.8.7", "[::1]", "localhost:8001", "[::1]:80"],
)
def test_this_machine_is_called_straight(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the environment says, and without looking whether its proxy is an address."""
    for proxy in (PROXY, "nonsense://"):
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy)
        for scheme in ("http", "https"):
            assert proxy_for(f"{scheme}://{host}/registry") is None
            assert client_options(f"{scheme}://{host}/registry")["proxy"] is None


@pytest.mark.parametrize(
    "host", ["localhost.example", "128.0.0.1", "0.0.0.0", "::2", "mylocalhost", "10.0.0.1"]
)
def test_other_machines_are_not_this_one(host: str) -> None:
    assert not is_loopback(host)


@pytest.mark.parametrize(
    ("entries", "straight", "by_proxy"),
    [
        ("*", ["http://a.example", "http://10.0.0.1"], []),
        ("cloud.example", ["http://cloud.example", "http://x.cloud.example"], ["http://mycloud.example"]),
        (".example, other", ["http://a.example", "http://other"], ["http://example.org"]),
        ("*.example", ["http://a.example"], ["http://b.org"]),
        (
            "cloud.example:8001",
            ["http://cloud.example:8001"],
            ["http://cloud.example", "http://cloud.example:80"],
        ),
        ("cloud.example:80", ["http://cloud.example"], ["http://cloud.example:8001"]),
        ("10.1.2.3", ["http://10.1.2.3:9"], ["http://10.1.2.4"]),
        ("10.0.0.0/8,fd00::/8", ["http://10.255.0.1", "http://[fd00::5]"], ["http://11.0.0.1"]),
        ("[fd00::1]:80", ["http://[fd00::1]"], ["http://[fd00::1]:81"]),
        ("http://cloud.example", ["http://cloud.example"], ["http://other.example"]),
        (" , ", [], ["http://cloud.example"]),
    ],
)
def test_no_proxy_is_heeded(
    entries: str, straight: list[str], by_proxy: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", PROXY)
    monkeypatch.setenv("NO_PROXY", entries)
    assert [proxy_for(url) for url in straight] == [None] * len(straight)
    assert None not in [proxy_for(url) for url in by_proxy]


@pytest.mark.parametrize(
    "proxy", ["ftp://user:secret@proxy:1", "http://", "http://user:secret@h:x", "http://h:99999"]
)
def test_a_proxy_that_is_no_address(proxy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", proxy)
    with pytest.raises(InputError, match="proxy for http is no address") as caught:
        client_options("http://cloud.example")
    assert "secret" not in str(caught.value)

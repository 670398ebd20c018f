"""Which proxy a call goes through: that of the environment, and none to this machine.

Every client over HTTP is made with `client_options`, and names the proxy when it fails by `through`.
"""

import ipaddress
from contextlib import suppress
from typing import Any, Final
from urllib.parse import SplitResult, urlsplit
from urllib.request import getproxies

from dekag.errors import InputError

_SCHEMES: Final = frozenset({"http", "https", "socks5", "socks5h"})
_PORTS: Final = {"http": 80, "https": 443}


def client_options(url: str) -> dict[str, Any]:
    """Arguments for a client of `httpx2`, or of what is built on it, that calls an address and what is below it.

    Raises InputError if the environment names a proxy for it that is no address.
    """
    import httpx2

    proxy = _proxy(url)
    # certificates of the environment count as ever; its proxies were looked up here
    verify = httpx2.create_ssl_context(trust_env=True)
    return {"trust_env": False, "verify": verify, "proxy": None if proxy is None else proxy.geturl()}


def proxy_for(url: str) -> str | None:
    """The proxy that calls to an address go through, without user and password; None if they go straight."""
    proxy = _proxy(url)
    if proxy is None:
        return None
    host = f"[{proxy.hostname}]" if ":" in str(proxy.hostname) else proxy.hostname
    return f"{proxy.scheme}://{host}" + ("" if proxy.port is None else f":{proxy.port}")


def through(url: str) -> str:
    """Words that follow "cannot be reached" where a proxy may be the reason; empty without one."""
    proxy = proxy_for(url)
    return "" if proxy is None else f" through the proxy {proxy}"


def is_loopback(host: str) -> bool:
    """Whether a host is this machine, by its name or its address."""
    name = host.strip("[]").rstrip(".").lower()
    with suppress(ValueError):
        return ipaddress.ip_address(name).is_loopback
    return name == "localhost"


def _proxy(url: str) -> SplitResult | None:
    """The proxy of the environment for an address: of its scheme, else of all, unless NO_PROXY holds for its host."""
    address = urlsplit(url)
    host = address.hostname or ""
    proxies = getproxies()
    text = (proxies.get(address.scheme) or proxies.get("all") or "").strip()
    if not text or is_loopback(host):
        return None
    port = address.port or _PORTS.get(address.scheme)
    if any(_holds_for(entry.strip(), host, port) for entry in proxies.get("no", "").split(",")):
        return None
    try:
        proxy = urlsplit(text if "://" in text else f"http://{text}")
        known = proxy.scheme in _SCHEMES and bool(proxy.hostname) and proxy.port != 0
    except ValueError:
        known = False
    if not known:  # it may hold a password, so it is not repeated
        raise InputError(
            f"the environment's proxy for {address.scheme} is no address; it is like http://proxy:3128"
        )
    return proxy


def _holds_for(entry: str, host: str, port: int | None) -> bool:
    """Whether an entry of NO_PROXY holds for a host: *, a name and those below it, an address, a network; a port."""
    if entry == "*":
        return True
    entry = entry.rpartition("://")[2].lower()
    with suppress(ValueError):
        return ipaddress.ip_address(host) in ipaddress.ip_network(entry.strip("[]"), strict=False)
    name, colon, number = entry.rpartition(":")
    if colon and number.isdigit():
        if int(number) != port:
            return False
        entry = name.strip("[]")
    entry = entry.removeprefix("*").lstrip(".").rstrip(".")
    host = host.rstrip(".").lower()
    return bool(entry) and (host == entry or host.endswith(f".{entry}"))

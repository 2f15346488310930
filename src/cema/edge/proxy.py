"""Which proxy leads to the cloud, as the environment says it."""

from __future__ import annotations

import ipaddress
import re
from urllib.parse import SplitResult, urlsplit
from urllib.request import getproxies

__all__ = ["environment_proxy", "is_loopback", "without_password"]

_DEFAULT_PORTS = {"http": 80, "https": 443}


def environment_proxy(url: str) -> str | None:
    """Return the proxy that requests to an address go through, or None.

    It is that of ``http_proxy`` or ``https_proxy``, else of ``all_proxy``. ``no_proxy`` lists what is asked
    directly, separated by commas: ``*``; a host (its subdomains too); ``.DOMAIN`` or ``*.DOMAIN`` (subdomains only);
    an IP address; a network such as ``10.0.0.0/8``; each, if wanted, with ``:PORT`` behind or ``SCHEME://``
    before it. A cloud on this machine has no proxy: none could reach it.

    Parameters
    ----------
    url : str
        ``http://HOST[:PORT]`` or ``https://HOST[:PORT]``, with any path.

    Returns
    -------
    str or None
        The proxy's address, with its scheme.
    """
    parts = urlsplit(url)
    proxies = getproxies()
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    if not proxy or is_loopback(parts.hostname or ""):
        return None
    if any(_covers(rule, parts) for rule in re.split(r"[,\s]+", proxies.get("no", "")) if rule):
        return None
    return proxy if "://" in proxy else f"http://{proxy}"


def is_loopback(host: str) -> bool:
    """Return whether a host is this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def without_password(address: str) -> str:
    """Return an address for a message: without the password that may be in it."""
    return re.sub(r"//[^/]*@", "//***@", address)


def _covers(rule: str, url: SplitResult) -> bool:
    """Whether an entry of ``no_proxy`` is about an address."""
    scheme, found, rest = rule.lower().rpartition("://")
    if found and scheme not in {url.scheme, "all"}:
        return False
    host = (url.hostname or "").rstrip(".")
    if rest in {"*", host}:
        return True
    name, port = rest, ""
    if re.fullmatch(r"(\[.*\]|[^:]*):\d+", rest):
        name, _, port = rest.rpartition(":")
    if port and int(port) != (url.port or _DEFAULT_PORTS.get(url.scheme)):
        return False
    network = _network(name)
    if network is not None:
        return _is_in(host, network)
    name = name.removeprefix("*").rstrip(".")
    return host == name or (bool(name) and host.endswith(name if name.startswith(".") else f".{name}"))


def _network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network | None:
    try:
        return ipaddress.ip_network(re.sub(r"^\[(.*)\]", r"\1", text), strict=False)
    except ValueError:
        return None


def _is_in(host: str, network: ipaddress.IPv4Network | ipaddress.IPv6Network) -> bool:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False  # a name: it would have to be looked up first
    mapped = getattr(address, "ipv4_mapped", None)
    return address in network or (mapped is not None and mapped in network)

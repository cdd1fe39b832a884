"""HTTP CONNECT proxies (RFC 9110 §9.3.6): which one to use, the request to it, and what it answered.

Only plain TCP to the proxy itself; what goes through it is usually TLS. Credentials come from the proxy's URL and
are never part of an error or a repr.
"""

import base64
import ipaddress
import os
import sys
from urllib.parse import unquote, urlsplit

from ..errors import ConfigError
from .sockets import NetworkError

MAX_HEAD_BYTES = 16 << 10
DEFAULT_PORTS = {"http": 80, "ws": 80, "https": 443, "wss": 443}


class Proxy:
    """Where the proxy is, and the value of its Proxy-Authorization header, if it wants one."""

    __slots__ = ("host", "port", "authorization")

    def __init__(self, host, port, authorization=None):
        self.host = host
        self.port = port
        self.authorization = authorization

    def __repr__(self):
        return f"<Proxy {self.host}:{self.port}{' with authorization' if self.authorization else ''}>"

    def connect_request(self, host, port):
        target = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        lines = [f"CONNECT {target} HTTP/1.1", f"Host: {target}"]
        if self.authorization:
            lines.append(f"Proxy-Authorization: {self.authorization}")
        return "\r\n".join(lines + ["", ""]).encode("ascii")


def read_connect_answer(received):
    """Judge the proxy's bytes so far: None while its head is incomplete, else what came after the head.

    Raises NetworkError unless it says 2xx, or when the head is over MAX_HEAD_BYTES.
    """
    end = received.find(b"\r\n\r\n", 0, MAX_HEAD_BYTES)
    if end < 0:
        if len(received) >= MAX_HEAD_BYTES:
            raise NetworkError(f"proxy answered with a head over {MAX_HEAD_BYTES} bytes")
        return None
    status_line = bytes(received[:received.index(b"\r\n")]).decode("latin-1")
    version, _, status = status_line.partition(" ")
    if not (version.startswith("HTTP/1.") and status[:3].isdigit()):
        raise NetworkError(f"proxy did not answer with HTTP but with {status_line[:80]!r}")
    if status[0] != "2":
        raise NetworkError(f"proxy refused: {status[:200]}")
    return bytes(received[end + 4:])


def proxy_for(url, configured=None):
    """Choose the proxy for `url`: none for None or "", the environment's for "env", else the one at that URL.

    The environment is read by urllib (https_proxy for https and wss, http_proxy for http and ws, all_proxy, no_proxy,
    and the system's settings on macOS and Windows). It never sends loopback through a proxy.
    """
    if not configured:
        return None
    if configured != "env":
        return _parse(configured, "proxy")
    target = urlsplit(url)
    host = target.hostname or ""
    if _is_loopback(host) or not may_have_settings(os.environ, sys.platform):
        return None
    import urllib.request                # 6 ms, with all of http and email behind it
    if urllib.request.proxy_bypass(f"{host}:{target.port or DEFAULT_PORTS.get(target.scheme)}"):
        return None
    proxies = urllib.request.getproxies()
    scheme = {"ws": "http", "wss": "https"}.get(target.scheme, target.scheme)
    found = proxies.get(scheme) or proxies.get("all")
    return _parse(found, f"environment's {scheme}_proxy") if found else None


def may_have_settings(environ, platform):
    """False where urllib would find nothing: no variable of a proxy, and no settings but these."""
    return platform in ("win32", "darwin") or any(name.lower().endswith("_proxy") for name in environ)


def _parse(text, where):
    try:
        parts = urlsplit(text if "://" in text else f"http://{text}")
        host, port = parts.hostname, parts.port or 80
    except ValueError as error:          # a port that is no number
        raise ConfigError(f"{where}: not a URL: {error}") from None
    if parts.scheme != "http" or not host:
        raise ConfigError(f"{where}: found {parts.scheme}://{host or ''}, expected http://[user:password@]host:port")
    authorization = None
    if parts.username is not None:
        credentials = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        authorization = "Basic " + base64.b64encode(credentials.encode()).decode("ascii")        # RFC 7617 §2
    return Proxy(host, port, authorization)


def _is_loopback(host):
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")

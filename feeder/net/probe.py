"""Whether addresses can be reached: one connection each, TLS included, and not a byte of a request on it.

All are tried at once, so that the whole takes no longer than one timeout, with no network at all as well.
"""

import os
import ssl
from collections import namedtuple
from urllib.parse import urlsplit

from ..clock import SECOND, steady_ns
from ..errors import FeederError
from .loop import Loop
from .proxy import DEFAULT_PORTS, proxy_for
from .stream import connect
from .tls import tls_context

TIMEOUT_NS = 5 * SECOND

Target = namedtuple("Target", "url proxy ca_file verify_tls")       # as the configuration of a venue has them
Reached = namedtuple("Reached", "url proxy elapsed_ns error")       # proxy "host:port" or ""; error "" if reached
TlsStore = namedtuple("TlsStore", "version authorities places")


def probe(targets, timeout_ns=TIMEOUT_NS):
    """Return a Reached for each Target, in their order; takes at most about `timeout_ns`. Never raises for a target."""
    loop = Loop()
    try:
        attempts = [_Attempt(loop, target, timeout_ns) for target in targets]
        deadline_ns = steady_ns() + timeout_ns + SECOND      # each stream has its own; this one is for our mistakes
        while any(attempt.result is None for attempt in attempts) and steady_ns() < deadline_ns:
            loop.run_once(SECOND // 10)
        return [attempt.finish() for attempt in attempts]
    finally:
        loop.close()


class _Attempt:
    def __init__(self, loop, target, timeout_ns):
        self.target, self.result, self.stream, self.via = target, None, None, ""
        self.started_ns = steady_ns()
        parts = urlsplit(target.url)
        scheme = {"ws": "http", "wss": "https"}.get(parts.scheme, parts.scheme)
        try:
            proxy = proxy_for(f"{scheme}://{parts.netloc}", target.proxy or None)
            self.via = f"{proxy.host}:{proxy.port}" if proxy else ""
            tls = tls_context(target.ca_file or None, target.verify_tls) if scheme == "https" else None
            self.stream = connect(loop, parts.hostname, parts.port or DEFAULT_PORTS[scheme], tls=tls, proxy=proxy,
                                  timeout_ns=timeout_ns, on_open=self._opened, on_data=lambda *_: None,
                                  on_close=self._closed)
        except (FeederError, OSError) as error:
            self._done(str(error))

    def _done(self, error):
        if self.result is None:
            self.result = Reached(self.target.url, self.via, steady_ns() - self.started_ns, error)

    def _opened(self, stream):
        self._done("")
        stream.close()

    def _closed(self, stream, error):
        self._done(str(error or "closed by the peer"))

    def finish(self):
        if self.stream is not None:
            self.stream.abort()
        self._done("no answer")
        return self.result


def tls_store():
    """What this interpreter trusts by default; `authorities` counts what is loaded and what lies ready to be."""
    context, paths = ssl.create_default_context(), ssl.get_default_verify_paths()
    count = context.cert_store_stats()["x509_ca"]
    if not count and paths.capath:                           # a folder is read only when a certificate is looked up
        try:
            count = sum(name.rpartition(".")[2].isdigit() for name in os.listdir(paths.capath))
        except OSError:
            pass
    return TlsStore(ssl.OPENSSL_VERSION, count, [place for place in (paths.cafile, paths.capath) if place])

"""The edges to the network: the only folder that opens a socket, speaks TLS or waits for readiness.

    loop      one thread's selector, timers, and the door by which other threads come in (`post`)
    stream    TCP, with TLS and through an HTTP CONNECT proxy, both sides: `connect` and `listen`
    fetch     REST: blocking http.client in worker threads, answers posted into the loop
    udp       datagrams out (`PacketSender`) and in (`PacketReceiver`), multicast or unicast
    unicast   datagrams between two addresses (`UnicastSocket`): requests and their answers
    idle      what the loop does while nothing is ready: `Sleep`, `Yield`, `Spin`
    limits    when to try again: `Backoff` and `ConnectBudget`, machines without a clock
    tls, proxy, resolve, sockets      what those are built from

Edges move bytes and stamp their arrival. What the bytes mean, and whether to connect again, is decided elsewhere.
"""

from .fetch import Answer, Fetcher
from .idle import STRATEGIES, Sleep, Spin, Yield
from .limits import Backoff, ConnectBudget
from .loop import Loop, Timer
from .proxy import Proxy, proxy_for
from .sockets import NetworkError, SocketOptions
from .stream import Listener, Stream, connect, listen
from .udp import PacketReceiver, PacketSender
from .unicast import UnicastSocket



def tls_context(ca_file=None, verify=True):
    """See tls.py, which is loaded by the first who needs it."""
    from . import tls
    return tls.tls_context(ca_file, verify)


def server_tls_context(certificate_file, key_file):
    """See tls.py."""
    from . import tls
    return tls.server_tls_context(certificate_file, key_file)


__all__ = [
    "Answer", "Backoff", "ConnectBudget", "Fetcher", "Listener", "Loop", "NetworkError", "PacketReceiver",
    "PacketSender", "Proxy", "STRATEGIES", "Sleep", "SocketOptions", "Spin", "Stream", "Timer", "UnicastSocket", "Yield",
    "connect", "listen", "proxy_for", "server_tls_context", "tls_context",
]

"""Retransmission: who lost packets asks over unicast, who kept them sends them again. docs/protocol.md is the contract.

    datagram   the 48 bytes of a control datagram, both ways
    store      the last datagrams of one stream, in memory that was taken once
    server     requests in; packets, or a sentence why not, out
    client     what is missing in; requests out, to several servers in order; what nobody has
    bucket     so many a second

    Receiver.wanted ──▶ Client.ask ──REQUEST──▶ Server.receive ──▶ Store.find
                            ▲                         │
                            └── CHALLENGE, BUSY, UNAVAILABLE, or the packets, flagged RETRANSMITTED (to the Receiver)

Machines all: an edge (net/unicast.py) moves the datagrams, and time comes as `now_ns` of a clock that never jumps.
"""

from .client import Client
from .datagram import Control, decode, is_control
from .server import Server, parse_networks
from .store import Store

DEFAULT_PORT = 30003

__all__ = ["Client", "Control", "DEFAULT_PORT", "Server", "Store", "decode", "is_control", "parse_networks"]

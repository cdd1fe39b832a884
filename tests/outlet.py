"""A publisher made for tests: real encoders, sockets, store and server on loopback; it keeps the truth of its market.

All in the test's own thread. `lose(line, datagram's number)` says what does not go out on a line; the store and `truth`
get everything. `serve(loop)` answers retransmission on the listener's own loop, while that waits.
"""

import random

import pytest

from feeder.clock import steady_ns, wall_ns
from feeder.control import Server, Store, parse_networks
from feeder.errors import HostError
from feeder.instrument import Instrument
from feeder.message import BUY, LIVE
from feeder.net import PacketReceiver, PacketSender, UnicastSocket
from feeder.packet import INCREMENT, REFRESH, SHARED_BOOK, SHARED_TRADE, SNAPSHOT, Encoder, LoopEncoder
from feeder.seal import Seal

E8 = 10**8
SECRET = bytes(32)


def free_port():
    return random.SystemRandom().randrange(20_000, 32_000)


def free_address():
    """A group and port that no other test and no other session has now."""
    any_of = random.SystemRandom().randrange
    return f"239.192.{any_of(100, 250)}.{any_of(1, 255)}", free_port()


def free_udp_port():
    """A port of this host that nobody has."""
    sock = UnicastSocket()
    sock.close()
    return sock.port


@pytest.fixture(scope="module", autouse=True)
def multicast():
    """For modules that import it: skip where the host has no multicast on loopback (some containers)."""
    try:
        PacketReceiver(*free_address(), interface="127.0.0.1").close()
    except HostError as error:
        pytest.skip(str(error))


class Outlet:
    """Args: endpoints [(address, port), ...] of the lines; loops, of the snapshot loop; count, of instruments."""

    def __init__(self, endpoints, loops=(), count=2, key=None, session=None, channel=0, lose=lambda line, number: False,
                 venue_sequence=100):
        seal = Seal(key) if key else None
        self.lose = lose
        self.senders = [PacketSender(*endpoint, interface="127.0.0.1") for endpoint in endpoints]
        self.loop_senders = [PacketSender(*endpoint, interface="127.0.0.1") for endpoint in loops]
        self.encoder = Encoder(session or wall_ns(), channel, self.emit, wall_ns, seal=seal)
        self.loop_encoder = LoopEncoder(self.encoder.session, channel, self.emit_loop, wall_ns, 1472, seal,
                                        lambda: self.encoder.sequence + self.encoder.count)
        self.store = Store(4096, 1472)
        self.server = Server({channel: self.store}, parse_networks(["127.0.0.0/8", "::1/128"]), SECRET, seal)
        self.server_socket = None
        self.instruments = [Instrument(at, "binance_spot", f"C{at}USDT", f"C{at}/USDT", 2, 5) for at in range(count)]
        for instrument in self.instruments:
            instrument.shared = SHARED_BOOK | SHARED_TRADE
        self.books = [({}, {}) for _ in range(count)]        # bids, asks
        self.truth = {}                  # (symbol, venue sequence): (bids, asks), best first
        self.venue_sequence = venue_sequence
        self.datagrams = self.rounds = 0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for each in (*self.senders, *self.loop_senders, self.server_socket):
            if each is not None:
                each.close()

    def emit(self, datagram):
        for line, sender in enumerate(self.senders):
            if not self.lose(line, self.datagrams):
                assert sender.send(datagram)
        self.store.add(datagram)
        self.datagrams += 1

    def emit_loop(self, datagram):
        for sender in self.loop_senders:
            assert sender.send(datagram)

    def serve(self, loop, address="127.0.0.1"):
        """Answer requests on that loop; returns the endpoint's text."""
        self.server_socket = UnicastSocket(address)
        loop.register(self.server_socket, read=lambda: self.server_socket.serve(self.server.receive, steady_ns))
        return self.server_socket.port

    # -- the market ------------------------------------------------------------------------------------------

    def open(self):
        """One datagram or two: definitions and snapshots."""
        for at, instrument in enumerate(self.instruments):
            self.encoder.definition(instrument)
            bids, asks = self.books[at]
            bids.update({6_183_764 * 10**6 - step * 10**6: E8 + step for step in range(3)})
            asks.update({6_183_800 * 10**6 + step * 10**6: E8 + step for step in range(3)})
            now_ns = wall_ns()
            self.encoder.levels(SNAPSHOT, at, LIVE, 1, self.venue_sequence, now_ns, now_ns, *self.flat(at))
            self.note(at)
        self.encoder.flush()

    def flat(self, at):
        bids, asks = self.books[at]
        return ([number for price in sorted(bids, reverse=True) for number in (price, bids[price])],
                [number for price in sorted(asks) for number in (price, asks[price])])

    def note(self, at):
        bids, asks = self.books[at]
        self.truth[self.instruments[at].symbol, self.venue_sequence] = (
            sorted(bids.items(), reverse=True), sorted(asks.items()))

    def change(self, at=0, trade=True):
        """One datagram: the quantity of the best bid, and a trade."""
        self.venue_sequence += 1
        now_ns, bids = wall_ns(), self.books[at][0]
        price = max(bids)
        bids[price] = self.venue_sequence * E8
        self.encoder.levels(INCREMENT, at, LIVE, 1, self.venue_sequence, now_ns, now_ns, [price, bids[price]], [])
        if trade:
            self.encoder.trade(at, LIVE, 1, self.venue_sequence, now_ns, now_ns, self.venue_sequence, price, E8, BUY)
        self.encoder.flush()
        self.note(at)

    def heartbeat(self):
        self.encoder.heartbeat()

    def round(self):
        """One round of the snapshot loop."""
        self.rounds += 1
        self.loop_encoder.round(self.rounds, len(self.instruments))
        for at, instrument in enumerate(self.instruments):
            self.loop_encoder.definition(instrument)
            self.loop_encoder.levels(SNAPSHOT, at, LIVE, 1, self.venue_sequence, 0, wall_ns(), *self.flat(at), REFRESH)
        self.loop_encoder.flush()

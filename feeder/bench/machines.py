"""Each machine alone, fed with what it would be fed by the one before it.

    fixed     price texts of the snapshot to ints                        against float of the same
    frame     frames of the recording's mix off a blast of them          against a bare loop of index and slice
    decode    payloads to calls on a sink that does nothing              against json.loads of the same
    book      decoded diffs into a book, the published levels out        against a dict a side that is never sorted
    packet    calls to datagrams that nobody sends                       against Struct.pack of three numbers
    store     datagrams kept; requests for 64 of them answered           against bytes() of each into a deque

The answers: ints against the text without its point, the frames' count, the book's sides against the dicts, what is
found again against what was kept.
"""

import json
from collections import deque
from struct import Struct

from feeder import fixed
from feeder.bench.measure import BenchError, NoSink, compare, digest, loads_all, same
from feeder.book import Book
from feeder.control import Control, Server, Store, parse_networks
from feeder.control.datagram import MAX_PACKETS, REQUEST, encode
from feeder.packet import DEFAULT_PACKET_BYTES, FLAGS_AT, RETRANSMITTED, Encoder
from feeder.venue.binance import BinanceSpot
from feeder.venue.contract import Instruments
from feeder.websocket import CLIENT, SERVER, TEXT, Connection

RECEIVE_BYTES = 65_536
TRADES = 10_000


def bench_fixed(run):
    texts = [level[0] for level in json.loads(run.traffic.snapshot)["bids"]]

    def work(_):
        for text in texts:
            fixed.parse(text, 8)

    def reference():
        for text in texts:
            float(text)
    for text in texts:
        if fixed.parse(text, 8) != int(text.replace(".", "")):
            raise BenchError(f"fixed: {text}")
    yield compare("fixed", "parse price text", len(texts), work, reference, "float", run.repeats, unit="number")


def bench_frame(run):
    payloads = run.traffic.messages
    server = Connection(SERVER)
    wire = b"".join(server.send(TEXT, payload) for payload in payloads)
    pieces = [wire[at:at + RECEIVE_BYTES] for at in range(0, len(wire), RECEIVE_BYTES)]
    views = [memoryview(piece) for piece in pieces]
    count = len(payloads)

    def work(_):
        receive = Connection(CLIENT).receive
        got = 0
        for view in views:
            got += len(receive(view))
        if got != count:
            raise BenchError(f"frame: {got} frames of {count}")

    def reference():
        """Header by index and a slice; it trusts the wire, and so has all of it in one piece."""
        at = 0
        for _ in payloads:
            size = wire[at + 1]
            start = at + 2
            if size == 126:
                size = wire[start] << 8 | wire[start + 1]
                start += 2
            at = start + size
            wire[start:at]
    yield compare("frame", f"recording's mix in pieces of {RECEIVE_BYTES} bytes", count, work, reference,
                  "a bare loop of index and slice", run.repeats, unit="frame", goal=(1.5, 1.15))


def new_venue(traffic, sink):
    """A decoder that has learned the shapes."""
    venue = BinanceSpot(sink, Instruments(), discover=True)
    for kind in ("depth", "trade", "bbo"):
        for payload in traffic.kinds[kind][:1]:
            venue.decode(payload, 0)
    return venue


def bench_decode(run):
    for kind, payloads in run.traffic.kinds.items():
        venue = new_venue(run.traffic, NoSink())

        def work(_):
            decode = venue.decode
            for payload in payloads:
                decode(payload, 0)
        unlikely = venue.unlikely
        row = compare("decode", kind, len(payloads), work, loads_all(payloads), "json.loads", run.repeats)
        row["unlikely"] = venue.unlikely - unlikely
        yield row


class ListSink(NoSink):
    """Keeps the calls with levels that a decoder makes."""

    def __init__(self):
        self.calls = []

    def depth(self, *args):
        self.calls.append(args)

    snapshot = depth


def decoded_depth(traffic):
    """Return (snapshot levels, [(bids, asks), ...]) of the diffs, as ints."""
    sink = ListSink()
    venue = new_venue(traffic, sink)
    venue.decode_snapshot(venue.instruments.all[0], traffic.snapshot, 0)
    snapshot = sink.calls.pop()[-2:]
    sink.calls.clear()
    for payload in traffic.kinds["depth"]:
        venue.decode(payload, 0)
    return snapshot, [call[-2:] for call in sink.calls]


def levels_digest(pairs):
    return digest(repr(list(pairs)).encode())


def bench_book(run):
    snapshot, diffs = decoded_depth(run.traffic)
    levels = sum(len(bids) + len(asks) for bids, asks in diffs) // 2
    answers, plain = set(), set()

    def prepare():
        book = Book()
        book.snapshot(*snapshot)
        return book

    def work(book):
        for bids, asks in diffs:
            book.increment(bids, asks)
        answers.add(digest(repr(book.top()).encode()))

    def reference():
        """The plain book: a dict a side, sorted for the best price only when asked; here, never."""
        for side, at in (({}, 0), ({}, 1)):
            flat = snapshot[at]
            side.update(zip(flat[::2], flat[1::2]))
            for diff in diffs:
                flat = diff[at]
                for price, quantity in zip(flat[::2], flat[1::2]):
                    if quantity:
                        side[price] = quantity
                    else:
                        side.pop(price, None)
            plain.add(levels_digest(sorted(side.items(), reverse=not at)))
    row = compare("book", "depth diffs, 20 levels published", levels, work, reference,
                  "a dict a side, never sorted", run.repeats, prepare, unit="level")
    row["book_hash"] = same(answers, "book")
    book = prepare()
    work(book)
    if {levels_digest(zip(flat[::2], flat[1::2])) for flat in book.top()} != plain:
        raise BenchError("book: the ladder and the plain book differ")
    yield row


def bench_packet(run):
    sizes = set()

    def work(_):
        datagrams = []
        encoder = Encoder(1, 0, lambda datagram: datagrams.append(len(datagram)), lambda: 0)
        trade = encoder.trade
        for number in range(TRADES):
            trade(1, 2, 1, number, number, number, number, 6183764000000, 100000, 1)
        encoder.flush()
        sizes.add((len(datagrams), sum(datagrams)))

    def reference(pack=Struct("<Qqq").pack):
        for number in range(TRADES):
            pack(number, 6183764000000, 100000)
    row = compare("packet", "trades, 19 a datagram", TRADES, work, reference, "Struct.pack of three numbers",
                  run.repeats)
    row["packets"], row["packet_bytes"] = same(sizes, "packet")
    yield row


STORED = 4096                          # datagrams, fewer than a Store usually has: a round is short


def bench_store(run):
    """Datagrams of one trade, and full ones; then what one asks for who lost 64 of the full ones."""
    for trades in (1, 19):
        datagrams = []
        encoder = Encoder(1, 0, lambda view: datagrams.append(memoryview(bytes(view))), lambda: 0)
        for number in range(STORED * trades):
            encoder.trade(1, 2, 1, number, number, number, number, 6183764000000, 100000, 1)
            if number % trades == trades - 1:
                encoder.flush()

        def work(store):
            add = store.add
            for datagram in datagrams:
                add(datagram)

        def reference():
            append = deque(maxlen=STORED).append
            for datagram in datagrams:
                append(bytes(datagram))
        yield compare("store", f"keep datagrams of {len(datagrams[0])} bytes", STORED, work, reference,
                      "bytes() into a deque", run.repeats, lambda: Store(STORED, DEFAULT_PACKET_BYTES), unit="datagram")
    store = Store(STORED, DEFAULT_PACKET_BYTES)
    work(store)
    asker = "127.0.0.1", 1
    server = Server({0: store}, parse_networks(asker[:1]), bytes(32), None, 10**9, 10**9)
    requests = [encode(Control(REQUEST, 0, 1, first, MAX_PACKETS * trades, 0, server.token(asker, 0)))
                for first in range(1, STORED * trades, MAX_PACKETS * trades)]

    def answer(_):
        found = []
        for request in requests:
            found += server.receive(request, asker, 0)
        if len(found) != STORED:
            raise BenchError(f"store: {len(found)} datagrams of {STORED}")
        return found
    for kept, again in zip(datagrams, answer(None)):
        kept = bytearray(kept)
        kept[FLAGS_AT] |= RETRANSMITTED
        if kept != again:
            raise BenchError("store: what is sent again differs from what was kept")
    yield compare("store", f"answer requests for {MAX_PACKETS}", STORED, answer, reference, "bytes() into a deque",
                  run.repeats, unit="datagram")

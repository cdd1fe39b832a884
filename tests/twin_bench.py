"""A twin and bare clients of it, all in one loop and one thread: what the tests of every dialect start from."""

import base64
import json
import random
from collections import Counter
from contextlib import contextmanager
from decimal import Decimal

from feeder.clock import MILLISECOND, SECOND, steady_ns
from feeder.errors import ProtocolError
from feeder.net import Loop, connect
from feeder.twin.registry import DIALECTS
from feeder.twin.server import Twin
from feeder.websocket import CLIENT, CLOSE, TEXT, ClientHandshake, Connection

SEED = 99
DICE = random.Random(SEED)


class Bench:
    """A twin and its clients in one loop and one thread."""

    def __init__(self, venues, **options):
        self.loop = Loop()
        self.streams = []                # of clients
        options.setdefault("rate", 2_000)
        options.setdefault("rest_latency_ms", 1)
        if all(DIALECTS[name].level_count > 300 and not DIALECTS[name].replays for name in venues):
            options.setdefault("levels", 300)        # smaller books are faster made
        self.twin = Twin(self.loop, venues, seed=SEED, **options)

    def until(self, condition, timeout_s=8):
        deadline_ns = steady_ns() + timeout_s * SECOND
        while not condition():
            assert steady_ns() < deadline_ns, f"not within {timeout_s} s"
            self.loop.run_once(20 * MILLISECOND)

    def connect(self, venue, on_open, on_data, on_close=lambda stream, error: None):
        stream = connect(self.loop, "127.0.0.1", self.twin.venues[venue].port,
                         on_open=on_open, on_data=on_data, on_close=on_close)
        self.streams.append(stream)
        return stream

    def client(self, venue, target, deflate=None, answers_pings=True):
        client = Client(self, venue, target, deflate, answers_pings)
        self.until(lambda: client.connection or client.is_closed)
        return client

    def get(self, venue, target):
        """(status, headers, JSON)"""
        request = Request(self, venue, target)
        self.until(lambda: request.is_done)
        return request.result

    def truth(self, venue, symbol, depth=None):
        """The true book: ([(price, quantity)] of bids, of asks) as Decimals, best first."""
        _, *sides = self.twin.book(venue, symbol)
        return tuple([(Decimal(price), Decimal(quantity)) for price, quantity in side[:depth]] for side in sides)

    def fault(self, venue, kind, **parameters):
        """Ask for a fault the way an operator does; return once it happened."""
        before = len(self.twin.faults_done)
        query = "".join(f"&{name}={value}" for name, value in parameters.items())
        status, _, answer = self.get(venue, f"/twin/fault?kind={kind}{query}")
        assert status == 200, answer
        self.until(lambda: len(self.twin.faults_done) > before)

    def close(self):
        self.twin.close()
        for stream in self.streams:
            stream.abort()
        for _ in range(3):
            self.loop.run_once(0)
        self.loop.close()
        assert self.loop.errors == 0


@contextmanager
def bench(venues, **options):
    print("seed", SEED)
    made = Bench(venues, **options)
    try:
        yield made
    finally:
        made.close()


class Client:
    """A raw WebSocket client: what came is in `messages`, (opcode, payload) each."""

    def __init__(self, bench, venue, target, deflate, answers_pings):
        key = base64.b64encode(DICE.randbytes(16)).decode()
        self.handshake = ClientHandshake("127.0.0.1", target, key, deflate=deflate)
        self.connection = None
        self.messages = []
        self.is_closed = False
        self.close_event = self.error = None
        self.answers_pings = answers_pings
        self.stream = bench.connect(venue, lambda stream: stream.write(self.handshake.request),
                                    self.on_data, self.on_close)

    def on_data(self, stream, data, recv_ns):
        if self.connection is None:
            try:
                data = self.handshake.receive(data)
            except ProtocolError as error:
                return stream.close(error)
            if data is None:
                return
            self.connection = Connection(CLIENT, deflate=self.handshake.deflate)
        for event in self.connection.receive(data):
            if event[0] == CLOSE:
                self.close_event = event[1]
            self.messages.append(event)
        assert self.connection.fault is None
        outgoing = self.connection.take_outgoing()
        if outgoing and self.answers_pings:
            stream.write(outgoing)

    def on_close(self, stream, error):
        self.is_closed, self.error = True, error

    def send(self, **request):
        self.say(json.dumps(request))

    def say(self, text):
        self.stream.write(self.connection.send(TEXT, text.encode()))

    def texts(self, opcodes=(TEXT,), **hooks):
        """JSON of the text messages so far; they are taken away. Text that is no JSON comes as it is."""
        found, self.messages = [payload for opcode, payload in self.messages if opcode in opcodes], []
        decoded = []
        for payload in found:
            try:
                decoded.append(json.loads(payload, **hooks))
            except ValueError:
                decoded.append(payload)
        return decoded


class Request:
    def __init__(self, bench, venue, target):
        self.raw = b""
        self.is_done = False
        self.result = None
        head = f"GET {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode()
        bench.connect(venue, lambda stream: stream.write(head), self.on_data, self.on_close)

    def on_data(self, stream, data, recv_ns):
        self.raw += data

    def on_close(self, stream, error):
        assert error is None
        head, _, body = self.raw.partition(b"\r\n\r\n")
        lines = head.decode().split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:])}
        assert int(headers["content-length"]) == len(body)
        try:
            body = json.loads(body)
        except ValueError:
            body = body.decode()
        self.result = int(lines[0].split()[1]), headers, body
        self.is_done = True


class Book:
    """What a client holds of one book. `sides` is None until a snapshot came; `counts` says what happened to it."""

    def __init__(self, symbol, depth=None):
        self.symbol, self.depth = symbol, depth
        self.counts = Counter()
        self.restart()

    def restart(self):
        self.sides = self.last = None

    def gap(self):
        self.counts["gaps"] += 1
        self.restart()

    def load(self, bids, asks, last=None):
        """A snapshot, of (price, quantity) in Decimals or their text."""
        self.sides = {}, {}
        self.counts["snapshots"] += 1
        self.set(0, bids)
        self.set(1, asks)
        self.last = last

    def set(self, side, rows):
        levels = self.sides[side]
        for price, quantity in rows:
            price, quantity = Decimal(price), Decimal(quantity)
            if quantity:
                levels[price] = quantity
            elif levels.pop(price, None) is None:
                self.counts["ghosts"] += 1

    def levels(self):
        bids, asks = self.sides
        return sorted(bids.items(), reverse=True), sorted(asks.items())


class Follower:
    """A client of a venue that keeps `books` (name -> Book) by the venue's procedure, and connects again when it must.

    A venue's tests say `target`, subscribe() and take(message); the rest is alike.
    """

    target = "/"
    opcodes = (TEXT,)
    hooks = {}                           # of json.loads

    def __init__(self, it, venue, books):
        self.it, self.venue, self.books = it, venue, books
        self.trades, self.others = [], []
        self.connects = self.odd = 0
        self.open()

    def open(self):
        self.connects += 1
        self.client = self.it.client(self.venue, self.target)
        for book in self.books.values():
            book.restart()
        self.subscribe()

    def work(self):
        for message in self.client.texts(self.opcodes, **self.hooks):
            if isinstance(message, bytes):
                self.odd += 1
            else:
                self.take(message)
        if self.client.is_closed:
            self.open()
        return False

    def is_live(self):
        self.work()
        return all(book.sides is not None for book in self.books.values())

    def count(self, what):
        return sum(book.counts[what] for book in self.books.values())

    def more(self, what, count):
        """Go on until so many more of something happened to each book."""
        goals = {name: book.counts[what] + count for name, book in self.books.items()}
        self.it.until(lambda: self.is_live() and all(
            book.counts[what] >= goals[name] for name, book in self.books.items()))

    def settle(self, what="updates", count=3):
        """Go on, pause the market: every book is then the true one within its depth."""
        self.more(what, count)
        self.it.twin.pause()
        self.it.until(lambda: self.is_live() and all(map(self.is_true, self.books.values())))
        self.it.twin.resume()

    def is_true(self, book):
        return book.levels() == self.it.truth(self.venue, book.symbol, book.depth)


def keys(value):
    """The keys of a message in their order, all the way down."""
    if isinstance(value, dict):
        return [(key, keys(item)) for key, item in value.items()]
    return keys(value[0]) if isinstance(value, list) and value and isinstance(value[0], dict) else None

"""The library: join what a feeder publishes, heal what is lost, hand over events of books that are right, or marked.

    from feeder import Listener

    with Listener(["239.192.0.1:30001"]) as listener:
        for event in listener:
            ...

    sockets ──▶ Inlet ──▶ queue ──▶ Receiver ──▶ Arbiter ──▶ filter ──▶ the consumer, one event at a time
                          as they   order, gaps  instruments            (or Conflator, and then the consumer)
                          came      books        over streams

All happens in the thread that asks for the next event, while it asks. An event is made only then, so that its book is
exactly as of this event; what came meanwhile waits in front of all decoding, as datagrams:

    kernel's buffer   takes what comes while the consumer is busy with one event; the kernel counts what it drops
    queue             is filled from there while events are taken, but not at each: there is no hurry within LOOK_NS

A full queue takes nothing until it is half empty: one hole heals as one, where a consumer who is too slow would else
have a hole between any two events. What came by several sockets is put in the order in which it came.
"""

from collections import deque
from operator import itemgetter
from typing import Any, Callable, Deque, Dict, Generator, Iterable, Iterator, List, Optional, Tuple, Union

from feeder.arbiter import Arbiter
from feeder.clock import MILLISECOND, SECOND, steady_ns, wall_ns
from feeder.conflate import Conflator
from feeder.errors import FeederError
from feeder.events import Book, Event, Gap, Instrument, Quote, State, Trade
from feeder.inlet import BUFFER_BYTES, DEFAULT_INTERFACE, DEFAULT_LINE, SNAPSHOT_PORT, Inlet, check_numbers

QUEUE_BYTES = 32 << 20
OVERHEAD_BYTES = 200             # of a datagram in the queue: bytes object, tuple, time, place in the deque
LOOK_NS = MILLISECOND            # between two looks at the sockets while events are taken
MOST = 16_384                    # datagrams taken in one look; about 50 ms

FAILED: Any = object()

Came = Tuple[bytes, int, Any]    # a datagram, when it came, and its origin: a line's number, or a server's address
came_at = itemgetter(1)


class Listener:
    """Args, all of them optional:

    lines: where the sequenced packets come, "239.192.0.1:30001", "[ff15::1]:30001", "10.0.0.7:30001@eth1"; several
        where the same packets come twice (A and B), from several publishers, or on several channels.
    snapshot_port: of the snapshot loop, at the address of each line; 0: do not listen to it.
    retransmit: servers that can be asked again, "10.0.0.7:30003", the nearest first.
    interface: by which to join, by address or name, where a line does not name its own; "": the kernel's choice.
    source: the only sender that is heard (source-specific multicast).
    tap: name of a publisher's tap on this host: one more line, of shared memory.
    key_file: with it nothing counts that is not signed with this key.
    hold_ms: how long what is behind a gap waits for what is missing. By default 200 with retransmission; else 50 in
        streams that several lines carry, 0 in others. Snapshots heal books at any time; only lost messages stay lost.
    silence_s: after so long without a packet a stream's books are not live, and a line is down.
    instruments: hand over events of these only, "BTC/USDT" at all venues, "binance_spot:BTCUSDT", "BTCUSDT".
    conflate: of an instrument that changed several times since it was asked for, hand over what it is now, once;
        trades are kept, so many as conflate.py says. For consumers who want to be up to date more than complete.
    queue_bytes: what may wait for a consumer who is slow, as datagrams.
    recv_buffer_bytes: of the kernel for each socket; see `feeder doctor` for what the host allows.
    pcap_file: write what comes there, too.

    Loss is cured in this order: by another line that carries the same; by asking again; by the snapshot loop. What
    the first two bring comes in order, as if nothing had been; after the third, events are missing: a Gap says which,
    books go on with a Book that is_snapshot. A Gap's `cause` tells where: "network"; "kernel", this host's buffer ran
    over, so the consumer was busy for too long, or recv_buffer_bytes is small; "consumer", the queue did.

    A Listener belongs to one thread; only stop() may be called from elsewhere. Raises ConfigError and HostError.
    """

    def __init__(self, lines: Union[str, Iterable[str]] = (DEFAULT_LINE,), *, snapshot_port: int = SNAPSHOT_PORT,
                 retransmit: Union[str, Iterable[str]] = (), interface: str = DEFAULT_INTERFACE, source: str = "",
                 tap: str = "", key_file: str = "", hold_ms: Optional[float] = None, silence_s: float = 3.0,
                 instruments: Union[None, str, Iterable[str]] = None, conflate: bool = False,
                 queue_bytes: int = QUEUE_BYTES, recv_buffer_bytes: int = 4 << 20, pcap_file: str = "") -> None:
        check_numbers(queue_bytes=(queue_bytes, BUFFER_BYTES + OVERHEAD_BYTES, 1 << 40))
        self.wanted = None if instruments is None else {text.lower() for text in texts(instruments)}
        self.inlet = Inlet(self.on_datagram, texts(lines), snapshot_port=snapshot_port, retransmit=texts(retransmit),
                           interface=interface, source=source, tap=tap, key_file=key_file, hold_ms=hold_ms,
                           silence_s=silence_s, recv_buffer_bytes=recv_buffer_bytes, pcap_file=pcap_file)
        self.arbiter = Arbiter(self.inlet.names)
        self.conflator = Conflator() if conflate else None
        self.events = 0                  # handed over
        self.is_stopped = False
        self.queue: Deque[Came] = deque()
        self.queue_bytes = queue_bytes
        self.queued_bytes = self.most_queued_bytes = 0
        self.is_full = False
        self.came: List[Came] = []       # what is read in the present look
        self.look_at_ns = 0              # steady
        self.empty_ns = 0                # a time up to which all that came is in the queue, or was; wall
        self.pump: Generator[Optional[Event], None, None] = (
            self.flow() if self.conflator is None else self.conflated())

    # -- use -------------------------------------------------------------------------------------------------

    def __enter__(self) -> "Listener":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Leave the groups and close the sockets; instruments stay readable as they are."""
        self.is_stopped = True
        self.pump.close()
        self.inlet.close()

    def stop(self) -> None:
        """End the iteration, run() and next(), for good; from any thread or signal handler, too."""
        self.is_stopped = True
        self.inlet.loop.stop()           # which wakes it

    def __iter__(self) -> Iterator[Event]:
        return self

    def __next__(self) -> Event:
        event = self.next()
        if event is None:
            raise StopIteration
        return event

    def next(self, timeout: Optional[float] = None) -> Optional[Event]:
        """Return the next event; None when none came for `timeout` seconds (0: what is there now), or after stop()."""
        until_ns = None if timeout is None else steady_ns() + int(timeout * SECOND)
        is_last = False
        while not self.is_stopped:
            if steady_ns() >= self.look_at_ns:
                self.look(0)
            event = next(self.pump, FAILED)
            if event is FAILED:
                raise FeederError("this listener raised an error, it cannot go on: open another one")
            if event is not None:
                self.events += 1
                return event
            if is_last:
                return None
            wait_ns = self.inlet.wait_ns(wall_ns())
            if until_ns is not None:
                left_ns = until_ns - steady_ns()
                is_last = left_ns <= 0
                wait_ns = min(wait_ns, max(left_ns, 0))
            self.look(wait_ns)
        return None

    def run(self, on_event: Optional[Callable[[Event], Any]] = None, *,
            on_book: Optional[Callable[[Book], Any]] = None, on_trade: Optional[Callable[[Trade], Any]] = None,
            on_quote: Optional[Callable[[Quote], Any]] = None, on_state: Optional[Callable[[State], Any]] = None,
            on_gap: Optional[Callable[[Gap], Any]] = None, seconds: Optional[float] = None) -> None:
        """Call a function for each event, for `seconds` or until stop(): that of its kind, else `on_event`.

        What a function raises comes out of here; run() may be called again.
        """
        kinds: Dict[Any, Any] = {Book: on_book, Trade: on_trade, Quote: on_quote, State: on_state, Gap: on_gap}
        functions = {kind: function for kind, function in kinds.items() if function is not None}
        until_ns = None if seconds is None else steady_ns() + int(seconds * SECOND)
        while not self.is_stopped:
            left = None if until_ns is None else (until_ns - steady_ns()) / SECOND
            if left is not None and left <= 0:
                return
            event = self.next(left)
            if event is not None:
                function = functions.get(type(event), on_event)
                if function is not None:
                    function(event)

    # -- reading ---------------------------------------------------------------------------------------------

    @property
    def instruments(self) -> List[Instrument]:
        """What is defined so far and wanted, by venue and symbol."""
        found = [each for each in self.arbiter.instruments.values() if self.wants(each)]
        return sorted(found, key=lambda each: (each.venue, each.symbol))

    def find(self, text: str) -> List[Instrument]:
        """Return the instruments that `text` names: the common name, the symbol, or venue:SYMBOL; any case."""
        return [each for each in self.arbiter.find(text) if self.wants(each)]

    def stats(self) -> Dict[str, Any]:
        """Return what was heard and lost so far, JSON-ready."""
        return {**self.inlet.report(), "arbiter": self.arbiter.report(), "events": self.events,
                "internal_errors": self.inlet.loop.errors,
                "conflation": None if self.conflator is None else {"merged": self.conflator.merged,
                                                                   "dropped": self.conflator.dropped},
                "queue": {"datagrams": len(self.queue), "bytes": self.queued_bytes, "limit_bytes": self.queue_bytes,
                          "most_bytes": self.most_queued_bytes}}

    # -- from the sockets into the queue ---------------------------------------------------------------------

    def look(self, wait_ns: int) -> None:
        """Take what the sockets have; wait for something to come for `wait_ns` at most."""
        inlet, run_once = self.inlet, self.inlet.loop.run_once
        most = inlet.datagrams + MOST
        inlet.is_more = True
        while inlet.is_more and inlet.datagrams < most:
            inlet.is_more = False
            before, before_ns = inlet.datagrams, wall_ns()
            run_once(wait_ns)
            if inlet.tap is not None:
                inlet.tap.read()
            wait_ns = 0
        if not inlet.is_more:
            self.empty_ns = before_ns if inlet.datagrams > before else wall_ns()
        self.look_at_ns = steady_ns() + LOOK_NS
        came = self.came
        if came:
            if len(inlet.names) > 1 or len(inlet.sources) > 1:
                came.sort(key=came_at)
            self.queue += came
            came.clear()

    def on_datagram(self, datagram: memoryview, came_ns: int, origin: Any) -> None:
        size = len(datagram) + OVERHEAD_BYTES
        if self.is_full or self.queued_bytes + size > self.queue_bytes:
            self.is_full = True
            self.inlet.own_losses.add(datagram)
            return
        self.queued_bytes += size
        self.came.append((bytes(datagram), came_ns, origin))

    # -- from the queue to the consumer ----------------------------------------------------------------------

    def merged(self) -> Iterator[Event]:
        """Yield the events of all that is in the queue, then of what time brings."""
        queue, inlet, arbiter = self.queue, self.inlet, self.arbiter
        while queue:
            self.most_queued_bytes = max(self.most_queued_bytes, self.queued_bytes)
            datagram, came_ns, origin = queue.popleft()
            self.queued_bytes -= len(datagram) + OVERHEAD_BYTES
            if self.is_full and self.queued_bytes * 2 <= self.queue_bytes:
                self.is_full = False
            for heard in inlet.take(datagram, came_ns, origin):
                yield from arbiter.take(heard, inlet.now_ns)
            yield from arbiter.tick(inlet.now_ns)
        if not inlet.wait_ns(self.empty_ns):           # not the time it is: something may have come since, unread
            for heard in inlet.tend(self.empty_ns):
                yield from arbiter.take(heard, inlet.now_ns)
            yield from arbiter.tick(inlet.now_ns)

    def flow(self) -> Generator[Optional[Event], None, None]:
        """Yield events as they are asked for; None where there are none now. Never ends."""
        while True:
            for event in self.merged():
                told = self.told(event)
                if told is not None:
                    yield told
            yield None

    def conflated(self) -> Generator[Optional[Event], None, None]:
        """The same by way of the conflator: all that is there goes into it before any comes out."""
        conflator = self.conflator
        assert conflator is not None
        while True:
            for event in self.merged():
                told = self.told(event)
                if told is not None:
                    conflator.add(told)
            yield from conflator.take()
            yield None

    def told(self, event: Event) -> Optional[Event]:
        """Return the event as it is handed over; None where it is not wanted."""
        if isinstance(event, Gap):
            return event._replace(cause=self.inlet.cause(event))
        instrument = getattr(event, "instrument", None)
        return event if instrument is None or self.wants(instrument) else None

    def wants(self, instrument: Instrument) -> bool:
        return self.wanted is None or not self.wanted.isdisjoint(names(instrument))


def names(instrument: Instrument) -> List[str]:
    """Return the texts by which an instrument can be asked for."""
    symbol = instrument.symbol.lower()
    return [f"{instrument.venue.lower()}:{symbol}", symbol, instrument.name.lower()]


def texts(given: Union[str, Iterable[str]]) -> List[str]:
    return [given] if isinstance(given, str) else list(given)

"""Storms in virtual time: real publishers, a network that loses, doubles and reorders, real receivers, and a judge.

    Market ─▶ Host (Publisher, Encoder, LoopEncoder, Store, Server) ─▶ Link, a line ─▶ Consumer (Receiver, Client)
                 └─▶ Ledger: the truth of a stream                                       └─▶ Judge

Nothing here sleeps or reads a clock: World keeps a queue of what happens when. All dice are of one seed.

The truth is kept apart from what is judged. A Ledger reads every datagram as it left, by structs of its own (from
docs/protocol.md), into plain dicts: what each number was, and what each book was before it. The Market keeps two dicts a
coin; where a host has just published a book, that book and the ledger's must agree with the market's.

A Judge follows one receiver with a cursor a stream. Every number that the stream passes was either *given* to the receiver
or is in a Gap, never both; what was given is handed on once and in order; a book that is shown LIVE is the ledger's.
"""

import heapq
import random
from bisect import bisect_right
from collections import Counter, deque, namedtuple
from struct import Struct

from support import is_best

from feeder import events, receiver as receiving
from feeder.arbiter import Arbiter
from feeder.control import Client, Server, Store, parse_networks
from feeder.instrument import Instrument
from feeder.message import BUY, LIVE, SELL
from feeder.packet import Book, Encoder, LoopEncoder
from feeder.publish import Publisher, SnapshotLoop
from feeder.seal import Seal

MICROSECOND, MILLISECOND, SECOND = 10**3, 10**6, 10**9
START = 1_700_000_000 * SECOND
SILENCE_NS = 3 * SECOND
TICK_NS = SECOND // 2                    # how often receivers are told the time when they ask for nothing else
WIRE_DELAY_NS = MILLISECOND              # of every link at least; a host's packets are out by then

HEADER = Struct("<IBBHQQqHHI")
CONTROL = Struct("<IBBHQQII16s")
UNAVAILABLE = 3
MESSAGE = Struct("<HHIQqqBBHI")
TRADE, BBO = Struct("<QqqB7x"), Struct("<qqqq")
DEFINITION, STATUS = Struct("<bbHB3xqq24s32s32s"), Struct("<HBBI24s32s")
(DEFINITION_TYPE, SNAPSHOT_TYPE, INCREMENT_TYPE, TRADE_TYPE, BBO_TYPE, STATUS_TYPE, PADDING_TYPE, ROUND_TYPE) = range(1, 9)
LAST, FIRST, REFRESH = 1, 2, 4
HEARTBEAT, END, SNAPSHOTS, RETRANSMITTED, SIGNED = 1, 2, 4, 8, 16
NOBODY = 0xFFFFFFFF

Head = namedtuple("Head", "flags channel session sequence count size loop")
Fact = namedtuple("Fact", "kind instrument_id flags state epoch venue_sequence event_ns body begin")
Version = namedtuple("Version", "is_live epoch definition bids asks venue_sequence")
UNKNOWN = Version(False, 0, None, ([], []), ([], []), 0)


def head_of(datagram):
    _, _, flags, channel, session, sequence, _, count, size, loop = HEADER.unpack_from(datagram)
    return Head(flags, channel, session, sequence, count, size, loop)


class World:
    """What happens when, in ns of a wall clock that runs as fast as it can."""

    def __init__(self, seed):
        self.seed = seed
        self.now_ns = START
        self.queue = []
        self.order = 0

    def dice(self, *name):
        """Return dice of their own for one thing, so that one more draw here changes nothing there."""
        return random.Random(f"{self.seed} {name}")

    def at(self, when_ns, call, *args):
        self.order += 1
        heapq.heappush(self.queue, (when_ns, self.order, call, args))

    def after(self, delay_ns, call, *args):
        self.at(self.now_ns + delay_ns, call, *args)

    def every(self, interval_ns, call):
        def again():
            self.after(interval_ns, again)
            call()
        self.after(interval_ns, again)

    def run(self, until_ns):
        queue = self.queue
        while queue and queue[0][0] <= until_ns:
            self.now_ns, _, call, args = heapq.heappop(queue)
            call(*args)
        self.now_ns = until_ns


# -- the truth -----------------------------------------------------------------------------------------------


class Coin:
    """One instrument of the market: two dicts, and what they were at each of the venue's numbers."""

    def __init__(self, number, dice, depth, shared):
        self.number = number
        self.venue = ("binance_spot", "okx", "kraken")[number % 3]
        self.symbol = f"COIN{number}USDT"
        self.depth = depth
        self.shared = shared
        self.middle = dice.randrange(2_000, 3_000)
        self.sequence = dice.randrange(10**6)
        self.trade_id = dice.randrange(10**6)
        width = max(30, 2 * depth)
        self.bids = {self.middle - 1 - at: dice.randrange(1, 9) for at in range(width) if dice.random() < 0.7}
        self.asks = {self.middle + 1 + at: dice.randrange(1, 9) for at in range(width) if dice.random() < 0.7}

    def change(self, dice):
        """One event of the venue: return (bids, asks), quantity 0 removes."""
        self.sequence += dice.choice((1, 1, 3))
        changes = {}, {}
        step = dice.choice((0, 0, 0, -1, 1, dice.randrange(-9, 10)))
        self.middle = max(500, self.middle + step)
        for book, side, sign in ((self.bids, changes[0], 1), (self.asks, changes[1], -1)):
            for _ in range(dice.choice((0, 1, 1, 2, 5))):
                distance = 1 + int(abs(dice.gauss(0, 1)) * dice.choice((3, 30)))
                side[self.middle - sign * distance] = dice.choice((0, 0, 1, 2, 3, 10**6))
            if step:
                for price in book:
                    if sign * (price - self.middle) >= 0:
                        side[price] = 0
            for price, quantity in side.items():
                if quantity:
                    book[price] = quantity
                else:
                    book.pop(price, None)
        return [[number for level in side.items() for number in level] for side in changes]


class Ledger:
    """The truth of one stream, written as its datagrams leave. `versions[id]`: (positions, Versions), ascending.

    A Version holds from its position on: after every message below that number.
    """

    def __init__(self, channel, session):
        self.key = channel, session
        self.facts = {}
        self.next = 1
        self.parts = {}
        self.books = {}                 # instrument id -> [is_live, epoch, definition, bids, asks, venue sequence]
        self.versions = {}
        self.ids, self.names = {}, {}   # (venue, symbol) -> instrument id, and back
        self.offsets = {}               # (venue, symbol) -> the publisher's numbers less the market's
        self.ended = False

    def note(self, datagram):
        """Read one datagram of the sequence."""
        head = head_of(datagram)
        assert (head.channel, head.session) == self.key and not head.flags & (SNAPSHOTS | RETRANSMITTED)
        assert head.sequence == self.next and head.size == len(datagram)
        at = HEADER.size
        for number in range(head.sequence, head.sequence + head.count):
            self.facts[number] = self.apply(number, datagram, at)
            at += MESSAGE.unpack_from(datagram, at)[1]
        assert at == head.size - (16 if head.flags & SIGNED else 0)
        self.next += head.count
        self.ended = self.ended or bool(head.flags & END)

    def apply(self, number, data, at):
        kind, size, instrument_id, venue_sequence, event_ns, _, flags, state, bid_count, epoch = MESSAGE.unpack_from(
            data, at)
        body = at + MESSAGE.size
        if kind == PADDING_TYPE or kind == STATUS_TYPE and instrument_id == NOBODY:
            fields = STATUS.unpack_from(data, body) if kind == STATUS_TYPE else None
            return Fact(kind, instrument_id, flags, state, epoch, venue_sequence, event_ns, fields, number)
        book = self.books.setdefault(instrument_id, [False, 0, None, {}, {}, 0])
        fields, begin = None, number
        if kind == DEFINITION_TYPE:
            *scales, depth, shared, tick, lot, venue, symbol, name = DEFINITION.unpack_from(data, body)
            fields = (*map(text_of, (venue, symbol, name)), *scales, depth, tick, lot, shared, flags >> 5)
            known = book[2]
            if fields != known:
                if known is not None and is_other(known, fields):
                    book[0] = False
                assert fields[-1] == (0 if known is None else (known[-1] + (fields[3:5] != known[3:5])) % 8)
                book[2] = fields
                self.names[instrument_id] = fields[:2]
                self.ids[fields[:2]] = instrument_id
                self.keep(number, instrument_id, book)
            return Fact(kind, instrument_id, flags, state, epoch, venue_sequence, event_ns, fields, begin)
        assert book[2] is None or flags >> 5 == book[2][-1]
        if kind in (TRADE_TYPE, BBO_TYPE, STATUS_TYPE):
            layout = {TRADE_TYPE: TRADE, BBO_TYPE: BBO, STATUS_TYPE: STATUS}[kind]
            fields = layout.unpack_from(data, body)
            assert (state == LIVE) == book[0] and (state != LIVE or epoch == book[1]) or kind == STATUS_TYPE
            if book[0] and state != LIVE:
                book[0] = False
                self.keep(number, instrument_id, book)
        else:
            numbers = Struct(f"<{(size - MESSAGE.size) // 8}q").unpack_from(data, body)
            parts = self.parts.setdefault(instrument_id, ([], [], number))
            parts[0].extend(numbers[:2 * bid_count])
            parts[1].extend(numbers[2 * bid_count:])
            if flags & LAST:
                *fields, begin = self.parts.pop(instrument_id)
                if kind == SNAPSHOT_TYPE:
                    assert state == LIVE and epoch == book[1] + (not flags & REFRESH)
                    book[3], book[4] = {}, {}
                else:
                    assert book[0] and (state, epoch) == (LIVE, book[1])
                for side, flat in zip(book[3:5], fields):
                    for price, quantity in zip(flat[::2], flat[1::2]):
                        if quantity:
                            side[price] = quantity
                        else:
                            side.pop(price, None)
                book[0], book[1], book[5] = True, epoch, venue_sequence
                self.keep(number, instrument_id, book)
        return Fact(kind, instrument_id, flags, state, epoch, venue_sequence, event_ns, fields, begin)

    def keep(self, number, instrument_id, book):
        positions, versions = self.versions.setdefault(instrument_id, ([], []))
        bids, asks = sorted(book[3], reverse=True), sorted(book[4])
        positions.append(number + 1)
        versions.append(Version(book[0], book[1], book[2], ([-price for price in bids], [book[3][price] for price in bids]),
                                (asks, [book[4][price] for price in asks]), book[5]))

    def version(self, instrument_id, position):
        """What the instrument was after every message below `position`."""
        positions, versions = self.versions.get(instrument_id, ((), ()))
        at = bisect_right(positions, position)
        return versions[at - 1] if at else UNKNOWN



def text_of(field):
    return field.rstrip(b"\0").decode()


def is_other(known, definition):
    """Whether a definition, as a ledger has it, differs in more than tick and lot."""
    return known[:6] + known[8:] != definition[:6] + definition[8:]


class Market:
    """Coins that change at random moments, and the hosts that hear of it, all at the same moment."""

    def __init__(self, world, coin_count, rate, shared):
        self.world = world
        self.dice = world.dice("market")
        self.coins = [Coin(number, self.dice, self.dice.choice((1, 3, 5, 20, 0)), shared) for number in range(coin_count)]
        self.hosts = []
        self.rate = rate
        self.events = 0
        self.stopped = False
        self.next()

    def next(self):
        if not self.stopped:
            self.world.after(int(self.dice.expovariate(self.rate) * SECOND), self.event)

    def event(self):
        dice = self.dice
        for _ in range(dice.choice((1, 1, 1, 1, 12))):       # what one frame of a venue brings
            coin = dice.choice(self.coins)
            self.events += 1
            if dice.random() < 0.7:
                bids, asks = coin.change(dice)
                for host in self.hosts:
                    host.increment(coin, bids, asks)
            else:
                coin.trade_id += dice.choice((1, 1, 2))
                what = (dice.randrange(10**6), dice.randrange(1, 10**6), dice.choice((BUY, SELL)), dice.random() < 0.6)
                for host in self.hosts:
                    host.trade(coin, *what)
        for host in self.hosts:
            host.flush_soon()
        self.next()


class Stream:
    """One channel of one session of a host: its encoders, and the ledger."""

    def __init__(self, host, channel):
        self.host = host
        self.ledger = Ledger(channel, host.session)
        options, world = host.options, host.world
        self.encoder = Encoder(host.session, channel, self.emit, lambda: world.now_ns, options.packet_bytes, options.seal)
        self.store = Store(options.kept_datagrams, options.packet_bytes)
        self.kept = deque(maxlen=options.kept_datagrams)      # (first, last, datagram): what the store must have
        self.loop = LoopEncoder(host.session, channel, host.send, lambda: world.now_ns, options.packet_bytes, options.seal,
                                lambda: self.encoder.sequence + self.encoder.count)
        self.encoder.gather(options.burst, MILLISECOND)
        self.sent_at_beat = 0
        self.checks = deque()           # (position, instrument, bids, asks) as the market has them
        self.ledger.offsets = {(coin.venue, coin.symbol): offset for coin, offset in host.offset.items()}
        host.ledgers[self.ledger.key] = self.ledger

    def emit(self, view):
        for datagram in cut(bytes(view)):
            self.ledger.note(datagram)
            self.host.send(datagram)
            head = head_of(datagram)
            if head.count:
                self.kept.append((head.sequence, head.sequence + head.count - 1, datagram))
                self.store.add(datagram)
        while self.checks and self.checks[0][0] <= self.ledger.next:
            self.check(*self.checks.popleft())

    def expect(self, coin, instrument):
        """Note that what was just published is the market's book."""
        price = 10 ** (-instrument.price_exponent - 2)
        quantity = 10 ** (-instrument.quantity_exponent - 3)
        self.checks.append((self.encoder.sequence + self.encoder.count, instrument,
                            [(-price * at, quantity * coin.bids[at]) for at in sorted(coin.bids, reverse=True)],
                            [(price * at, quantity * coin.asks[at]) for at in sorted(coin.asks)]))

    def check(self, position, instrument, *market):
        """The ledger's book at a position is the beginning of the market's, as much of it as was promised."""
        version = self.ledger.version(instrument.instrument_id, position)
        assert version.is_live, (self.ledger.key, instrument, position)
        for (keys, quantities), true in zip((version.bids, version.asks), market):
            assert is_best(list(zip(keys, quantities)), true, instrument.depth), (self.ledger.key, instrument, position)

    def heartbeat(self):
        if self.encoder.packets == self.sent_at_beat:
            self.encoder.heartbeat()
        self.sent_at_beat = self.encoder.packets


def cut(burst):
    """Yield the datagrams of a burst."""
    at = 0
    while at < len(burst):
        size = head_of(burst[at:at + HEADER.size]).size
        yield burst[at:at + size]
        at += size


class Host:
    """A machine that runs one publisher after another. `lines` are where its datagrams go: send(datagram)."""

    def __init__(self, world, name, market, options):
        self.world = world
        self.dice = world.dice("host", name)
        self.market = market
        self.options = options
        self.lines = []
        self.ledgers = {}               # (channel, session) -> Ledger, of all that ever ran
        self.session = 0
        self.runs = 0                   # counts starts
        self.has_faults = True
        # Where a venue numbers each connection apart, nothing can be compared between hosts.
        self.offset = {coin: 0 if coin.shared else self.dice.randrange(1, 10**6) for coin in market.coins}
        self.kill()
        market.hosts.append(self)

    def kill(self):
        """It is gone without a word."""
        self.is_up = False
        self.publisher = None
        self.streams, self.loops, self.instruments = [], [], {}
        self.following = set()          # coins that are heard without a hole

    def end(self):
        for instrument in self.instruments.values():
            self.publisher.stale(instrument, "shutdown", self.world.now_ns)
        for stream in self.streams:
            stream.encoder.end()
        self.kill()

    def start(self, clock_back=False):
        options, dice = self.options, self.dice
        self.is_up = True
        self.runs += 1
        self.session = self.session - SECOND if clock_back else max(self.world.now_ns, self.session + 1)
        self.streams = [Stream(self, options.first_channel + number) for number in range(options.channels)]
        self.publisher = Publisher([stream.encoder for stream in self.streams], self.want_resync)
        self.server = Server({stream.ledger.key[0]: stream.store for stream in self.streams}, parse_networks(["10.0.1.0/24"]),
                             dice.randbytes(32) if hasattr(dice, "randbytes") else bytes(32), options.seal,
                             packets_per_second=options.resent_per_second)
        coins = dice.sample(self.market.coins, len(self.market.coins))
        for number, coin in enumerate(coins):
            instrument = Instrument(number, coin.venue, coin.symbol, None, 2, 3, coin.depth)
            instrument.shared = coin.shared
            self.instruments[coin] = instrument
            self.publisher.define(instrument, 1, 1)
            self.later(dice.randrange(300 * MILLISECOND), self.snapshot, coin)
        self.flush()
        self.every(SECOND, self.heartbeat)
        if options.loop_rate:
            for entries, stream in zip(self.publisher.carried, self.streams):
                loop = SnapshotLoop(entries, stream.loop, options.loop_rate)
                self.loops.append(loop)
                self.every(loop.interval_ns, lambda loop=loop: loop.run(self.world.now_ns))
        else:
            self.every(options.refresh_ns, self.refresh)
        self.later(self.pause_ns(), self.fault)

    def later(self, delay_ns, call, *args):
        """Call it unless this run is over then."""
        runs = self.runs

        def if_running():
            if self.is_up and self.runs == runs:
                call(*args)
        self.world.after(delay_ns, if_running)

    def every(self, interval_ns, call):
        def again():
            self.later(interval_ns, again)
            call()
        self.later(interval_ns, again)

    # -- what the venue tells --------------------------------------------------------------------------------

    def increment(self, coin, bids, asks):
        if coin in self.following:
            instrument, now_ns = self.instruments[coin], self.world.now_ns
            scale = 10 ** (instrument.price_decimals - 2)
            self.publisher.increment(instrument, coin.sequence + self.offset[coin], now_ns - MILLISECOND, now_ns,
                                     scaled(bids, scale), scaled(asks, scale))
            if self.dice.random() < 0.2:
                self.expect(coin)

    def trade(self, coin, price, quantity, side, is_trade):
        """A trade or, of the same numbers, a quote."""
        if self.is_up:
            instrument, now_ns = self.instruments[coin], self.world.now_ns
            price *= 10 ** (instrument.price_decimals - 2)
            number = coin.trade_id + self.offset[coin]
            if is_trade:
                self.publisher.trade(instrument, number, now_ns - MILLISECOND, now_ns, number, price, quantity, side)
            else:
                self.publisher.bbo(instrument, number, now_ns - MILLISECOND, now_ns, price, quantity, 2 * price, quantity)

    def snapshot(self, coin):
        instrument = self.instruments[coin]
        scale = 10 ** (instrument.price_decimals - 2)
        flat = [[number for price in book for number in (price * scale, book[price])] for book in (coin.bids, coin.asks)]
        self.publisher.snapshot(instrument, coin.sequence + self.offset[coin], 0, self.world.now_ns, *flat)
        self.following.add(coin)
        self.expect(coin)
        self.flush_soon()

    def expect(self, coin):
        entry = self.publisher.entries[self.instruments[coin].instrument_id]
        next(stream for stream in self.streams if stream.encoder is entry.encoder).expect(coin, entry.instrument)

    def want_resync(self, instrument, reason, recv_ns):
        coin = next(coin for coin in self.market.coins if coin.symbol == instrument.symbol)
        self.following.discard(coin)
        self.later(self.dice.randrange(MILLISECOND, SECOND), self.snapshot, coin)

    # -- what goes wrong there -------------------------------------------------------------------------------

    def pause_ns(self):
        return int(self.dice.expovariate(self.options.fault_rate) * SECOND)

    def fault(self):
        self.later(self.pause_ns(), self.fault)
        coin = self.dice.choice(self.market.coins)
        if not self.has_faults or coin not in self.following:
            return
        instrument, now_ns = self.instruments[coin], self.world.now_ns
        kind = self.dice.randrange(4)
        if kind == 0:                             # its connection is lost
            self.following.discard(coin)
            self.publisher.venue_status(coin.venue, False, "disconnect", now_ns)
            self.publisher.stale(instrument, "disconnect", now_ns)
            self.later(self.dice.randrange(2 * SECOND), self.snapshot, coin)
        elif kind == 1:                           # bids above asks
            self.publisher.increment(instrument, 0, now_ns, now_ns, [10**(instrument.price_decimals + 4), 1], [])
        elif kind == 2 and instrument.price_decimals < (9 if self.options.grows else 8):        # more digits than it had, at last more than the wire's
            grown = self.dice.choice((3, 9 - instrument.price_decimals)) if self.options.grows else 1
            instrument.price_decimals += grown
            instrument.rescale()
            self.publisher.define(instrument, 10**grown, 1)
        else:                                     # a new snapshot out of the blue
            self.snapshot(coin)
        self.flush_soon()

    # -- what is sent ----------------------------------------------------------------------------------------

    def flush_soon(self):
        """The packet goes at once or a little later, but before anything else can arrive anywhere."""
        if self.dice.random() < 0.7:
            self.flush()
        else:
            self.later(self.dice.randrange(WIRE_DELAY_NS // 2), self.flush)

    def flush(self):
        if self.is_up:
            self.publisher.flush()

    def heartbeat(self):
        for stream in self.streams:
            stream.heartbeat()

    def refresh(self):
        self.publisher.refresh()
        self.publisher.flush()

    def send(self, datagram):
        datagram = bytes(datagram)
        for line in self.lines:
            line.send(datagram)

    def answer(self, data, address):
        """Return what this host sends back to who asks for messages again, after a look whether it is right."""
        if not self.is_up:
            return []
        asked = CONTROL.unpack_from(data)
        answers = [bytes(answer) for answer in self.server.receive(data, address, self.world.now_ns)]
        kept = next((stream.kept for stream in self.streams if stream.ledger.key == asked[3:5]), ())
        first, last = asked[5], asked[5] + asked[6] - 1
        here = [each for each in kept if each[0] <= last and first <= each[1]]
        packets = [answer for answer in answers if answer[:4] != b"FDRQ"]
        if packets:
            assert len(packets) <= 64
            assert [packet[:5] + packet[6:] for packet in packets] == [each[2][:5] + each[2][6:] for each in here[:64]]
            assert all(packet[5] == each[2][5] | RETRANSMITTED for packet, each in zip(packets, here))
        for control in map(CONTROL.unpack_from, (answer for answer in answers if answer[:4] == b"FDRQ")):
            if control[2] == UNAVAILABLE:
                told = range(control[5], control[5] + control[6])
                assert first <= told[0] <= told[-1] <= last
                assert not any(each[0] <= told[-1] and told[0] <= each[1] for each in kept), (control, here)
        return answers


def scaled(flat, scale):
    """Prices with more decimals; always a new list."""
    return [number if at % 2 else number * scale for at, number in enumerate(flat)]


# -- the network ---------------------------------------------------------------------------------------------


class Line:
    """What a host sends to one destination, and the links of all who listen there."""

    def __init__(self):
        self.links = []
        self.is_cut = False

    def send(self, datagram):
        if not self.is_cut:
            for link in self.links:
                link.send(datagram)


class Link:
    """A bad way to one listener: loss alone and in bursts, copies, lateness, blackouts, rubbish. `calm` ends it all.

    deliver(datagram, is_whole): what is not whole is malformed for everybody who looks at its header and sizes.
    """

    def __init__(self, world, dice, weather, deliver):
        self.world = world
        self.dice = dice
        self.weather = weather
        self.loop_weather = None        # of packets of the snapshot loop, where it is another
        self.deliver = deliver
        self.calm = False
        self.losing = 0                 # datagrams of a burst of losses that are still to come
        self.blackouts = []             # [(start_ns, stop_ns)]
        self.lost = 0

    def send(self, datagram):
        dice, weather = self.dice, self.weather
        if self.loop_weather is not None and datagram[5] & SNAPSHOTS:
            weather = self.loop_weather
        now_ns = self.world.now_ns
        if self.calm:
            return self.world.at(now_ns + WIRE_DELAY_NS, self.deliver, datagram, True)
        if any(start <= now_ns < stop for start, stop in self.blackouts):
            self.lost += 1
            return None
        if not self.losing and dice.random() < weather.loss / weather.burst:
            self.losing = 1 if weather.burst == 1 else dice.randrange(1, 2 * weather.burst)
        if self.losing:
            self.losing -= 1
            self.lost += 1
        else:
            self.world.at(now_ns + self.delay_ns(weather), self.deliver, datagram, True)
        if dice.random() < weather.duplication:
            self.world.at(now_ns + self.delay_ns(weather), self.deliver, datagram, True)
        if dice.random() < weather.rubbish:
            self.world.at(now_ns + self.delay_ns(weather), self.deliver, spoiled(datagram, dice), False)
        return None

    def delay_ns(self, weather):
        if self.dice.random() < weather.reordering:
            return WIRE_DELAY_NS + self.dice.randrange(1, weather.jitter_ns)
        return WIRE_DELAY_NS


Weather = namedtuple("Weather", "loss burst duplication reordering jitter_ns rubbish")
FINE = Weather(0, 1, 0, 0, 2, 0)


def spoiled(datagram, dice):
    """Return what has to be recognized as malformed by its sizes, its magic or its version."""
    kind = dice.randrange(5)
    if kind == 0:
        return datagram[:dice.randrange(len(datagram))]
    if kind == 1:
        return datagram + bytes(8)
    if kind == 2:
        return bytes(dice.randrange(256) for _ in range(dice.randrange(100)))
    data = bytearray(datagram)
    data[dice.randrange(5) if kind == 3 else 34] ^= 1 << dice.randrange(8)     # magic, version; size
    return bytes(data)


# -- who listens ---------------------------------------------------------------------------------------------


class Failure(AssertionError):
    """What a judge found, with the seed that brings it again."""


def wrong_book(view, version):
    """Return what is wrong with a view that is shown live, None where it is the ledger's."""
    definition = view.definition
    if not version.is_live:
        return "not live at the publisher"
    if view.epoch != version.epoch:
        return f"epoch {view.epoch}, not {version.epoch}"
    if definition[1:] != version.definition:
        return f"{definition}, not {version.definition}"
    for side, (keys, quantities), name in ((view.bids, version.bids, "bids"), (view.asks, version.asks, "asks")):
        if side.keys != keys or side.quantities != quantities:
            return f"{name} {list(zip(side.keys, side.quantities))}, not {list(zip(keys, quantities))}"
    return None


class Course:
    """What a judge knows of one stream at one receiver. Numbers below `cursor` are settled: handed on, or in a gap."""

    def __init__(self, ledger):
        self.ledger = ledger
        self.cursor = None              # while it is not open
        self.settled = 0                # as far as it ever was
        self.clear_from = 0             # no gap since
        self.given = {}                 # number -> when it was first given to the receiver
        self.highest = 0                # of what was given
        self.heard_ns = 0               # a packet of the sequence by any line
        self.is_ended = False
        self.in_step = {}               # instrument -> epoch
        self.told = {}                  # instrument -> the body of its newest definition
        self.defined_from = {}          # instrument -> where it was told
        self.missed = set()             # numbers in gaps
        self.given_up = set()           # numbers that nobody can send again

    def give(self, head, now_ns):
        for number in range(head.sequence, head.sequence + head.count):
            self.given.setdefault(number, now_ns)
        # A packet without messages tells that all below its number was sent.
        self.highest = max(self.highest, head.sequence + head.count - 1)
        self.is_ended = self.is_ended or bool(head.flags & END)

    def follow(self, fact):
        """Any message of an instrument tells its edition, state and epoch."""
        known = self.told.get(fact.instrument_id)
        if known is not None and known[-1] != fact.flags >> 5:
            del self.told[fact.instrument_id]          # the one that is in force was lost
            self.in_step.pop(fact.instrument_id, None)
        if fact.state != LIVE or self.in_step.get(fact.instrument_id) != fact.epoch:
            self.in_step.pop(fact.instrument_id, None)

    def define(self, instrument_id, body):
        known = self.told.get(instrument_id)
        self.told[instrument_id] = body
        self.defined_from[instrument_id] = self.cursor
        if known is not None and is_other(known, body):
            self.in_step.pop(instrument_id, None)


class Judge:
    """Follows one receiver; raises Failure at the first thing that is wrong.

    Args:   ledgers: (channel, session) -> Ledger, of all hosts; hold_ns as the receiver has it.
    """

    def __init__(self, name, world, receiver, ledgers, hold_ns):
        self.name = name
        self.world = world
        self.receiver = receiver
        self.ledgers = ledgers
        self.hold_ns = hold_ns
        self.courses = {}
        self.sessions = {}              # (line, channel) -> the session that the line brought last
        self.may_open = None            # ((channel, session), numbers to begin at) by the datagram in work
        self.event_count = self.lost = self.live_looks = self.gap_count = 0

    def fail(self, text):
        raise Failure(f"seed {self.world.seed} at {(self.world.now_ns - START) / SECOND:.6f} s, {self.name}: {text}")

    def check(self, is_true, text, *more):
        if not is_true:
            self.fail(text.format(*more))

    # -- what the receiver is given --------------------------------------------------------------------------

    def give(self, line, datagram):
        """Note a good datagram before the receiver has it; line None: it was asked for."""
        head = head_of(datagram)
        key = head.channel, head.session
        now_ns = self.world.now_ns
        course = self.courses.get(key)
        if course is None:
            course = self.courses[key] = Course(self.ledgers[key])
        self.may_open = None
        if line is not None:
            before = self.sessions.get((line, head.channel))
            is_loop = head.flags & SNAPSHOTS
            self.may_open = key, {head.sequence} if before in (None, head.session) or is_loop else {1}
            if not is_loop and self.may_move(head, before):
                self.sessions[line, head.channel] = head.session
                course.heard_ns = now_ns
        if not head.flags & SNAPSHOTS:
            course.give(head, now_ns)

    def may_move(self, head, before):
        """A line goes on to a greater session; to a lower one where the one before has ended, or was silent."""
        if before is None or head.session >= before:
            return True
        course = self.courses[head.channel, before]
        return course.is_ended or self.world.now_ns - course.heard_ns > SILENCE_NS

    def is_left(self, key):
        """No line brings it any more."""
        return not any((channel, session) == key for (_, channel), session in self.sessions.items())

    # -- what it hands on ------------------------------------------------------------------------------------

    def take(self, heard):
        self.event_count += 1
        kind = heard.kind
        if heard.stream is None:
            return                      # about lines
        key = heard.stream.key
        course = self.courses.get(key)
        if kind == receiving.SESSION:
            self.open(key, course, heard.sequence)
            return
        self.check(course is not None and course.cursor is not None, "{} of {}, which is not open", heard, key)
        if kind == receiving.GAP:
            self.gap(key, course, heard.message)
        elif kind in TOLD_AS:
            self.message(key, course, heard)
            self.look(key, course, heard.stream)

    def open(self, key, course, first):
        self.check(self.may_open is not None and self.may_open[0] == key, "{} begins, told by nobody", key)
        self.check(first in self.may_open[1], "{} begins at {}, not at {}", key, first, self.may_open[1])
        self.check(course.settled == 0 or first <= course.settled, "{} begins again at {}, nobody tells what is missing "
                   "since {}", key, first, course.settled)
        course.cursor = course.clear_from = first
        course.heard_ns = max(course.heard_ns, self.world.now_ns)      # by the loop alone
        course.in_step.clear()
        course.told.clear()

    def gap(self, key, course, gap):
        now_ns = self.world.now_ns
        self.check((gap.channel, gap.session) == key, "{} in stream {}", gap, key)
        self.check(course.cursor <= gap.first <= gap.last, "{}, but all below {} is settled", gap, course.cursor)
        self.pass_by(key, course, gap.first)
        numbers = range(gap.first, gap.last + 1)
        self.check(gap.last <= course.highest, "{}, but nothing was heard behind {}", gap, course.highest)
        for number in numbers:
            self.check(number not in course.given, "{} is in {}, but came at {}", number, gap, course.given.get(number))
        if self.hold_ns and not course.given_up.issuperset(numbers) and not self.is_left(key):
            since_ns = min((at_ns for number, at_ns in course.given.items() if number > gap.last), default=0)
            self.check(now_ns - since_ns >= self.hold_ns, "{} after {} ns, the hold is {}", gap, now_ns - since_ns, self.hold_ns)
        course.cursor = course.clear_from = gap.last + 1
        course.missed.update(numbers)
        course.in_step.clear()
        self.gap_count += 1
        self.lost += len(numbers)

    def pass_by(self, key, course, stop):
        """Settle what the stream has passed without a word: cursor .. stop - 1."""
        for number in range(course.cursor, stop):
            fact = course.ledger.facts.get(number)
            self.check(number in course.given, "{}: {} {} was passed, but never came and is in no gap", key, number, fact)
            self.check(self.may_be_silent(course, fact), "{}: {} {} was not handed on", key, number, fact)
            course.cursor = number + 1

    def may_be_silent(self, course, fact):
        kind, instrument_id = fact.kind, fact.instrument_id
        if kind == PADDING_TYPE:
            return True
        if kind == DEFINITION_TYPE:
            return course.told.get(instrument_id) == fact.body
        if instrument_id == NOBODY:
            return False
        was_in_step = course.in_step.get(instrument_id) == fact.epoch and fact.state == LIVE
        course.follow(fact)
        if instrument_id not in course.told or not fact.flags & LAST:
            return True                 # nobody can read its numbers; or more is to come
        if kind == INCREMENT_TYPE:
            return not was_in_step
        if kind == SNAPSHOT_TYPE:       # a repetition, or the end of one that is not whole
            return (bool(fact.flags & REFRESH) and was_in_step
                    or fact.begin < max(course.clear_from, course.defined_from.get(instrument_id, 0)))
        return kind == STATUS_TYPE

    def message(self, key, course, heard):
        """One message of the sequence, or what the snapshot loop brought, which stands beside it."""
        kind, number, message = heard.kind, heard.sequence, heard.message
        fact = course.ledger.facts.get(number)
        instrument_id = message.instrument_id
        is_fact = fact is not None and fact.kind in TOLD_AS[kind] and fact.instrument_id == instrument_id and (
            kind != receiving.STATE or isinstance(message, Book) == (fact.kind != STATUS_TYPE)) and (
            bool(fact.flags & REFRESH) == bool(message.flags & REFRESH) if isinstance(message, Book) else number in course.given)
        if not is_fact and kind in (receiving.BOOK, receiving.DEFINITION, receiving.STATE):
            return self.from_loop(key, course, heard)
        self.check(is_fact, "{} is told, it was {}", heard, fact)
        self.check(number in course.given, "{} is told, but never came", heard)
        if kind == receiving.DEFINITION and number in course.missed and instrument_id not in course.told:
            # A late one is of use where nothing is known yet (docs/protocol.md, Sequence), and nothing newer may be.
            self.check(course.ledger.version(instrument_id, course.cursor).definition == fact.body, "{} is told, late", heard)
            return course.define(instrument_id, fact.body)
        self.check(number >= course.cursor, "{} is told, but all below {} is settled", heard, course.cursor)
        self.pass_by(key, course, number)
        course.cursor = number + 1
        definition = heard.view.definition if instrument_id != NOBODY else None
        if definition is not None and definition.edition == fact.flags >> 5:      # else nobody may read its numbers
            true = course.ledger.version(instrument_id, number + 1).definition
            self.check(true == definition[1:], "{} is told with {}, not {}", heard, definition, true)
        if kind != receiving.STATE or fact.kind == STATUS_TYPE:
            self.check(plain(kind, message) == plain_fact(kind, fact), "{} is told, it was {}", heard, fact)
        if kind == receiving.DEFINITION:
            course.define(instrument_id, fact.body)
        elif kind == receiving.BOOK:
            self.check(fact.begin >= course.clear_from, "{} is told, but it is not whole: no gap only since {}", heard,
                       course.clear_from)
            if fact.kind == SNAPSHOT_TYPE:
                course.in_step[instrument_id] = fact.epoch
            else:
                self.check(course.in_step.get(instrument_id) == fact.epoch, "{} is told, but its book was out of step", heard)
        elif instrument_id != NOBODY:
            course.follow(fact)
        return None

    def from_loop(self, key, course, heard):
        kind, number, message = heard.kind, heard.sequence, heard.message
        self.check(number >= course.cursor, "{} is told, but all below {} is settled", heard, course.cursor)
        self.pass_by(key, course, number)
        version = course.ledger.version(message.instrument_id, number)
        if kind == receiving.DEFINITION:
            self.check(plain(kind, message) == version.definition, "{} is told, it is {}", heard, version.definition)
            course.define(message.instrument_id, version.definition)
        elif kind == receiving.BOOK:
            self.check(message.flags & REFRESH and message.type == SNAPSHOT_TYPE, "{} is told, and was nowhere", heard)
            self.check(version.is_live, "{} is told, but is not live at the publisher", heard)
            course.in_step[message.instrument_id] = version.epoch
        else:
            self.check(not version.is_live, "{} is told, but is live at the publisher", heard)
            course.in_step.pop(message.instrument_id, None)

    # -- what it shows ---------------------------------------------------------------------------------------

    def look(self, key, course, stream):
        """What is live is right, and what is right is live, as of the cursor."""
        is_dark = stream.silent or stream.ended
        for view in stream.views.values():
            is_live = view.state == LIVE
            should = not is_dark and view.instrument_id in course.in_step
            if is_live != should:
                self.fail(f"{key} {view.label} is {view.state} ({view.reason}) at {course.cursor}, live would be {should}")
            if is_live:
                self.live_looks += 1
                wrong = wrong_book(view, course.ledger.version(view.instrument_id, course.cursor))
                if wrong:
                    self.fail(f"{key} {view.label} is shown live at {course.cursor}, but is wrong: {wrong}")

    def check_wanted(self, wanted):
        """What is asked for is missing, something behind it is here, and it was not given up."""
        for channel, session, first, last in wanted:
            course = self.courses[channel, session]
            self.check(course.cursor <= first <= last <= course.highest, "{} to {} of {} is wanted, at {}", first, last,
                       (channel, session), course.cursor)
            self.check(not any(number in course.given for number in range(first, last + 1)), "{} to {} is wanted, and here",
                       first, last)

    def settle(self):
        """The receiver is done with what it was given."""
        now_ns, streams = self.world.now_ns, self.receiver.streams
        for key, stream in streams.items():
            course = self.courses[key]
            self.pass_by(key, course, stream.expected)
            self.look(key, course, stream)
            quiet_ns = now_ns - course.heard_ns
            is_held = course.cursor <= course.highest            # what is new waits behind a gap, and is not heard yet
            self.check(not stream.silent or is_held or quiet_ns > SILENCE_NS, "{} is silent after {} ns", key, quiet_ns)
            self.check(stream.silent or stream.ended or quiet_ns <= SILENCE_NS + TICK_NS, "{} is heard after {} ns", key, quiet_ns)
            self.check(not stream.ended or course.is_ended, "{} has ended, nobody said so", key)
        for key, course in self.courses.items():
            if course.cursor is not None and key not in streams:
                course.settled, course.cursor = course.cursor, None


def plain(kind, message):
    """What a message says, as a ledger would have it."""
    if kind == receiving.BOOK:
        return message.type, tuple(message.bids), tuple(message.asks), message.epoch, message.venue_sequence, message.event_ns
    if kind == receiving.DEFINITION:
        return message[1:]
    if kind == receiving.TRADE:
        return tuple(message.item)
    if kind == receiving.BBO:
        return (*message.bid, *message.ask)
    return message.reason, message.connected, message.venue, message.text, message.state, message.epoch


def plain_fact(kind, fact):
    body = fact.body
    if kind == receiving.BOOK:
        return fact.kind, tuple(body[0]), tuple(body[1]), fact.epoch, fact.venue_sequence, fact.event_ns
    if kind in (receiving.DEFINITION, receiving.TRADE, receiving.BBO):
        return body
    return (body[0], body[1], *map(text_of, body[4:]), fact.state, fact.epoch)


# What each kind of Heard may have been on the wire.
TOLD_AS = {receiving.BOOK: (SNAPSHOT_TYPE, INCREMENT_TYPE), receiving.TRADE: (TRADE_TYPE,), receiving.BBO: (BBO_TYPE,),
           receiving.STATE: (STATUS_TYPE, SNAPSHOT_TYPE, INCREMENT_TYPE), receiving.VENUE: (STATUS_TYPE,),
           receiving.DEFINITION: (DEFINITION_TYPE,)}


class Desk:
    """Follows the public events of one consumer, as its user would; the judge knows where each stream is.

    Whoever applies every Book has the instrument's book, which is the ledger's; what was told by State is what holds;
    each trade comes once; a gap that is called covered hides no trade.
    """

    def __init__(self, judge, market, arbiter):
        self.judge = judge
        self.coins = {(coin.venue, coin.symbol): coin for coin in market.coins}
        self.arbiter = arbiter
        self.books = {}                 # instrument -> ({price: quantity}, {price: quantity}) as its Books told
        self.states = {}                # instrument -> the last State told
        self.sequences = {}             # instrument -> [venue sequence of each Book]
        self.trades = {}                # instrument -> {trade id: how often it was told}
        self.handed = {}                # (venue, symbol) -> trade ids that a stream handed on, with a known scale
        self.gaps = {}                  # (channel, session, first, last) -> covered
        self.switches = []
        self.counts = Counter()

    def hear(self, heard):
        now_ns = self.judge.world.now_ns
        view = heard.view
        if heard.kind == receiving.TRADE and view.definition is not None and view.definition.edition == heard.message.edition:
            self.handed.setdefault((view.venue, view.symbol), set()).add(heard.message.item.trade_id)
        self.take_all(self.arbiter.take(heard, now_ns))

    def tick(self):
        self.take_all(self.arbiter.tick(self.judge.world.now_ns))

    def take_all(self, told):
        for event in told:
            self.take(event)

    def take(self, event):
        kind = type(event)
        self.counts[kind.__name__] += 1
        if kind is events.State:
            self.states[event.instrument] = event.state
        elif kind is events.Book:
            self.on_book(event)
        elif kind is events.Trade:
            self.on_trade(event)
        elif kind is events.Gap:
            self.gaps[event[:4]] = event.covered
        elif kind is events.Switch:
            self.switches.append(event)

    def on_book(self, event):
        judge, instrument = self.judge, event.instrument
        sides = self.books.setdefault(instrument, ({}, {}))
        for side, flat in zip(sides, (event.flat_bids, event.flat_asks)):
            if event.is_snapshot:
                side.clear()
            for price, quantity in zip(flat[::2], flat[1::2]):
                if quantity:
                    side[price] = quantity
                else:
                    side.pop(price, None)
        judge.check(self.states.get(instrument) == "live" and instrument.is_live, "{} while {}", event, instrument)
        sequences = self.sequences.setdefault(instrument, [])
        if self.coins[instrument.venue, instrument.symbol].shared and sequences:
            judge.check(event.venue_sequence >= sequences[-1], "{} after {}: back in time", event, sequences[-1])
        sequences.append(event.venue_sequence)
        self.look(instrument)

    def on_trade(self, event):
        judge, instrument = self.judge, event.instrument
        fact = judge.ledgers[event.channel, event.session].facts[event.sequence]
        judge.check(fact.body == (event.trade_id, event.price, event.quantity, event.side), "{}, it was {}", event, fact)
        trades = self.trades.setdefault(instrument, Counter())
        trades[event.trade_id] += 1

    def look(self, instrument):
        """What is shown live is what was told, and right."""
        judge = self.judge
        course = judge.courses[instrument.channel, instrument.session]
        version = course.ledger.version(course.ledger.ids[instrument.venue, instrument.symbol], course.cursor)
        judge.check(version.is_live, "{} is live, at the publisher it is not", instrument)
        shown = instrument.bids(), instrument.asks()
        for levels, told, (keys, quantities), sign in zip(shown, self.books[instrument], (version.bids, version.asks), (-1, 1)):
            judge.check(dict(levels) == told and len(levels) == len(told), "{} shows {}, and was told {}", instrument, levels, told)
            judge.check([at for at, _ in levels] == [sign * key for key in keys] and [each for _, each in levels] == quantities,
                        "{} shows {}, the publisher has {}", instrument, levels, version)

    def settle(self):
        """All is told."""
        for instrument in self.arbiter.instruments.values():
            state = self.states.get(instrument, "syncing")
            self.judge.check(state == instrument.state and (state == "live") == instrument.is_live,
                             "{} was told to be {}, and is {}", instrument, state, (instrument.state, instrument.is_live))

    def reckon(self):
        """What is shown in the end is right. Each trade that some stream handed on was told; a covered gap hides none."""
        check = self.judge.check
        for instrument in self.arbiter.instruments.values():
            check(instrument.is_live, "{} is not live in the end: {}", instrument, instrument.reason)
            self.look(instrument)
        told = {(instrument.venue, instrument.symbol): trades for instrument, trades in self.trades.items()}
        for key, handed in self.handed.items():
            scales = {version.definition[3:5] for ledger in self.judge.ledgers.values() if key in ledger.ids
                      for version in ledger.versions[ledger.ids[key]][1]}
            if self.coins[key].shared and len(scales) == 1:       # else there is no race, and trades are those of one stream
                left = handed.difference(told.get(key, ()))
                check(not left, "trades {} of {} came, and were not told", left, key)
                twice = [number for number, count in told.get(key, {}).items() if count > 1]
                check(not twice, "trades {} of {} were told twice", twice, key)
        for (channel, session, first, last), covered in self.gaps.items():
            ledger = self.judge.ledgers[channel, session]
            for fact in map(ledger.facts.get, range(first, last + 1)) if covered else ():
                if fact.kind == TRADE_TYPE:
                    key = ledger.names[fact.instrument_id]
                    number = fact.body[0] - ledger.offsets[key]
                    check(any(number + offset in told.get(key, ()) for offset in self.offsets(key)),
                          "trade {} of {} is in a covered gap, and was not told", number, key)

    def offsets(self, key):
        return {ledger.offsets[key] for ledger in self.judge.ledgers.values()}


class Consumer:
    """A receiver behind the links to one or more lines, from now on; asks the `servers` (Hosts) for what it misses."""

    def __init__(self, world, name, lines, ledgers, weather, receiver, hold_ns=0):
        self.world = world
        self.name = name
        self.receiver = receiver
        self.judge = Judge(name, world, receiver, ledgers, hold_ns)
        self.buffer = bytearray(65_536)
        self.links = []
        self.tick_ns = None             # when the next one is set
        self.desk = None                # a Desk: takes after the judge
        self.client = self.ask_ns = None
        for number, (line, line_weather) in enumerate(zip(lines, weather)):
            def deliver(datagram, is_whole, number=number):
                self.deliver(number, datagram, is_whole)
            link = Link(world, world.dice("link", name, number), line_weather, deliver)
            line.links.append(link)
            self.links.append(link)
        world.every(TICK_NS, self.tick)

    def deliver(self, number, datagram, is_whole=True):
        """Give the receiver a datagram of a line; of what was asked for: None."""
        if is_whole:
            self.judge.give(number, datagram)
        size = len(datagram)
        self.buffer[:size] = datagram
        with memoryview(self.buffer)[:size] as view:
            self.exhaust(self.receiver.heard(view, self.world.now_ns, number))
        self.buffer[:size] = b"\xEE" * size       # it was good until here

    def asks(self, hosts, weather, seal):
        """From now on, ask them for what is missing, over a way with a weather of its own."""
        self.address = f"10.0.1.{1 + int(self.name.split()[-1])}", 40_000
        self.servers = {(f"10.0.0.{number}", 30_003): host for number, host in enumerate(hosts, 1)}
        self.client = Client(list(self.servers), seal)
        self.ways = {}
        for address, host in self.servers.items():
            def back(data, is_whole, address=address):
                self.on_answer(data, address, is_whole)

            def there(data, is_whole, address=address, host=host):
                for answer in host.answer(data, self.address) if is_whole else ():
                    self.ways[address][1].send(answer)
            dice = self.world.dice("way", self.name, address)
            self.ways[address] = Link(self.world, dice, weather, there), Link(self.world, dice, weather, back)
            self.links += self.ways[address]

    def ask(self):
        """Ask for what the receiver waits for, where it is time to."""
        now_ns = self.world.now_ns
        wanted = self.receiver.wanted(now_ns)
        self.judge.check_wanted(wanted)
        for address, data in self.client.ask(wanted, now_ns):
            self.ways[address][0].send(data)
        due_ns = self.client.deadline_ns
        if due_ns is not None and (self.ask_ns is None or not now_ns < self.ask_ns <= due_ns):
            self.ask_ns = max(due_ns, now_ns + 1)
            self.world.at(self.ask_ns, self.on_ask_time)

    def on_ask_time(self):
        if self.ask_ns is not None and self.ask_ns <= self.world.now_ns:
            self.ask_ns = None
        self.ask()

    def on_answer(self, data, address, is_whole):
        gone = self.client.receive(data, address, self.world.now_ns)
        if gone is None:
            return self.deliver(None, data, is_whole)
        for channel, session, first, last in gone:
            self.judge.courses[channel, session].given_up.update(range(first, last + 1))
            self.judge.may_open = None
            self.exhaust(self.receiver.give_up(channel, session, first, last, self.world.now_ns))
        return self.ask()

    def tick(self):
        self.tick_ns = None
        self.judge.may_open = None
        self.exhaust(self.receiver.tick(self.world.now_ns))
        if self.desk is not None:
            self.desk.tick()

    def exhaust(self, heards):
        for heard in heards:
            self.judge.take(heard)
            if self.desk is not None:
                self.desk.hear(heard)
        self.judge.settle()
        if self.desk is not None:
            self.desk.settle()
        due_ns = self.receiver.deadline_ns
        if due_ns is not None and (self.tick_ns is None or due_ns < self.tick_ns):
            self.tick_ns = max(due_ns, self.world.now_ns)
            self.world.at(self.tick_ns, self.tick)
        if self.client is not None:
            self.ask()


# -- a storm -------------------------------------------------------------------------------------------------


# What the seeds take in turn; all else is drawn.
SCENES = (
    {},
    {"loop_rate": 0},
    {"line_count": 2, "hold_ns": 50 * MILLISECOND},
    {"retransmit": True, "hold_ns": 200 * MILLISECOND},
    {"line_count": 2, "retransmit": True, "hold_ns": 200 * MILLISECOND, "restarts": 1},
    {"host_count": 2},
    {"host_count": 2, "line_count": 2, "hold_ns": 50 * MILLISECOND},
    {"host_count": 2, "restarts": 1, "blackout_ns": 2 * SECOND, "joiners": 0},
    {"blackout_ns": 5 * SECOND},
    {"blackout_ns": 60 * SECOND, "rate": 5, "loop_rate": 5},
)


class Storm:
    """One seed: what is set up, what the weather is, what happens; then calm, and the reckoning.

    Args:   host_count; line_count, of each host, with the same packets; keys of Options in `more`.
    """

    def __init__(self, seed, host_count=1, line_count=1, receiver=None, **more):
        self.world = world = World(seed)
        self.dice = dice = world.dice("plan")
        self.make_receiver = receiver or (lambda **options: receiving.Receiver(SILENCE_NS, **options))
        options = {
            "packet_bytes": dice.choice((256, 256, 512, 1472)), "burst": dice.choice((1, 1, 8)), "channels": dice.choice((1, 1, 2)),
            "loop_rate": dice.choice((0, 20, 100)), "refresh_ns": 40 * MILLISECOND, "fault_rate": dice.choice((0.2, 2)),
            "seal": Seal(b"0123456789abcdef") if dice.random() < 0.15 else None, "kept_datagrams": dice.choice((50, 1000)),
            "coins": dice.randrange(1, 6), "rate": dice.choice((40, 100, 200)), "hold_ns": dice.choice((0, 0, 5, 50)) * MILLISECOND,
            "shared": dice.choice((0, 7)), "seconds": 6, "restarts": dice.choice((0, 0, 1, 2)), "blackout_ns": 0,
            "weather": None, "joiners": dice.choice((0, 1)), "retransmit": False, "grows": True, "desk": True,
            "resent_per_second": dice.choice((200, 20_000))}
        assert set(more) <= set(options), more
        options.update(more)
        self.options = options = Options(**options)
        self.market = Market(world, options.coins, options.rate, options.shared)
        self.hosts, self.lines = [], []
        for name in "AB"[:host_count]:
            host = Host(world, name, self.market, options)
            host.lines = [Line() for _ in range(line_count)]
            self.lines += host.lines
            self.hosts.append(host)
        self.ledgers = {}
        for host in self.hosts:
            host.ledgers = self.ledgers
        self.consumers = []

    def weather(self):
        dice = self.dice
        return self.options.weather or Weather(
            dice.choice((0, 0.001, 0.01, 0.05, 0.2)), dice.choice((1, 1, 6)), dice.choice((0, 0, 0.05)),
            dice.choice((0, 0, 0.1)), dice.choice((MILLISECOND, 20 * MILLISECOND)), dice.choice((0, 0, 0.01)))

    def join(self):
        """Somebody begins to listen."""
        name = f"consumer {len(self.consumers)}"
        receiver = self.make_receiver(hold_ns=self.options.hold_ns, seal=self.options.seal)
        consumer = Consumer(self.world, name, self.lines, self.ledgers, [self.weather() for _ in self.lines], receiver,
                            self.options.hold_ns)
        if self.options.desk:
            consumer.desk = Desk(consumer.judge, self.market, Arbiter())
        if self.options.retransmit:
            consumer.asks(self.hosts, self.weather(), self.options.seal)
        self.consumers.append(consumer)
        return consumer

    def run(self):
        """Storm, calm, reckoning; return self. Raises Failure."""
        world, dice, options = self.world, self.dice, self.options
        stop_ns = START + options.seconds * SECOND
        for host in self.hosts:
            world.after(dice.randrange(SECOND), host.start)
            for _ in range(options.restarts):
                world.at(START + SECOND + dice.randrange(stop_ns - START), self.restart, host)
        self.join()
        for _ in range(options.joiners):
            world.at(START + dice.randrange(stop_ns - START), self.join)
        if options.blackout_ns:
            world.at(START + 2 * SECOND, self.black_out)
            stop_ns += options.blackout_ns
        world.run(stop_ns)
        self.calm()
        return self

    def restart(self, host):
        """It is killed, or ends; and comes back after a while, perhaps with its clock set back."""
        if host.is_up:
            (host.kill if self.dice.random() < 0.6 else host.end)()
            pause_ns = self.dice.choice((10 * MILLISECOND, SECOND, 5 * SECOND))
            is_back = pause_ns > SILENCE_NS + SECOND and not self.options.seal and self.dice.random() < 0.5
            self.world.after(pause_ns, host.start, is_back)

    def black_out(self):
        now_ns = self.world.now_ns
        for consumer in self.consumers:
            for link in consumer.links:
                link.blackouts.append((now_ns, now_ns + self.options.blackout_ns))

    def calm(self):
        """Nothing is lost any more; then every book is the publisher's, whoever listens."""
        world = self.world
        for consumer in self.consumers:
            for link in consumer.links:
                link.calm = True
        for host in self.hosts:
            host.has_faults = False
        self.market.rate = min(self.market.rate, 10)
        world.run(world.now_ns + 7 * SECOND)      # the last restart, resyncs, a round
        self.market.stopped = True
        world.run(world.now_ns + SECOND)
        sent = {stream.ledger.key: stream.ledger.next for host in self.hosts for stream in host.streams}
        world.run(world.now_ns + 2 * WIRE_DELAY_NS)
        for consumer in self.consumers:
            self.reckon(consumer, sent)

    def reckon(self, consumer, sent):
        judge = consumer.judge
        if consumer.desk is not None:
            consumer.desk.reckon()
        for host in self.hosts:
            judge.check(host.is_up and len(host.following) == len(self.market.coins), "the host is not well")
            for stream in host.streams:
                if not stream.ledger.versions:
                    continue            # no coin is on this channel
                found = consumer.receiver.streams.get(stream.ledger.key)
                judge.check(found is not None, "{} is not heard", stream.ledger.key)
                judge.check(found.expected >= sent[found.key], "{} is at {}, sent was all below {}", found.key, found.expected,
                            sent[found.key])
                for instrument_id in stream.ledger.versions:
                    view = found.views.get(instrument_id)
                    judge.check(view is not None and view.state == LIVE, "{} {} is not live in the end", stream.ledger.key,
                                instrument_id if view is None else (view.label, view.state, view.reason))


Options = namedtuple("Options", "packet_bytes burst channels loop_rate refresh_ns fault_rate seal kept_datagrams coins rate hold_ns"
                     " shared seconds restarts blackout_ns weather joiners retransmit grows desk resent_per_second first_channel", defaults=(5,))

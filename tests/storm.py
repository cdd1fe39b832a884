"""Storms in virtual time: real publishers, a network that loses, doubles and reorders, real receivers, and a judge.

    Market ─▶ Host: Publisher, Encoders, SnapshotLoop, Server ─▶ Link, a line ─▶ Consumer: Receiver, Client, Arbiter
                └─▶ Ledger: the truth of a stream (truth.py)                       └─▶ Judge, Desk (judge.py)

Nothing here sleeps or reads a clock: World keeps a queue of what happens when. All dice are of one seed. The Market
keeps two dicts a coin; where a host has just published a book, that book and the Ledger's must agree with the Market's.
"""

import heapq
import random
from collections import deque, namedtuple

from judge import SECOND, SILENCE_NS, START, TICK_NS, Desk, Judge
from support import is_best
from truth import CONTROL, RETRANSMITTED, UNAVAILABLE, Ledger, cut, head_of

from feeder import receiver as receiving
from feeder.arbiter import Arbiter
from feeder.control import Client, Server, Store, parse_networks
from feeder.instrument import Instrument
from feeder.message import BUY, LIVE, SELL
from feeder.packet import Encoder, LoopEncoder
from feeder.publish import Publisher, SnapshotLoop
from feeder.seal import Seal

MILLISECOND = 10**6
WIRE_DELAY_NS = MILLISECOND              # of every link at least; a host's packets are out by then


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


# -- what is published ----------------------------------------------------------------------------------------


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


class Market:
    """Coins that change at random moments, and the hosts that hear of it, all at the same moment."""

    def __init__(self, world, coin_count, rate, shared):
        self.world = world
        self.dice = world.dice("market")
        self.coins = [Coin(number, self.dice, self.dice.choice((1, 3, 5, 20, 0)), shared)
                      for number in range(coin_count)]
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
        shape = options.packet_bytes, options.seal
        self.encoder = Encoder(host.session, channel, self.emit, lambda: world.now_ns, *shape)
        self.store = Store(options.kept_datagrams, options.packet_bytes)
        self.kept = deque(maxlen=options.kept_datagrams)      # (first, last, datagram): what the store must have
        self.loop = LoopEncoder(host.session, channel, host.send, lambda: world.now_ns, *shape,
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
        stores = {stream.ledger.key[0]: stream.store for stream in self.streams}
        self.server = Server(stores, parse_networks(["10.0.1.0/24"]), dice.randbytes(32), options.seal,
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
                self.publisher.bbo(instrument, number, now_ns - MILLISECOND, now_ns, price, quantity, 2 * price,
                                   quantity)

    def snapshot(self, coin):
        instrument = self.instruments[coin]
        scale = 10 ** (instrument.price_decimals - 2)
        flat = [[number for price in book for number in (price * scale, book[price])]
                for book in (coin.bids, coin.asks)]
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
        elif kind == 2 and instrument.price_decimals < (9 if self.options.grows else 8):
            # More digits than it had, at last more than the wire's.
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
        self.deliver = deliver
        self.calm = False
        self.losing = 0                 # datagrams of a burst of losses that are still to come
        self.blackouts = []             # [(start_ns, stop_ns)]
        self.lost = 0

    def send(self, datagram):
        dice, weather = self.dice, self.weather
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
            "packet_bytes": dice.choice((256, 256, 512, 1472)), "burst": dice.choice((1, 1, 8)),
            "channels": dice.choice((1, 1, 2)),
            "loop_rate": dice.choice((0, 20, 100)), "refresh_ns": 40 * MILLISECOND, "fault_rate": dice.choice((0.2, 2)),
            "seal": Seal(b"0123456789abcdef") if dice.random() < 0.15 else None,
            "kept_datagrams": dice.choice((50, 1000)), "coins": dice.randrange(1, 6),
            "rate": dice.choice((40, 100, 200)), "hold_ns": dice.choice((0, 0, 5, 50)) * MILLISECOND,
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
                judge.check(found.expected >= sent[found.key], "{} is at {}, sent was all below {}", found.key,
                            found.expected, sent[found.key])
                for instrument_id in stream.ledger.versions:
                    view = found.views.get(instrument_id)
                    judge.check(view is not None and view.state == LIVE, "{} {} is not live in the end", found.key,
                                instrument_id if view is None else (view.label, view.state, view.reason))


Options = namedtuple("Options", "packet_bytes burst channels loop_rate refresh_ns fault_rate seal kept_datagrams coins"
                     " rate hold_ns shared seconds restarts blackout_ns weather joiners retransmit grows desk"
                     " resent_per_second first_channel", defaults=(5,))

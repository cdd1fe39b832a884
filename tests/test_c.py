"""tools/feeder.h and tools/receiver.c: sizes are ours; a receiver of another make, from docs/protocol.md alone, agrees.

The receiver runs as a process and hears a real publisher over loopback multicast. Nothing here waits for time to pass:
every few datagrams a marker goes out on a channel of its own, and its price is waited for in what the receiver prints;
so no buffer overflows, and what is lost is what the test lost on purpose.
"""

import os
import select
import shutil
import socket
import struct
import subprocess
from decimal import Decimal
from functools import lru_cache
from pathlib import Path

import pytest
from support import PROJECT, decimals, dice

from feeder import packet
from feeder.clock import SECOND, steady_ns
from feeder.control import datagram as control
from feeder.errors import PacketError
from feeder.instrument import Instrument
from feeder.message import BUY, LIVE, SELL
from feeder.net.udp import PacketSender
from feeder.packet import Encoder, LoopEncoder
from feeder.publish import Publisher, SnapshotLoop

CC = shutil.which(os.environ.get("CC") or "cc")
pytestmark = [pytest.mark.skipif(not CC, reason="no C compiler here (cc, or what CC names)"),
              pytest.mark.skipif(os.name == "nt", reason="the receiver is for POSIX sockets")]

TOOLS = PROJECT / "tools"
STRICT = ("-std=c11", "-Wall", "-Wextra", "-Werror", "-pedantic")
GROUP = "239.192.7.9"
SESSION = 1_700_000_000 * SECOND
MARKER = 9                       # its channel
PACE = 24                        # datagrams between markers; the smallest buffer of a host takes more
PATIENCE_S = 30


def compiled(folder, source, *flags):
    """Return the path of a program; a warning is a failure."""
    path = folder / Path(source).stem
    done = subprocess.run([CC, *STRICT, *flags, "-I", str(TOOLS), "-o", str(path), str(source)],
                          stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    return path


@pytest.fixture(scope="module")
def receiver(tmp_path_factory):
    return compiled(tmp_path_factory.mktemp("c"), TOOLS / "receiver.c", "-O1")


# -- the header -----------------------------------------------------------------------------------------------------

SIZES = {"packet_header": packet.PACKET, "message_header": packet.MESSAGE, "order_book_item": packet.ORDER_BOOK_ITEM,
         "trade_item": packet.TRADE_ITEM, "bbo": packet.BBO_BODY, "definition": packet.DEFINITION_BODY,
         "status": packet.STATUS_BODY, "round": packet.ROUND_BODY, "control": control.CONTROL}
CODES = {"MAGIC": packet.MAGIC, "VERSION": packet.VERSION, "NO_INSTRUMENT": packet.ALL_INSTRUMENTS,
         "TRAILER_BYTES": packet.TRAILER_BYTES, "MAX_DATAGRAM_BYTES": packet.MAX_PACKET_BYTES,
         **{name: getattr(packet, name) for name in (
             "HEARTBEAT END SNAPSHOTS RETRANSMITTED SIGNED DEFINITION SNAPSHOT INCREMENT TRADE BBO STATUS PADDING "
             "ROUND LAST FIRST REFRESH EDITION_SHIFT SHARED_BOOK SHARED_TRADE SHARED_BBO").split()}}


def test_the_structures_have_the_sizes_of_ours(tmp_path):
    source = tmp_path / "sizes.c"
    lines = [f'printf("{name} %zu\\n", sizeof(struct feeder_{name}));' for name in SIZES]
    lines += [f'printf("{name} %lld\\n", (long long)FEEDER_{name});' for name in CODES]
    source.write_text('#include "feeder.h"\n#include <stdio.h>\nint main(void) {\n' + "\n".join(lines)
                      + "\nreturn 0;\n}\n")
    done = subprocess.run([str(compiled(tmp_path, source))], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          text=True, timeout=60, check=True)
    found = {name: int(value) for name, value in (line.split() for line in done.stdout.splitlines())}
    assert found == {**{name: layout.size for name, layout in SIZES.items()}, **CODES}


def test_the_fields_lie_where_ours_do(tmp_path):
    """Each field is written by Python and read by C: offsets and types."""
    source = tmp_path / "fields.c"
    header = packet.PACKET.pack(packet.MAGIC, 1, 2, 3, 2**64 - 4, 5, -6, 7, 8, 9)
    message = packet.MESSAGE.pack(1, 2, 3, 2**64 - 4, -5, -6, 7, 8, 9, 10)
    definition = packet.DEFINITION_BODY.pack(-1, -2, 3, 4, -5, -6, b"venue", b"symbol", b"name")
    source.write_text("""
#include "feeder.h"
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
int main(void) {
    unsigned char data[192];
    struct feeder_packet_header p;
    struct feeder_message_header m;
    struct feeder_definition d;
    if (fread(data, 1, sizeof data, stdin) != sizeof data)
        return 1;
    memcpy(&p, data, sizeof p);
    memcpy(&m, data + 40, sizeof m);
    memcpy(&d, data + 80, sizeof d);
    printf("%u %u %u %u %" PRIu64 " %" PRIu64 " %" PRId64 " %u %u %u\\n", p.magic == FEEDER_MAGIC, p.version, p.flags,
           p.channel, p.session, p.sequence, p.send_ns, p.message_count, p.packet_bytes, p.loop);
    printf("%u %u %u %" PRIu64 " %" PRId64 " %" PRId64 " %u %u %u %u\\n", m.type, m.message_bytes, m.instrument_id,
           m.venue_sequence, m.event_ns, m.recv_ns, m.flags, m.state, m.bid_count, m.epoch);
    printf("%d %d %u %u %" PRId64 " %" PRId64 " %s %s %s\\n", d.price_exponent, d.quantity_exponent, d.depth, d.shared,
           d.tick, d.lot, d.venue, d.symbol, d.name);
    return 0;
}
""")
    done = subprocess.run([str(compiled(tmp_path, source))], input=header + message + definition,
                          stdout=subprocess.PIPE, timeout=60, check=True)
    assert done.stdout.decode().splitlines() == [
        f"1 1 2 3 {2**64 - 4} 5 -6 7 8 9", f"1 2 3 {2**64 - 4} -5 -6 7 8 9 10", "-1 -2 3 4 -5 -6 venue symbol name"]


@pytest.mark.skipif(not shutil.which("c++"), reason="no C++ compiler here (c++)")
def test_the_header_is_for_cpp_too(tmp_path):
    source = tmp_path / "plus.cc"
    source.write_text('#include "feeder.h"\nint main() { feeder_round it = {1, 2, 0}; return it.number - 1; }\n')
    done = subprocess.run(["c++", "-std=c++11", "-Wall", "-Wextra", "-Werror", "-I", str(TOOLS), "-fsyntax-only",
                           str(source)], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")


# -- the receiver, as a process -------------------------------------------------------------------------------------

class Process:
    """The receiver; `lines` is all that it said."""

    def __init__(self, path, *args):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one, \
                socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
            one.bind(("", 0))
            other.bind(("", 0))
            self.port, self.loop_port = one.getsockname()[1], other.getsockname()[1]
        self.process = subprocess.Popen([str(path), "--group", GROUP, "--port", str(self.port), "--snapshot-port",
                                         str(self.loop_port), "--books", *args], stdin=subprocess.DEVNULL,
                                        stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self.lines, self.rest = [], b""
        self.until("listening")

    def until(self, beginning):
        """Read lines until one begins so."""
        seen, end_ns = len(self.lines), steady_ns() + PATIENCE_S * SECOND
        while True:
            while seen < len(self.lines):
                seen += 1
                if self.lines[seen - 1].startswith(beginning):
                    return
            assert select.select([self.process.stdout], [], [], max(0, (end_ns - steady_ns()) / SECOND))[0], (
                f"no {beginning!r} in {self.lines[-5:]}")
            some = os.read(self.process.stdout.fileno(), 1 << 16)
            assert some, self.process.stderr.read().decode()
            *lines, self.rest = (self.rest + some).split(b"\n")
            self.lines += [line.decode() for line in lines]

    def finish(self):
        """Interrupt it; return (exit code, summary as a dict, books by symbol)."""
        self.process.terminate()
        out, error = self.process.communicate(timeout=PATIENCE_S)
        self.lines += (self.rest + out).decode().splitlines()
        assert error == b""
        summary = dict(pair.split("=") for pair in self.lines[-1].split()[1:])
        books = {}
        for line in self.lines:
            if line.startswith("book "):
                _, _, _, symbol, state, epoch, _, *levels = line.split()
                at = levels.index("asks")
                books[symbol] = state, int(epoch), *([tuple(map(Decimal, each.split(":"))) for each in side]
                                                     for side in (levels[:at], levels[at + 1:]))
        return self.process.returncode, {name: int(value) for name, value in summary.items()}, books

    def told(self, kind):
        """Return the numbers of each line of a kind."""
        return [tuple(map(int, line.split()[1:])) for line in self.lines if line.startswith(kind + " ")]

    def __enter__(self):
        return self

    def __exit__(self, *fault):
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()
        self.process.stderr.close()


class Desk:
    """A publisher with a market, both ports, and a network that loses what the test says."""

    def __init__(self, process, rng, count=4, depth=5, packet_bytes=1472, session=SESSION, seal=None, loss=0):
        self.process = process
        self.rng = rng
        self.loss, self.loop_loss = loss, 0
        self.delivered = {"sequence": 0, "loop": 0}
        self.expected, self.gaps = None, []
        self.sender, self.loop_sender, self.marker_sender = (
            PacketSender(GROUP, port) for port in (process.port, process.loop_port, process.port))
        self.marked, self.unmarked = 0, 0
        self.marker = Encoder(session, MARKER, self.marker_sender.send, lambda: 7)
        self.marker.definition(Instrument(0, "test", "MARKER"))
        self.encoder = Encoder(session, 0, self.send, lambda: 7, packet_bytes, seal)
        self.publisher = Publisher(self.encoder, lambda *what: None)
        self.instruments = [Instrument(number, "binance_spot", f"COIN{number}", price_decimals=2, quantity_decimals=3,
                                       depth=depth) for number in range(count)]
        for instrument in self.instruments:
            self.publisher.define(instrument, 1, 1)
        self.loop = SnapshotLoop(self.publisher.carried[0], LoopEncoder(
            session, 0, self.send_loop, lambda: 7, packet_bytes, seal,
            lambda: self.encoder.sequence + self.encoder.count), 1)
        self.publisher.flush()
        self.mark()                                   # so that the channel is opened by this, not by the loop

    def send(self, datagram):
        _, _, _, _, _, sequence, _, count, _, _ = packet.PACKET.unpack_from(datagram)
        if self.rng.random() < self.loss:
            return
        if self.expected is not None and sequence > self.expected:
            self.gaps.append((0, self.encoder.session, self.expected, sequence - 1))
        self.expected = sequence + count
        self.deliver(self.sender, datagram, "sequence")

    def send_loop(self, datagram):
        if self.rng.random() >= self.loop_loss:
            self.deliver(self.loop_sender, datagram, "loop")

    def deliver(self, sender, datagram, what):
        assert sender.send(datagram)
        self.delivered[what] += 1
        self.unmarked += 1
        if self.unmarked >= PACE:
            self.mark()

    def mark(self):
        """Wait until the receiver has read what was sent in sequence so far."""
        self.unmarked = 0
        self.marked += 1
        self.marker.levels(packet.SNAPSHOT, 0, LIVE, 1, 0, 0, 0, [self.marked * 10**8, 10**8], [])
        self.marker.flush()
        self.process.until(f"best {MARKER} test MARKER {self.marked}:1 ")

    def round(self):
        """Every instrument once at least: what is left of the present round, and a whole one."""
        enough = self.loop.rounds + 1 + (self.loop.turn > 0)
        while self.loop.rounds < enough:
            self.loop.send()

    def snapshot(self, instrument, levels=12):
        price, rng = 10_000 + self.rng.randrange(100), self.rng
        bids, asks = ([number for at in range(levels) for number in (first + step * at, rng.randrange(1, 10**6))]
                      for first, step in ((price, -1), (price + 1, 1)))
        self.publisher.snapshot(instrument, rng.randrange(1, 2**40), 1, 2, bids, asks)

    def event(self):
        """One thing that happens in a market."""
        rng, publisher = self.rng, self.publisher
        instrument = rng.choice(self.instruments)
        what = rng.random()
        entry = publisher.entries[instrument.instrument_id]
        if what < 0.02 or entry.state != LIVE and what < 0.3:
            self.snapshot(instrument)
        elif what < 0.03:
            publisher.stale(instrument, "disconnect", 3)
        elif what < 0.15:
            publisher.trade(instrument, 1, 2, 3, 4, 10_000, 5, rng.choice((BUY, SELL)))
        elif what < 0.2:
            publisher.bbo(instrument, 1, 2, 3, 10_000, 5, 10_001, 6)
        elif entry.state == LIVE:
            bids, asks = ([number for _ in range(rng.randrange(4)) for number in (
                           (side[0] if side else 10_000) + step * rng.randrange(-1, 12),
                           rng.choice((0, 0, rng.randrange(1, 10**6))))]
                          for side, step in zip(entry.book.top(1), (-1, 1)))
            publisher.increment(instrument, rng.randrange(1, 2**40), 1, 2, bids, asks)
        if rng.random() < 0.4:
            publisher.flush()

    def heal(self):
        """Until each instrument has a book to publish, then a round without loss and with nothing else going on."""
        self.loss = self.loop_loss = 0
        for entry in self.publisher.entries:
            if entry.state != LIVE:
                self.snapshot(entry.instrument)
        self.publisher.flush()
        self.encoder.heartbeat()
        self.mark()
        self.round()
        self.encoder.heartbeat()
        self.mark()

    def books(self):
        """What the publisher has published, as Process.finish() tells it."""
        found = {}
        for entry in self.publisher.entries:
            instrument = entry.instrument
            sides = (decimals(side, instrument.price_decimals, instrument.quantity_decimals)
                     for side in entry.book.published())
            found[instrument.symbol] = "live", entry.epoch, *sides
        return found

    def __enter__(self):
        return self

    def __exit__(self, *fault):
        for sender in (self.sender, self.loop_sender, self.marker_sender):
            sender.close()


def agree(process, desk):
    """Both ends tell the same; return (exit code, summary)."""
    code, summary, books = process.finish()
    books.pop("MARKER")
    assert books == desk.books()
    assert process.told("gap") == desk.gaps and summary["gaps"] == len(desk.gaps)
    assert summary["lost"] == sum(last - first + 1 for _, _, first, last in desk.gaps)
    assert summary["packets"] == desk.delivered["sequence"] + desk.delivered["loop"] + desk.marked
    for name in ("malformed", "late", "mismatched", "unordered", "crossed", "no_memory"):
        assert summary[name] == 0, name
    assert code == (3 if desk.gaps else 0)
    return summary


@pytest.mark.parametrize("packet_bytes", [256, 1472])
def test_in_sequence(receiver, packet_bytes):
    with Process(receiver) as process, Desk(process, dice(packet_bytes), packet_bytes=packet_bytes) as desk:
        for number in range(600):
            desk.event()
            if number % 100 == 99:
                desk.publisher.flush()
                desk.round()                          # compared with books that are in step
        desk.heal()
        desk.encoder.heartbeat()
        summary = agree(process, desk)
    assert desk.gaps == [] and summary["from_loop"] == 0 and summary["sessions"] == 2 and summary["loop_lost"] == 0
    assert summary["messages"] == desk.encoder.sequence - 1 + desk.marker.sequence - 1
    assert summary["rounds"] == desk.loop.rounds == 7 and summary["instruments"] == summary["live"] == 5


def storm(process, seed, loss, packet_bytes, count=1_500):
    with Desk(process, dice(seed), packet_bytes=packet_bytes) as desk:
        desk.loss, desk.loop_loss = loss, loss
        for number in range(count):
            desk.event()
            if number % 10 == 9:
                desk.loop.send()                      # also in the middle of a packet that is not sent yet
        desk.heal()
        summary = agree(process, desk)
    assert desk.gaps and summary["from_loop"] > 5 and summary["loop_lost"] > 0


@pytest.mark.parametrize("seed, loss, packet_bytes", [(1, 0.02, 1472), (2, 0.2, 256), (3, 0.2, 1472)])
def test_loss_is_named_exactly_and_heals_by_the_loop(receiver, seed, loss, packet_bytes):
    with Process(receiver) as process:
        storm(process, seed, loss, packet_bytes)


def test_who_joins_late_is_live_by_one_round_alone(receiver):
    with Process(receiver) as process, Desk(process, dice(4), loss=1) as desk:
        for _ in range(300):
            desk.event()
        for instrument in desk.instruments:
            desk.snapshot(instrument)
        desk.publisher.flush()
        desk.round()
        desk.mark()
        desk.loss, desk.expected = 0, desk.encoder.sequence
        for _ in range(100):
            desk.event()
        desk.heal()
        summary = agree(process, desk)
    assert f"session 0 {SESSION} from" in "\n".join(process.lines)
    assert desk.gaps == [] and summary["from_loop"] >= 4


def test_heals_by_refreshes_in_the_channel(receiver):
    with Process(receiver, "--snapshot-port", "0") as process, Desk(process, dice(5)) as desk:
        desk.loss = 0.1
        for number in range(1_000):
            desk.event()
            if number % 10 == 9:
                desk.publisher.refresh()
        desk.heal()
        for _ in desk.instruments:
            desk.publisher.refresh()
        desk.publisher.flush()
        desk.mark()
        desk.delivered["loop"] = 0                    # nobody listened
        summary = agree(process, desk)
    assert summary["from_sequence"] > 5 and summary["from_loop"] == summary["loop_packets"] == 0


def test_a_new_definition_that_was_lost_is_not_taken_for_the_old_one(receiver):
    """STATUS and DEFINITION are in a gap, the SNAPSHOT behind them came: its integers are of another scale."""
    with Process(receiver) as process, Desk(process, dice(6), count=1) as desk:
        instrument, = desk.instruments
        desk.snapshot(instrument)
        desk.publisher.flush()
        desk.loss = 1
        desk.publisher.stale(instrument, "precision", 1)
        instrument.price_decimals = 9
        instrument.rescale()
        desk.publisher.define(instrument, 10**7, 1)
        desk.publisher.flush()
        desk.loss = 0
        desk.publisher.snapshot(instrument, 5, 6, 7, [99_999_999_999, 5], [100_000_000_001, 6])
        desk.publisher.flush()
        desk.mark()
        assert not [line for line in process.lines if line.startswith("best 0") and "999" in line]
        desk.publisher.increment(instrument, 6, 7, 8, [99_999_999_998, 5], [])
        desk.heal()
        agree(process, desk)
    assert "best 0 binance_spot COIN0 99.999999999:0.005 100.000000001:0.006" in process.lines


def test_sessions(receiver):
    with Process(receiver) as process, Desk(process, dice(7), count=1) as old, \
            Desk(process, dice(8), count=1, session=SESSION + 5) as new:
        old.snapshot(old.instruments[0])              # a straggler
        old.publisher.flush()
        new.loss = 1
        new.snapshot(new.instruments[0])
        new.publisher.flush()
        new.loss = 0
        new.heal()
        new.encoder.end()
        new.mark()
        code, summary, books = process.finish()
    assert process.told("end") == [(0, SESSION + 5)] and process.told("gap") == new.gaps != []
    assert code == 3 and summary["stragglers"] == 1 and books["COIN0"] == ("stale", *new.books()["COIN0"][1:])


def test_signed_packets_are_read_without_the_key(receiver):
    from feeder.seal import Seal
    with Process(receiver) as process, Desk(process, dice(9), seal=Seal(b"sixteen bytes at least")) as desk:
        for _ in range(200):
            desk.event()
        desk.heal()
        agree(process, desk)


def test_wrong_usage_and_nothing_heard(receiver):
    for args, text in ((["--group"], ": Invalid argument"), (["--group", "1.2.3"], "1.2.3: Invalid argument"),
                       (["--port", "0"], "--port\nusage:"), (["--port", "65536"], "--port\nusage:"),
                       (["--seconds", "x"], "--seconds\nusage:"), (["--sevens"], "--sevens\nusage:"),
                       (["--interface", "203.0.113.9"], "joining the group: ")):
        done = subprocess.run([str(receiver), *args], stdin=subprocess.DEVNULL, capture_output=True, text=True,
                              timeout=60)
        assert (done.returncode, done.stdout) == (2, "") and text in done.stderr and "receiver: " in done.stderr
    with Process(receiver) as process:
        code, summary, books = process.finish()
    assert code == 1 and books == {} and not any(summary.values())


# -- hostile datagrams ----------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def sanitized(tmp_path_factory):
    flags = ("-g", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
    probe = tmp_path_factory.mktemp("probe") / "probe.c"
    probe.write_text("int main(void) { return 0; }\n")
    done = subprocess.run([CC, *flags, "-o", str(probe.with_suffix("")), str(probe)], stdin=subprocess.DEVNULL,
                          capture_output=True, timeout=120)
    if done.returncode:
        pytest.skip("this compiler has no sanitizers")
    @lru_cache(None)
    def build(*more):
        return compiled(tmp_path_factory.mktemp("c"), TOOLS / "receiver.c", *flags, *more)

    return build


class Hostile:
    """Datagrams that no publisher sends: garbage, real ones with bytes changed, strange ones that are in sequence."""

    EXTREMES = -2**63, -1, 0, 1, 2, 3, 4, 5, 6, 2**63 - 1

    def __init__(self, rng, samples):
        self.rng = rng
        self.samples = samples
        self.next = {}               # channel -> [session, sequence]
        self.loop = 0

    def datagram(self):
        kind = self.rng.random()
        if kind < 0.1:
            return self.rng.randbytes(self.rng.randrange(200))
        return self.changed() if kind < 0.4 else self.strange()

    def changed(self):
        rng = self.rng
        data = bytearray(rng.choice(self.samples))
        for _ in range(rng.randrange(4)):
            at = rng.randrange(len(data) + 1)
            data[at:at + rng.choice((1, 2, 4))] = rng.choice((
                b"\0", b"\1", b"\xff", b"\xff\xff", bytes(4), b"\xff" * 4, b"\x7f", b"\x80", rng.randbytes(2)))
        if rng.random() < 0.1:
            data = data[:rng.randrange(len(data) + 1)]
        if rng.random() < 0.9 and len(data) >= 40:
            data[34:36] = struct.pack("<H", len(data))
        data[6:7] = b"\7"                # channels of their own: one high session ends what follows
        return bytes(data)

    def strange(self):
        rng = self.rng
        channel = rng.choice((0, 1, 2, 65_535))
        session, first = self.next.setdefault(channel, [SESSION + 1, 1])
        if rng.random() < 0.001 or first > 2**40:
            session, first = rng.choice(((session + 1, 1), (session + 1, 5), (session - 1, 1)))
        flags = rng.choice((0, 0, 0, 0, 0, 4, 4, 4, 8, 1, 2 if rng.random() < 0.02 else 1))
        loop, most = 0, first
        if flags == 4:
            self.loop = loop = rng.choice((self.loop + 1,) * 5 + (self.loop + 2, 2**32 - 1)) & 0xFFFFFFFF
            most += rng.choice((-2, 0, 0, 0, 3))
            of = rng.choice((0, 0, 1, 2))
            messages = [self.message(8, of), self.message(1, of), *(self.message(rng.choice((2, 2, 2, 6)), of)
                                                                     for _ in range(rng.randrange(3)))]
        else:
            if rng.random() < 0.02:
                most = first = rng.choice((first + 3, first + 3, first + 3, first - 1, 2**63, 2**64 - 1, 2**64 - 4))
            messages = [] if flags & 3 else [self.message(rng.choice((1, 2, 3, 3, 3, 3, 4, 5, 6, 7, 8, 9, 65_535)))
                                             for _ in range(rng.randrange(6))]
            self.next[channel] = [session, first + len(messages)]
        body = b"".join(messages)
        return packet.PACKET.pack(packet.MAGIC, 1, flags, channel, session, max(most, 0), 0, len(messages),
                                  40 + len(body), loop) + body

    def message(self, type_, of=None):
        rng = self.rng
        levels = rng.randrange(6)
        of = rng.choice((0, 0, 0, 1, 1, 2, 65_535, 65_536, 2**32 - 2, 2**32 - 1)) if of is None else of
        if type_ == 1:
            body = packet.DEFINITION_BODY.pack(rng.choice((-18, -18, -18, -18, 0)), -18, 5, 0, 1, 1, b"\x1b[2J" * 3,
                                               b"\xff" * 32, b"")
        elif type_ in (2, 3):
            numbers = [(rng.choice(self.EXTREMES), rng.choice((0, 1, 5, 2**63 - 1))) for _ in range(levels)]
            if rng.random() < 0.7:                    # as a snapshot's bids have to be
                numbers = sorted(dict(numbers).items(), reverse=True)
                levels = len(numbers)
            body = b"".join(struct.pack("<qq", *each) for each in numbers)
        elif type_ == 4:
            body = packet.TRADE_ITEM.pack(1, rng.choice(self.EXTREMES), 1, rng.choice((1, 2)))
        else:
            body = bytes({5: 32, 6: 64, 8: 16}.get(type_, 8 * levels))
        return packet.MESSAGE.pack(
            type_, 40 + len(body), of, 7, 0, 0, rng.choice((3, 3, 3, 3, 0, 1, 2, 7)) + 32 * (rng.random() < 0.03),
            rng.choice((1, 3)) if rng.random() < 0.03 else 2,
            rng.choice((0, levels, levels, levels, rng.randrange(levels + 1))) if type_ in (2, 3) else 0,
            rng.choice((0, 2**32 - 1)) if rng.random() < 0.03 else 1) + body


def is_read(datagram):
    """Would Python read it? The receiver in C drops numbers that do not fit into 64 bits, too."""
    try:
        found = packet.decode(datagram)
    except PacketError:
        return False
    return found.sequence > 0 and found.sequence + found.message_count < 2**64


def attack(process, rng, count):
    with Desk(process, rng) as desk:
        samples = []
        desk.sender.send, send = lambda data: samples.append(bytes(data)) or send(data), desk.sender.send
        for _ in range(60):
            desk.event()
        desk.heal()
        malformed, attacker = 0, Hostile(rng, samples)
        for _ in range(count):
            data = attacker.datagram()
            if data[6:8] == b"\x09\0":                # the marker's channel
                continue
            malformed += not is_read(data)
            desk.sender.send(data)                    # the port does not matter: what is of the loop says so
            desk.unmarked += 1
            if desk.unmarked >= PACE:
                desk.mark()
        desk.mark()
        code, summary, _ = process.finish()
    assert (code, summary["malformed"]) == (3, malformed)
    return summary


def test_hostile_datagrams_are_judged_as_python_judges_them(receiver):
    with Process(receiver) as process:
        attack(process, dice(10), 2_000)


@pytest.mark.stress
@pytest.mark.parametrize("seed", range(40))
def test_storms_under_sanitizers(sanitized, seed):
    with Process(sanitized()) as process:
        storm(process, seed, (0.02, 0.1, 0.3)[seed % 3], (256, 512, 1472)[seed // 3 % 3], 3_000)


@pytest.mark.stress
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("limits", [(), ("-DMAX_BYTES=4000000", "-DMAX_LEVELS=5", "-DMAX_KEPT=4")])
def test_hostile_datagrams_under_sanitizers(sanitized, limits, seed):
    with Process(sanitized(*limits)) as process:
        summary = attack(process, dice(seed), 20_000)
    assert summary["malformed"] > 1_000 and min(summary["from_sequence"], summary["from_loop"]) > 50
    assert bool(limits) == (summary["no_memory"] > 0)

"""How packets come in: lines, their snapshot loops, what was sent again on request. All sockets of a listener.

In:   endpoints.   Out: datagrams, each with the time it came and where from, to `on_datagram`; Heard by `take`, `tend`.
Hot:  Source.read, Inlet.take.

    lines     239.192.0.1:30001 ─┐
    loops     239.192.0.1:30002 ─┼─▶ on_datagram(datagram, now_ns, origin) ─▶ take() ─▶ Receiver ─▶ Heard
    answers   of retransmission ─┘                                            tend() ─▶   "
              requests ◀──────────────────────────────────────────────────────┘ asks again, gives up, silence

What comes between on_datagram and take is the user's: listen.Monitor takes at once, listener.Listener keeps what it
read ahead in a queue. Time is the wall clock's, as in the packets, and on Linux the kernel's for each datagram: when it
came, not when somebody got around to it. What waited in a buffer was not late, and its line was not silent; latencies
and lags are of the ways, not of this process.

`origin` is the line's number, for its loop, too (the Receiver tells them apart by flag), or the address of who
answered a request. Nobody but the configured servers is listened to at that socket.

Loss is cured by another line, by asking again, by the loop: what the Receiver still waits for (`wanted`) is asked for
while it holds back what came behind it. What this host itself dropped, as its reader was slow, is not asked for again.
"""

import logging
from collections import deque

from feeder import pcap
from feeder.clock import MICROSECOND, MILLISECOND, SECOND, steady_ns, wall_ns
from feeder.control import Client
from feeder.endpoint import Endpoint, parse
from feeder.errors import ConfigError, HostError
from feeder.keyfile import read_key
from feeder.net import Loop, PacketReceiver, UnicastSocket
from feeder.packet import MAGIC, PACKET, SNAPSHOTS
from feeder.receiver import SILENCE_NS, Receiver, exhaust

DEFAULT_LINE = "239.192.0.1:30001"
DEFAULT_INTERFACE = "127.0.0.1"
SNAPSHOT_PORT = 30002
BUFFER_BYTES = 65_536            # no datagram is longer
TURN = 64                        # datagrams of one socket, then the others have theirs
TEND_NS = 250 * MILLISECOND      # between two looks for silence
HOLD_MS, HOLD_ASKING_MS = 50, 200      # where several lines carry the same; where somebody can be asked
MAX_HOLD_MS, MAX_SILENCE_S = 60_000, 3_600
ASK_NS = 500 * MICROSECOND       # between two looks at what is missing, while something is
ANSWER_BUFFER_BYTES = 4 << 20
FOUR, SIX = "0.0.0.0", "::"
TAP_NS = MILLISECOND             # between two looks at a tap
TAP_POLL_NS = 100 * MILLISECOND  # whether the tap is still there, or there again
NOWHERE = Endpoint(FOUR, 0, None)        # where what came by a tap was sent to, in a pcap file
MAX_LINES = 64
MAX_OWN_LOSSES = 1_000           # ranges remembered
MAX_DROP_TIMES = 64              # of the kernel, remembered for each socket
BLAME_NS = SECOND                # a gap is declared that long after it was seen at most, besides the hold

log = logging.getLogger("feeder.inlet")


def check_numbers(**numbers):
    """Each argument is (value, lowest, highest). Raises ConfigError with its name."""
    for name, (value, lowest, highest) in numbers.items():
        if not lowest <= value <= highest:
            raise ConfigError(f"{name} {value} is not within {lowest} to {highest}")


class Source:
    """One socket: of a line, or of its snapshot loop."""

    def __init__(self, inlet, number, is_loop, endpoint, socket):
        self.inlet = inlet
        self.number = number             # of the line
        self.is_loop = is_loop
        self.endpoint = endpoint
        self.socket = socket
        self.drops = 0                   # of the kernel, as of the datagram read last
        self.drop_times = deque(maxlen=MAX_DROP_TIMES)

    def read(self):
        """Hand over what is there, TURN datagrams at most."""
        inlet, buffer = self.inlet, self.inlet.buffer
        receive_told_into = self.socket.receive_told_into
        number, on_datagram, recording = self.number, inlet.on_datagram, inlet.recording
        count = 0
        while count < TURN:
            found = receive_told_into(buffer)
            if found is None:
                break
            size, each, came_ns, drops = found
            came_ns = came_ns or wall_ns()
            if drops != self.drops:
                self.drops = drops
                self.drop_times.append(came_ns)
            for at in range(0, size, each) if size > each else (0,):
                datagram = buffer[at:min(at + each, size)]
                if recording is not None:
                    recording.add(came_ns, self.endpoint, datagram)
                on_datagram(datagram, came_ns, number)
                count += 1
        else:
            inlet.is_more = True
        inlet.datagrams += count


class Answers:
    """A socket by which servers are asked again, and answer."""

    def __init__(self, inlet, address):
        self.inlet = inlet
        self.socket = UnicastSocket(address, recv_buffer_bytes=ANSWER_BUFFER_BYTES)

    def read(self):
        """Hand over what servers sent, TURN datagrams at most; the origin is the sender's address.

        What strangers send ends here: in a queue it would take the place of what is true.
        """
        inlet, buffer = self.inlet, self.inlet.buffer
        receive_into, on_datagram, knows = self.socket.receive_into, inlet.on_datagram, inlet.client.knows
        recording, here = inlet.recording, (self.socket.address, self.socket.port)
        count = 0
        while count < TURN:
            found = receive_into(buffer)
            if found is None:
                break
            size, address = found
            count += 1
            if knows(address):
                datagram, now_ns = buffer[:size], wall_ns()
                if recording is not None:
                    recording.add(now_ns, here, datagram, address)
                on_datagram(datagram, now_ns, address)
        else:
            inlet.is_more = True
        inlet.datagrams += count


class Tap:
    """A publisher's tap on this host, as a line. Nothing wakes who waits for it: one looks, every TAP_NS."""

    is_loop = False

    def __init__(self, inlet, number, name):
        from feeder.net.handover import TapClient          # Linux, and few want it
        self.inlet = inlet
        self.number = number
        self.client = TapClient(name)
        self.looked_ns = 0
        self.overruns = 0
        self.overrun_times = deque(maxlen=MAX_DROP_TIMES)

    def read(self):
        """Hand over what is there, TURN datagrams at most."""
        inlet, client = self.inlet, self.client
        now_ns = wall_ns()
        if not 0 <= now_ns - self.looked_ns < TAP_POLL_NS:
            self.looked_ns = now_ns
            client.poll()
        for _ in range(TURN):
            datagram = client.read()
            if datagram is None:
                break
            now_ns = wall_ns()           # anew: what is read was perhaps not sent yet when this turn began
            inlet.datagrams += 1
            if inlet.recording is not None:
                inlet.recording.add(now_ns, NOWHERE, datagram)
            inlet.on_datagram(datagram, now_ns, self.number)
        else:
            inlet.is_more = True
        if client.overruns != self.overruns:
            self.overruns = client.overruns
            self.overrun_times.append(now_ns)


class Recording:
    """The pcap file of all that came by lines, loops, and on request."""

    def __init__(self, path):
        self.path = path
        self.count = 0
        self.error = ""
        try:
            with open(path, "wb") as file:             # refused now, not when the first buffer is full
                file.write(pcap.HEADER)
            self.file = open(path, "ab")
        except OSError as error:
            raise HostError(f"pcap file {path}: {error.strerror}") from None

    def add(self, now_ns, destination, datagram, source=None):
        if not self.error:
            try:
                self.file.write(pcap.record(now_ns, source, destination, datagram))
                self.count += 1
            except OSError as error:                   # the disk is full: listening goes on
                self.failed(error)

    def failed(self, error):
        if not self.error:
            self.error = error.strerror
            log.error("pcap file %s: %s; it ends after %d datagrams or before", self.path, self.error, self.count)

    def close(self):
        try:
            self.file.close()
        except OSError as error:
            self.failed(error)


class OwnLosses:
    """What was dropped on this host as its reader was too slow, by what the datagrams' headers say."""

    def __init__(self):
        self.datagrams = self.bytes = 0
        self.ranges = deque(maxlen=MAX_OWN_LOSSES)     # [channel, session, first, last]

    def add(self, datagram):
        self.datagrams += 1
        self.bytes += len(datagram)
        if len(datagram) < PACKET.size:
            return
        magic, _, flags, channel, session, first, _, count, _, _ = PACKET.unpack_from(datagram)
        if magic != MAGIC or flags & SNAPSHOTS or not count:
            return
        for known in reversed(self.ranges):
            if known[0] == channel and known[1] == session:
                if known[2] <= first <= known[3] + 1:        # the next one, or the same by another line
                    known[3] = max(known[3], first + count - 1)
                    return
                break
        self.ranges.append([channel, session, first, first + count - 1])

    def hit(self, channel, session, first, last):
        """Return True if some of these messages were dropped here; another line may have brought them all the same."""
        return any(first <= end and begin <= last and at == channel and number == session
                   for at, number, begin, end in self.ranges)


class Inlet:
    """The sockets, the Receiver, and who is asked again. A context manager that closes what it opened."""

    def __init__(self, on_datagram, lines=(DEFAULT_LINE,), *, snapshot_port=SNAPSHOT_PORT, retransmit=(), tap="",
                 interface=DEFAULT_INTERFACE, source="", key_file="", hold_ms=None, silence_s=SILENCE_NS / SECOND,
                 recv_buffer_bytes=4 << 20, coalesce=False, pcap_file="",
                 receiver=Receiver):
        """Open everything. Raises ConfigError, HostError.

        Args: lines and retransmit, texts of endpoint.parse(); snapshot_port at the address of each line, 0: none.
        hold_ms: how long packets behind a gap wait for what is missing; by default not at all where one line alone
        carries a stream, and longest where somebody can be asked again. source: the only sender that is listened to
        (source-specific multicast). receiver: the class, for who needs to know more.
        """
        self.on_datagram = on_datagram
        self.endpoints = [parse(text) for text in lines]
        self.names = [str(endpoint) for endpoint in self.endpoints] + [f"tap {tap}"] * bool(tap)
        servers = [parse(text) for text in retransmit]
        self.check(servers, hold_ms=(hold_ms or 0, 0, MAX_HOLD_MS), snapshot_port=(snapshot_port, 0, 65_535),
                   silence_s=(silence_s, 0.001, MAX_SILENCE_S), recv_buffer_bytes=(recv_buffer_bytes, 1, 1 << 30))
        by_default = hold_ms is None
        if by_default:
            hold_ms = HOLD_ASKING_MS if servers else HOLD_MS if len(self.names) > 1 else 0
        self.hold_ns = int(hold_ms * MILLISECOND)
        seal = read_key(key_file) if key_file else None
        self.receiver = receiver(int(silence_s * SECOND), hold_ns=self.hold_ns, seal=seal,
                                 alone_ns=0 if by_default and not servers else self.hold_ns)
        self.own_losses = OwnLosses()
        self.datagrams = 0
        self.is_more = False             # somebody had a full turn: there may be more
        self.now_ns = 0                  # the newest time that was told
        self.deadline_ns = 0             # when tend() is to be called next
        self.buffer = memoryview(bytearray(BUFFER_BYTES))
        self.recording = None
        self.sources = []
        self.tap = None
        self.client = Client([server[:2] for server in servers], seal) if servers else None
        self.asked_ns = 0
        self.answers = {}                # address bound to: Answers
        self.loop = Loop()
        try:
            if pcap_file:
                self.recording = Recording(pcap_file)
            ways = [(number, False, endpoint) for number, endpoint in enumerate(self.endpoints)]
            known = set(self.endpoints)
            for number, endpoint in enumerate(self.endpoints) if snapshot_port else ():
                endpoint = endpoint._replace(port=snapshot_port)
                if endpoint not in known:              # two lines of one group have one loop
                    known.add(endpoint)
                    ways.append((number, True, endpoint))
            for number, is_loop, endpoint in ways:
                try:
                    socket = PacketReceiver(endpoint.address, endpoint.port, interface=endpoint.interface or interface,
                                            source=source if endpoint.is_multicast else "",
                                            recv_buffer_bytes=recv_buffer_bytes, coalesce=coalesce, tells=True)
                except HostError as error:
                    if not is_loop or endpoint.is_multicast:
                        raise
                    log.warning("no snapshot loop by line %s: %s", self.names[number], error)   # another has the port
                    continue
                self.sources.append(Source(self, number, is_loop, endpoint, socket))
            for address in sorted({SIX if ":" in server.address else FOUR for server in servers}):
                self.answers[address] = Answers(self, address)
            if tap:
                self.tap = Tap(self, len(self.endpoints), tap)
            for source in (*self.sources, *self.answers.values()):
                self.loop.register(source.socket, read=source.read)
        except BaseException:
            self.close()
            raise

    def check(self, servers, **numbers):
        if not 0 < len(self.names) <= MAX_LINES:
            raise ConfigError(f"{len(self.names)} lines to listen to, expected 1 to {MAX_LINES}")
        for at, endpoint in enumerate(self.endpoints):
            if endpoint in self.endpoints[:at]:
                raise ConfigError(f"line {endpoint} is given twice")
        for server in servers:
            if server.is_multicast:
                raise ConfigError(f"retransmission from {server}: expected the address of one host")
        check_numbers(**numbers)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        self.loop.close()
        for source in (*self.sources, *self.answers.values()):
            source.socket.close()
        if self.tap is not None:
            self.tap.client.close()
        if self.recording is not None:
            self.recording.close()

    # -- what came -------------------------------------------------------------------------------------------

    def take(self, datagram, came_ns, origin):
        """Yield Heard, one by one, while the datagram is applied; it has to stay as it is that long."""
        now_ns = self.time(came_ns)
        if not now_ns < self.deadline_ns <= now_ns + TEND_NS:
            yield from self.tend(now_ns)
        if origin.__class__ is not int:
            gone = self.client.receive(datagram, origin, steady_ns())
            if gone is not None:
                yield from self.give_up(gone, now_ns)
                return
            origin = None
        yield from self.receiver.heard(datagram, now_ns, origin)
        self.schedule(now_ns)

    def receive(self, datagram, came_ns, origin):
        """Take all of a datagram at once; return its Packet, or None where it brought nothing new."""
        now_ns = self.time(came_ns)
        if origin.__class__ is not int:
            gone = self.client.receive(datagram, origin, steady_ns())
            if gone is not None:
                return exhaust(self.give_up(gone, now_ns))
            origin = None
        packet = self.receiver.receive(datagram, now_ns, origin)
        self.schedule(now_ns)
        return packet

    def give_up(self, ranges, now_ns):
        """Yield Heard of what no server has."""
        for channel, session, first, last in ranges:
            yield from self.receiver.give_up(channel, session, first, last, now_ns)

    def wait_ns(self, now_ns):
        """Return how long to wait for sockets; 0: tend() is to be called."""
        wait_ns = self.deadline_ns - now_ns
        if not 0 < wait_ns <= TEND_NS:                 # longer: the clock was set back
            return 0
        return wait_ns if self.tap is None else min(wait_ns, TAP_NS if self.tap.client.is_open else TAP_POLL_NS)

    def tend(self, now_ns):
        """Yield Heard that time brings, and ask for what is missing."""
        now_ns = self.time(now_ns)
        yield from self.receiver.tick(now_ns)
        if self.client is not None:
            self.ask(now_ns)
        self.deadline_ns = now_ns + TEND_NS
        self.schedule(now_ns)

    def ask(self, now_ns):
        self.asked_ns = now_ns
        wanted = [each for each in self.receiver.wanted(now_ns) if not self.own_losses.hit(*each)]
        for address, request in self.client.ask(wanted, steady_ns()):
            self.answers[SIX if ":" in address[0] else FOUR].socket.send(request, address)

    def time(self, now_ns):
        """Return a time that goes back with the clock only: sockets are read in turns, each with its own times."""
        if now_ns < self.now_ns < now_ns + SECOND:
            return self.now_ns
        self.now_ns = now_ns
        return now_ns

    def schedule(self, now_ns):
        """Find out when to tend: what is waited for, what is asked for may have changed."""
        due_ns, client = self.receiver.deadline_ns, self.client
        if due_ns is None:
            return
        if client is not None:
            due_ns = min(due_ns, max(self.asked_ns + ASK_NS, now_ns + 1))
        if due_ns < self.deadline_ns:
            self.deadline_ns = due_ns

    # -- what did not ----------------------------------------------------------------------------------------

    def cause(self, gap):
        """Return where the messages of a Gap were lost: "consumer", "kernel", both of this host, or "network".

        As far as it can be told: the kernel says how many datagrams it dropped, not which.
        """
        def is_then(times):
            return any(0 <= gap.at_ns - came_ns <= self.hold_ns + BLAME_NS for came_ns in times)

        if self.own_losses.hit(*gap[:4]) or self.tap is not None and is_then(self.tap.overrun_times):
            return "consumer"
        if any(is_then(source.drop_times) for source in self.sources if not source.is_loop):
            return "kernel"
        return "network"

    def kernel_drops(self):
        """Return how many datagrams the kernel dropped, of all sockets; None where it does not tell."""
        counts = [source.socket.kernel_drops() for source in self.sources]
        return None if None in counts else sum(counts)

    # -- reading ---------------------------------------------------------------------------------------------

    @property
    def recv_buffer_bytes(self):
        """Of the first line; all were asked for the same."""
        return self.sources[0].socket.recv_buffer_bytes if self.sources else 0

    def report(self):
        """Return what came, by which way, and what did not, JSON-ready."""
        heard, client = self.receiver, self.client
        return {
            "packets": heard.packets, "bytes": heard.bytes, "heartbeats": heard.heartbeats,
            "messages": heard.messages, "messages_by_type": heard.by_type, "gaps_total": heard.gap_count,
            "lost": heard.lost, "late": heard.late, "late_packets": heard.late_packets,
            "duplicates": heard.duplicates, "old_session_packets": heard.stragglers, "silences": heard.silences,
            "mismatches": heard.mismatches, "last_mismatch": heard.last_mismatch, "crossed": heard.crossed,
            "undefined": heard.undefined, "ignored": heard.ignored, "unknown_messages": heard.unknown_messages,
            "errors": heard.errors,
            "kernel_drops": self.kernel_drops(), "recv_buffer_bytes": self.recv_buffer_bytes,
            "latency": {"send_to_receive_ns": heard.send_latency.summary(),
                        "venue_receive_to_receive_ns": heard.venue_latency.summary()},
            "lines": [self.line_row(number, name) for number, name in enumerate(self.names)],
            "hold_ms": self.hold_ns / MILLISECOND,
            "snapshot_loop": {"packets": heard.loop_packets, "lost": heard.loop_lost, "unused": heard.loop_unused,
                              "rounds": heard.rounds, "books_taken": heard.taken_from_loop,
                              "round_ns": max((stream.round_ns or 0 for stream in heard.streams.values()), default=0)},
            "retransmission": None if client is None else {
                "packets": heard.resent, **{name: sum(getattr(peer, name) for peer in client.peers)
                                            for name in ("requests", "challenges", "busy", "unavailable")},
                **client.counts, "servers": [str(Endpoint(*peer.address, None)) for peer in client.peers]},
            "own_losses": {"datagrams": self.own_losses.datagrams, "bytes": self.own_losses.bytes},
            "pcap": None if self.recording is None else {
                "file": self.recording.path, "datagrams": self.recording.count, "error": self.recording.error},
        }

    def line_row(self, number, name):
        row = {"line": number, "name": name, "loop": any(source.number == number and source.is_loop
                                                         for source in self.sources)}
        line = self.receiver.lines.get(number)
        if line is not None:
            row.update(packets=line.packets, wins=line.wins, duplicates=line.duplicates, lost=line.lost,
                       lag_ns=line.lag.summary(), silent=line.silent,
                       sessions={str(channel): session for channel, session in line.sessions.items()})
        drops = [source.socket.kernel_drops() for source in self.sources if source.number == number]
        if self.tap is not None and number == self.tap.number:
            return {**row, "tap": self.tap.client.text, "overruns": self.tap.client.overruns}
        row["kernel_drops"] = None if None in drops else sum(drops)
        return row

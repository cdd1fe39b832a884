"""The two halves of a run, each on a loop: venues in, packets out. The same in one process and in several.

    workers: 0     Input ─▶ Publisher ─▶ Output                                    one loop (run.py)
    workers: N     Input ─▶ RecordWriter ─▶ ring ─▶ RecordReader ─▶ Publisher ─▶ Output     processes (worker.py)

    Publisher ─▶ Encoder ─▶ Channel ─▶ its group, then who gets everything, too (output.fan_out), then store and tap
    Publisher ─▶ LoopEncoder ─▶ the same addresses at the snapshot port, and the tap
    who missed packets ◀─▶ Retransmission ◀─ the channels' stores

Besides the data two timers of Output send: the round in which all instruments are repeated for late joiners (SnapshotLoop,
or in the channels where there is no snapshot port), and the heartbeat of an idle channel.

Both tell `figures()`, as often as a status is shown, and `report()`, once at the end: JSON-ready dicts, so that it does
not matter whether who shows them (status.py) is the same process. Those of several Inputs add up (`status.added`).
Vitals is what each process tells of itself.

Latency is from the moment bytes of a venue were received to the moment the datagram left, per datagram; the first
destination's. Datagrams that are full so soon after one another that sending is a good part of the work leave together
(sockets.batch_us).
"""

import logging
import os
from functools import partial

from feeder import clock, config as configuration, report
from feeder.control import Server, Store, parse_networks
from feeder.counter import Histogram
from feeder.endpoint import Endpoint
from feeder.errors import HostError
from feeder.fixed import to_text
from feeder.host import measures
from feeder.host.measures import Measures
from feeder.host.memory import resident_bytes
from feeder.ingest import SNAPSHOTS_AT_ONCE, Feed, Hosts
from feeder.keyfile import read_key
from feeder.log import Limited
from feeder.message import LIVE, STALE, STATE_NAMES, SYNCING
from feeder.net import PacketSender, UnicastSocket
from feeder.packet import Encoder, LoopEncoder, largest
from feeder.publish import SnapshotLoop

log = logging.getLogger("feeder.run")

HEARTBEAT_NS = clock.SECOND
RETRY_NS = 10 * clock.SECOND                # until a port that somebody else has is asked for again
SECRET_BYTES = 32
ROUND_NS = 2 * clock.SECOND                 # one refresh round, where MIN_REFRESH_NS allows
MIN_SNAPSHOT_NS = clock.MILLISECOND         # between turns of the snapshot loops: timers know no less
MIN_REFRESH_NS, MAX_REFRESH_NS = 5 * clock.MILLISECOND, 100 * clock.MILLISECOND
VENUE_SEND_BYTES = 4 << 20                  # TCP send buffer; as much as it receives, though little is said
MAX_WARM_UP_NS = 300 * clock.SECOND


def take_measures(config, stack, name, core=-1, venues=(), udp=True):
    """Take this host's measures for one process: before anything large is made, and for what it will open.

    Args:   venues: those it feeds from; udp: it publishes, so it has the books.
    """
    host = Measures(config.hft, name, core)
    stack.callback(host.close)
    buffers = {("tcp", "tcp", venue.recv_buffer_bytes, VENUE_SEND_BYTES) for venue in venues}
    if udp:
        buffers.add(("udp", "udp", 0, config.output.send_buffer_bytes))
    worst_bytes = configuration.memory_bytes(config) if udp else configuration.INTERPRETER_BYTES
    host.apply(worst_bytes, SNAPSHOTS_AT_ONCE * len(venues) + 1, sorted(buffers, reverse=True))
    return host


class Vitals:
    """What a process tells of itself. Args: host (Measures); halves that run in it; lost_lines() of its log."""

    def __init__(self, loop, host, halves, lost_lines):
        self.loop = loop
        self.host = host
        self.halves = halves
        self.lost_lines = lost_lines
        self.started_ns = clock.steady_ns()
        loop.call_after(measures.WARM_UP_NS, self.warm)

    def warm(self):
        """From here on the host's counters tell of the steady state; not while books are still to come."""
        elapsed_ns = clock.steady_ns() - self.started_ns
        if any(half.is_syncing() for half in self.halves) and elapsed_ns < MAX_WARM_UP_NS:
            self.loop.call_after(measures.WARM_UP_NS, self.warm)
        else:
            self.host.warm()

    def figures(self):
        self.host.watch()
        return {"memory_bytes": resident_bytes(), "internal_errors": self.loop.errors,
                "log_lines_lost": self.lost_lines(), "brief": self.host.brief(), "status": self.host.status(),
                "wanting": self.host.wanting()}

    def report(self):
        return dict(self.figures(), **self.host.report())


class Input:
    """The feeds of a configuration before an Intake, whose `want_snapshot` is to be ours. Closed by `stack`.

    `sharers`: how many processes have a share of the venues.
    """

    def __init__(self, config, loop, intake, stack, sharers=1):
        self.loop = loop
        self.intake = intake
        self.feeds = {}
        hosts = Hosts(sharers)
        for venue in config.venues:
            options = measures.socket_options(config.hft, venue.recv_buffer_bytes, VENUE_SEND_BYTES)
            feed = self.feeds[venue.name] = Feed(loop, intake, venue, config.names, options=options, hosts=hosts)
            stack.callback(feed.close)

    def start(self):
        for feed in self.feeds.values():
            feed.start()

    def want_snapshot(self, venue, instrument, attempt):
        self.feeds[venue.name].snapshots.order(instrument, attempt)

    def figures(self, shown):
        """Return totals, and the gaps of the first instruments that are `shown`."""
        venues = {}
        for name, feed in self.feeds.items():
            machine, links = self.intake.venues[name], self.intake.recoveries[name].links.values()
            venues[name] = {"row": feed.row(), "instruments": len(feed.instruments),
                            "messages": machine.likely + machine.unlikely,
                            "gaps": sum(link.gaps for link in links), "resyncs": sum(link.resyncs for link in links)}
        return {"venues": venues, "decoders": report.decoder_rows(self.intake.venues.values()),
                "gaps": {str(instrument.instrument_id): self.link(instrument).gaps
                         for instrument in self.intake.instruments if instrument.instrument_id < shown}}

    def report(self):
        return dict(self.figures(0), links={str(instrument.instrument_id): report.link_row(self.link(instrument))
                                            for instrument in self.intake.instruments})

    def is_syncing(self):
        return any(self.link(instrument).state == SYNCING for instrument in self.intake.instruments)

    def link(self, instrument):
        return self.intake.recoveries[instrument.venue].link(instrument)


class Channel:
    """One channel's way out: an Encoder, its socket, and the sockets of those who get every datagram, too."""

    def __init__(self, output, number, endpoint, sender, copies):
        self.output = output
        self.endpoint = endpoint
        self.sender = sender
        self.copies = copies
        self.sent_at_beat = 0
        self.encoder = Encoder(output.session, number, self.emit, output.clock_ns, output.packet_bytes, output.seal)
        self.packet_bytes = self.encoder.packet_bytes
        self.keepers = []                       # functions, of a datagram, and of (several, bytes of each but the last)
        self.loop = None
        self.loop_sends = []                    # functions of a datagram

    def emit(self, datagrams):
        count = self.sender.send(datagrams)
        output = self.output
        received_ns = output.publisher.received_ns
        if received_ns and count:
            output.recent.add(clock.stopwatch_ns() - received_ns, count)
        for sender in self.copies:
            sender.send(datagrams)
        for keep, keep_burst in self.keepers:
            if len(datagrams) > self.packet_bytes:
                keep_burst(datagrams, self.packet_bytes)
            else:
                keep(datagrams)

    def add_loop(self, entries, senders, packets_per_second):
        """Repeat the entries at those sockets, too."""
        output, encoder = self.output, self.encoder
        self.loop_sends += [sender.send for sender in senders]
        self.loop = SnapshotLoop(entries, LoopEncoder(
            output.session, encoder.channel, self.emit_loop, output.clock_ns, output.packet_bytes, output.seal,
            lambda: encoder.sequence + encoder.count), packets_per_second)

    def emit_loop(self, datagram):
        for send in self.loop_sends:
            send(datagram)

    def gather(self, hold_ns):
        self.encoder.gather(self.sender.burst, hold_ns)

    def heartbeat(self):
        if self.sender.sent == self.sent_at_beat:
            self.encoder.heartbeat()
        self.sent_at_beat = self.sender.sent
        if self.encoder.burst > self.sender.burst:               # the kernel said meanwhile that it cannot
            self.gather(0)

    def figures(self, entries):
        sender, loop = self.sender, self.loop
        return {"channel": self.encoder.channel, "endpoint": str(self.endpoint), "instruments": len(entries),
                "published_messages": self.encoder.sequence - 1, **sent_by(sender),
                "snapshot_packets": loop.encoder.packets if loop else 0, "rounds": loop.rounds if loop else 0,
                "round_ns": loop.round_ns if loop else 0}


class Service:
    """What a run can do without. Where it cannot be opened, as another feeder has the port, it is tried again and again.

    Of a subclass: `what` is lost without it; make() opens it, or raises HostError; read() when it is readable.
    """

    def __init__(self, loop):
        self.loop = loop
        self.opened = None
        self.error, self.failures = "", 0       # why it is not there now; how often it could not be opened

    def open(self):
        try:
            self.opened = self.make()
        except HostError as error:
            self.error = str(error)
            self.failures += 1
            if self.failures == 1:
                log.warning("%s: %s; tried again every %d s", self.what, error, RETRY_NS // clock.SECOND)
            self.loop.call_after(RETRY_NS, self.open)
            return
        if self.failures:
            log.info("%s no longer: it could be opened now", self.what)
        self.error = ""
        self.loop.register(self.opened, read=self.read)

    def close(self):
        if self.opened is not None:
            self.loop.unregister(self.opened)
            self.opened.close()


class Retransmission(Service):
    """Sends again what is asked for, of the channels' stores."""

    what = "who misses packets cannot ask for them"

    def __init__(self, config, options, loop, channels, seal):
        super().__init__(loop)
        self.where = Endpoint(config.retransmit_address, config.retransmit_port, None)
        self.buffer_bytes = options.send_buffer_bytes
        self.stores = {}
        for channel in channels:
            store = self.stores[channel.encoder.channel] = Store(config.retransmit_datagrams, channel.packet_bytes)
            channel.keepers.append((store.add, store.add_burst))
        self.server = Server(self.stores, parse_networks(config.retransmit_networks), os.urandom(SECRET_BYTES), seal,
                             config.retransmit_packets_per_second)

    def make(self):
        return UnicastSocket(self.where.address, self.where.port, send_buffer_bytes=self.buffer_bytes,
                             recv_buffer_bytes=self.buffer_bytes)

    def read(self):
        self.opened.serve(self.server.receive, clock.steady_ns)

    def figures(self):
        sock = self.opened
        return {"endpoint": str(self.where), "error": self.error, "failures": self.failures,
                "kept": sum(map(len, self.stores.values())), **self.server.counts,
                "not_sent": sock.dropped if sock else 0, "send_errors": sock.errors if sock else 0}


class Tap(Service):
    """Shows every datagram to listeners on this host, in memory."""

    what = "no tap for listeners on this host"

    def __init__(self, name, loop, channels):
        super().__init__(loop)
        self.name = name
        self.channels = channels

    def make(self):
        from feeder.net.handover import TapServer      # what only some runs need
        server = TapServer(self.name)
        for channel in self.channels:
            channel.keepers.append((server.write, server.write_burst))
            channel.loop_sends.append(server.write)
        return server

    def read(self):
        self.opened.accept()

    def figures(self):
        server = self.opened
        return {"name": self.name, "error": self.error, "failures": self.failures,
                "records": server.writer.records if server else 0, "not_written": server.writer.refused if server else 0,
                "readers": len(server.readers()) if server else 0, "readers_refused": server.refused if server else 0}


class Output:
    """The sockets, what they are fed with besides the data, and what left by them. `publisher`, made of `encoders`, is to
    be set before start().
    """

    def __init__(self, config, loop, stack, clock_ns=clock.wall_ns):
        self.loop = loop
        self.clock_ns = clock_ns
        self.publisher = None
        self.latency = Histogram()              # up to the last figures
        self.recent = Histogram()               # since then
        self.limited = Limited(log, 10)
        self.faults = {}                        # venue -> the last fault of a book
        output = self.config = config.output
        self.session = clock_ns()
        self.packet_bytes = output.packet_bytes
        self.seal = read_key(output.key_file) if output.key_file else None
        self.hold_ns = config.hft.sockets.batch_us * clock.MICROSECOND
        options = measures.socket_options(config.hft, 0, output.send_buffer_bytes,
                                          largest(output.packet_bytes) if self.hold_ns else 0)
        self.senders = {}                       # Endpoint -> PacketSender; channels may share one
        opened = partial(self.open, options, stack)
        self.copies = list(map(opened, configuration.fan_out(output)))
        self.channels = [Channel(self, output.channel + index, endpoint, opened(endpoint), self.copies)
                         for index, endpoint in enumerate(configuration.channels(output))]
        self.encoders = [channel.encoder for channel in self.channels]
        self.retransmission = (Retransmission(output, options, loop, self.channels, self.seal)
                               if output.retransmit_port else None)
        self.tap = Tap(output.tap, loop, self.channels) if output.tap else None
        self.services = [service for service in (self.retransmission, self.tap) if service]
        for service in self.services:
            stack.callback(service.close)
        self.loop_senders = []
        if output.snapshot_port:
            alone = measures.socket_options(config.hft, 0, output.send_buffer_bytes)
            self.loop_senders = [[self.open(alone, stack, each._replace(port=output.snapshot_port))
                                  for each in (channel.endpoint, *configuration.fan_out(output))]
                                 for channel in self.channels]
        for service in self.services:           # before anything is sent: definitions come ahead of start()
            service.open()

    def open(self, options, stack, endpoint):
        """Return the PacketSender to an Endpoint."""
        if endpoint not in self.senders:
            output = self.config
            sender = self.senders[endpoint] = PacketSender(
                endpoint.address, endpoint.port, ttl=output.ttl, interface=endpoint.interface or "",
                loopback=output.loopback, send_buffer_bytes=options.send_buffer_bytes, options=options)
            stack.callback(sender.close)
        return self.senders[endpoint]

    def start(self):
        output = self.config
        for channel in self.channels:
            channel.gather(self.hold_ns)
        for channel, entries, senders in zip(self.channels, self.publisher.carried, self.loop_senders):
            channel.add_loop(entries, list(dict.fromkeys(senders)), output.snapshot_packets_per_second)
        self.heartbeat()
        if output.snapshot_port:
            self.snapshots()
        else:
            self.refresh()

    # The next one is set first: a fault in one round must not end the rounds.

    def heartbeat(self):
        self.loop.call_after(HEARTBEAT_NS, self.heartbeat)
        for channel in self.channels:
            channel.heartbeat()

    def snapshots(self):
        interval_ns = clock.SECOND // self.config.snapshot_packets_per_second
        self.loop.call_after(max(MIN_SNAPSHOT_NS, interval_ns), self.snapshots)
        now_ns = clock.steady_ns()
        for channel in self.channels:
            channel.loop.run(now_ns)

    def refresh(self):
        count = max(1, len(self.publisher.entries))
        self.loop.call_after(min(MAX_REFRESH_NS, max(MIN_REFRESH_NS, ROUND_NS // count)), self.refresh)
        self.publisher.refresh()
        self.publisher.flush()

    def is_syncing(self):
        return any(entry.state == SYNCING for entry in self.publisher.entries)

    def end(self):
        for encoder in self.encoders:
            encoder.end()
        self.limited.flush()

    def fault(self, instrument, reason, text):
        """Note what the publisher found wrong with a book."""
        self.faults[instrument.venue] = f"{instrument.symbol}: {reason}: {text}"
        self.limited.warning((reason, instrument.instrument_id), "%s %s: %s: %s",
                             instrument.venue, instrument.symbol, reason, text)

    def figures(self, shown):
        """Return totals, and the first instruments that are `shown`."""
        states = {}
        for entry in self.publisher.entries:
            counts = states.setdefault(entry.instrument.venue, dict.fromkeys(
                (STATE_NAMES[state] for state in (LIVE, SYNCING, STALE)), 0))
            counts[STATE_NAMES[entry.state]] += 1
        recent, self.recent = self.recent, Histogram()
        self.latency.merge(recent)
        p50, p99 = recent.percentiles((50, 99))
        sender = self.channels[0].sender
        channels = list(map(Channel.figures, self.channels, self.publisher.carried))
        return {"session": self.session, "is_signed": self.seal is not None, "channels": channels,
                **{key: sum(channel[key] for channel in channels) for key in (*COUNTS, "published_messages")},
                "burst_way": sender.burst_text, "send_buffer_bytes": sender.send_buffer_bytes,
                "fan_out": [{"endpoint": str(endpoint), **sent_by(self.senders[endpoint])}
                            for endpoint in configuration.fan_out(self.config)],
                "snapshot_loop": self.loop_figures(channels) if self.loop_senders else None,
                "retransmission": self.retransmission.figures() if self.retransmission else None,
                "tap": self.tap.figures() if self.tap else None, "states": states,
                "recent_ns": {"p50": p50, "p99": p99, "max": recent.max}, "latency_ns": self.latency.summary(),
                "faults": self.faults, "entries": list(map(shown_entry, self.publisher.entries[:shown]))}

    def loop_figures(self, channels):
        """Of all snapshot loops together; packets as they were made, each goes to every address."""
        senders = {sender for senders in self.loop_senders for sender in senders}
        return {"packets": sum(channel["snapshot_packets"] for channel in channels),
                "rounds": min(channel["rounds"] for channel in channels),
                "round_ns": max(channel["round_ns"] for channel in channels),
                "not_sent": sum(sender.dropped for sender in senders), "send_errors": sum(sender.errors for sender in senders)}

    def report(self):
        return dict(self.figures(0), instruments={str(entry.instrument.instrument_id): report.entry_row(entry)
                                                  for entry in self.publisher.entries})


COUNTS = "packets", "bytes", "not_sent", "send_errors", "bursts"


def sent_by(sender):
    """Return what left by a PacketSender, and what did not."""
    return dict(zip(COUNTS, (sender.sent, sender.bytes, sender.dropped, sender.errors, sender.bursts)))


def shown_entry(entry):
    instrument = entry.instrument
    best = [to_text(side[0], instrument.price_decimals) if side else "-" for side in entry.book.top(1)]
    return [instrument.venue, instrument.symbol, STATE_NAMES[entry.state], *best, entry.events, entry.trades]

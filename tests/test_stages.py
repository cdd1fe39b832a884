"""Output: what leaves in bursts, and what becomes of it when the kernel no longer can; who gets what, what is repeated and
what is sent again, by real sockets; what the figures say of it.
"""

import os
import socket
import sys
from contextlib import ExitStack

import pytest
from outlet import free_udp_port

from feeder import clock, config as configuration, stages
from feeder.control.datagram import (CHALLENGE, NO_TOKEN, REQUEST, UNAVAILABLE, Control, decode as control_of, encode,
                                     is_control)
from feeder.errors import ConfigError, HostError
from feeder.instrument import Instrument
from feeder.message import BUY, LIVE
from feeder.net import Loop, PacketReceiver, UnicastSocket
from feeder.net.handover import TapClient, TapServer
from feeder.packet import (ALL_INSTRUMENTS, END, HEARTBEAT, REFRESH, RETRANSMITTED, SIGNED, SNAPSHOTS, Book, Padding, Round,
                           decode)
from feeder.publish import Publisher
from feeder.seal import Seal
from feeder.stages import Output

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="UDP_SEGMENT is Linux's")
GROUP = "239.192.7.6"


class Running:
    """An Output on a loop, its publisher, and a receiver of what it sends. `now_ns` is the encoder's clock."""

    def __init__(self, stack, **changes):
        config = configuration.builtin()
        for path, value in changes.items():
            section, key = path.split("__")
            setattr(config.output if section == "output" else getattr(config.hft, section), key, value)
        self.receiver = PacketReceiver(GROUP, 0)
        stack.callback(self.receiver.close)
        config.output.group, config.output.port = GROUP, self.receiver.port
        self.loop = Loop()
        stack.callback(self.loop.close)
        self.now_ns = 1
        self.output = Output(config, self.loop, stack, lambda: self.now_ns)
        self.encoder, = self.output.encoders
        self.sender = self.output.channels[0].sender
        self.output.publisher = Publisher(self.output.encoders, None)
        self.output.start()
        self.sent = self.heard = 0
        assert self.check() == (1, 0)            # a heartbeat

    def trades(self, count, pace_ns):
        """One turn, in which a packet of 19 fills every `pace_ns`."""
        self.output.publisher.received_ns = clock.stopwatch_ns()
        for at in range(count):
            if at % 19 == 0:
                self.now_ns += pace_ns
            self.encoder.trade(0, LIVE, 1, 1, 2, 3, self.sent, 4, 5, BUY)
            self.sent += 1
        self.encoder.flush()

    def check(self):
        """All trades came, in order; return how many datagrams there were, and how many with padding."""
        buffer = memoryview(bytearray(65_536))
        datagrams = padded = 0
        while True:
            size = self.receiver.receive_into(buffer)
            if size is None:
                assert self.heard == self.sent
                return datagrams, padded
            datagrams += 1
            for message in decode(buffer[:size]).messages:
                if type(message) is Padding:
                    padded += 1
                else:
                    assert message.item.trade_id == self.heard
                    self.heard += 1


def test_dense_packets_leave_together_and_others_at_once():
    with ExitStack() as stack:
        running = Running(stack)
        running.trades(19 * 10, 100_000)
        assert running.check() == (10, 0) and running.sender.bursts == 0
        running.trades(1, 100_000)
        assert running.check() == (1, 0)
        running.trades(19 * 10, 5_000)
        assert running.check() == (10, 8) and running.sender.bursts == 1      # the first left at once
        figures = running.output.figures(0)
        assert figures["packets"] == 22 and figures["bursts"] == 1 and figures["burst_way"].startswith("UDP_SEGMENT")
        assert running.output.latency.count == 21


@pytest.mark.parametrize("changes, way", [({"sockets__batch_us": 0}, "not asked for"),
                                          ({"output__packet_bytes": 60_000}, "one at a time: two datagrams of")])
def test_switched_off(changes, way):
    with ExitStack() as stack:
        running = Running(stack, **changes)
        running.trades(19 * 10, 5_000)
        datagrams, padded = running.check()
        assert padded == 0 and running.encoder.burst == 1
        assert running.output.figures(0)["bursts"] == 0 and running.output.figures(0)["burst_way"].startswith(way)


def test_a_kernel_that_refuses_half_way_loses_nothing_and_is_not_padded_for_any_longer():
    with ExitStack() as stack:
        running = Running(stack)
        running.trades(19 * 10, 5_000)
        running.sender._socket.setsockopt(socket.SOL_SOCKET, 11, 1)            # SO_NO_CHECK
        running.trades(19 * 10, 5_000)
        assert running.check()[0] == 20 and running.sender.bursts == 1
        running.output.heartbeat()
        running.trades(19 * 10, 5_000)
        assert running.check() == (10, 0) and running.encoder.burst == 1
        assert running.output.figures(0)["burst_way"] == "one at a time: Invalid argument"
        assert running.output.figures(0)["send_errors"] == running.output.figures(0)["not_sent"] == 0


# -- several channels, their snapshot loops, copies, and packets that are sent again ---------------------------------


class Site:
    """What listens on the wire; then, by start(), an Output and a publisher of `count` instruments, in one loop."""

    def __init__(self, stack):
        self.stack = stack
        self.receivers, self.heard = [], {}          # port: datagrams
        self.loop = Loop()
        stack.callback(self.loop.close)

    def listen(self, address, port=0):
        """Hear what comes there; return the port."""
        receiver = PacketReceiver(address, port, interface="lo" if ":" in address else "127.0.0.1")
        self.stack.callback(receiver.close)
        self.receivers.append(receiver)
        self.heard.setdefault(receiver.port, [])
        return receiver.port

    def start(self, count=12, **output):
        """What is not asked for is off: no snapshot loop, nothing sent again."""
        config = configuration.builtin()
        for key, value in {"group": GROUP, "snapshot_port": 0, "retransmit_port": 0, **output}.items():
            setattr(config.output, key, value)
        self.output = Output(config, self.loop, self.stack)
        self.publisher = self.output.publisher = Publisher(self.output.encoders, None)
        self.instruments = [Instrument(number, "okx", f"COIN{number}-USDT") for number in range(count)]
        for instrument in self.instruments:
            self.publisher.define(instrument, 1, 1)
        self.output.start()
        for instrument in self.instruments:
            self.publisher.snapshot(instrument, 1, 2, 3, [100, 1], [101, 1])
        self.publisher.flush()

    def until(self, condition):
        give_up_ns = clock.steady_ns() + 10 * clock.SECOND
        buffer = memoryview(bytearray(65_536))
        while True:
            for receiver in self.receivers:
                while True:
                    size = receiver.receive_into(buffer)
                    if size is None:
                        break
                    self.heard[receiver.port].append(bytes(buffer[:size]))
            if condition():
                return
            assert clock.steady_ns() < give_up_ns, "waited in vain"
            self.loop.run_once(5 * clock.MILLISECOND)

    def all_of(self, port):
        """What came to a port, when the session is over."""
        self.until(lambda: self.heard[port] and decode(self.heard[port][-1]).flags & END)
        return self.heard[port]


def messages(datagrams):
    return [message for datagram in datagrams for message in decode(datagram).messages]


def test_channels_go_where_they_are_told_and_copies_get_all_of_them():
    with ExitStack() as stack:
        site = Site(stack)
        first, second, copy = site.listen(GROUP), site.listen("239.192.7.8"), site.listen("127.0.0.1")
        site.start(channel=7, port=first, more_channels=[f"239.192.7.8:{second}"], fan_out=[f"127.0.0.1:{copy}"])
        site.output.end()
        one, two = site.all_of(first), site.all_of(second)
        site.until(lambda: len(site.heard[copy]) == len(one) + len(two))
        assert sorted(site.heard[copy]) == sorted(one + two)
        assert {decode(each).channel for each in one} == {7} and {decode(each).channel for each in two} == {8}
        ids = [{message.instrument_id for message in messages(each)} for each in (one, two)]
        assert len(ids[0]) + len(ids[1]) == 12 and len(ids[0] | ids[1]) == 12 and min(map(len, ids)) >= 2
        figures = site.output.figures(0)
        assert [(each["channel"], each["endpoint"], each["instruments"]) for each in figures["channels"]] == [
            (7, f"{GROUP}:{first}@127.0.0.1", len(ids[0])), (8, f"239.192.7.8:{second}@127.0.0.1", len(ids[1]))]
        assert figures["packets"] == len(one) + len(two) == figures["fan_out"][0]["packets"]
        assert figures["published_messages"] == len(messages(one + two)) and figures["retransmission"] is figures["snapshot_loop"] is None


def test_a_channel_by_ipv6_and_its_snapshot_loop():
    """To a host: for a group loopback has no route without an administrator."""
    with ExitStack() as stack:
        site = Site(stack)
        try:
            port, looped = site.listen("::1"), site.listen("::1")
        except HostError as error:
            pytest.skip(str(error))
        site.start(group="::1", port=port, interface="lo", snapshot_port=looped, packet_bytes=1452)
        site.until(lambda: site.output.channels[0].loop.rounds >= 2)
        site.output.end()
        assert {message.instrument_id for message in messages(site.all_of(port))} == set(range(12))
        assert all(decode(each).flags == SNAPSHOTS for each in site.heard[looped]) and len(site.heard[looped]) >= 2
        assert site.output.figures(0)["channels"][0]["endpoint"] == f"[::1]:{port}@lo"


def test_each_channel_has_its_heartbeat(monkeypatch):
    monkeypatch.setattr(stages, "HEARTBEAT_NS", clock.MILLISECOND)
    with ExitStack() as stack:
        site = Site(stack)
        ports = site.listen(GROUP), site.listen("239.192.7.8")
        site.start(count=0, port=ports[0], more_channels=[f"239.192.7.8:{ports[1]}"])
        site.until(lambda: all(len(site.heard[port]) >= 3 for port in ports))
        for number, port in enumerate(ports):
            assert {(sent.channel, sent.flags, sent.sequence) for sent in map(decode, site.heard[port])} == {
                (number, HEARTBEAT, 1)}


def test_who_hears_nothing_but_the_snapshot_loop_knows_every_book_and_where_it_stands():
    with ExitStack() as stack:
        site = Site(stack)
        first, second, copy = site.listen(GROUP), site.listen("239.192.7.8"), site.listen("127.0.0.1")
        port = site.listen(GROUP)
        site.listen("239.192.7.8", port)
        site.listen("127.0.0.1", port)
        site.start(port=first, more_channels=[f"239.192.7.8:{second}"], fan_out=[f"127.0.0.1:{copy}"], snapshot_port=port,
                   snapshot_packets_per_second=1000)
        site.until(lambda: all(channel.loop.rounds >= 3 for channel in site.output.channels))
        looped = [decode(each) for each in site.heard[port]]
        for number, channel in enumerate(site.output.channels):
            ours = [each for each in looped if each.channel == number]
            assert all(ours.count(each) == 2 for each in ours), "the group's and the copy"
            assert all(each.flags == SNAPSHOTS and each.session == site.output.session for each in ours)
            rounds = [message.number for each in ours for message in each.messages if isinstance(message, Round)]
            assert rounds[0] == 1 and set(rounds) >= {1, 2, 3}
            last = [each for each in ours if each.messages[0].instrument_id == ALL_INSTRUMENTS][-1]
            assert last.sequence == channel.encoder.sequence
            books = {message.instrument_id for each in ours for message in each.messages if isinstance(message, Book)}
            assert books == {entry.instrument.instrument_id for entry in site.publisher.carried[number]}
        figures = site.output.figures(0)
        assert figures["snapshot_loop"]["rounds"] >= 3 and figures["snapshot_loop"]["round_ns"] > 0
        assert figures["snapshot_loop"]["not_sent"] == figures["snapshot_loop"]["send_errors"] == 0


def test_without_a_snapshot_port_the_channels_repeat_what_they_carry(monkeypatch):
    monkeypatch.setattr(stages, "ROUND_NS", 1)
    with ExitStack() as stack:
        site = Site(stack)
        ports = site.listen(GROUP), site.listen("239.192.7.8")
        site.start(port=ports[0], more_channels=[f"239.192.7.8:{ports[1]}"])
        site.until(lambda: sum(isinstance(message, Book) and bool(message.flags & REFRESH) for port in ports
                               for message in messages(site.heard[port])) >= 12)
        assert site.publisher.turn != 0 and not any(decode(each).flags & SNAPSHOTS
                                                    for port in ports for each in site.heard[port])


def ask(site, sock, where, channel, session, first, count, seal=None):
    """Ask as docs/protocol.md says, a challenge being answered; return the datagrams that came then."""
    buffer, came = memoryview(bytearray(65_536)), []
    token = NO_TOKEN

    def answered():
        found = sock.receive_into(buffer)
        if found is not None:
            came.append(bytes(buffer[:found[0]]))
        return bool(came)
    for _ in range(2):
        came.clear()
        sock.send(encode(Control(REQUEST, channel, session, first, count, 0, token), seal), where)
        site.until(answered)
        if is_control(came[0]) and control_of(came[0], seal).kind == CHALLENGE:
            token = control_of(came[0], seal).token
    while answered() and sock.receive_into(buffer) is not None:
        raise AssertionError("more than was asked for")
    return came


@pytest.mark.parametrize("is_signed", [False, True])
def test_what_was_sent_is_sent_again_to_who_asks(tmp_path, is_signed):
    with ExitStack() as stack:
        site = Site(stack)
        first, second = site.listen(GROUP), site.listen("239.192.7.8")
        key = tmp_path / "feeder.key"
        key.write_text("0123456789abcdef")
        key.chmod(0o600)
        asker = UnicastSocket()
        stack.callback(asker.close)
        where = "127.0.0.1", free_udp_port()
        site.start(port=first, more_channels=[f"239.192.7.8:{second}"], retransmit_port=where[1], packet_bytes=256,
                   key_file=str(key) if is_signed else "")
        site.output.end()
        seal = Seal(b"0123456789abcdef") if is_signed else None
        for channel, port in enumerate((first, second)):
            sent = site.all_of(port)[1]                  # a packet of two messages or so, after the first heartbeat
            packet = decode(sent)
            assert packet.message_count and bool(packet.flags & SIGNED) == is_signed
            assert seal is None or all(map(seal.verify, site.heard[port]))
            again, = ask(site, asker, where, channel, packet.session, packet.sequence, 1, seal)
            assert decode(again).flags == packet.flags | RETRANSMITTED and decode(again).messages == packet.messages
            assert seal is None or seal.verify(again)
        answer, = ask(site, asker, where, 0, 12345, 1, 1, seal)
        assert control_of(answer, seal).kind == UNAVAILABLE
        assert site.output.figures(0)["is_signed"] == is_signed
        figures = site.output.figures(0)["retransmission"]
        assert (figures["requests"], figures["packets"], figures["unavailable"], figures["error"]) == (3, 2, 1, "")
        assert figures["kept"] == sum(decode(each).message_count > 0 for port in (first, second) for each in site.heard[port])


def test_a_port_that_another_feeder_has_is_said_once_and_taken_when_it_is_free(monkeypatch, caplog):
    caplog.set_level("INFO", "feeder.run")
    monkeypatch.setattr(stages, "RETRY_NS", clock.MILLISECOND)
    with ExitStack() as stack:
        site = Site(stack)
        other = UnicastSocket()
        port = site.listen(GROUP)
        site.start(port=port, retransmit_port=other.port)
        again = site.output.retransmission
        site.until(lambda: again.failures >= 3)
        assert "Address already in use" in site.output.figures(0)["retransmission"]["error"]
        assert caplog.text.count("who misses packets cannot ask for them: cannot bind 127.0.0.1:") == 1
        other.close()
        site.until(lambda: again.opened is not None)
        assert site.output.figures(0)["retransmission"]["error"] == "" and "it could be opened now" in caplog.text
        asker = UnicastSocket()
        stack.callback(asker.close)
        sent = decode(site.heard[port][-1])
        assert len(ask(site, asker, ("127.0.0.1", other.port), 0, sent.session, 1, 1)) == 1
        assert site.loop.errors == 0


def test_a_tap_shows_what_the_wire_has_and_the_snapshot_loop(monkeypatch):
    monkeypatch.setattr(stages, "RETRY_NS", clock.MILLISECOND)
    with ExitStack() as stack:
        site = Site(stack)
        port, looped, name = site.listen(GROUP), site.listen(GROUP), f"test-{os.getpid()}"
        other = TapServer(name)
        site.start(port=port, snapshot_port=looped, tap=name)
        site.until(lambda: site.output.tap.failures >= 2)
        assert "another process on this host has the name" in site.output.figures(0)["tap"]["error"]
        other.close()
        site.until(lambda: site.output.tap.opened is not None)
        client = TapClient(name)
        stack.callback(client.close)

        def is_open():
            client.poll()
            return client.is_open
        site.until(is_open)
        site.heard[port].clear()
        site.heard[looped].clear()
        while client.read() is not None:
            pass
        site.publisher.trade(site.instruments[0], 3, 1, 2, 3, 10_050, 7, BUY)
        site.publisher.flush()
        rounds = site.output.channels[0].loop.rounds
        site.until(lambda: site.output.channels[0].loop.rounds > rounds + 1)
        site.output.end()
        site.all_of(port)
        seen = []
        while not seen or seen[-1] is not None:
            seen.append(client.read())
        assert sorted(filter(None, seen)) == sorted(site.heard[port] + site.heard[looped]) and len(site.heard[looped]) > 1
        figures = site.output.figures(0)["tap"]
        assert (figures["error"], figures["readers"], figures["not_written"]) == ("", 1, 0) and figures["records"] > 2


def test_who_waits_for_a_tap_misses_nothing_of_the_session():
    with ExitStack() as stack:
        site = Site(stack)
        port, name = site.listen(GROUP), f"test-first-{os.getpid()}"
        client = TapClient(name)
        stack.callback(client.close)
        site.start(port=port, tap=name)
        site.until(lambda: client.poll() or client.is_open)
        site.output.end()
        seen = iter(client.read, None)
        assert list(seen) == site.all_of(port) and decode(site.heard[port][0]).sequence == 1


def test_a_key_that_cannot_be_read_ends_the_run_before_it_begins(tmp_path):
    with ExitStack() as stack, pytest.raises(ConfigError, match="missing.key: No such file"):
        Site(stack).start(key_file=str(tmp_path / "missing.key"))

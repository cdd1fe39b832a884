"""Output: what leaves in bursts, what the figures say of it, and what becomes of it when the kernel no longer can."""

import socket
import sys
from contextlib import ExitStack

import pytest

from feeder import clock, config as configuration
from feeder.message import BUY, LIVE
from feeder.net import Loop, PacketReceiver
from feeder.packet import Padding, decode
from feeder.publish import Publisher
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

import errno
import os
import random
import socket
import sys

import pytest
from net_peers import loop, run_until  # noqa: F401

from feeder.errors import HostError
from feeder.net import PacketReceiver, PacketSender
from feeder.net.udp import MAX_DATAGRAM_BYTES

GROUP = "239.192.7.1"
LOOPBACK = next((name for _, name in socket.if_nameindex() if name in ("lo", "lo0")), None)


@pytest.fixture
def keep():
    """Closes what it was given."""
    kept = []
    yield lambda thing: kept.append(thing) or thing
    for thing in kept:
        thing.close()


def drain(receiver):
    buffer = bytearray(MAX_DATAGRAM_BYTES)
    found = []
    while True:
        count = receiver.receive_into(buffer)
        if count is None:
            return found
        found.append(bytes(buffer[:count]))


@pytest.mark.parametrize("interface", ["127.0.0.1", LOOPBACK])
def test_multicast_reaches_every_receiver_on_the_host_in_order(loop, keep, interface):
    if interface is None:
        pytest.skip("no loopback interface with a known name")
    seed = random.randrange(1 << 32)
    print("seed", seed)
    dice = random.Random(seed)
    first = keep(PacketReceiver(GROUP, 0, interface=interface))
    receivers = [first] + [keep(PacketReceiver(GROUP, first.port, interface="127.0.0.1")) for _ in range(2)]
    sender = keep(PacketSender(GROUP, first.port, interface=interface))
    packets = [dice.getrandbits(8 * size).to_bytes(size, "little") for size in dice.choices(range(1, 1473), k=200)]
    assert all(sender.send(packet) for packet in packets)
    assert (sender.sent, sender.bytes, sender.dropped, sender.errors) == (200, sum(map(len, packets)), 0, 0)
    for receiver in receivers:
        got = []
        loop.register(receiver, read=lambda: got.extend(drain(receiver)))
        run_until(loop, lambda: len(got) == 200)
        assert got == packets
        loop.unregister(receiver)


def test_other_groups_on_the_same_port_stay_away(keep):
    mine = keep(PacketReceiver(GROUP, 0))
    other = keep(PacketReceiver("239.192.7.2", mine.port))
    keep(PacketSender("239.192.7.2", mine.port)).send(b"theirs")
    keep(PacketSender(GROUP, mine.port)).send(b"mine")
    assert drain(mine) == [b"mine"] and drain(other) == [b"theirs"]


def test_buffers_are_read_back(keep):
    receiver = keep(PacketReceiver(GROUP, 0, recv_buffer_bytes=100_000))
    sender = keep(PacketSender(GROUP, receiver.port, send_buffer_bytes=100_000))
    assert receiver.recv_buffer_bytes >= 100_000 and sender.send_buffer_bytes >= 100_000


def test_unicast_both_ways_of_the_socket(loop, keep):
    receiver = keep(PacketReceiver("127.0.0.1", 0))
    sender = keep(PacketSender("127.0.0.1", receiver.port))
    assert sender.send(memoryview(b"abc")) and sender.send(b"")
    assert drain(receiver) == [b"abc", b""]
    assert receiver.receive_into(bytearray(10)) is None


def test_unicast_to_nobody_is_counted_and_later_listeners_miss_nothing(keep):
    receiver = PacketReceiver("127.0.0.1", 0)
    port = receiver.port
    receiver.close()
    sender = keep(PacketSender("127.0.0.1", port))
    # The refusal of one datagram is reported by the send of the next, which must go out all the same.
    assert all(sender.send(b"lost") for _ in range(10))
    assert sender.sent == 10 and sender.errors > 0 and sender.dropped == 0
    receiver = keep(PacketReceiver("127.0.0.1", port))
    assert sender.send(b"first") and sender.send(b"second")
    assert drain(receiver) == [b"first", b"second"]


def test_a_full_kernel_buffer_is_counted_and_never_blocks(keep):
    """A UDP buffer on loopback never fills, the receiver is charged at once; a local datagram socket's really does."""
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    keep(left).setblocking(False)
    keep(right).setblocking(False)
    sender = keep(PacketSender(GROUP, 9))
    sender._send = left.send
    results = [sender.send(bytes(1472)) for _ in range(5000)]
    assert sender.dropped == results.count(False) > 0 and sender.sent == results.count(True) > 0
    assert sender.bytes == 1472 * sender.sent and sender.errors == 0
    right.recv(2000)
    assert sender.send(b"again")


@pytest.mark.parametrize("number, counter", [
    (errno.EAGAIN, "dropped"), (errno.ENOBUFS, "dropped"), (errno.EPERM, "errors"), (errno.ENETUNREACH, "errors"),
    (errno.EMSGSIZE, "errors")])
def test_every_failing_send_is_counted_and_said_once(keep, caplog, number, counter):
    sender = keep(PacketSender(GROUP, 9))

    def fail(datagram):
        raise OSError(number, "the reason")

    sender._send = fail
    assert not any(sender.send(b"x") for _ in range(5))
    assert getattr(sender, counter) == 5 and sender.dropped + sender.errors == 5 and sender.sent == 0
    assert caplog.text.count("the reason") == (counter == "errors")


def test_too_large_a_datagram_is_an_error_not_a_crash(keep):
    sender = keep(PacketSender(GROUP, 9))
    assert not sender.send(bytes(70_000)) and sender.errors == 1


@pytest.mark.parametrize("make", [PacketReceiver, PacketSender])
@pytest.mark.parametrize("interface", ["192.0.2.77", "nosuch7"])
def test_an_interface_that_is_not_there_is_named(make, interface):
    with pytest.raises(HostError, match=interface):
        make(GROUP, 30_000, interface=interface)


def test_an_address_in_use_and_ipv6_are_refused_with_a_sentence(keep):
    taken = keep(PacketReceiver("127.0.0.1", 0))
    with pytest.raises(HostError, match=f"127.0.0.1:{taken.port}.*in use"):
        PacketReceiver("127.0.0.1", taken.port)
    with pytest.raises(HostError, match="IPv6"):
        PacketSender("ff15::1", 9)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="SO_MEMINFO and /proc/net/udp are Linux's")
def test_what_the_kernel_dropped_for_us_can_be_told_from_what_never_came(keep):
    """Asked three times: the datagrams that are missing, SO_MEMINFO, and /proc/net/udp."""
    receiver = keep(PacketReceiver("127.0.0.1", 0, recv_buffer_bytes=8192))
    sender = keep(PacketSender("127.0.0.1", receiver.port))
    assert receiver.kernel_drops() == 0
    assert all(sender.send(bytes(1000)) for _ in range(200))
    dropped = 200 - len(drain(receiver))
    assert receiver.kernel_drops() == dropped > 0
    inode = str(os.fstat(receiver.fileno()).st_ino)
    with open("/proc/net/udp", encoding="ascii") as sockets:
        assert [int(fields[12]) for fields in map(str.split, sockets) if fields[9] == inode] == [dropped]
    receiver.close()
    assert receiver.kernel_drops() is None

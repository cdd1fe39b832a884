import ctypes
import errno
import json
import os
import random
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from net_peers import loop, run_until  # noqa: F401

from feeder.errors import HostError
from feeder.net import PacketReceiver, PacketSender, SocketOptions, sockets, udp
from feeder.net.udp import MAX_DATAGRAM_BYTES, NO_SEGMENTS

GROUP = "239.192.7.1"
LINUX = sys.platform.startswith("linux")
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


def test_an_address_in_use_is_refused_with_a_sentence(keep):
    taken = keep(PacketReceiver("127.0.0.1", 0))
    with pytest.raises(HostError, match=f"127.0.0.1:{taken.port}.*in use"):
        PacketReceiver("127.0.0.1", taken.port)


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


@pytest.mark.parametrize("tells", [True, False])
def test_the_kernel_tells_when_a_datagram_came_and_what_it_dropped_before(keep, tells):
    receiver = keep(PacketReceiver("127.0.0.1", 0, recv_buffer_bytes=8192, tells=tells))
    sender = keep(PacketSender("127.0.0.1", receiver.port))
    buffer = memoryview(bytearray(MAX_DATAGRAM_BYTES))
    assert receiver.receive_told_into(buffer) is None
    before_ns = time.time_ns()
    assert all(sender.send(bytes(1000)) for _ in range(200))
    after_ns = time.time_ns()
    kept = list(iter(lambda: receiver.receive_told_into(buffer), None))
    sender.send(bytes(1001))
    last = receiver.receive_told_into(buffer)
    assert 0 < len(kept) < 200 and last[:2] == (1001, 1001)
    if not receiver.tells:
        assert {each[2:] for each in (*kept, last)} == {(0, 0)}
        return
    assert {each[0::3] for each in kept} == {(1000, 0)} and last[3] == 200 - len(kept)
    times = [each[2] for each in kept]
    assert before_ns <= times[0] and times == sorted(times) and after_ns <= last[2]
    assert times[-1] <= after_ns + 10**9                    # the kernel may take it in a little later than it was sent


# -- bursts ----------------------------------------------------------------------------------------------------

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="UDP_SEGMENT and UDP_GRO are Linux's")
SIZE = 1472


def bursting(keep, port, group=GROUP, interface="127.0.0.1", **more):
    return keep(PacketSender(group, port, interface=interface, options=SocketOptions(segment_bytes=SIZE, **more)))


def cut(data, size=SIZE):
    return [data[at:at + size] for at in range(0, len(data), size)]


@linux
def test_a_burst_is_told_as_one(keep):
    receiver = keep(PacketReceiver(GROUP, 0, coalesce=True, tells=True))
    bursting(keep, receiver.port).send(bytes(3 * SIZE + 5))
    size, each, came_ns, drops = receiver.receive_told_into(bytearray(MAX_DATAGRAM_BYTES))
    assert (size, each, drops) == (3 * SIZE + 5, SIZE, 0) and came_ns


def drain_bursts(receiver):
    """Return (datagrams, calls)."""
    buffer = memoryview(bytearray(MAX_DATAGRAM_BYTES))
    found, calls = [], 0
    while True:
        got = receiver.receive_burst_into(buffer)
        if got is None:
            return found, calls
        calls += 1
        found += cut(bytes(buffer[:got[0]]), got[1] or 1) or [b""]


@linux
def test_a_burst_arrives_as_datagrams_whoever_listens(keep):
    seed = random.randrange(1 << 32)
    print("seed", seed)
    dice = random.Random(seed)
    receivers = [keep(PacketReceiver(GROUP, 0, coalesce=True))]
    port = receivers[0].port
    receivers += [keep(PacketReceiver(GROUP, port, coalesce=coalesce)) for coalesce in (True, False, False)]
    sender = bursting(keep, receivers[0].port)
    assert sender.burst == 44 and sender.burst_text == "UDP_SEGMENT, 44 x 1472 bytes"
    sent, many = [], 0
    for count in [1, 2, 43, 44, 1] + dice.choices(range(1, 45), k=20):
        last = dice.choice((1, 39, 40, 700, 1471, 1472))
        data = dice.getrandbits(8 * (SIZE * (count - 1) + last)).to_bytes(SIZE * (count - 1) + last, "little")
        assert sender.send(memoryview(data)) == count
        sent += cut(data)
        many += count > 1
    assert (sender.sent, sender.bytes, sender.bursts) == (len(sent), sum(map(len, sent)), many)
    assert sender.dropped == sender.errors == 0
    for receiver in receivers[:-1]:
        assert receiver.coalesces == (receiver in receivers[:2])
        found, calls = drain_bursts(receiver)
        assert found == sent and (calls < len(sent)) == receiver.coalesces
    assert drain(receivers[-1]) == sent


@linux
def test_an_empty_datagram_and_nothing_at_all(keep):
    receiver = keep(PacketReceiver("127.0.0.1", 0, coalesce=True))
    sender = bursting(keep, receiver.port, "127.0.0.1")
    assert drain_bursts(receiver) == ([], 0)
    assert sender.send(b"") == sender.send(b"x") == 1
    assert drain_bursts(receiver) == ([b"", b"x"], 2)


def test_receivers_that_do_not_coalesce_say_each_datagrams_size(keep):
    receiver = keep(PacketReceiver("127.0.0.1", 0))
    keep(PacketSender("127.0.0.1", receiver.port)).send(b"abc")
    assert receiver.receive_burst_into(bytearray(2000)) == (3, 3) and receiver.receive_burst_into(bytearray(9)) is None


@linux
def test_what_the_kernel_cannot_cut_goes_one_by_one_from_then_on(keep, caplog):
    """SO_NO_CHECK makes the real kernel refuse: it leaves the checksums of segments to itself or to the device."""
    receiver = keep(PacketReceiver(GROUP, 0))
    sender = bursting(keep, receiver.port)
    data = bytes(range(256)) * 23                     # four datagrams
    assert sender.send(data) == 4
    sender._socket.setsockopt(socket.SOL_SOCKET, 11, 1)
    assert sender.send(data) == 4 and sender.send(b"one") == 1 and sender.send(data) == 4
    assert drain(receiver) == cut(data) * 2 + [b"one"] + cut(data)
    assert (sender.sent, sender.bursts, sender.burst, sender.errors, sender.dropped) == (13, 1, 1, 0, 0)
    assert sender.burst_text == "one at a time: Invalid argument" and caplog.text.count("Invalid argument") == 1
    assert sender._socket.getsockopt(socket.IPPROTO_UDP, 103) == 0


@linux
@pytest.mark.parametrize("number", NO_SEGMENTS)
@pytest.mark.parametrize("first", ["burst", "single"])
def test_every_way_of_refusing_segments(keep, number, first):
    receiver = keep(PacketReceiver("127.0.0.1", 0))
    sender = bursting(keep, receiver.port, "127.0.0.1")
    really = sender._send

    def send(datagrams):
        if sender._socket.getsockopt(socket.IPPROTO_UDP, 103):
            raise OSError(number, os.strerror(number))
        return really(datagrams)

    sender._send = send
    data = bytes(5000)
    for what in (data, b"one") if first == "burst" else (b"one", data):
        assert sender.send(what) == len(cut(what))
    assert sorted(map(len, drain(receiver))) == [3, 584, SIZE, SIZE, SIZE]
    assert sender.burst == 1 and sender.errors == sender.dropped == 0 and os.strerror(number) in sender.burst_text


@linux
@pytest.mark.parametrize("number, counter", [(errno.EAGAIN, "dropped"), (errno.ENOBUFS, "dropped"),
                                             (errno.EPERM, "errors"), (errno.ENETUNREACH, "errors")])
def test_what_does_not_go_together_is_tried_alone_and_counted_alone(keep, number, counter):
    """The buffer takes two more: a burst fails as a whole, then two of its datagrams leave."""
    sender = bursting(keep, 9)
    left = []

    def send(datagrams):
        if len(datagrams) > SIZE or len(left) >= 2:
            raise OSError(number, os.strerror(number))
        left.append(bytes(datagrams))
        return len(datagrams)

    sender._send = send
    assert sender.send(bytes(SIZE) * 4 + b"last") == 2
    assert left == [bytes(SIZE)] * 2 and sender.sent == 2 and getattr(sender, counter) == 3
    assert sender.dropped + sender.errors == 3 and sender.burst == 44        # it may go together the next time
    assert sender.bytes == 2 * SIZE and sender.bursts == 0


@linux
def test_a_burst_to_nobody_and_then_to_somebody(keep):
    receiver = PacketReceiver("127.0.0.1", 0)
    port = receiver.port
    receiver.close()
    sender = bursting(keep, port, "127.0.0.1")
    for _ in range(5):
        assert sender.send(bytes(5000)) == 4          # a refusal is that of the one before
    assert sender.errors > 0 and sender.burst == 44
    receiver = keep(PacketReceiver("127.0.0.1", port))
    assert sender.send(bytes(5000)) == 4 and len(drain(receiver)) == 4


@linux
def test_more_than_a_call_takes_goes_one_by_one(keep):
    receiver = keep(PacketReceiver(GROUP, 0))
    sender = bursting(keep, receiver.port)
    assert sender.send(bytes(SIZE * 45)) == 45 and sender.bursts == 0 and sender.burst == 44
    assert len(drain(receiver)) == 45
    small = keep(PacketSender(GROUP, receiver.port, options=SocketOptions(segment_bytes=256)))
    assert small.burst == 64 and small.send(bytes(256 * 64)) == 64 and small.bursts == 1
    assert list(map(len, drain(receiver))) == [256] * 64


def test_without_the_option_or_with_too_small_an_mtu_it_says_so(keep, monkeypatch, caplog):
    monkeypatch.setitem(udp.HEADERS_BYTES, socket.AF_INET, 70_000)
    if sys.platform.startswith("linux"):
        sender = bursting(keep, 9)
        assert sender.burst == 1
        assert "one at a time: datagrams of 1472 bytes do not fit into the MTU of" in sender.burst_text
        assert sender._socket.getsockopt(socket.IPPROTO_UDP, 103) == 0
    monkeypatch.setattr(sockets, "LINUX", False)
    receiver = keep(PacketReceiver("127.0.0.1", 0))
    sender = bursting(keep, receiver.port, "127.0.0.1")
    assert sender.burst == 1 and sender.burst_text == "one at a time: segment_bytes: Linux only"
    assert sender.send(bytes(3000)) == 3 and list(map(len, drain(receiver))) == [SIZE, SIZE, 56]


def test_a_sender_that_was_not_asked_to_cut_does_not(keep):
    receiver = keep(PacketReceiver("127.0.0.1", 0))
    sender = keep(PacketSender("127.0.0.1", receiver.port))
    assert sender.send(bytes(5000)) == 1 and list(map(len, drain(receiver))) == [5000]
    assert sender.burst_text == "not asked for"


@linux
@pytest.mark.parametrize("way, bursts", [("burst", 868), ("plain", 0), ("cut", 444)])
def test_20_000_datagrams_in_bursts_between_processes_and_none_lost(way, bursts):
    script = str(Path(__file__).with_name("udp_peers.py"))
    done = subprocess.run([sys.executable, "-X", "dev", "-W", "error", script, way],
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=60)
    print(done.stdout, done.stderr)
    found = json.loads(done.stdout)
    assert done.returncode == 0 and found["sent"] == 20_000 and found["bursts"] == bursts
    coalescing, single = found["receivers"]
    assert coalescing["received"] == single["received"] == single["calls"] == 20_000
    assert coalescing["calls"] < 12_000 if way != "plain" else coalescing["calls"] == 20_000


@linux
def test_a_burst_dropped_counts_once_where_it_is_taken_whole(keep):
    receiver = keep(PacketReceiver("127.0.0.1", 0, coalesce=True, recv_buffer_bytes=200_000))
    sender = bursting(keep, receiver.port, "127.0.0.1")
    assert sum(sender.send(bytes(44 * SIZE)) for _ in range(40)) == 40 * 44
    found, calls = drain_bursts(receiver)
    assert len(found) == 44 * calls and 0 < receiver.kernel_drops() == 40 - calls


# -- one source ------------------------------------------------------------------------------------------------

SSM = "232.7.7.7"


@linux
@pytest.mark.parametrize("interface", ["127.0.0.1", "lo", "1", "::1"])
def test_another_source_is_not_heard(keep, interface):
    """The interface of a sender, where it is an address, is its source; 127.0.0.0/8 is all ours."""
    if interface == "1" and socket.if_indextoname(1) != "lo" or interface == "::1" and not SIX:
        pytest.skip("no such loopback")
    good = keep(PacketReceiver(SSM, 0, interface=interface, source="127.0.0.1"))
    other = keep(PacketReceiver(SSM, good.port, interface="lo", source="127.0.0.2"))
    every = keep(PacketReceiver(SSM, good.port, interface="lo"))
    senders = [keep(PacketSender(SSM, good.port, interface=by)) for by in (interface, "127.0.0.2", "127.0.0.3")]
    for number in range(30):
        assert senders[number % 3].send(b"%d" % number)
    assert drain(good) == [b"%d" % number for number in range(0, 30, 3)]
    assert drain(other) == [b"%d" % number for number in range(1, 30, 3)]
    assert drain(every) == [b"%d" % number for number in range(30)]


@pytest.mark.parametrize("group, source, reason", [
    ("127.0.0.1", "127.0.0.1", "only a multicast group"), (SSM, "::1", "expected the address of who sends"),
    (SSM, "sender", "expected the address"), (SSM, "239.1.1.1", "expected the address"),
    ("ff3e::7", "127.0.0.1", "expected the address")])
def test_sources_that_cannot_be(group, source, reason):
    with pytest.raises(HostError, match=f"source {source}: {reason}"):
        PacketReceiver(group, 30_000, source=source)


def test_one_source_elsewhere_than_on_linux_is_refused(monkeypatch):
    monkeypatch.setattr(udp, "LINUX", False)
    with pytest.raises(HostError, match="Linux only"):
        PacketReceiver(SSM, 30_000, source="127.0.0.1")


# -- IPv6 ------------------------------------------------------------------------------------------------------

def has_six():
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
            sock.bind(("::1", 0))
        return True
    except OSError:
        return False


SIX = has_six()
six = pytest.mark.skipif(not SIX, reason="this host has no ::1")


@six
def test_unicast_of_ipv6(keep):
    receiver = keep(PacketReceiver("::1", 0, coalesce=True))
    sender = bursting(keep, receiver.port, "::1", dscp=46)
    assert sender.send(b"") == sender.send(b"abc") == 1 and drain_bursts(receiver)[0] == [b"", b"abc"]
    if LINUX:
        assert sender.burst_text == "UDP_SEGMENT, 44 x 1472 bytes"
        assert sender._socket.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_TCLASS) == 46 << 2
        data = random.Random(6).getrandbits(8 * 60_000).to_bytes(60_000, "little")
        assert sender.send(data) == 41 and sender.bursts == 1 and b"".join(drain_bursts(receiver)[0]) == data
    with pytest.raises(HostError, match=rf"\[::1\]:{receiver.port} .*in use"):
        PacketReceiver("::1", receiver.port)


@six
def test_families_do_not_share_a_port_by_accident(keep):
    """Bound to ::, a socket may hear IPv4, too; ours does not."""
    receiver = keep(PacketReceiver("::", 0))
    keep(PacketSender("127.0.0.1", receiver.port)).send(b"four")
    keep(PacketSender("::1", receiver.port)).send(b"six")
    assert drain(receiver) == [b"six"]


@six
@pytest.mark.parametrize("make", [PacketReceiver, PacketSender])
@pytest.mark.parametrize("interface, reason", [
    ("nosuch7", "neither a name nor an address"), ("4711", "neither"), ("2001:db8::7", "neither"),
    ("\u0661", "neither"), ("fe80::1%nosuch7", "neither"), ("192.0.2.77", "IPv6 takes no IPv4 address")])
def test_interfaces_that_are_not_there_are_named_for_ipv6(make, interface, reason):
    with pytest.raises(HostError, match=f"interface {interface}: .*{reason}"):
        make("ff15::1", 30_000, interface=interface)


@pytest.fixture
def namespace():
    """A network of this thread's own: lo with a route for IPv6 groups and three addresses, and a pair, v0 and v1."""
    if not LINUX or os.geteuid():
        pytest.skip("network namespaces need Linux and root")
    libc = ctypes.CDLL(None, use_errno=True)
    with open("/proc/thread-self/ns/net") as home:
        if libc.unshare(0x40000000):                                 # CLONE_NEWNET
            pytest.skip(f"no network namespace: {os.strerror(ctypes.get_errno())}")
        try:
            for words in ("link set lo up", "link add v0 type veth peer name v1", "link set v0 up", "link set v1 up",
                          "address add fd07::2/128 dev lo nodad", "address add fd07::3/128 dev lo nodad",
                          "address add fd08::1/64 dev v0 nodad", "address add fe80::7/64 dev v0 nodad",
                          "address add fe80::8/64 dev v1 nodad",
                          "-6 route add local ff00::/8 dev lo table local"):
                done = subprocess.run(["ip", *words.split()], stderr=subprocess.PIPE, universal_newlines=True)
                if done.returncode:
                    pytest.skip(f"ip {words}: {done.stderr.strip()}")
            yield
        finally:
            assert not libc.setns(home.fileno(), 0x40000000)


GROUPS = ["ff01::7:1", "ff02::7:1", "ff05::7:1", "ff15::7:1", "ff3e::8000:1"]


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("interface", ["lo", "1", "::1", "127.0.0.1", "fd07::2"])
def test_multicast_of_ipv6_on_loopback(namespace, keep, group, interface):
    receivers = [keep(PacketReceiver(group, 0, interface=interface))]
    port = receivers[0].port
    receivers += [keep(PacketReceiver(where, port, interface=by)) for where, by in
                  ((group, "lo"), (group + "%lo", ""), (group + "%lo", "nosuch7"))]
    others = [keep(PacketReceiver(where, port, interface=by)) for where, by in (("ff02::7:2", "lo"), (group, "v0"))]
    sender = bursting(keep, port, group, interface=interface)
    assert sender.burst == 44 and sender.send(b"one") == 1 and sender.send(bytes(range(250)) * 20) == 4
    for receiver in receivers:
        assert drain(receiver) == [b"one"] + cut(bytes(range(250)) * 20)
    assert [drain(other) for other in others] == [[], []]


@pytest.mark.parametrize("group", ["ff02::7:1", "ff15::7:1", "ff35::8000:1"])
@pytest.mark.parametrize("interface", ["v0", "fe80::7%v0", "fe80::7", "fd08::1"])
def test_multicast_of_ipv6_from_one_interface_to_another(namespace, keep, group, interface):
    far, near = (keep(PacketReceiver(group, 30_007, interface=by)) for by in ("v1", "v0"))
    sender = keep(PacketSender(group, 30_007, interface=interface, ttl=5))
    deaf = keep(PacketSender(group, 30_007, interface=interface, loopback=False))
    far._socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVHOPLIMIT, 1)
    far._socket.setblocking(True)
    far._socket.settimeout(10)
    assert sender.send(b"all") and deaf.send(b"away")
    data, ((_, kind, value),), _, (source, *_) = far._socket.recvmsg(100, 100)
    assert data == b"all" and kind == socket.IPV6_HOPLIMIT and int.from_bytes(value, sys.byteorder) == 5
    assert source.partition("%")[0] == interface.partition("%")[0] or interface == "v0"
    assert far._socket.recv(100) == b"away" and drain(near) == [b"all"]


def test_ttl_of_ipv4(keep):
    receiver = keep(PacketReceiver(GROUP, 0))
    receiver._socket.setsockopt(socket.IPPROTO_IP, getattr(socket, "IP_RECVTTL", 12), 1)
    keep(PacketSender(GROUP, receiver.port, ttl=9)).send(b"x")
    (_, _, value), = receiver._socket.recvmsg(100, 100)[1]
    assert int.from_bytes(value, sys.byteorder) == 9


@pytest.mark.parametrize("group", ["ff01::7:1", "ff32::8000:1", "ff3e::8000:1"])
@pytest.mark.parametrize("interface", ["lo", "::1"])
def test_another_source_is_not_heard_by_ipv6(namespace, keep, group, interface):
    good = keep(PacketReceiver(group, 0, interface=interface, source="fd07::2"))
    other = keep(PacketReceiver(group, good.port, interface=interface, source="fd07::3"))
    every = keep(PacketReceiver(group, good.port, interface=interface))
    senders = [keep(PacketSender(group, good.port, interface=by)) for by in ("fd07::2", "fd07::3", "::1")]
    for number in range(30):
        assert senders[number % 3].send(b"%d" % number)
    assert drain(good) == [b"%d" % number for number in range(0, 30, 3)]
    assert drain(other) == [b"%d" % number for number in range(1, 30, 3)]
    assert drain(every) == [b"%d" % number for number in range(30)]


def test_datagrams_that_do_not_fit_ipv6_are_not_sent_in_bursts(namespace, keep):
    """1,472 fits Ethernet by IPv4 only: the header of IPv6 has 20 bytes more."""
    sender = bursting(keep, 30_007, "ff15::7", interface="v0")
    assert sender.burst_text == "one at a time: datagrams of 1472 bytes do not fit into the MTU of 1500"
    assert keep(PacketSender("ff15::7", 9, interface="v0", options=SocketOptions(segment_bytes=1452))).burst == 45


def test_link_local_unicast_has_the_interface_it_was_given(namespace, keep):
    for at, by, to in (("fe80::7%v0", "", "fe80::7%v1"), ("fe80::7", "v0", "fe80::7")):
        receiver = keep(PacketReceiver(at, 0, interface=by))
        receiver._socket.setblocking(True)
        receiver._socket.settimeout(10)
        keep(PacketSender(to, receiver.port, interface="v1")).send(at.encode())
        assert receiver._socket.recv(100) == at.encode()
        receiver.close()


def test_what_linux_needs_for_ipv6_groups_on_loopback_is_told(namespace):
    subprocess.run("ip -6 route del local ff00::/8 dev lo table local".split(), check=True)
    with pytest.raises(HostError, match="unreachable; to have a route: ip -6 route add local ff00::/8 dev lo table l"):
        PacketSender("ff15::1", 9, interface="lo")

"""The inlet by itself: its clock, what it says of losses, its files and sockets. test_listener.py has it at work."""

import os
from collections import deque
from contextlib import closing

import pytest
from outlet import Outlet, free_port

from feeder.clock import MILLISECOND, SECOND
from feeder.errors import ConfigError, HostError
from feeder.inlet import MAX_LINES, MAX_OWN_LOSSES, TEND_NS, Inlet, OwnLosses, Recording
from feeder.net import UnicastSocket
from feeder.packet import MAGIC, PACKET, SNAPSHOTS, VERSION
from feeder.receiver import Gap

A, B = "239.192.77.8", "239.192.77.9"


def nothing(datagram, came_ns, origin):
    pass


def header(sequence, count, channel=1, session=5, flags=0, size=40):
    return PACKET.pack(MAGIC, VERSION, flags, channel, session, sequence, 0, count, size, 0)


@pytest.fixture
def inlet():
    try:
        with Inlet(nothing, [f"{A}:{free_port()}"]) as inlet:
            yield inlet
    except HostError as error:
        pytest.skip(str(error))


def test_time_does_not_go_back_but_with_the_clock(inlet):
    assert [inlet.time(at) for at in (5 * SECOND, 5 * SECOND - 7, 6 * SECOND, 5 * SECOND + 1)] == [
        5 * SECOND, 5 * SECOND, 6 * SECOND, 6 * SECOND]
    assert inlet.time(4 * SECOND) == 4 * SECOND          # more than a second: somebody has set it
    inlet.deadline_ns = 4 * SECOND + 10
    assert (inlet.wait_ns(4 * SECOND), inlet.wait_ns(4 * SECOND + 10), inlet.wait_ns(5 * SECOND)) == (10, 0, 0)
    assert inlet.wait_ns(4 * SECOND - TEND_NS) == 0      # set back: look now, not in an hour


def test_own_losses_are_ranges_by_what_headers_say():
    losses = OwnLosses()
    for datagram in (header(10, 5), header(15, 1), header(40, 2), header(1, 1, channel=2), header(42, 8),
                     header(0, 0), header(99, 9, flags=SNAPSHOTS), b"junk", bytes(40)):
        losses.add(datagram)
    assert list(losses.ranges) == [[1, 5, 10, 15], [1, 5, 40, 49], [2, 5, 1, 1]]
    assert (losses.datagrams, losses.bytes) == (9, 8 * 40 + 4)
    assert [losses.hit(1, 5, first, last) for first, last in ((1, 9), (9, 10), (15, 15), (16, 39), (30, 60))] == [
        False, True, True, False, True]
    assert not losses.hit(1, 6, 10, 15)
    for number in range(100, 200):               # what two lines carry
        losses.add(header(number, 1))
        losses.add(header(number, 1))
    assert list(losses.ranges)[3:] == [[1, 5, 100, 199]]
    for number in range(2 * MAX_OWN_LOSSES):
        losses.add(header(1000 + 2 * number, 1))
    assert len(losses.ranges) == MAX_OWN_LOSSES


def test_causes(inlet):
    gap = Gap(1, 5, 10, 20, 100 * SECOND)
    assert inlet.cause(gap) == "network"
    inlet.sources[1].drop_times.append(100 * SECOND)     # of the loop: it has no part in the sequence
    assert inlet.sources[1].is_loop and inlet.cause(gap) == "network"
    for at_ns, cause in ((99 * SECOND, "kernel"), (98 * SECOND, "network"), (101 * SECOND, "network")):
        inlet.sources[0].drop_times = deque([at_ns])
        assert inlet.cause(gap) == cause
    inlet.hold_ns = SECOND
    inlet.sources[0].drop_times = deque([98 * SECOND])
    assert inlet.cause(gap) == "kernel"
    inlet.own_losses.add(header(20, 1))
    assert inlet.cause(gap) == "consumer"


def test_holds_by_default():
    ports = f":{free_port()}"
    for lines, more, hold_ms in (([A], {}, 0), ([A, B], {}, 50), ([A], {"retransmit": ["127.0.0.1:9"]}, 200),
                                 ([A, B], {"hold_ms": 0}, 0), ([A], {"hold_ms": 7.5}, 7.5)):
        with Inlet(nothing, [line + ports for line in lines], **more) as inlet:
            assert inlet.report()["hold_ms"] == hold_ms and inlet.receiver.hold_ns == hold_ms * MILLISECOND
            by_lines = len(lines) > 1 and not more       # then only what several lines carry is worth waiting for
            assert inlet.receiver.alone_ns == (0 if by_lines else inlet.receiver.hold_ns)


def test_two_lines_of_a_group_have_one_loop():
    one, other, loop = free_port(), free_port(), free_port()
    with Inlet(nothing, [f"{A}:{one}", f"{A}:{other}", f"{B}:{one}"], snapshot_port=loop) as inlet:
        assert [(source.number, source.is_loop, source.endpoint.address) for source in inlet.sources] == [
            (0, False, A), (1, False, A), (2, False, B), (0, True, A), (2, True, B)]
    with Inlet(nothing, [f"{A}:{one}"], snapshot_port=0) as inlet:
        assert len(inlet.sources) == 1
    with Inlet(nothing, [f"{A}:{one}"], snapshot_port=one) as inlet:
        assert len(inlet.sources) == 1


def test_all_is_closed_when_one_cannot_be_opened():
    port = free_port()
    with closing(UnicastSocket("127.0.0.1", port)):
        with pytest.raises(HostError, match=f"127.0.0.1:{port}"):
            Inlet(nothing, [f"{A}:{port}", f"127.0.0.1:{port}"])
    with pytest.raises(ConfigError, match=f"{MAX_LINES + 1} lines"):
        Inlet(nothing, [f"{A}:{port}" for port in range(1, MAX_LINES + 2)])


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_a_full_disk_ends_the_file_not_the_listening(tmp_path, caplog):
    with pytest.raises(HostError, match="pcap file /dev/full: No space left"):
        Recording("/dev/full")
    recording = Recording(str(tmp_path / "file"))
    recording.file.close()
    recording.file = open("/dev/full", "wb")
    for _ in range(1000):
        recording.add(1, (A, 1), bytes(1000))
    recording.close()
    assert 0 < recording.count < 20 and recording.error == "No space left on device"
    assert caplog.text.count(f"it ends after {recording.count} datagrams or before") == 1


def test_strangers_are_not_heard_where_answers_come(tmp_path):
    """Not their packets, not their control datagrams, whatever they say; nor do they take room in anybody's queue."""
    came = []
    with Inlet(lambda *each: came.append(each), [f"{A}:{free_port()}"],
               retransmit=["127.0.0.1:9"]) as inlet, Outlet([]) as outlet:
        stranger = UnicastSocket("127.0.0.2")
        outlet.encoder.emit = lambda datagram: stranger.send(datagram, ("127.0.0.1", answers.port))
        answers = inlet.answers["0.0.0.0"].socket
        outlet.open()
        stranger.send(b"FDRQ" + bytes(44), ("127.0.0.1", answers.port))
        while inlet.datagrams < stranger.sent:
            inlet.loop.run_once(SECOND)
        stranger.close()
        assert not came and inlet.report()["retransmission"]["strangers"] == stranger.sent >= 2

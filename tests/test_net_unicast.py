"""A socket that answers whom it likes, on the loopback of both families."""

import logging
import socket
import sys
from contextlib import closing

import pytest

from feeder.errors import HostError
from feeder.net import Loop, PacketReceiver, UnicastSocket

SECOND = 10**9


def wait_for(sock):
    """Let the loop wait until there is something to receive."""
    loop = Loop()
    loop.register(sock, read=lambda: None)
    loop.run_once(5 * SECOND)
    loop.unregister(sock)
    loop.close()


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_there_and_back(address):
    try:
        first = UnicastSocket(address)
    except HostError as error:
        pytest.skip(str(error))
    with closing(first), closing(UnicastSocket(address)) as second:
        assert second.address == address and second.port != first.port and second.fileno() >= 0
        buffer = bytearray(100)
        assert first.receive_into(buffer) is None
        assert first.send(b"question", (address, second.port))
        wait_for(second)
        second.serve(lambda data, sender, now_ns: [bytes(data).upper(), memoryview(b"%d" % now_ns)], lambda: 7)
        assert (second.sent, second.bytes, second.dropped, second.errors) == (2, 9, 0, 0)
        for expected in (b"QUESTION", b"7"):
            wait_for(first)
            size, sender = first.receive_into(buffer)
            assert bytes(buffer[:size]) == expected and sender[:2] == (address, second.port)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="IP_PKTINFO as Linux has it")
@pytest.mark.parametrize("address", ["0.0.0.0", "::"])
def test_what_was_sent_to_many_is_empty_where_all_addresses_are_bound(address):
    try:
        server, group = UnicastSocket(address), PacketReceiver("239.192.77.9", 0, interface="127.0.0.1")
    except HostError as error:
        pytest.skip(str(error))
    with closing(server), closing(group), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asker:
        asker.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        asker.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton("127.0.0.1"))
        for where in ("239.192.77.9", "127.255.255.255", "127.0.0.5", "127.0.0.1"):
            asker.sendto(b"question", (where, server.port))
        if address == "::":                      # which may hear IPv4, too, but nothing that is sent to many
            with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as six:
                six.sendto(b"question", ("::1", server.port))
        wait_for(server)                         # loopback delivers before sendto() returns
        came = list(iter(lambda: server.receive_into(bytearray(100)), None))
        sizes = [size for size, _ in came]
        assert [size for size in sizes if size] == [8] * (3 if address == "::" else 2), came
        assert address == "::" or sizes[:2] == [0, 0]


def test_a_turn_has_an_end():
    taken = []
    with closing(UnicastSocket()) as server, closing(UnicastSocket()) as asker:
        for _ in range(6):
            asker.send(b"?", ("127.0.0.1", server.port))
        wait_for(server)
        server.serve(lambda *each: taken.append(each) or (), lambda: 0, 4)
        assert len(taken) == 4
        server.serve(lambda *each: taken.append(each) or (), lambda: 0, 4)
        assert len(taken) == 6 and all(sender[1] == asker.port for _, sender, _ in taken)


def test_what_does_not_leave_is_counted_and_told_once(caplog):
    with closing(UnicastSocket()) as sock, caplog.at_level(logging.WARNING, "feeder.net"):
        for address in (("127.0.0.1", 0), ("127.0.0.1", 0), ("127.0.0.1", 70_000), ("255.255.255.255", 9)):
            assert not sock.send(b"x", address)
        assert not sock.send(bytes(70_000), ("127.0.0.1", 9))
        assert (sock.sent, sock.errors) == (0, 5)
        assert 3 <= len(caplog.records) <= 4 and "said once" in caplog.text


class Refusing:
    """A socket whose buffer is full; then one that hears of a port that nobody has, as on Windows."""

    def __init__(self, answers):
        self.answers = answers

    def __call__(self, *_):
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


def test_a_full_buffer_is_a_drop_and_a_reset_is_no_end(caplog):
    with closing(UnicastSocket()) as sock:
        sock._sendto = Refusing([BlockingIOError()])
        assert not sock.send(b"x", ("127.0.0.1", 9)) and (sock.dropped, sock.errors) == (1, 0)
        sock._recvfrom_into = Refusing([ConnectionResetError(10054, "reset"), (3, ("127.0.0.1", 9))])
        assert sock.receive_into(bytearray(9)) is None and sock.errors == 1
        assert sock.receive_into(bytearray(9)) == (3, ("127.0.0.1", 9))


def test_a_port_that_is_taken_and_an_address_that_is_not_ours():
    with closing(UnicastSocket()) as sock:
        with pytest.raises(HostError, match=f"cannot bind 127.0.0.1:{sock.port}: Address already in use"):
            UnicastSocket("127.0.0.1", sock.port)
    for address in ("192.0.2.1", "2001:db8::1", "nonsense", "239.192.7.1", "ff15::1", "255.255.255.255"):
        with pytest.raises(HostError, match="cannot (bind|open a socket)"):
            UnicastSocket(address)

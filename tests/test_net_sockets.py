"""request_buffer against a kernel written here: Linux with and without the privilege, and one that refuses."""

import errno
import socket
import struct

import pytest

import feeder.net.sockets
from feeder.net.sockets import SocketOptions, address_text, granted, request, request_buffer


class Kernel:
    """A socket whose buffers obey a limit as Linux does: cut silently, doubled when read back."""

    def __init__(self, limit, privileged=False, refuses=False):
        self.limit, self.privileged, self.refuses = limit, privileged, refuses
        self.size = 0

    def setsockopt(self, level, option, value):
        if option in (32, 33) and feeder.net.sockets.LINUX:
            if not self.privileged:
                raise PermissionError(errno.EPERM, "Operation not permitted")
            self.size = value
        elif value > self.limit and self.refuses:
            raise OSError(errno.ENOBUFS, "No buffer space available")
        else:
            self.size = min(value, self.limit)

    def getsockopt(self, level, option):
        return self.size * 2 if feeder.net.sockets.LINUX else self.size


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    monkeypatch.setattr(feeder.net.sockets, "_said", set())
    monkeypatch.setattr(feeder.net.sockets, "LINUX", True)


def test_enough_is_silent(caplog):
    assert request_buffer(Kernel(1 << 20), "receive", 1 << 20) == 1 << 20
    assert not caplog.text


@pytest.mark.parametrize("which, limit_name", [("receive", "net.core.rmem_max"), ("send", "net.core.wmem_max")])
def test_a_shortfall_is_said_once_with_the_remedy(caplog, which, limit_name):
    for _ in range(3):
        assert request_buffer(Kernel(212_992), which, 4_194_304) == 212_992
    assert caplog.text.count(f"sysctl -w {limit_name}=4194304") == 1
    assert f"{which} buffer: asked for 4194304 bytes, the kernel gave 212992" in caplog.text


def test_the_privileged_option_is_used_where_allowed(caplog):
    assert request_buffer(Kernel(212_992, privileged=True), "receive", 4_194_304) == 4_194_304
    assert not caplog.text


def test_a_kernel_that_refuses_is_asked_for_less(caplog, monkeypatch):
    monkeypatch.setattr(feeder.net.sockets, "LINUX", False)
    assert request_buffer(Kernel(1_500_000, refuses=True), "send", 4_194_304) == 1_048_576
    assert "gave 1048576" in caplog.text and "sysctl" not in caplog.text


def test_a_real_socket():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        assert request_buffer(sock, "receive", 65_536) >= 65_536


def test_addresses():
    assert address_text(("127.0.0.1", 80)) == "127.0.0.1:80" and address_text(("::1", 80, 0, 0)) == "[::1]:80"


# -- the other options, and what the kernel really keeps -------------------------------------------------------

linux = pytest.mark.skipif(not feeder.net.sockets.LINUX, reason="Linux only")


def test_zero_leaves_a_buffer_alone():
    kernel = Kernel(1 << 20)
    kernel.size = 5000
    assert request_buffer(kernel, "send", 0) == 5000


@linux
@pytest.mark.parametrize("kind", ["udp", "tcp"])
def test_the_kernel_accounts_eight_megabytes_for_four(kind):
    """SO_MEMINFO: an array of u32, of which 1 is the receive limit and 3 the send limit (uapi/linux/sock_diag.h)."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM if kind == "udp" else socket.SOCK_STREAM) as sock:
        got = {name: size for name, size, _ in request(sock, SocketOptions(), ("receive", "send"))}
        info = struct.unpack("9I", sock.getsockopt(socket.SOL_SOCKET, 55, 36))
    assert info[1] == 2 * got["receive"] and info[3] == 2 * got["send"]
    if min(got.values()) < 4 << 20:
        pytest.skip(f"this kernel allows only {got}")
    assert info[1] == info[3] == 8 << 20


@linux
def test_priority_and_dscp_are_on_the_socket():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        assert request(sock, SocketOptions(0, 0, dscp=46, priority=5), ("busy_poll_us", "dscp", "priority")) == [
            ("dscp", 46, ""), ("priority", 5, "")]
        assert sock.getsockopt(socket.IPPROTO_IP, socket.IP_TOS) == 46 << 2
        assert sock.getsockopt(socket.SOL_SOCKET, 12) == 5
    try:
        sock = socket.socket(socket.AF_INET6, socket.SOCK_STREAM)
    except OSError:
        return
    with sock:
        assert request(sock, SocketOptions(dscp=10), ("dscp",)) == [("dscp", 10, "")]
        assert sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_TCLASS) == 10 << 2


class Refuses:
    family = socket.AF_INET

    def setsockopt(self, *args):
        raise PermissionError(errno.EPERM, "Operation not permitted")


def test_what_is_refused_has_a_remedy_said_once(caplog):
    wanted = SocketOptions(busy_poll_us=50, priority=6, dscp=8)
    for _ in range(2):
        assert request(Refuses(), wanted, ("busy_poll_us", "priority", "dscp")) == [
            ("busy_poll_us", 0, "SO_BUSY_POLL: needs CAP_NET_ADMIN, or sysctl -w net.core.busy_read=50"),
            ("priority", 0, "SO_PRIORITY 6: needs CAP_NET_ADMIN"),
            ("dscp", 0, "DSCP 8: the kernel does not allow it")]
    assert caplog.text.count("busy_read=50") == 1


def test_elsewhere_linux_options_are_skipped_by_name(monkeypatch):
    monkeypatch.setattr(feeder.net.sockets, "LINUX", False)
    assert request(Refuses(), SocketOptions(busy_poll_us=50), ("busy_poll_us",)) == [
        ("busy_poll_us", 0, "busy_poll_us: Linux only")]


def test_a_shortfall_of_a_probe_names_the_sysctl(monkeypatch):
    monkeypatch.setattr(feeder.net.sockets, "request_buffer", lambda sock, which, wanted: 212_992)
    assert granted("udp", SocketOptions(), ("receive", "send")) == [
        ("receive", 212_992, "sysctl -w net.core.rmem_max=4194304"),
        ("send", 212_992, "sysctl -w net.core.wmem_max=4194304")]

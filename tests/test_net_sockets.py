"""request_buffer against a kernel written here: Linux with and without the privilege, and one that refuses."""

import errno
import socket

import pytest

import feeder.net.sockets
from feeder.net.sockets import address_text, request_buffer


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

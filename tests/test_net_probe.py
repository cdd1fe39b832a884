"""feeder.net.probe against servers of loopback: reached, refused, silent, speaking something else, through a proxy."""

import socket
import ssl
from contextlib import closing

import pytest
from net_peers import ConnectProxy, Peer, authority  # noqa: F401

from feeder.clock import MILLISECOND, SECOND, steady_ns
from feeder.net import server_tls_context
from feeder.net.probe import Target, probe, tls_store


@pytest.fixture
def server():
    """A listener that completes handshakes of TCP and says nothing."""
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        yield listener.getsockname()[1]


@pytest.fixture
def closed():
    """A port where nobody listens."""
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        return listener.getsockname()[1]


def test_one_reached_one_refused_one_silent_all_at_once(server, closed):
    urls = [f"ws://127.0.0.1:{server}/ws", f"http://127.0.0.1:{closed}", f"wss://127.0.0.1:{server}"]
    started_ns = steady_ns()
    reached, refused, silent = probe([Target(url, "", "", True) for url in urls], 300 * MILLISECOND)
    assert steady_ns() - started_ns < 2 * SECOND
    assert (reached.url, reached.error, reached.proxy) == (urls[0], "", "") and reached.elapsed_ns > 0
    assert "refused" in refused.error and "TLS" in silent.error


def test_through_a_proxy(server, closed):
    """A proxy that is not there is named; one that is silent ends with the time."""
    targets = [Target("wss://venue.invalid", f"http://127.0.0.1:{port}", "", True) for port in (closed, server)]
    gone, mute = probe(targets, 300 * MILLISECOND)
    assert gone.proxy == f"127.0.0.1:{closed}" and "refused" in gone.error
    assert mute.proxy == f"127.0.0.1:{server}" and mute.error


def test_tls_directly_and_through_a_proxy_and_without_trust(authority):  # noqa: F811
    context, heard = server_tls_context(authority.certificate, authority.key), []

    def serve(sock):
        with context.wrap_socket(sock, server_side=True) as wrapped:
            heard.append(wrapped.recv(100))

    peer, proxy = Peer(serve), ConnectProxy()
    url = f"wss://127.0.0.1:{peer.port}"
    try:
        answers = [probe([Target(url, *how)], 5 * SECOND)[0] for how in (
            ("", authority.ca_file, True), (f"http://user:secret@127.0.0.1:{proxy.port}", authority.ca_file, True),
            ("", "", True), ("", "", False))]
    finally:
        proxy.close()
        peer.close()
    assert [answer.error == "" for answer in answers] == [True, True, False, True]
    assert answers[1].proxy == f"127.0.0.1:{proxy.port}" and proxy.requests[0].startswith(b"CONNECT 127.0.0.1:")
    assert "certificate not accepted" in answers[2].error
    assert set(heard) <= {b""}                               # not a byte was sent


def test_a_target_that_cannot_even_be_tried(server, tmp_path):
    answer, = probe([Target(f"wss://127.0.0.1:{server}", "", str(tmp_path / "no.pem"), True)], SECOND)
    assert "no.pem" in answer.error
    assert probe([]) == []


def test_a_name_that_is_none():
    answer, = probe([Target("wss://no-such-venue.invalid", "", "", True)], SECOND)
    assert answer.error


def test_the_store_of_this_interpreter():
    store = tls_store()
    assert store.version == ssl.OPENSSL_VERSION and store.authorities >= 0

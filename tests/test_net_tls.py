import random
import ssl

import pytest
from net_peers import Authority, Events, Peer, authority, loop, run_until  # noqa: F401
from test_net_stream import SMALL, Server, opened

from feeder.clock import MILLISECOND
from feeder.errors import ConfigError
from feeder.net import Loop, connect, server_tls_context, tls_context


@pytest.fixture
def server(loop, authority):
    server = Server(loop, tls=server_tls_context(authority.certificate, authority.key))
    yield server
    server.listener.close()
    for stream in server.streams:
        stream.abort()


def attempt(loop, server, host="127.0.0.1", **options):
    """Connect and close; return the error's text."""
    events = Events()
    stream = connect(loop, host, server.port, **events.callbacks, **options)
    run_until(loop, lambda: events.opened or events.closed)
    stream.close()
    run_until(loop, lambda: events.closed)
    return events.error


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_the_right_name_and_authority(loop, server, authority, host):
    assert attempt(loop, server, host, tls=tls_context(authority.ca_file)) == "None"
    assert attempt(loop, server, tls=tls_context(authority.ca_file), server_name="feed.test") == "None"


def test_the_wrong_name(loop, server, authority, caplog):
    error = attempt(loop, server, tls=tls_context(authority.ca_file), server_name="other.test")
    assert "TLS handshake: certificate not accepted: " in error and "other.test" in error
    run_until(loop, lambda: server.listener.failed == 1)
    assert "alert" in caplog.text.lower()                    # the server was told why


def test_an_unknown_authority_is_refused_with_the_remedy(loop, server, authority, tmp_path):
    assert "ca_file" in attempt(loop, server, tls=tls_context())
    stranger = Authority(tmp_path, "stranger")
    assert "certificate not accepted" in attempt(loop, server, tls=tls_context(stranger.ca_file))
    assert not server.streams


def test_verification_off_accepts_anything_and_says_so(loop, server, caplog):
    assert attempt(loop, server, tls=tls_context(verify=False), server_name="other.test") == "None"
    assert "verification is off" in caplog.text


def test_a_ca_file_that_is_none(tmp_path):
    with pytest.raises(ConfigError, match="missing.pem: No such file"):
        tls_context(str(tmp_path / "missing.pem"))
    junk = tmp_path / "junk.pem"
    junk.write_text("no certificate")
    with pytest.raises(ConfigError, match="junk.pem.*expected a PEM file"):
        tls_context(str(junk))


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("buffer_bytes", [1000, 16_384, 256 << 10])
def test_bytes_arrive_whole_whatever_the_buffer(authority, version, buffer_bytes):
    """A record holds up to 16 KiB: with a smaller buffer it is taken in pieces, without another wake-up."""
    seed = random.randrange(1 << 32)
    print("seed", seed)
    dice = random.Random(seed)
    loop = Loop(buffer_bytes=buffer_bytes)
    server = Server(loop, tls=server_tls_context(authority.certificate, authority.key), options=SMALL)
    context = tls_context(authority.ca_file)
    context.maximum_version = context.minimum_version = version
    stream, events, far, far_events = opened(loop, server, tls=context, options=SMALL)
    sent = [bytearray(), bytearray()]
    for _ in range(60):
        for side, out in zip((stream, far), sent):
            piece = dice.getrandbits(8 * 500).to_bytes(500, "little") * dice.choice((1, 3, 40, 60))
            assert side.write(piece)
            out += piece
    run_until(loop, lambda: len(far_events.data) == len(sent[0]) and len(events.data) == len(sent[1]))
    assert far_events.data == sent[0] and events.data == sent[1]
    far.write(b"last words")
    far.close()
    run_until(loop, lambda: events.closed and far_events.closed)
    assert events.data.endswith(b"last words") and events.closed == far_events.closed == [None]
    assert loop.errors == 0
    server.listener.close()
    loop.close()


def test_one_receive_brings_many_records_under_one_stamp(loop, server, authority):
    stream, events, far, _ = opened(loop, server, tls=tls_context(authority.ca_file))
    for _ in range(50):
        far.write(b"x" * 165)                    # a record each, all in the socket before we look
    run_until(loop, lambda: len(events.data) == 50 * 165)
    assert events.chunks < 10
    stream.close()


def test_data_sent_right_behind_the_handshake_is_not_missed(authority):
    context = server_tls_context(authority.certificate, authority.key)

    def greet(sock):
        with context.wrap_socket(sock, server_side=True) as wrapped:
            wrapped.sendall(b"greeting")
            wrapped.recv(1)

    peer = Peer(greet)
    loop = Loop()
    for _ in range(5):
        events = Events()
        stream = connect(loop, "127.0.0.1", peer.port, **events.callbacks, tls=tls_context(authority.ca_file))
        run_until(loop, lambda: events.data == b"greeting")
        stream.close()
        run_until(loop, lambda: events.closed)
    loop.close()
    peer.close()


def test_a_cut_is_told_from_a_goodbye(loop, authority):
    context = server_tls_context(authority.certificate, authority.key)

    def cut(sock):
        with context.wrap_socket(sock, server_side=True) as wrapped:
            wrapped.sendall(b"half of it")

    peer = Peer(cut)
    events = Events()
    connect(loop, "127.0.0.1", peer.port, **events.callbacks, tls=tls_context(authority.ca_file))
    run_until(loop, lambda: events.closed)
    assert events.data == b"half of it" and "without TLS close_notify" in events.error
    peer.close()


@pytest.mark.parametrize("answer, expected", [
    (b"HTTP/1.1 400 Bad Request\r\n\r\n", "TLS handshake: "), (b"", "TLS handshake: peer ended"),
    (b"\x16\x03\x03\x00\x05junk!", "TLS handshake: ")])
def test_a_peer_that_does_not_speak_tls(loop, authority, answer, expected):
    peer = Peer(lambda sock: (sock.recv(10_000), sock.sendall(answer)))
    events = Events()
    connect(loop, "127.0.0.1", peer.port, **events.callbacks, tls=tls_context(authority.ca_file))
    run_until(loop, lambda: events.closed)
    assert expected in events.error and not events.opened
    peer.close()


def test_garbage_inside_an_open_session(loop, server, authority):
    stream, events, far, far_events = opened(loop, server, tls=tls_context(authority.ca_file))
    stream._socket.send(b"\x17\x03\x03\x00\x20" + bytes(32))
    run_until(loop, lambda: far_events.closed and events.closed)
    assert "open: " in far_events.error and far_events.data == b""


@pytest.mark.parametrize("tls_at", ["client", "server"])
def test_the_timeout_covers_the_handshake_on_both_sides(loop, authority, tls_at):
    if tls_at == "client":
        peer = Peer(lambda sock: sock.recv(10_000) and sock.recv(10_000))
        events = Events()
        connect(loop, "127.0.0.1", peer.port, **events.callbacks, tls=tls_context(authority.ca_file),
                timeout_ns=100 * MILLISECOND)
        run_until(loop, lambda: events.closed)
        assert "TLS handshake: no success within 0.1 s" in events.error
        peer.close()
    else:
        server = Server(loop, tls=server_tls_context(authority.certificate, authority.key),
                        timeout_ns=100 * MILLISECOND)
        events = Events()
        connect(loop, "127.0.0.1", server.port, **events.callbacks)
        run_until(loop, lambda: events.closed)
        assert server.listener.failed == 1 and not server.streams
        server.listener.close()


def test_the_write_bound_holds_for_tls_too(loop, authority):
    server = Server(loop, tls=server_tls_context(authority.certificate, authority.key), options=SMALL,
                    max_pending_bytes=300_000)
    stream, events, far, far_events = opened(loop, server, tls=tls_context(authority.ca_file), options=SMALL)
    while far.write(bytes(20_000)):
        assert far.pending_bytes <= 300_000
    run_until(loop, lambda: far_events.closed and events.closed)
    assert "limit 300000" in far_events.error and "close_notify" in events.error
    server.listener.close()

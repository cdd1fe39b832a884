import pytest
from net_peers import ConnectProxy, Events, Peer, authority, loop, run_until  # noqa: F401
from test_net_stream import Server, dead_port

from feeder.clock import MILLISECOND
from feeder.errors import ConfigError
from feeder.net import NetworkError, Proxy, connect, proxy_for, server_tls_context, tls_context
from feeder.net.proxy import MAX_HEAD_BYTES, may_have_settings, read_connect_answer


@pytest.fixture
def server(loop):
    server = Server(loop)
    yield server
    server.listener.close()
    for stream in server.streams:
        stream.abort()


def through(loop, peer, port=1, timeout_ns=10**10, **options):
    events = Events()
    stream = connect(loop, "127.0.0.1", port, **events.callbacks, proxy=Proxy("127.0.0.1", peer.port, "Basic eDp5"),
                     timeout_ns=timeout_ns, **options)
    run_until(loop, lambda: events.opened or events.closed)
    return stream, events


def test_bytes_go_through_and_the_proxy_is_asked_rightly(loop, server):
    proxy = ConnectProxy(early=b"early")
    stream, events = through(loop, proxy, server.port)
    run_until(loop, lambda: server.streams)
    stream.write(b"ping")
    run_until(loop, lambda: server.events[0].data == b"ping")
    server.streams[0].write(b"pong")
    run_until(loop, lambda: events.data == b"earlypong")     # what came in one piece with the head is not lost
    stream.close()
    run_until(loop, lambda: events.closed)
    assert proxy.requests == [b"CONNECT 127.0.0.1:%d HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n"
                              b"Proxy-Authorization: Basic eDp5\r\n\r\n" % (server.port, server.port)]
    proxy.close()


def test_tls_through_a_proxy_verifies_the_far_end(loop, authority):
    server = Server(loop, tls=server_tls_context(authority.certificate, authority.key))
    proxy = ConnectProxy()
    stream, events = through(loop, proxy, server.port, tls=tls_context(authority.ca_file))
    stream.write(b"secret")
    run_until(loop, lambda: server.events and server.events[0].data == b"secret")
    stream.close()
    _, wrong = through(loop, proxy, server.port, tls=tls_context(authority.ca_file), server_name="other.test")
    assert "certificate not accepted" in wrong.error
    run_until(loop, lambda: events.closed and server.events[0].closed)
    server.listener.close()
    proxy.close()


@pytest.mark.parametrize("answer, expected", [
    (b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n", "proxy refused: 407 Proxy Authentication Required"),
    (b"HTTP/1.1 302 Found\r\nLocation: http://x/\r\n\r\n", "proxy refused: 302"),
    (b"SSH-2.0-OpenSSH\r\n\r\n", "did not answer with HTTP but with 'SSH-2.0-OpenSSH'"),
    (b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 4000, f"over {MAX_HEAD_BYTES} bytes"),
    (b"HTTP/1.1 200 OK\r\n", "peer ended"), (b"", "peer ended")])
def test_a_proxy_that_refuses_or_misbehaves(loop, answer, expected):
    proxy = ConnectProxy(answer=answer)
    _, events = through(loop, proxy)
    assert expected in events.error and "through proxy 127.0.0.1" in events.error and "eDp5" not in events.error
    assert not events.opened
    proxy.close()


def test_a_mute_proxy_times_out_and_a_dead_one_is_named(loop):
    peer = Peer(lambda sock: sock.recv(10_000) and sock.recv(10_000))
    _, events = through(loop, peer, timeout_ns=100 * MILLISECOND)
    assert "asking the proxy: no success within 0.1 s" in events.error
    peer.close()
    peer.port = dead_port()
    _, events = through(loop, peer)
    assert f"through proxy 127.0.0.1:{peer.port}" in events.error and "refused" in events.error


def test_the_answer_cut_anywhere():
    answer = b"HTTP/1.0 200 fine\r\nA: b\r\n\r\nrest"
    end = answer.index(b"rest")
    for cut in range(len(answer)):
        assert read_connect_answer(bytearray(answer[:cut])) == (None if cut < end else answer[end:cut])
    for broken in (b"\r\n\r\n", b"HTTP/1.1\r\n\r\n", b"HTTP/1.1 \xb2\xb2\xb2 x\r\n\r\n", b"HTTP/1.1 xyz\r\n\r\n"):
        with pytest.raises(NetworkError):
            read_connect_answer(broken)


# -- which proxy

@pytest.fixture
def environment(monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    return monkeypatch


def where(proxy):
    return proxy and (proxy.host, proxy.port, proxy.authorization)


def test_no_proxy_unless_configured(environment):
    environment.setenv("https_proxy", "http://p:1")
    assert proxy_for("wss://venue.test/ws") is None and proxy_for("wss://venue.test/ws", "") is None


def test_a_configured_url(environment):
    assert where(proxy_for("wss://v.test", "http://p.test:3128")) == ("p.test", 3128, None)
    assert where(proxy_for("wss://v.test", "p.test:3128")) == ("p.test", 3128, None)
    assert where(proxy_for("wss://v.test", "http://p.test")) == ("p.test", 80, None)
    proxy = proxy_for("wss://v.test", "http://Al%40x:open%3Asesame@p.test:3128")
    assert where(proxy) == ("p.test", 3128, "Basic QWxAeDpvcGVuOnNlc2FtZQ==")
    assert "QWx" not in repr(proxy)


@pytest.mark.parametrize("url", ["socks5://p:1", "https://p:1", "http://", "http://p:port", "http://p:99999999"])
def test_a_url_that_is_no_proxy(url):
    with pytest.raises(ConfigError, match="proxy"):
        proxy_for("wss://v.test", url)


def test_the_error_of_a_bad_url_keeps_the_password_to_itself():
    with pytest.raises(ConfigError) as caught:
        proxy_for("wss://v.test", "https://me:hush@p:1")
    assert "hush" not in str(caught.value)


def test_the_environment(environment):
    assert proxy_for("wss://v.test", "env") is None
    environment.setenv("https_proxy", "http://me:pw@secure.test:1")
    environment.setenv("http_proxy", "http://plain.test:2")
    assert where(proxy_for("wss://v.test/ws", "env")) == ("secure.test", 1, "Basic bWU6cHc=")
    assert where(proxy_for("https://v.test", "env"))[:2] == ("secure.test", 1)
    assert where(proxy_for("ws://v.test", "env"))[:2] == ("plain.test", 2)
    environment.delenv("http_proxy")
    environment.setenv("ALL_PROXY", "http://all.test:3")
    assert where(proxy_for("http://v.test", "env"))[:2] == ("all.test", 3)


def test_no_proxy_and_loopback_go_direct(environment):
    environment.setenv("https_proxy", "http://p.test:1")
    environment.setenv("no_proxy", ".direct.test,port.test:9443")
    for url in ("wss://a.direct.test", "wss://port.test:9443", "wss://127.0.0.1:9", "wss://localhost", "wss://[::1]:9"):
        assert proxy_for(url, "env") is None, url
    assert proxy_for("wss://port.test", "env") and proxy_for("wss://10.0.0.1", "env")


def test_urllib_is_asked_only_where_there_may_be_something_to_find(environment):
    assert not may_have_settings({"PATH": "/bin"}, "linux") and not may_have_settings({}, "freebsd13")
    for name in ("https_proxy", "HTTP_PROXY", "All_Proxy", "no_proxy"):
        assert may_have_settings({name: ""}, "linux")
    assert may_have_settings({}, "darwin") and may_have_settings({}, "win32")        # they have settings of the system

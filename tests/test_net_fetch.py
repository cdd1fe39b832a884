import socket
import threading
import time

import pytest
from net_peers import ConnectProxy, Peer, authority, loop, read_head, run_until  # noqa: F401
from test_net_stream import dead_port, join_lookups

import feeder.net.fetch
import feeder.net.resolve
from feeder.net import Fetcher, Loop, Proxy, server_tls_context, tls_context


class Site(Peer):
    """Answers each request with what `answer(path)` returns, bytes or an iterable of bytes to send one by one."""

    def __init__(self, answer, tls=None):
        self.heads = []
        self.answer = answer
        self.tls = tls
        super().__init__(self._serve)

    def _serve(self, sock):
        if self.tls is not None:
            sock = self.tls.wrap_socket(sock, server_side=True)
        with sock:
            head = read_head(sock)
            if not head:                     # the fetcher was closed before it asked
                return
            self.heads.append(head)
            answer = self.answer(head.split(b" ")[1].decode())
            for piece in [answer] if isinstance(answer, bytes) else answer:
                sock.sendall(piece)

    def url(self, path="/", scheme="http", host="127.0.0.1"):
        return f"{scheme}://{host}:{self.port}{path}"


def http(status, body=b"", headers=""):
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n{headers}\r\n".encode() + body


@pytest.fixture
def open_site():
    sites = []

    def make(answer, tls=None):
        sites.append(Site(answer if callable(answer) else lambda path: answer, tls))
        return sites[-1]

    yield make
    for site in sites:
        site.close()


@pytest.fixture
def fetcher(loop):
    fetcher = Fetcher(loop)
    yield fetcher
    fetcher.close()


def fetch(loop, fetcher, url, **options):
    answers = []
    fetcher.get(url, answers.append, **options)
    assert not answers                       # never inside the call
    run_until(loop, lambda: answers)
    assert len(answers) == 1 and fetcher.waiting == 0
    return answers[0]


def test_an_answer_and_the_request_that_was_sent(loop, fetcher, open_site):
    site = open_site(http("200 OK", b'{"a":1}', "X-MBX-USED-WEIGHT-1M: 250\r\n"))
    answer = fetch(loop, fetcher, site.url("/api/v3/depth?symbol=BTCUSDT&limit=5000"))
    assert (answer.status, answer.body, answer.error) == (200, b'{"a":1}', None)
    assert answer.headers["x-mbx-used-weight-1m"] == "250" and answer.recv_ns
    head = site.heads[0].decode()
    assert head.startswith("GET /api/v3/depth?symbol=BTCUSDT&limit=5000 HTTP/1.1\r\n")
    assert f"Host: 127.0.0.1:{site.port}\r\n" in head and "Accept-Encoding: identity\r\n" in head


@pytest.mark.parametrize("status", ["404 Not Found", "418 I'm a teapot", "429 Too Many Requests", "503 Busy"])
def test_any_status_with_a_whole_answer_is_an_answer(loop, fetcher, open_site, status):
    site = open_site(http(status, b'{"code":-1}', "Retry-After: 7\r\n"))
    answer = fetch(loop, fetcher, site.url())
    assert (answer.status, answer.body, answer.error) == (int(status[:3]), b'{"code":-1}', None)
    assert answer.headers["retry-after"] == "7"


@pytest.mark.parametrize("status", ["301 Moved", "302 Found", "307 Temporary", "308 Permanent"])
def test_redirects_are_refused_by_name(loop, fetcher, open_site, status):
    site = open_site(http(status, b"", "Location: http://elsewhere.test/\r\n"))
    answer = fetch(loop, fetcher, site.url())
    assert answer.status == int(status[:3])
    assert f"redirect refused: {status[:3]} to http://elsewhere.test/" in answer.error and site.url() in answer.error


def endless():
    yield b"HTTP/1.1 200 OK\r\n\r\n"
    while True:
        yield bytes(65536)


def endless_chunks():
    yield b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    while True:
        yield b"8000\r\n" + bytes(0x8000) + b"\r\n"


@pytest.mark.parametrize("answer", [lambda path: http("200 OK", bytes(1_000_001)), lambda path: endless(),
                                    lambda path: endless_chunks()])
def test_an_oversized_answer_is_stopped_while_it_is_read(loop, fetcher, open_site, answer):
    site = open_site(answer)
    got = fetch(loop, fetcher, site.url(), max_bytes=1_000_000)
    assert "over the limit of 1000000 bytes" in got.error and got.body == b""


def test_the_limit_itself_fits(loop, fetcher, open_site):
    site = open_site(http("200 OK", bytes(1_000_000)))
    assert len(fetch(loop, fetcher, site.url(), max_bytes=1_000_000).body) == 1_000_000


def test_chunked_and_unannounced_bodies(loop, fetcher, open_site):
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"
    site = open_site(lambda path: chunked if path == "/c" else b"HTTP/1.1 200 OK\r\n\r\nabcde")
    assert fetch(loop, fetcher, site.url("/c")).body == fetch(loop, fetcher, site.url("/u")).body == b"abcde"


@pytest.mark.parametrize("answer, expected", [
    (b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc", "cut: 3 of 10"),
    (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nff\r\nabc", "IncompleteRead"),
    (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\nabc", ""),
    (b"", "RemoteDisconnected"), (b"220 smtp.test\r\n\r\n", "BadStatusLine"),
    (b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 200 + b"\r\n", "100 headers"),
    (b"HTTP/1.1 200 OK\r\nA: " + b"b" * 70_000, "LineTooLong")])
def test_broken_answers(loop, fetcher, open_site, answer, expected):
    got = fetch(loop, fetcher, open_site(answer).url())
    assert expected in got.error and got.body == b""


def drip():
    yield b"HTTP/1.1 200 OK\r\n"
    while True:
        yield b"A"
        time.sleep(0.02)                     # the peer's slowness is what is tested


def test_a_peer_that_drips_does_not_outlive_the_timeout(loop, fetcher, open_site):
    site = open_site(lambda path: drip())
    got = fetch(loop, fetcher, site.url(), timeout_s=0.3)
    assert "no whole answer within 0.3 s" in got.error


def test_refused_unknown_and_impossible(loop, fetcher):
    assert "refused" in fetch(loop, fetcher, f"http://127.0.0.1:{dead_port()}/").error
    assert "name lookup" in fetch(loop, fetcher, "http://a..b/").error
    for url in ("ftp://127.0.0.1/", "127.0.0.1", "http://", "http://h:port/", "http://[::1/", "http://127.0.0.1/a b"):
        got = fetch(loop, fetcher, url)
        assert got.error.startswith(url) and got.status == 0


def test_https(loop, authority, open_site):
    site = open_site(http("200 OK", b"safe"), tls=server_tls_context(authority.certificate, authority.key))
    trusting, wary = Fetcher(loop, tls=tls_context(authority.ca_file)), Fetcher(loop)
    assert fetch(loop, trusting, site.url(scheme="https")).body == b"safe"
    assert fetch(loop, trusting, site.url(scheme="https", host="localhost")).body == b"safe"
    got = fetch(loop, wary, site.url(scheme="https"))
    assert "TLS: certificate not accepted" in got.error and "ca_file" in got.error
    trusting.close()
    wary.close()


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_through_a_proxy(loop, authority, open_site, scheme):
    site = open_site(http("200 OK", b"far"), tls=server_tls_context(authority.certificate, authority.key)
                     if scheme == "https" else None)
    proxy = ConnectProxy()
    fetcher = Fetcher(loop, tls=tls_context(authority.ca_file), proxy=Proxy("127.0.0.1", proxy.port, "Basic eDp5"))
    assert fetch(loop, fetcher, site.url(scheme=scheme)).body == b"far"
    assert b"Proxy-Authorization: Basic eDp5" in proxy.requests[0] and b"eDp5" not in site.heads[0]
    fetcher.close()
    proxy.close()


@pytest.mark.parametrize("answer, expected", [
    (b"HTTP/1.1 407 Who are you\r\n\r\n", "proxy refused: 407 Who are you"), (b"", "without an answer")])
def test_a_proxy_that_refuses(loop, answer, expected):
    proxy = ConnectProxy(answer=answer)
    fetcher = Fetcher(loop, proxy=Proxy("127.0.0.1", proxy.port))
    assert expected in fetch(loop, fetcher, "http://venue.test/").error
    fetcher.close()
    proxy.close()


def test_many_requests_each_answered_once(loop, open_site):
    site = open_site(lambda path: http("200 OK", path.encode()))
    fetcher = Fetcher(loop, threads=4)
    answers = []
    for number in range(100):
        fetcher.get(site.url(f"/{number}"), answers.append)
    run_until(loop, lambda: len(answers) == 100)
    assert sorted(int(answer.body[1:]) for answer in answers) == list(range(100))
    fetcher.close()


def test_the_queue_is_bounded_and_says_so(loop, open_site):
    release = threading.Event()
    site = open_site(lambda path: (release.wait(10), http("200 OK"))[1])
    fetcher = Fetcher(loop, queue_limit=3)
    answers = []
    for _ in range(5):
        fetcher.get(site.url(), answers.append)
    run_until(loop, lambda: len(answers) == 2)
    assert all("limit 3" in answer.error for answer in answers)
    release.set()
    run_until(loop, lambda: len(answers) == 5)
    fetcher.close()


@pytest.mark.parametrize("stage", ["answer", "handshake", "lookup", "proxy"])
def test_close_does_not_wait_for_anyone(loop, authority, monkeypatch, stage):
    reached = threading.Event()
    release = threading.Event()

    def mute(sock):
        sock.recv(10_000)
        reached.set()
        sock.recv(10_000)

    peer = Peer(mute)
    if stage == "lookup":
        def slow(host, port, flags):
            if flags:
                raise OSError
            reached.set()
            release.wait(10)
            return []
        monkeypatch.setattr(feeder.net.resolve, "_addresses", slow)
    answers = []
    fetcher = Fetcher(loop, tls=tls_context(authority.ca_file),
                      proxy=Proxy("127.0.0.1", peer.port) if stage == "proxy" else None)
    for _ in range(10):
        fetcher.get(f"{'https' if stage == 'handshake' else 'http'}://127.0.0.1:{peer.port}/", answers.append,
                    timeout_s=30)
    assert reached.wait(10)
    start = time.monotonic()
    fetcher.close()
    assert time.monotonic() - start < 2
    release.set()
    join_lookups()
    for _ in range(3):
        loop.run_once(0)
    assert not answers
    with pytest.raises(RuntimeError, match="closed"):
        fetcher.get("http://127.0.0.1/", answers.append)
    peer.close()


def test_a_request_cancelled_right_before_it_connects_does_not(open_site, monkeypatch):
    site = open_site(http("200 OK", b"x"))
    request = feeder.net.fetch._Request(site.url(), None, 5, 1000)
    real = feeder.net.fetch.lookup
    monkeypatch.setattr(feeder.net.fetch, "lookup", lambda *args: (real(*args), request.cancel()))
    assert request.perform(None, None).error == f"{site.url()}: cancelled"
    assert not site.heads


def test_close_at_any_moment(open_site):
    site = open_site(http("200 OK", b"x"))
    for pause in range(20):
        loop = Loop()
        fetcher = Fetcher(loop, threads=3)
        for _ in range(6):
            fetcher.get(site.url(), lambda answer: None)
        time.sleep(pause / 5000)             # lands anywhere in a request's life
        fetcher.close()
        loop.close()


def test_a_full_loop_delays_an_answer_but_does_not_lose_it(open_site):
    site = open_site(http("200 OK", b"x"))
    loop = Loop(max_posts=1)
    fetcher = Fetcher(loop, threads=1)
    answers = []
    loop.post(lambda: None)
    fetcher.get(site.url(), answers.append)
    refused = time.monotonic() + 10
    while not loop.posts_refused:
        assert time.monotonic() < refused
        time.sleep(0.001)
    run_until(loop, lambda: answers)
    assert answers[0].body == b"x"
    fetcher.close()
    loop.close()


def test_an_answer_in_any_cut(loop, fetcher, open_site):
    whole = http("200 OK", b'{"lastUpdateId":1}')
    site = open_site(lambda path: (whole[i:i + 1] for i in range(len(whole))) if path == "/bytes" else
                     [whole[:int(path[1:])], whole[int(path[1:]):]])
    assert fetch(loop, fetcher, site.url("/bytes")).body == b'{"lastUpdateId":1}'
    for cut in range(1, len(whole), 7):
        assert fetch(loop, fetcher, site.url(f"/{cut}")).body == b'{"lastUpdateId":1}'


def test_threads_end_with_close(loop):
    before = threading.active_count()
    fetcher = Fetcher(loop, threads=3)
    assert threading.active_count() == before + 3
    fetcher.close()
    fetcher.close()
    assert threading.active_count() == before
    assert socket.getdefaulttimeout() is None

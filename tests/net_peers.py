"""What the tests of feeder.net talk to: an echo, blocking peers in threads, a CONNECT proxy, a certificate authority."""

import select
import shutil
import socket
import subprocess
import threading

import pytest

from feeder.clock import SECOND, steady_ns
from feeder.net import Loop

PATIENCE_S = 10


def run_until(loop, condition, seconds=PATIENCE_S):
    """Run rounds until condition() holds; fail when it takes too long."""
    give_up_ns = steady_ns() + int(seconds * SECOND)
    while not condition():
        assert steady_ns() < give_up_ns, "waited in vain"
        loop.run_once(SECOND // 20)


class Events:
    """Callbacks for a stream that write down what happened."""

    def __init__(self):
        self.opened = 0
        self.data = bytearray()
        self.chunks = 0
        self.closed = []             # errors or None; must end up with one
        self.stamps = []

    def on_open(self, stream):
        assert not self.closed
        self.opened += 1

    def on_data(self, stream, view, recv_ns):
        assert not self.closed
        self.data += view
        self.chunks += 1
        self.stamps.append(recv_ns)

    def on_close(self, stream, error):
        self.closed.append(error)

    @property
    def callbacks(self):
        return {"on_open": self.on_open, "on_data": self.on_data, "on_close": self.on_close}

    @property
    def error(self):
        assert len(self.closed) == 1
        return str(self.closed[0])


class Peer:
    """A blocking server: `serve(sock)` runs in a thread for each connection, one after the other."""

    def __init__(self, serve):
        self.serve = serve
        self.failures = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self):
        while True:
            sock, _ = self._listener.accept()
            with sock:
                sock.settimeout(PATIENCE_S)
                if self._listener.fileno() < 0 or self._closing:
                    return
                try:
                    self.serve(sock)
                except OSError as error:
                    self.failures.append(error)

    _closing = False

    def close(self):
        self._closing = True
        socket.create_connection(("127.0.0.1", self.port)).close()       # wakes accept everywhere
        self._thread.join()
        self._listener.close()


def read_head(sock):
    head = b""
    while b"\r\n\r\n" not in head:
        piece = sock.recv(4096)
        if not piece:
            return head
        head += piece
    return head


class ConnectProxy(Peer):
    """Relays what a CONNECT asks for, or gives `answer` instead; `requests` keeps the heads it saw."""

    def __init__(self, answer=None, early=b""):
        self.requests = []
        self.answer = answer
        self.early = early           # bytes sent in one piece with the head of the answer
        super().__init__(self._relay)

    def _relay(self, sock):
        head = read_head(sock)
        self.requests.append(head)
        if self.answer is not None:
            sock.sendall(self.answer)
            return
        host, port = head.split(b" ")[1].decode().rsplit(":", 1)
        with socket.create_connection((host, int(port))) as far:
            sock.sendall(b"HTTP/1.1 200 Connection established\r\nX-Proxy: test\r\n\r\n" + self.early)
            other = {sock: far, far: sock}
            while True:
                for ready in select.select([sock, far], [], [], PATIENCE_S)[0]:
                    data = ready.recv(65536)
                    if not data:
                        return
                    other[ready].sendall(data)


class Authority:
    """A self-signed authority and a server certificate for localhost and 127.0.0.1, made by the openssl command."""

    def __init__(self, folder, name):
        self.folder = folder
        self.ca_file = str(folder / f"{name}-ca.pem")
        self.certificate = str(folder / f"{name}-server.pem")
        self.key = str(folder / f"{name}-server.key")
        ca_key, request, extensions = (str(folder / f"{name}-{end}") for end in ("ca.key", "server.csr", "server.ext"))
        with open(extensions, "w") as out:
            out.write("subjectAltName=DNS:localhost,DNS:feed.test,IP:127.0.0.1\nbasicConstraints=critical,CA:FALSE\n"
                      "keyUsage=critical,digitalSignature\nextendedKeyUsage=serverAuth\n"
                      "authorityKeyIdentifier=keyid\nsubjectKeyIdentifier=hash\n")
        new = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
        self._openssl("req", "-x509", *new, "-keyout", ca_key, "-out", self.ca_file, "-days", "2", "-subj",
                      f"/CN={name} test authority", "-addext", "keyUsage=critical,keyCertSign,cRLSign")
        self._openssl("req", *new, "-keyout", self.key, "-out", request, "-subj", f"/CN={name} server")
        self._openssl("x509", "-req", "-in", request, "-CA", self.ca_file, "-CAkey", ca_key, "-CAcreateserial",
                      "-out", self.certificate, "-days", "2", "-extfile", extensions)

    @staticmethod
    def _openssl(*args):
        done = subprocess.run(["openssl", *args], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, text=True, timeout=60)
        assert done.returncode == 0, done.stdout


@pytest.fixture(scope="session")
def authority(tmp_path_factory):
    if shutil.which("openssl") is None:
        pytest.skip("the openssl command is missing; it makes the certificates for the TLS tests")
    return Authority(tmp_path_factory.mktemp("tls"), "known")


@pytest.fixture
def loop():
    loop = Loop()
    yield loop
    loop.close()

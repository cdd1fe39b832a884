"""tools/autobahn_client.py against a small stand-in of the fuzzing server: what it plays, and its exit codes."""

import importlib.util
import json
import socket
import threading
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from feeder.websocket import CLOSE, SERVER, TEXT, Connection, ServerHandshake

PATH = Path(__file__).resolve().parent.parent / "tools" / "autobahn_client.py"


@pytest.fixture
def tool():
    spec = importlib.util.spec_from_file_location("autobahn_client", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class StandIn(threading.Thread):
    """Serves one connection after the other until the reports are asked for; cases are 1.1, 1.2, ..."""

    def __init__(self, verdicts):
        super().__init__(daemon=True)
        self.verdicts = verdicts
        self.echoes = []
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.listener.settimeout(10)
        self.url = "ws://127.0.0.1:%d" % self.listener.getsockname()[1]

    def run(self):
        path = None
        with self.listener:
            while path != "/updateReports":
                peer, _ = self.listener.accept()
                with peer:
                    path = self.serve(peer)

    def serve(self, peer):
        peer.settimeout(10)
        handshake, request = ServerHandshake(), None
        while request is None:
            request = handshake.receive(peer.recv(4096))
        url = urlsplit(request.target)
        number = int(parse_qs(url.query).get("case", ["0"])[0])
        answer = {"/getCaseCount": len(self.verdicts), "/getCaseInfo": {"id": "1.%d" % number},
                  "/getCaseStatus": {"behavior": self.verdicts[number - 1]}, "/runCase": "case %d" % number}.get(url.path)
        connection = Connection(SERVER)
        peer.sendall(handshake.accept(request))
        if answer is not None:
            peer.sendall(connection.send(TEXT, json.dumps(answer).encode()))
        if url.path != "/runCase":
            peer.sendall(connection.close())
        while not connection.is_closed:
            for opcode, payload in connection.receive(peer.recv(4096)):
                if opcode == TEXT:
                    self.echoes.append(payload)
                    peer.sendall(connection.close())
                assert opcode in (TEXT, CLOSE)
        return url.path


def play(tool, monkeypatch, verdicts, *arguments):
    server = StandIn(verdicts)
    server.start()
    monkeypatch.setattr("sys.argv", ["autobahn_client", server.url, *arguments])
    code = tool.main()
    server.join(10)
    assert not server.is_alive()
    return code, server.echoes


def test_all_good(tool, monkeypatch, capsys):
    code, echoes = play(tool, monkeypatch, ["OK", "NON-STRICT", "INFORMATIONAL"])
    assert code == 0 and echoes == [b'"case 1"', b'"case 2"', b'"case 3"']
    assert "3 cases in " in capsys.readouterr().out


def test_a_failed_case(tool, monkeypatch, capsys):
    code, _ = play(tool, monkeypatch, ["OK", "FAILED", "OK"], "--piece-bytes", "1")
    assert code == 1 and "not passed: 1.2" in capsys.readouterr().out


def test_only_some_cases_and_a_bad_close(tool, monkeypatch, capsys, tmp_path):
    report = tmp_path / "index.json"
    report.write_text(json.dumps({"feeder": {"1.2": {"behaviorClose": "UNCLEAN"}}}))
    code, echoes = play(tool, monkeypatch, ["FAILED", "OK"], "--cases", "*.2", "--report", str(report))
    assert code == 1 and echoes == [b'"case 2"'] and "1.2" in capsys.readouterr().out


def test_no_server(tool, monkeypatch, capsys):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = "ws://127.0.0.1:%d" % listener.getsockname()[1]
    monkeypatch.setattr("sys.argv", ["autobahn_client", url])
    assert tool.main() == 2 and url in capsys.readouterr().err

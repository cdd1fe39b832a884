"""`feeder bench udp`: its rows, and that an answer which is wrong is found."""

import sys

import pytest

from feeder.bench import Run, udp
from feeder.bench.measure import BenchError
from feeder.packet import Padding, decode

SENT = ["full, 44 a call", "one a call", "turns of 61 messages", "turns of 1,024 messages"]


pytestmark = pytest.mark.usefixtures("small_heap")


@pytest.fixture(scope="module")
def found(small_heap):
    return {row["scenario"]: row for row in udp.bench_udp(Run(quick=True))}


def test_rows_of_both_directions_with_the_plans_goal_where_there_are_bursts(found):
    assert list(found) == ([f"send, {name}" for name in SENT] + ["send, full, 44 a call; receiver coalesces"]
                           + [f"receive, {name}" for name in SENT] + ["receive, one a call, not coalescing"])
    for name, row in found.items():
        assert row["unit"] == "datagram" and row["ns"] > 0 and row["reference"] in ("connected send", "recv_into")
        assert row.get("goal") == ({"reach": 0.4, "beyond": 0.2} if name in [f"send, {each}" for each in (
            SENT[0], *SENT[2:])] else None)
    assert found["send, one a call"]["datagrams_a_call"] == 1


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="UDP_SEGMENT is Linux's")
def test_bursts_are_those_of_the_encoder(found):
    assert found["send, full, 44 a call"]["datagrams_a_call"] == 44
    assert found["send, turns of 61 messages"]["datagrams_a_call"] > 2
    assert 0 < found["send, turns of 61 messages"]["bytes_more"] < 0.2
    assert all(row["burst"].startswith("UDP_SEGMENT") for row in found.values())
    bursts, singles = (udp.turns(Run(quick=True).traffic, 61, burst) for burst in (44, 1))
    assert {len(call) for call in singles} == {1} and max(map(len, bursts)) > 2
    assert any(type(message) is Padding for call in bursts for message in decode(call[0]).messages)
    assert udp.read(bursts) == udp.read(singles)


BLUNDERS = {"lost": lambda data: [], "twice": lambda data: [data, data], "changed": lambda data: [data[:-1] + b"x"],
            "cut": lambda data: [data[:-1]], "late": lambda data: [b"other", data]}


@pytest.mark.parametrize("blunder", BLUNDERS)
def test_a_wrong_answer_is_found(blunder):
    calls = [[bytes([number]) * 100] for number in range(5)]
    with udp.Sending(False) as way:
        assert way.round(calls, True) >= 0 and way.round(calls, False) >= 0
        send = way.plain._send
        way.plain._send = lambda view: list(map(send, BLUNDERS[blunder](bytes(view)) if view[0] == 3 else [view]))
        with pytest.raises(BenchError, match="datagrams came of 5"):
            way.round(calls, False)

"""`feeder bench deliver`: nothing is lost, what is told adds up, a listener that missed something is found."""

import sys

import pytest

from feeder.bench import Run, deliver
from feeder.bench.measure import BenchError

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="CPU time of another process is /proc's")


def test_a_listener_that_does_not_add_up_is_found(monkeypatch):
    loads = deliver.json.loads
    monkeypatch.setattr(deliver.json, "loads", lambda text: dict(
        loads(text), **({"messages": 5} if type(text) is bytes else {"messages": 6, "datagrams": 2})))
    with pytest.raises(BenchError, match="6 messages were sent, the listener says 5 came and 0 were lost"):
        deliver.measured(Run(quick=True), 0, 1)


@pytest.mark.stress
def test_a_minute_at_twenty_thousand_a_second_loses_nothing():
    """Of both ways; that the rows are there and add up is test_bench's."""
    for row in deliver.bench_deliver(Run()):
        assert row["sent"] == 20_000 * 60 and row["lost"] == row["kernel_drops"] == 0

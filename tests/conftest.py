"""What every test may rely on."""

import gc
import logging

import pytest


@pytest.fixture(autouse=True)
def feeder_logs_reach_caplog(request, monkeypatch):
    """Once imported, feeder.log keeps our records from the root logger and so off the terminal; caplog listens there."""
    if "caplog" in request.fixturenames:
        monkeypatch.setattr(logging.getLogger("feeder"), "propagate", True)


@pytest.fixture(scope="module")
def small_heap():
    """Benches collect garbage before each round; that of three thousand tests would take longer than the bench."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()

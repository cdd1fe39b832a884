"""What every test may rely on."""

import gc
import logging
import os
import sys

import pytest

# Told to write no bytecode, each run would compile all tests anew (6 s), and each process it starts what of feeder is newer
# than its bytecode (0.3 s). It is written all the same, as the benches do; git ignores it and `make clean` removes it.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


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

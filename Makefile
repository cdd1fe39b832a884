# A fresh clone runs every target offline where python3 has pytest; otherwise pytest alone is fetched, into .venv.
PYTHON ?= python3
TESTER := $(shell $(PYTHON) -c "import pytest" 2>/dev/null && echo $(PYTHON) || echo .venv/bin/python)
READY := $(filter .venv/%,$(TESTER))

# Tests need no plugins; whatever a host has of them takes a second to load.
test stress: export PYTEST_DISABLE_PLUGIN_AUTOLOAD = 1

.PHONY: run test test-all stress bench bench-host bench-compare captures check clean

run: ; $(PYTHON) -m feeder
test: $(READY) ; $(TESTER) tools/test_quick.py
test-all: ; $(PYTHON) tools/test_all.py
stress: $(READY) ; $(TESTER) -m pytest -m stress
bench: ; $(PYTHON) -m feeder bench
bench-host: ; $(PYTHON) tools/bench_host.py
captures: ; $(PYTHON) tools/captures.py
bench-compare: ; $(PYTHON) tools/bench_compare.py $(if $(BASE),--base "$(BASE)") $(if $(BENCHES),--benches "$(BENCHES)")
check: $(READY) ; $(PYTHON) -X dev -W error -m compileall -q -f feeder tests tools && $(TESTER) -m pytest tests/test_imports.py && $(PYTHON) -m feeder check-config config/feeder/crypto
clean: ; rm -rf .venv .venv-* .pytest_cache && find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/bin/python: ; $(PYTHON) -m venv .venv && .venv/bin/python -m pip install -q pytest || { rm -rf .venv; exit 1; }

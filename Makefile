# make install | demo | test | test-fast | lint | clean
# Everything happens in ./.venv. Another Python: make install PYTHON=python3.12
# CPU-only torch from PyTorch's own index: make install PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
STAMP := $(VENV)/.installed

# Test files at a time, each in a process of about 1.5 GB
TEST_WORKERS ?= 2

# One thread per process: nnU-Net starts worker processes of its own, and more threads than cores slow all of them down.
export OMP_NUM_THREADS ?= 1

.PHONY: install demo test test-fast test-slow lint clean

install: $(STAMP)

$(STAMP): setup.py pyproject.toml constraints.txt scripts/mend_torchvision.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	    echo "make: $(PYTHON) is missing or older than Python 3.10; name a newer one: make install PYTHON=python3.12" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { \
	    echo "make: cannot make a virtual environment; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	@echo "Installing into $(VENV): 2.5 to 8 GB, a few minutes the first time"
	@cp constraints.txt $(VENV)/constraints.txt
	@$(PIP) install --constraint $(VENV)/constraints.txt torch torchvision || { \
	    echo "make: the torch of constraints.txt does not install here (see above); trying any that setup.py allows" >&2; \
	    grep -Ev '^torch(vision)?==' constraints.txt > $(VENV)/constraints.txt; }
	$(PIP) install --constraint $(VENV)/constraints.txt --editable '.[test]'
	$(BIN)/python scripts/mend_torchvision.py
	@touch $@

demo: install
	$(BIN)/nnunet-kd demo

test: lint test-fast test-slow

test-fast: install
	$(BIN)/python -m pytest -m "not slow" --timeout 300 -n $(TEST_WORKERS) --dist loadfile

test-slow: install
	$(BIN)/python -m pytest -m slow --timeout 1800 -n $(TEST_WORKERS) --dist loadfile

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

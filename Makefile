# `make demo` and `make test` need Linux, Python >= 3.11, make and a C++ compiler; they make the rest themselves.

PYTHON ?= python3
VENV ?= .venv
PY := $(VENV)/bin/python
READY := $(VENV)/.ready

.PHONY: help demo test bench lint constraints clean

help:
	@echo "make demo         search, compile and measure EfficientNet-Lite0 on this machine"
	@echo "make test         the whole test suite"
	@echo "make bench        compare with ONNX Runtime and OpenVINO"
	@echo "make lint         ruff, mypy, layering and sizes only"
	@echo "make constraints  write constraints.txt anew from a fresh environment"
	@echo "make clean        remove the environment, caches and results"

demo: $(READY)
	$(PY) examples/demo.py

# A process per core, whole files each: some share what they compiled.
test: $(READY)
	$(PY) -m pytest -n auto --maxprocesses 4 --dist loadfile

bench: $(READY)
	$(PY) benchmarks/peers.py

lint: $(READY)
	$(PY) -m pytest -q tests/test_style.py tests/test_layering.py tests/test_packaging.py

# The environment is made again when what it should hold has changed.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "bitsmith needs Python 3.11 or newer, and $(PYTHON) is not that; try: make PYTHON=python3.11 ..." >&2; exit 1; }
	@command -v $${CXX:-c++} >/dev/null || { \
	  echo "bitsmith needs a C++ compiler, and '$${CXX:-c++}' is not found; install g++ or clang, or set CXX" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "$(PYTHON) cannot make environments; install its venv package (Debian, Ubuntu: python3-venv)" >&2; exit 1; }
	@echo "making $(VENV): a few minutes at the first time"
	$(PYTHON) -m venv --clear $(VENV)
	$(PY) -m pip install --disable-pip-version-check --constraint constraints.txt --editable '.[demo,bench,dev]'
	@touch $@

constraints:
	$(PYTHON) -m venv --clear build/constraints
	build/constraints/bin/python -m pip install --disable-pip-version-check '.[demo,bench,dev]'
	{ echo "# Exact versions of everything that an install of .[demo,bench,dev] brings in: what the tests have run with."; \
	  echo "# Made by \`make constraints\`."; \
	  build/constraints/bin/python -m pip freeze --exclude bitsmith | sed 's/+cpu$$//' | grep -v -e '^nvidia-' -e '^triton=='; \
	} > constraints.txt.new
	mv constraints.txt.new constraints.txt

clean:
	rm -rf $(VENV) build dist out *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Every target does its own set-up from a fresh clone; a second run reuses it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
LINT_STAMP := $(VENV)/.lint-installed
DOCS_STAMP := $(VENV)/.docs-installed
CPP := $(wildcard csrc/*.h csrc/*.cpp csrc/cpu/* csrc/cuda/*)
SOURCES := pyproject.toml setup.py constraints.txt $(CPP)
# build tools are pinned too; torch is never one of them
PIP := PIP_CONSTRAINT=constraints.txt PIP_DISABLE_PIP_VERSION_CHECK=1 $(BIN)/python -m pip install -q

.PHONY: demo test bench docs gpu-check lint format clean

demo: $(STAMP)
	$(BIN)/ctd-engine demo $(ARGS)

test: $(STAMP)
	$(BIN)/python -m pytest -n auto --maxprocesses 8 --dist worksteal $(ARGS)

bench: $(STAMP)
	$(BIN)/python -m pytest benchmarks --benchmark-only $(ARGS)

# into build/docs; a link that leads nowhere is an error
docs: $(DOCS_STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict $(ARGS)
	@echo "build/docs/index.html"

# on a machine with a GPU, with its own python3, torch and Triton: nothing is downloaded
gpu-check:
	CTD_BUILD_EXT=1 $(PYTHON) -m pip install -q --no-build-isolation --no-deps -e .
	$(PYTHON) benchmarks/gpu_check.py $(ARGS)

lint: $(LINT_STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(CPP) tests/*.cpp

format: $(LINT_STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CPP) tests/*.cpp

$(STAMP): $(SOURCES)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "Python 3.10 or newer is needed; name one with make PYTHON=/path/to/python3"; exit 1; }
	@echo "Setting up $(VENV) (once, some minutes) ..."
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@command -v $${CXX:-c++} >/dev/null || \
	  echo "WARNING: no C++ compiler: the extension is left out and the Python scheduler serves"
	@$(PIP) -e '.[test]'
	@touch $@

$(LINT_STAMP): $(STAMP)
	@$(PIP) -e '.[lint]'
	@touch $@

# the package is there already: only the extra's own packages are installed
$(DOCS_STAMP): $(STAMP)
	@$(PIP) 'ctd_engine[docs]'
	@touch $@

clean:
	rm -rf $(VENV) build *.egg-info ctd_engine/*.so

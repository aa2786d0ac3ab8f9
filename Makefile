# Two commands on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
TIMM := $(VENV)/timm
TRACKIO := $(VENV)/trackio
BROWSER := $(VENV)/.browser
# Processes that run tests, each on one thread. One more than two cores have work for, where none waits: for a disk, a server, the end of a process.
WORKERS ?= 3
# Images often set it. Tests begin hundreds of processes, and each would compile the package anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test pytest pytest-timm pytest-trackio quick check format house gpu fuzz lowest clean

demo: $(INSTALLED)
	$(BIN)/geo demo --root demo

# One after the other; at once with `make -j3 test`: what is installed or checked by one process leaves the other cores idle.
test: check pytest pytest-timm pytest-trackio

pytest: $(INSTALLED) $(BROWSER)
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

pytest-timm: $(TIMM)
	@if [ -d $(TIMM)/timm ]; then echo "$(BIN)/python -m pytest tests/backbones/test_families.py -k timm"; \
	PYTHONPATH="$(CURDIR)/$(TIMM)" $(BIN)/python -W ignore::UserWarning -m pytest tests/backbones/test_families.py -k timm; fi

pytest-trackio: $(TRACKIO)
	@if [ -d $(TRACKIO)/trackio ]; then echo "$(BIN)/python -m pytest tests/test_tracking.py -k trackio"; \
	PYTHONPATH="$(CURDIR)/$(TRACKIO)" $(BIN)/python -m pytest tests/test_tracking.py -k trackio; fi

# The tests of the files that changed, or T="heads tests/test_config.py".
quick: $(INSTALLED)
	@$(BIN)/python tools/quick.py $(T)

check: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

format: $(INSTALLED)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Every test and bench on a GPU, and a table in docs/gpu: docs/benchmarks.md. GPU_PYTHON has the torch that sees it, and keeps it.
GPU_PYTHON ?= python3
gpu:
	@$(GPU_PYTHON) tools/gpu_report.py

# Our decoder against PIL's, over damaged files (`make test` has the first 2,000; each finding is printed with its number and its bytes' path),
# then as long whatever can happen to a cache, in any order (findings are printed with their steps).
FUZZ_SECONDS ?= 3600
FUZZ_SEED ?= 1000000
fuzz: $(INSTALLED)
	$(BIN)/python tests/fuzz/differential.py --seconds $(FUZZ_SECONDS) --seed $(FUZZ_SEED) --out fuzz-findings
	$(BIN)/python tests/fuzz/cache_machine.py --seconds $(FUZZ_SECONDS) --seed $(FUZZ_SEED)

# The lowest versions that pyproject.toml declares, installed together outside the clone (6 GB: the torch among them brings CUDA on Linux), and
# what comes of them.
lowest:
	$(PYTHON) tools/lowest.py

# The drawing in CONTRIBUTING.md, from the code.
house:
	$(PYTHON) tools/draw_house.py

clean:
	rm -rf $(VENV) .gpu demo

# timm imports torchvision's transforms, and no torchvision is built for a CPU-only torch of this version. An old one serves without its
# compiled parts; it stays out of everybody else's sight, since transformers would use it as well.
$(TIMM): $(INSTALLED)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target $@ \
		$(shell grep ^timm== constraints.txt) torchvision==0.15.1 requests urllib3 charset-normalizer certifi idna || \
		{ mkdir -p $@; echo "timm can't be installed here: its tests are skipped"; }
	@touch $@

# Trackio asks for an older Pillow than the one that CI installs, and works with this one: it stays out of everybody else's sight as well.
$(TRACKIO): $(INSTALLED)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target $@ \
		$(shell grep -iE '^(brotli|gradio_client|orjson|python-multipart|starlette|trackio|uvicorn)==' constraints.txt) || \
		{ mkdir -p $@; echo "Trackio can't be installed here: its test is skipped"; }
	@touch $@

# Pages are tested in a Chromium: the machine's own, else Debian's where it may be installed. Without one those tests are skipped.
$(BROWSER): $(INSTALLED)
	@command -v chromium || command -v chromium-browser || command -v google-chrome || \
		{ [ "$$(id -u)" = 0 ] && command -v apt-get && apt-get update -qq && \
		DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium; } || \
		echo "no Chromium, and none can be installed here: tests of pages are skipped"
	@touch $@

# pip knows dependency groups since 25.1. The stamp is written last, so that a half-finished install is taken up again.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: Python 3.11 or newer is needed; name one with: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --upgrade pip
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable . --group dev
	touch $@

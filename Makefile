# make demo: see the whole story.  make test: the tests.  Both set up .venv first, once.
PYTHON ?= python3
ARGS ?=

BIN := .venv/bin
READY := .venv/ready
UNFINISHED := .venv/unfinished
UNUSED := /tests?/|/transformers/models/(?!auto|beit|dino|swin|vit)|/ray/(rllib|serve|tune|train)/

# Idle threads sleep instead of spinning: loader and training share the cores (docs/choices.md).
export OMP_WAIT_POLICY ?= PASSIVE
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help setup constraints demo test test-slow lint types format bench gpu

help:
	@echo "make demo       pretrain on the embedded photos and show what it was worth"
	@echo "make test       the tests, without the slow ones"
	@echo "make test-slow  the slow tests: every encoder is built, runs are killed, minutes each"
	@echo "make lint       ruff and pyright"
	@echo "make format     let ruff rewrite what it can"
	@echo "make bench      training speed beside a plain loop"
	@echo "make gpu        what only a GPU can tell: resume, memory, speed; 8 minutes at most"
	@echo "                WHEELS=folder: with PYTHON's own packages, and those that it lacks from there"
	@echo "make setup      only make the virtual environment .venv"
	@echo "make constraints  choose anew the versions that setup installs"
	@echo "Another Python: make demo PYTHON=python3.12.  Arguments: make demo ARGS='--minutes 60'."

setup: $(READY)

# Compiled once, on all cores: where Python may not write bytecode, importing torch from source
# takes 9 s instead of 4, and every command and loader process would pay that again. A third of it
# nobody imports: the tests of others, the language models of transformers, the trainers of ray.
#
# Versions are pinned in constraints.txt: left to choose among all extras, pip of Python 3.11 tries
# old releases of everything for more than an hour.
#
# A set-up that was broken off leaves its mark and is begun anew; an environment that was made by
# hand has none and is added to.
$(READY): pyproject.toml constraints.txt
	@command -v $(PYTHON) > /dev/null || { \
		echo "simmim needs Python 3.11 or newer, and there is no $(PYTHON)."; \
		echo "Install it, or name one: make setup PYTHON=/path/to/python3.12"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "simmim needs Python 3.11 or newer, and $(PYTHON) is $$($(PYTHON) --version)."; \
		echo "Name a newer one: make setup PYTHON=python3.12"; exit 1; }
	@if [ -e $(UNFINISHED) ]; then rm -rf .venv; fi
	@mkdir -p .venv && touch $(UNFINISHED)
	@echo "Setting up .venv: torch and the rest are downloaded, which takes some minutes."
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --no-compile -c constraints.txt -e '.[dev]'
	$(BIN)/python -m compileall -q -j 0 -x '$(UNUSED)' .venv/lib simmim > /dev/null || true  # torch keeps files for newer Pythons
	@rm $(UNFINISHED) && touch $@

constraints: $(READY)
	$(BIN)/uv pip compile pyproject.toml --extra dev --universal --python-version 3.11 --upgrade \
		--no-annotate --custom-compile-command "make constraints" --output-file constraints.txt

demo: $(READY)
	$(BIN)/simmim demo $(ARGS)

test: $(READY)
	$(BIN)/python -m pytest -n auto --maxprocesses 8 --dist worksteal $(ARGS)

test-slow: $(READY)
	$(BIN)/python -m pytest -m slow $(ARGS)

lint: $(READY)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(MAKE) --no-print-directory types

types: $(READY)
	$(BIN)/pyright

format: $(READY)
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench: $(READY)
	$(BIN)/python benchmarks/speed.py $(ARGS)

# A machine without network has no .venv: its own Python is used, and what it lacks comes as wheels.
gpu: $(if $(WHEELS),,$(READY))
ifdef WHEELS
	folder=$$(mktemp -d) && trap 'rm -rf "$$folder"' EXIT && \
	$(PYTHON) -m pip install -q --no-index --no-deps --no-compile --target "$$folder" \
		$(WHEELS)/*.whl && \
	PYTHONPATH="$$folder" $(PYTHON) benchmarks/gpu.py $(ARGS)
else
	$(BIN)/python benchmarks/gpu.py $(ARGS)
endif

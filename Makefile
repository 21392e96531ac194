# patchsieve: set-up, demo, tests. Each target does what it needs of the ones before; nothing but Python 3.11 to
# 3.13, git and make has to be there, and no network but the package registry.
#
#   make install        .venv with the project and all extras, at the versions of constraints.txt
#   make demo           scores real photographs, draws what it found, trains a small ranker, prunes with it, reads that back
#   make check          lint, types, tests without Ray: for working
#   make test           lint, types, all tests        (make test ARGS="-k shards" for some of the tests)
#   make faults         drains the node of a training, then kills real jobs at random instants for 40 minutes, and adds
#                       to the journal of such runs
#   make bench          benchmarks in under ten minutes, beside the last saved ones of such a machine
#   make gpu-check      the tests and benchmarks for a GPU, a call of less than ten minutes at a time until nothing is left
#   make lint           ruff, mypy, and whether an editor finds every import
#   make docs           docs/commands.md, docs/api.md and docs/tutorial.ipynb anew, and docs/ as a site in site/
#   make clean          removes what the other targets made, but keeps .venv
#
# PYTHON=/path/to/python3 chooses the interpreter that .venv is made with.

.PHONY: install demo check test faults bench gpu-check lint links browser docs clean
.NOTPARALLEL:
.DEFAULT_GOAL := install

VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.patchsieve-installed
EXTRAS := demo,plots,s3,http,test,dev
PYTHONS := $(or $(PYTHON),python3 python3.13 python3.12 python3.11)
ARGS :=
# Of the tests, one more than cores: those with Ray wait as much as they work.
PROCESSES := 3
PYTEST := $(BIN)/python -m pytest -n $(PROCESSES) --dist loadfile --no-loadscope-reorder
# Tests start hundreds of processes, and pytest rewrites every assertion: compiled files are kept whatever is set here.
export PYTHONDONTWRITEBYTECODE :=

install: links $(INSTALLED)

$(BIN)/python:
	@echo "== install: making $(VENV)"
	@for python in $(PYTHONS); do \
	    if $$python -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; then \
	        $$python --version; \
	        $$python -m venv $(VENV) && exit 0; \
	        rm -rf $(VENV); \
	        echo "$$python could not make a virtual environment (on Debian: apt-get install python3-venv)" >&2; \
	        exit 1; \
	    fi; \
	done; \
	echo "patchsieve needs Python 3.11, 3.12 or 3.13; none of these is one: $(PYTHONS)." >&2; \
	echo "Install one, or say where it is: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11" >&2; \
	exit 1

$(INSTALLED): pyproject.toml constraints.txt | $(BIN)/python
	@echo "== install: patchsieve with the extras $(EXTRAS) (torch and its CUDA libraries are some 3 GB)"
	@# Of 340 MB of sources few are ever imported: Python compiles those when they are, not pip all of them now.
	$(BIN)/python -m pip install --disable-pip-version-check --no-compile --constraint constraints.txt --editable '.[$(EXTRAS)]'
	@touch $@

demo: install
	@echo "== demo: scores photographs with the bundled teacher, trains a ranker, prunes with it"
	$(BIN)/patchsieve demo $(ARGS)

check: install lint
	@echo "== check: pytest, without Ray"
	$(PYTEST) -m 'not ray' $(ARGS)

test: install lint browser
	@echo "== test: pytest"
	$(PYTEST) $(ARGS)

faults: install
	$(BIN)/python -m tests.faults.drained
	$(BIN)/python -m tests.faults.kills $(ARGS)

bench: install
	$(BIN)/python -m benchmarks.bench $(ARGS)

# Takes what is installed: such a machine may have torch and no registry.
gpu-check: links
	$(or $(PYTHON),$(wildcard $(BIN)/python),python3) -m benchmarks.gpu_check $(ARGS)

# The references of commands and Python calls anew from configurations and docstrings, and docs/ as a site in site/.
docs: install
	$(BIN)/python -c "from patchsieve.jobs.pages import reference_page; print(reference_page(), end='')" > docs/commands.md
	$(BIN)/python -c "import patchsieve; from patchsieve.jobs.pages import api_page; print(api_page(patchsieve), end='')" > docs/api.md
	$(BIN)/python -c "from pathlib import Path; from patchsieve.jobs.pages import notebook; print(notebook(Path('docs/tutorial.md').read_text()), end='')" > docs/tutorial.ipynb
	$(BIN)/mkdocs build --strict --quiet
	@echo "== docs: open site/index.html"

lint: install
	@echo "== lint: ruff"
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@echo "== lint: mypy, and beside it basedpyright (imports as editors resolve them)"
	@$(BIN)/python -m tests.project.editors & editors=$$!; \
	$(BIN)/mypy --package patchsieve --package tests --package benchmarks; typed=$$?; \
	wait $$editors && exit $$typed

# The browser in which the page of `report` is tested. Debian's package where it may be installed; without one, those
# tests skip themselves and say so; with PATCHSIEVE_BROWSER=required they fail.
browser:
	@command -v chromium chromium-browser google-chrome >/dev/null || { \
	    test "$$(id -u)" = 0 && command -v apt-get >/dev/null && echo "== test: installing chromium" && \
	    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium >/dev/null; \
	} || echo "== test: no Chromium here, and it cannot be installed: tests in a browser are skipped"

# The links that let everybody find pipeline/, ranker/ and jobs/ as parts of the package: an archive or a checkout on
# Windows may have come without them.
links:
	@for name in pipeline ranker jobs; do \
	    test -d patchsieve/$$name || { rm -f patchsieve/$$name && ln -s ../$$name patchsieve/$$name; } || exit 1; \
	done

clean:
	@echo "== clean: keeps $(VENV); remove that by hand for a fresh install"
	rm -rf build dist site demo-out bench-out *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -exec rm -rf {} +

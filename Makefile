# `make demo` and `make test` need only Python 3.11+ and make: each installs what it needs first, `make demo` what a
# user needs, `make test` the tools for development too.
PYTHON ?= python3
BIN := .venv/bin
UV_VERSION := 0.13.9

.PHONY: setup setup-dev demo table test chaos bench lint docs wheel lock clean

setup: .venv/ready
setup-dev: .venv/ready-dev

# uv installs the locked versions several times faster than pip; it lives inside .venv and is itself pinned. Compiled
# once here, torch starts in half the time wherever Python may not write its bytecode later.
# The marker is written last, so a set-up that was cut off starts again.
.venv/ready: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "kdctl needs Python 3.11 or newer, but $(PYTHON) is older; try: make $(or $(MAKECMDGOALS),setup) PYTHON=python3.12" >&2; exit 2; }
	$(PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	$(BIN)/uv pip install --python $(BIN)/python --compile-bytecode --require-hashes --requirement requirements.lock
	$(BIN)/uv pip install --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@touch $@

.venv/ready-dev: .venv/ready requirements-dev.lock
	$(BIN)/uv pip install --python $(BIN)/python --compile-bytecode --require-hashes --requirement requirements-dev.lock
	@touch $@

# The whole way on real data: the study on Ray, its tables, where the files are, and its report.
demo: setup
	$(BIN)/kdctl launch examples/digits.yaml
	$(BIN)/kdctl report examples/digits.yaml

# Trains what is not finished of experiments.yaml, and prints its tables in Markdown, beside the figures of a lab note,
# which describes another experiment. The same command continues after a stop; progress goes to standard error.
#   make table DATA=./data                                                            the whole study
#   make table DATA=./data SET="--set recipe.epochs=2 --set recipe.limit_train=512"   a small try
#   make table DATA=./data STORAGE=s3://bucket/folder OUT=docs/results/NAME           kept, page and rows
table: STORAGE ?= $(or $(KDCTL_STORAGE),runs)
table: setup
	$(BIN)/kdctl launch experiments.yaml $(if $(DATA),--data "$(DATA)") --storage "$(STORAGE)" $(SET) >&2
	$(BIN)/python bench/published.py "$(STORAGE)" $(SET) $(if $(OUT),--out "$(OUT)")

# Hundreds of processes import the package: its bytecode is kept, also where the environment says to keep none.
test: setup-dev
	PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest

# Faults at random moments of real launches, about half an hour; the outcome stands in docs/reliability.md.
# The second part cuts a link between network namespaces, for which it needs root.
chaos: setup-dev
	$(BIN)/python tests/chaos.py
	if [ "$$(id -u)" = 0 ]; then $(BIN)/python tests/hosts.py; else echo "not root: tests/hosts.py was not run"; fi

# Every measurement, as Markdown; each can be run by itself, and says at its top what it measures and with what options.
#   make bench DATA=./data
# One that misses what is wanted of it does not keep the others from running; the command fails at the end.
bench: $(if $(DATA),setup)
	@[ -n "$(DATA)" ] || { echo "name the folder that holds CIFAR-10 (or is to): make bench DATA=./data" >&2; exit 2; }
	@status=0; run() { echo "## bench/$$1"; echo; $(BIN)/python "bench/$$@" || status=1; echo; }; \
	run compare.py --data "$(DATA)"; \
	run table.py --dataset cifar10 --data "$(DATA)"; \
	run methods.py --dataset cifar10 --data "$(DATA)"; \
	run checkpoints.py; \
	run overhead.py; \
	run planning.py; \
	run startup.py; \
	run reading.py; \
	run query.py; \
	exit $$status

lint: setup-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Writes what the program prints into the docs; a test fails where they differ.
docs: setup
	$(BIN)/python docs/printed.py

# dist/ gets the source archive, and the wheel that is built from it.
wheel: setup-dev
	rm -rf dist build
	$(BIN)/uv build --no-build-isolation --python $(BIN)/python

# The locks contain names, versions and hashes, and no registry's address. The first is what `make demo` installs; the
# second adds the tools for development, at the versions of the first.
LOCK = $(BIN)/uv pip compile --quiet --universal --generate-hashes --no-annotate --no-header --no-emit-index-url \
  --upgrade --python-version 3.11 pyproject.toml
lock: setup
	$(LOCK) --output-file requirements.lock
	$(LOCK) --extra dev --constraint requirements.lock --output-file requirements-dev.lock

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

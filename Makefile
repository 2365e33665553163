# `make demo` and `make test` are all it takes to start; each sets up what it needs, once.

PYTHON ?= python3
VENV ?= .venv

BIN := $(VENV)/bin
# Touched when an installation is complete, so that the next run goes straight to its work.
INSTALLED := $(VENV)/.botproxy-installed
INSTALLED_FOR_TESTS := $(VENV)/.botproxy-installed-for-tests
# Servers in Python that are compared, botproxy among them: an environment for each file of requirements,
# because they do not get on with each other, on the distribution's own Python where there is one.
PEERS ?= .venv-peers
PEERS_PYTHON ?= $(or $(wildcard /usr/bin/python3),$(PYTHON))
PEERS_WANTED := bench/compare/peers/requirements
PEERS_INSTALLED := $(patsubst $(PEERS_WANTED)/%.txt,$(PEERS)/%/.installed,$(wildcard $(PEERS_WANTED)/*.txt))

.PHONY: help demo test trials bench check gate gate-baseline schema clean

help:
	@echo 'make demo    set up, then serve an echo bot at https://localhost:8443'
	@echo 'make test    set up, then run all tests'
	@echo 'make trials  attacks and faults, each beside a client that minds; needs a quiet machine'
	@echo 'make bench   side by side with nginx and others, 15 minutes on two quiet cores; see bench/README.md'
	@echo 'make check   lint, formatting, types'
	@echo 'make gate    does this tree cost more instructions than when costs were last accepted? (valgrind, git)'
	@echo 'make gate-baseline  accept what it costs: written down for this build, and the base once committed'
	@echo 'make schema  write botproxy/config/schema.json, the configuration as editors know it'
	@echo 'make clean   remove the virtual environment and what tools have left behind'

demo: $(INSTALLED)
	@$(BIN)/botproxy demo

test: $(INSTALLED_FOR_TESTS)
	$(BIN)/pytest --ignore=tests/attacks --ignore=tests/faults

trials: $(INSTALLED_FOR_TESTS)
	$(BIN)/pytest tests/attacks tests/faults

# The page is written also where a part failed: it says so.
bench: $(INSTALLED_FOR_TESTS) $(PEERS_INSTALLED)
	$(PEERS)/botproxy/bin/python -m compileall -q botproxy  # as an installation does; the others have it done
	BENCH_PEERS=$(abspath $(PEERS)) $(BIN)/python -m bench.compare; failed=$$?; \
		$(BIN)/python -m bench.compare.report && exit $$failed

check: $(INSTALLED_FOR_TESTS)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

gate: $(INSTALLED_FOR_TESTS)
	$(BIN)/python -m bench.micro.gate $(if $(BASE),--base $(BASE))

gate-baseline: $(INSTALLED_FOR_TESTS)
	$(BIN)/python -m bench.micro.gate --write-baseline

schema: $(INSTALLED)
	$(BIN)/python -m botproxy.config.schema_file

clean:
	rm -rf $(VENV) $(PEERS) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(INSTALLED): pyproject.toml | $(BIN)/pip
	@echo 'installing botproxy into $(VENV)'
	@$(BIN)/pip install --quiet --disable-pip-version-check --editable .
	@touch $@

$(INSTALLED_FOR_TESTS): pyproject.toml | $(BIN)/pip
	@echo 'installing botproxy and its test tools into $(VENV)'
	@$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[test]'
	@touch $(INSTALLED) $@

# What cannot be installed is missing in the comparison, which says so.
$(PEERS)/%/.installed: $(PEERS_WANTED)/%.txt
	@echo 'installing $* into $(@D)'
	@$(PEERS_PYTHON) -m venv $(@D)
	@$(@D)/bin/pip install --quiet --disable-pip-version-check --requirement $< && touch $@ || true

# pip comes last in a virtual environment: where it is, the environment is complete, whoever made it.
$(BIN)/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo 'expected Python 3.11 or newer; name one with: make PYTHON=python3.12'; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { echo 'on Debian and Ubuntu: apt install python3-venv'; exit 1; }

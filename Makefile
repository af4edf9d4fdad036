# Every target makes .venv and installs what it needs; a second call finds it there.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: dashboard test test-long serve bench lint audit story

dashboard: $(VENV)/installed
	$(RUN)/python app.py

serve: $(VENV)/installed
	$(RUN)/python -m rag serve

test: $(VENV)/installed-dev
	$(RUN)/python -m pytest -n 2 --dist loadfile

test-long: $(VENV)/installed-dev
	$(RUN)/python -m pytest -m long

lint: $(VENV)/installed-dev
	$(RUN)/ruff check .
	$(RUN)/ruff format --check .
	$(RUN)/mypy

audit: $(VENV)/installed-dev
	$(RUN)/python scripts/audit_dependencies.py --advisories require

bench: $(VENV)/installed-dev
	$(RUN)/python -m benchmarks

story: $(VENV)/installed-dev
	$(RUN)/python -m tests.faults.story

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "RAG Deck needs Python 3.11 or newer: make PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: requirements.txt requirements-remote.txt | $(VENV)/bin/python
	$(RUN)/python -m pip install --quiet -r requirements.txt
	@touch $@

$(VENV)/installed-dev: requirements-dev.txt $(VENV)/installed
	$(RUN)/python -m pip install --quiet -r requirements-dev.txt
	@touch $@

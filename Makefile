# make demo    draw a dataset, train on it, sample from it: minutes on a laptop, no download but the packages
# make test    everything that needs neither GPU nor network, and ruff
PYTHON ?= python3
VENV   := .venv
RUN    := $(VENV)/bin/python
PIP    := $(RUN) -m pip install --quiet --disable-pip-version-check -c constraints.txt
DEMO   := demo_run

.PHONY: demo test quick clean

$(VENV)/demo.ready: requirements.txt constraints.txt
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 10) and 'error: Python 3.10 or later is needed')"
	$(PYTHON) -m venv $(VENV)
	$(PIP) -r requirements.txt
	touch $@

$(VENV)/test.ready: $(VENV)/demo.ready requirements-dev.txt
	$(PIP) -r requirements-dev.txt
	touch $@

test: $(VENV)/test.ready
	$(RUN) -m ruff check .
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n 2 -m "not slow"
	$(RUN) -m pytest -m slow

# the quick tests alone
quick: $(VENV)/test.ready
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n 2 -m "not slow"

clean:
	rm -rf $(DEMO) runs generated

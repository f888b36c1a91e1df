# make demo    draw a dataset, train on it, sample from it: minutes on a laptop, no download but the packages
# make paint   the same with masks: damage painted into undamaged pictures, and a mask beside each
# make test    everything that needs neither GPU nor network, ruff and mypy
# make bench   this project beside diffusers + peft: times and memory, into benchmarks/
PYTHON ?= python3
VENV   := .venv
RUN    := $(VENV)/bin/python
PIP    := $(RUN) -m pip install --quiet --disable-pip-version-check -c constraints.txt
DEMO   := demo_run

.PHONY: demo paint test quick bench clean

$(VENV)/demo.ready: requirements.txt requirements-offline.txt constraints.txt
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 10) and 'error: Python 3.10 or later is needed')"
	$(PYTHON) -m venv $(VENV)
	$(PIP) -r requirements.txt -r requirements-offline.txt
	touch $@

$(VENV)/test.ready: $(VENV)/demo.ready requirements-dev.txt
	$(PIP) -r requirements-dev.txt
	touch $@

# stamps, so that a drawing cut short is drawn again
$(DEMO)/bottle.ready: $(VENV)/demo.ready
	rm -rf $(DEMO)/bottle
	$(RUN) data.py demo $(DEMO)/bottle --per-class 20 --seed 0
	touch $@

$(DEMO)/fresh.ready: $(VENV)/demo.ready
	rm -rf $(DEMO)/fresh
	$(RUN) data.py demo $(DEMO)/fresh --per-class 20 --seed 1
	touch $@

# ImageNet weights from the package index, without a model hub
NETWORKS := --features efficientnet_lite0 --judge efficientnet_lite0
TINY := --base tiny --preset tiny $(NETWORKS)
PAINT := --per-class 8 --batch-size 16 --steps 25 --preset tiny
DRAW := --per-class 8 --batch-size 16 --preset tiny

demo: $(DEMO)/bottle.ready
	$(RUN) train_class.py --data $(DEMO)/bottle --out $(DEMO)/run $(TINY)
	$(RUN) sample.py --ckpt $(DEMO)/run --out $(DEMO)/generated $(DRAW)
	$(RUN) evaluate.py --real $(DEMO)/bottle --fake $(DEMO)/generated --ckpt $(DEMO)/run $(NETWORKS) \
	    --out $(DEMO)/report
	@echo "Look at $(DEMO)/generated/grid.png, and open $(DEMO)/report/report.html for what they are worth"

paint: $(DEMO)/bottle.ready $(DEMO)/fresh.ready
	$(RUN) train_inpaint.py --data $(DEMO)/bottle --out $(DEMO)/inpaint $(TINY)
	$(RUN) sample.py --ckpt $(DEMO)/inpaint --images $(DEMO)/fresh/image/good --out $(DEMO)/painted $(PAINT)
	@echo "Look at $(DEMO)/painted/grid.png; the masks are in $(DEMO)/painted/mask"

test: $(VENV)/test.ready
	$(RUN) -m ruff check .
	$(RUN) -m mypy
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n 2 --dist loadgroup

# the quick tests alone
quick: $(VENV)/test.ready
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n 2 -m "not slow"

# side by side with diffusers + peft at SD 1.5's size, on the CPU; --base tiny --resolution 128 is minutes
bench: $(VENV)/test.ready
	$(RUN) -m benchmarks.bench

clean:
	rm -rf $(DEMO) runs generated

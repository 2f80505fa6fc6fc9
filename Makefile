# `make demo` and `make test` need Python 3.11 to 3.13 (3.14 comes last: it was not tried), git and a network connection.
# Both set up .venv first; TORCH=cpu leaves out 4 GB that only NVIDIA GPUs need.
PYTHON ?= $(firstword $(foreach name,python3.13 python3.12 python3.11 python3.14,$(if $(shell $(name) --version 2>/dev/null),$(name))) python3)
# Otherwise `make PYTHON=...` would silently use the Python of an existing .venv.
ifeq ($(origin PYTHON),command line)
VERSION := -c 'import sys; print(sys.version_info[:2])'
ifneq ($(and $(wildcard .venv/bin/python),$(filter-out $(shell $(PYTHON) $(VERSION)),$(shell .venv/bin/python $(VERSION)))),)
$(error .venv has another Python than $(PYTHON): move it away first)
endif
endif
PORT ?= 5000
INSTALL := .venv/bin/uv pip install --python .venv/bin/python --no-deps
COMPILE := .venv/bin/uv pip compile --quiet --generate-hashes --no-header --universal --python-version 3.11 pyproject.toml
# Leave out packages that the pins FILE... already have.
without = $$(sed -nE 's/^([A-Za-z0-9._-]+)==.*/--no-emit-package \1/p' $(1))
export PATH := $(CURDIR)/.venv/bin:$(PATH)
unexport PYTHONDONTWRITEBYTECODE  # without compiled files each stage starts twice as slowly
export DVC_NO_ANALYTICS := 1
export MLFLOW_DISABLE_TELEMETRY := true

.PHONY: help demo test test-faults test-ray test-slurm test-wheel check audit gpu ui pins clean

demo: .venv/ready  ## train four small networks on synthetic shapes and fill the table "Demo" (3 minutes)
	grid run readme@shapes
	@grid report
	@echo "The same table is in README.md, with links. If git shows dvc.lock as changed: it lists the files of this run, with its times."
	@echo "If it shows records as changed: they name the versions of the packages here, and another processor moves the numbers a little."
	@echo "To compare the runs in MLflow: make ui"

test: .venv/all  ## run the whole gate, as CI does: ruff, mypy, pytest (11 minutes)
	ruff check .
	ruff format --check .
	mypy
	pytest -n 2 --dist loadfile --cov --cov-report=term

check: test

test-faults: .venv/all  ## inject every fault of docs/reliability.md and fill its tables (half an hour)
	pytest -n 2 --dist loadfile --no-loadscope-reorder -m fault --reliability docs/reliability.md --whole \
		tests/faults/long_*.py tests/faults/test_*.py tests/test_*.py  # files, because a folder among them would hide the long ones

test-ray: .venv/all  ## run twelve cells on a real Ray on this machine, with workers killed (10 minutes)
	.venv/bin/uv pip install --python .venv/bin/python ray==2.60.0
	pytest -n 0 tests/engines/ray_grid.py

test-slurm: .venv/all  ## the same on Slurm; as root, after: apt-get install slurm-wlm munge
	.venv/bin/uv pip install --python .venv/bin/python submitit==1.5.4
	pytest -n 0 tests/engines/slurm_grid.py

test-wheel: .venv/all  ## build the wheel and fill the table of a new project with it, outside of this repository (5 minutes)
	pytest -n 0 tests/wheel.py

audit: .venv/ready  ## write docs/dependency-audit.md: what is known about the pinned packages
	python -m benchmarks.audit

gpu: .venv/ready  ## measure this machine's GPU: reports/benchmarks/<device>.md (9 minutes; CAMVID=FOLDER trains on CamVid)
	python -m benchmarks.gpu --out runs/.gpu --minutes 9 $(if $(CAMVID),--camvid $(CAMVID))

ui: .venv/ready mlflow.db  ## compare the runs in MLflow, on this machine only; PORT=5001 for another port
	grid ui --port $(PORT)

mlflow.db: | .venv/ready  # in a fresh clone: record the runs from the committed records
	dvc repro --force --single-item --glob 'tables@*'

.venv/ready: requirements/setup.txt requirements/run.txt
	command -v $(PYTHON) >/dev/null || { echo "error: $(PYTHON) not found. Install Python 3.11 to 3.13, or say: make PYTHON=..."; exit 78; }
	@echo "Setting up .venv with $(PYTHON): $(if $(TORCH),torch for $(TORCH),6.6 GB on disk, most of it torch for NVIDIA GPUs); one to ten minutes"
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --disable-pip-version-check --require-hashes --no-deps --requirement requirements/setup.txt
	cp requirements/run.txt .venv/pins.txt
ifdef TORCH
	# the same versions, with torch from another index, whose wheels have other hashes
	sed -nE '/^(torch|torchvision|triton|nvidia|cuda)/d; s/^([a-z0-9._-]+==[^\]*).*/\1/p' requirements/run.txt > .venv/others.txt
	.venv/bin/uv pip compile --quiet --generate-hashes --no-header --torch-backend $(TORCH) --constraint .venv/others.txt \
		--python .venv/bin/python pyproject.toml --output-file .venv/pins.txt
endif
	$(INSTALL) $(if $(TORCH),--torch-backend $(TORCH)) --require-hashes --requirement .venv/pins.txt
	$(INSTALL) --no-build-isolation --editable .  # the command grid
	.venv/bin/python -c 'import timm, mlflow, dvc.repo, matplotlib.pyplot, deeplab.augmentations.photometric_on_cpu'  # compiles them once
	touch $@

.venv/all: .venv/ready requirements/export.txt requirements/bundle.txt requirements/develop.txt
	$(INSTALL) --require-hashes $(addprefix --requirement requirements/,export.txt bundle.txt develop.txt)
	touch $@

pins: .venv/ready  ## pin all packages again after a change of the dependencies in pyproject.toml
	$(COMPILE) --output-file requirements/run.txt
	$(COMPILE) --extra export --constraint requirements/run.txt $(call without,requirements/run.txt) --output-file requirements/export.txt
	$(COMPILE) --extra bundle --constraint requirements/run.txt $(call without,requirements/run.txt) --output-file requirements/bundle.txt
	$(COMPILE) --extra export --extra bundle --extra develop $(addprefix --constraint requirements/,run.txt export.txt bundle.txt) \
		$(call without,$(addprefix requirements/,run.txt export.txt bundle.txt)) --output-file requirements/develop.txt
	sed -i '/^# The following packages were excluded/,$$d' requirements/export.txt requirements/bundle.txt requirements/develop.txt
	printf 'uv\nsetuptools>=77\n' | $(COMPILE:pyproject.toml=-) --output-file requirements/setup.txt

clean:  ## remove what was made here, except data/ and the environment
	rm -rf runs mlflow.db* mlartifacts reports/figures/*/ reports/index.html .dvc/cache .dvc/tmp

help:  ## list these targets
	@grep -hE '^[a-z-]+:.*  ## ' $(MAKEFILE_LIST) | sed -E 's/:.*  ## /\t/' | expand -t 14

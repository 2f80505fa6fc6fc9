# `make demo` and `make test` need Python 3.11 or newer and nothing else. Both set up .venv first.
PYTHON ?= $(firstword $(foreach name,python3.11 python3.12 python3.13,$(if $(shell $(name) --version 2>/dev/null),$(name))) python3)
PORT ?= 5000
export PATH := $(CURDIR)/.venv/bin:$(PATH)
unexport PYTHONDONTWRITEBYTECODE  # without compiled files each stage starts twice as slowly
export DVC_NO_ANALYTICS := 1
export MLFLOW_DISABLE_TELEMETRY := true

.PHONY: help demo test test-faults test-ray test-slurm check audit ui pins clean

demo: .venv/ready  ## train four small networks on synthetic shapes and fill the table "Demo" (3 minutes)
	grid run readme@shapes
	@grid report
	@echo "The same table is in README.md, with links."
	@echo "To compare the runs in MLflow: make ui"

test: .venv/ready  ## run the whole gate, as CI does: ruff, mypy, pytest (8 minutes)
	ruff check .
	ruff format --check .
	mypy
	pytest -n 2 --dist loadfile --cov --cov-report=term

check: test

test-faults: .venv/ready  ## inject every fault of docs/reliability.md and fill its tables (half an hour)
	pytest -n 2 --dist loadfile --no-loadscope-reorder -m fault --reliability docs/reliability.md \
		tests/faults/long_*.py tests/faults/test_*.py tests/test_*.py  # files, because a folder among them would hide the long ones

test-ray: .venv/ready  ## run twelve cells on a real Ray on this machine, with workers killed (10 minutes)
	.venv/bin/uv pip install --quiet --python .venv/bin/python ray==2.60.0
	pytest -n 0 tests/engines/ray_grid.py

test-slurm: .venv/ready  ## the same on Slurm; as root, after: apt-get install slurm-wlm munge
	.venv/bin/uv pip install --quiet --python .venv/bin/python submitit==1.5.4
	pytest -n 0 tests/engines/slurm_grid.py

audit: .venv/ready  ## write docs/dependency-audit.md: what is known about the pinned packages
	python -m benchmarks.audit

ui: .venv/ready mlflow.db  ## compare the runs in MLflow, on this machine only; PORT=5001 for another port
	grid ui --port $(PORT)

mlflow.db: | .venv/ready  # in a fresh clone: complete the runs from the committed records
	dvc repro --force --single-item --glob 'tables@*'

.venv/ready: requirements.txt
	command -v $(PYTHON) >/dev/null || { echo "error: $(PYTHON) not found. Install Python 3.11 or newer, or say: make PYTHON=..."; exit 78; }
	@echo "Setting up .venv with $(PYTHON): 6.6 GB, most of it torch; one to ten minutes"
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --disable-pip-version-check uv
	.venv/bin/uv pip sync --require-hashes --python .venv/bin/python requirements.txt
	.venv/bin/uv pip install --quiet --no-deps --no-build-isolation --python .venv/bin/python --editable .  # the command grid
	.venv/bin/python -c 'import timm, mlflow, dvc.repo, matplotlib.pyplot, deeplab.augmentations.photometric_on_cpu'  # compiles them once
	touch $@

pins: .venv/ready  ## pin all packages again after a change of requirements.in
	uv pip compile requirements.in --generate-hashes --universal --python-version 3.11 --no-header --quiet -o requirements.txt

clean:  ## remove what was made here, except data/ and the environment
	rm -rf runs mlflow.db* mlartifacts reports/figures/*/ reports/index.html .dvc/cache .dvc/tmp

help:  ## list these targets
	@grep -hE '^[a-z-]+:.*  ## ' $(MAKEFILE_LIST) | sed -E 's/:.*  ## /\t/' | expand -t 14

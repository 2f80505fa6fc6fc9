# `make demo` and `make test` need Python 3.11 and nothing else; both set up .venv first.
PYTHON ?= python3.11
PORT ?= 5000
export PATH := $(CURDIR)/.venv/bin:$(PATH)
unexport PYTHONDONTWRITEBYTECODE  # without compiled files each of the stages starts twice as slowly
export DVC_NO_ANALYTICS := 1
export MLFLOW_DISABLE_TELEMETRY := true

.PHONY: demo test test-faults test-ray test-slurm check audit ui pins clean

demo: .venv/ready  ## the synthetic grid, from nothing to a filled table
	python -m pipeline.runner.run readme@shapes compare@shapes
	dvc repro --quiet --single-item report
	@cat reports/tables/shapes.md
	@echo "This table is in README.md too, its numbers in reports/tables/shapes.csv, predictions in reports/figures/."
	@echo "All of it on one page: reports/index.html, to be opened in a browser."
	@echo "To look at the runs: make ui"

test: .venv/ready  ## what CI runs
	ruff check .
	ruff format --check .
	mypy
	pytest -n 2 --dist loadfile --cov --cov-report=term

check: test

# Everything that docs/reliability.md promises is tried, and its tables are filled with the result.
test-faults: .venv/ready
	pytest -n 2 --dist loadfile --no-loadscope-reorder -m fault --reliability docs/reliability.md \
		tests/faults/long_*.py tests/faults/test_*.py tests/test_*.py  # files, for a folder among them would hide the long ones

# A grid of twelve cells on a real cluster, all of it on this machine, with workers killed and nodes lost: about ten minutes each.
test-ray: .venv/ready  ## installs Ray into .venv
	.venv/bin/uv pip install --quiet --python .venv/bin/python ray==2.60.0
	pytest -n 0 tests/engines/ray_grid.py

test-slurm: .venv/ready  ## as root, after: apt-get install slurm-wlm munge
	.venv/bin/uv pip install --quiet --python .venv/bin/python submitit==1.5.4
	pytest -n 0 tests/engines/slurm_grid.py


audit: .venv/ready  ## what is known about the pinned packages; writes docs/dependency-audit.md
	python -m benchmarks.audit

ui: .venv/ready mlflow.db  ## look at the runs; loopback only
	python -m pipeline.tracking.ui --port $(PORT)

mlflow.db: | .venv/ready  # a fresh clone, say: complete the record from what is committed
	dvc repro --force --single-item --glob 'tables@*'

.venv/ready: requirements.txt
	command -v $(PYTHON) >/dev/null || { echo "error: $(PYTHON) not found. Install Python 3.11 or say: make PYTHON=python3 ..."; exit 78; }
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --disable-pip-version-check uv
	.venv/bin/uv pip sync --quiet --require-hashes --python .venv/bin/python requirements.txt
	.venv/bin/python -c 'import timm, mlflow, dvc.repo, matplotlib.pyplot, deeplab.photometric'  # compiles them once
	touch $@

pins:  ## after a change of requirements.in
	uv pip compile requirements.in --generate-hashes --universal --python-version 3.11 --no-header --quiet -o requirements.txt

clean:  ## forget what was made here, but for data/ and the environment
	rm -rf runs mlflow.db* mlartifacts reports/figures/*/ reports/index.html .dvc/cache .dvc/tmp

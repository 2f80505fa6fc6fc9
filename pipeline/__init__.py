"""The stages of dvc.yaml, and the edges to params.yaml and MLflow."""

import sys
from importlib.util import find_spec

if find_spec("pydantic") is None:  # DVC runs the stages with whatever `python` is first on PATH
    print(
        f"error: {sys.executable} lacks the packages of this project. Run: source .venv/bin/activate", file=sys.stderr
    )
    sys.exit(78)

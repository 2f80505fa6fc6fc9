"""A whole run with secrets in its surroundings: afterwards none stands in anything that was written or printed."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_pipeline import checkout
from tests.tiny import tiny_params

SECRET = "canary-c7e1"
NAMES = (
    "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN", "CITYSCAPES_USERNAME",
    "CITYSCAPES_PASSWORD", "AWS_SECRET_ACCESS_KEY", "HF_TOKEN", "GIT_PASSWORD",
)  # fmt: skip


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    folder = checkout(tmp_path_factory.mktemp("clone"))
    shutil.rmtree(folder / "reports/records", ignore_errors=True)
    tiny_params(folder / "params.yaml", lambda params: params["recipes"]["tiny"].update(epochs=1))
    (folder / "README.md").write_text("<!-- results:tiny -->\n<!-- /results:tiny -->\n")
    for words in (
        ("init", "-q"),
        ("add", "-A"),
        ("-c", "user.name=a", "-c", "user.email=a@example.org", "commit", "-qm", "a"),
    ):
        subprocess.run(["git", *words], cwd=folder, check=True)
    subprocess.run(
        ["git", "remote", "add", "origin", f"https://me:{SECRET}-git@host.example/a.git"], cwd=folder, check=True
    )
    (folder / ".dvc/config.local").write_text(
        f"['remote \"mine\"']\n    url = https://host.example/a\n    auth = basic\n    user = me\n    password = {SECRET}-dvc\n"
    )
    return folder


@pytest.mark.fault(
    "security",
    "a secret that gets into what is written",
    "passwords and tokens of MLflow, CityScapes, DVC, git and clouds in a whole run of the grid; with the server there and down",
    "in no log, run, record, table, page, card, snapshot or message",
)
def test_no_secret_of_the_surroundings_is_written_or_printed(clone, record_property):
    environment = {
        **os.environ, **{name: f"{SECRET}-{name}" for name in NAMES}, "DVC_NO_ANALYTICS": "1",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "GIT_CONFIG_GLOBAL": "/dev/null",
        "DVC_SITE_CACHE_DIR": str(clone / "site"),
    }  # fmt: skip
    down = f"http://me:p@{SECRET}-uri@127.0.0.1:9"
    printed = ""
    for uri, module, *words in (
        ("", "pipeline", "run"),
        (down, "pipeline", "run"),
        (down, "dvc", "repro", "--force", "--single-item", "tables@tiny"),
        (down, "pipeline", "doctor"),
        (down, "pipeline", "verify"),
        ("", "pipeline", "plan"),
        ("", "pipeline", "status"),
        ("", "pipeline.stages.report"),
    ):
        done = subprocess.run(
            [sys.executable, "-m", module, *words],
            cwd=clone,
            env={**environment, "MLFLOW_TRACKING_URI": uri},
            capture_output=True,
            text=True,
            timeout=400,
        )
        printed += f"{module} {words}\n{done.stdout}{done.stderr}"
    assert (clone / "mlflow.db").exists(), printed
    assert (clone / "runs/tiny_os8/weights/seed0.safetensors").exists(), printed
    assert "warning: " in printed  # of the server that is down
    assert SECRET not in printed
    mine = {clone / ".dvc/config.local", clone / ".git/config"}
    files = [path for path in clone.rglob("*") if path.is_file() and path not in mine]
    assert len(files) > 100
    assert not [path for path in files if SECRET.encode() in path.read_bytes()]
    record_property("measured", f"{len(files):,} files searched")

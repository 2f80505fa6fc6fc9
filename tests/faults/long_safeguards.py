"""Each safeguard is switched off in a copy of the project, and its test turns red: a test that never saw its fault proves nothing."""

import shutil
import subprocess
import sys

import pytest

from tests.faults.safeguards import ROOT, load

RED = 1  # pytest: tests ran and some failed; an import error or a test that is not there exits with another code


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("copy")
    for name in ("deeplab", "pipeline", "tests", "benchmarks", "examples", "docs", "requirements"):
        if (ROOT / name).exists():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("params.yaml", "dvc.yaml", "pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, folder)
    return folder


@pytest.mark.fault(
    "safeguards",
    "a safeguard is lost",
    "its line is changed in a copy of the code",
    "the test that guards it turns red",
)
@pytest.mark.parametrize("safeguard", load(), ids=lambda safeguard: safeguard.name)
def test_without_its_safeguard_the_test_fails(copy, safeguard):
    kept = (copy / safeguard.file).read_text()
    safeguard.switch_off(copy)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-n", "0", "-x", "-p", "no:cacheprovider", safeguard.test],
            cwd=copy,
            capture_output=True,
            text=True,
            timeout=300,
        )
    finally:
        (copy / safeguard.file).write_text(kept)
    assert done.returncode == RED, done.stdout[-3000:]

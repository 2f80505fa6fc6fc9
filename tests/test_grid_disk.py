import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults import tried

REPOSITORY = Path(__file__).parents[1]
STAGES = """
stages:
  train:
    cmd: head -c 1000000 /dev/zero > weights
    outs: [weights]
"""
SMALL_DISK = """
mount -t tmpfs -o size=300k tmpfs .dvc/cache && {python} -m pipeline run
"""


def can_mount():
    words = ["unshare", "--mount", "--map-root-user", "true"]
    return shutil.which("unshare") and subprocess.run(words, capture_output=True, check=False).returncode == 0


@pytest.mark.skipif(not can_mount(), reason="needs a mount of its own: unshare --mount --map-root-user")
@tried.DVC
def test_a_full_disk_below_dvcs_cache_fails_the_run_although_dvc_may_exit_with_0(tmp_path):
    path = os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])
    variables = {**os.environ, "PYTHONPATH": path, "DVC_NO_ANALYTICS": "1"}
    (tmp_path / "dvc.yaml").write_text(STAGES)
    (tmp_path / "params.yaml").write_bytes((REPOSITORY / "params.yaml").read_bytes())
    subprocess.run([sys.executable, "-m", "dvc", "init", "--no-scm", "-q"], cwd=tmp_path, env=variables, check=True)
    (tmp_path / ".dvc/cache").mkdir(exist_ok=True)
    command = ["unshare", "--mount", "--map-root-user", "sh", "-c", SMALL_DISK.format(python=sys.executable)]
    done = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True, timeout=200)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "No space left on device" in done.stdout
    assert "Free some space, then keep it with: dvc commit -f train" in done.stdout
    assert (tmp_path / "weights").stat().st_size == 1000000  # not lost

"""The order in which a checkpoint reaches the disk, as the kernel saw it."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SAVE = """
import sys
from pathlib import Path
from deeplab.checkpoint import History, save_checkpoint
folder = Path(sys.argv[1])
history = History(folder / "history.csv", ("step",), 0)
for step in (1, 2, 3):
    history.append((step,))
    save_checkpoint(folder, step, {"step": step, "history_length": history.sync()})
"""
# The rows are on the disk, then the checkpoint under another name; then it gets its own, and the folder keeps it.
SAVED = r"fsync history\.csv;fsync step-\S+\.pt\.part;rename step-\S+\.pt\.part step-\S+\.pt;fsync folder;"


@pytest.mark.fault(
    "kill",
    "the power fails while a checkpoint is written",
    "strace tells the order of fsync and rename",
    "history, checkpoint and folder are on the disk before an older checkpoint is removed",
)
@pytest.mark.skipif(not shutil.which("strace"), reason="strace is not installed")
def test_a_checkpoint_is_on_the_disk_before_it_has_its_name_and_before_an_older_one_goes(tmp_path):
    folder, log = tmp_path / "folder", tmp_path / "log"
    folder.mkdir()
    calls = "trace=fsync,fdatasync,rename,renameat,renameat2,unlink,unlinkat"
    command = ["strace", "-f", "-y", "-o", log, "-e", calls, sys.executable, "-c", SAVE, folder]
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=120
    )
    if done.returncode and "ptrace" in done.stderr:
        pytest.skip(f"strace may not look here: {done.stderr.splitlines()[0]}")
    assert done.returncode == 0, done.stderr
    seen = "".join(f"{call};" for line in log.read_text().splitlines() if (call := said(line, folder)))
    assert re.fullmatch(f"({SAVED}){{2}}{SAVED}unlink step-000000001-\\S+\\.pt;", seen), seen


def said(line, folder):
    """`fsync a` or `rename a b` for a call in `folder`, by the names of the files."""
    if str(folder) not in line:
        return ""
    call = re.search(r"(fsync|fdatasync|rename|unlink)", line)[1]
    names = [re.sub(r".*/", "", path) for path in re.findall(r"[\"<](/[^\">]*)[\">]", line)]
    return " ".join([call, *names])

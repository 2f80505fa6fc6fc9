"""A disk that fills up while a network is trained, data is fetched, or the memory that processes share is full."""

import hashlib
import os
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from deeplab.checkpoint import load_checkpoint
from pipeline.data.fetch import Patience
from pipeline.settings.schema import Archive
from pipeline.stages import download
from tests.archives import write_tar
from tests.faults.disk import NO_SPACE, no_file_longer_than, outcome, small_disk
from tests.fitting import PACE, assert_equal, run
from tests.raw import dataset_config
from tests.server import Server, file

pytestmark = pytest.mark.usefixtures("one_thread")
EAGER = replace(PACE, checkpoint_every=1e-9)  # a checkpoint after every step
ROOT = Path(__file__).parents[2]
BYTES = random.Random(0).randbytes


def trained(folder, split, at=lambda step: None):
    """Train to the end; `at` is told each step that has been reported."""
    pace = replace(EAGER, log_every=1)
    folder.mkdir(exist_ok=True)
    network = None
    _, weights, history, _ = run(folder, split, network=network, pace=pace, stop=Steps(at))
    return weights, history, load_checkpoint(folder)["optimizer"]["state"]


class Steps:
    """Asked once a step whether to stop, it says no and tells `at`."""

    def __init__(self, at):
        self.at, self.step = at, 0

    def __call__(self):
        self.step += 1
        self.at(self.step)
        return False


@pytest.fixture(scope="module")
def unbroken(split, tmp_path_factory):
    torch.set_num_threads(1)
    return trained(tmp_path_factory.mktemp("unbroken"), split)


@pytest.mark.fault(
    "disk",
    "the disk is full at a checkpoint",
    "a tmpfs that fills up after a step, and RLIMIT_FSIZE",
    "exit code 74, one line; the checkpoint before stays; with space it ends bit for bit where an unbroken run does",
)
@pytest.mark.parametrize("step", [1, 2, 4])
@pytest.mark.parametrize("way", ["tmpfs", "limit"])
def test_a_training_goes_on_from_before_the_full_disk(split, unbroken, tmp_path, step, way):
    with small_disk(tmp_path / "disk", "4m") as disk:
        folder = disk.path / "seed0"

        def fill(now):
            if now == step:
                disk.fill()

        def command():
            if way == "tmpfs":
                trained(folder, split, fill)
            else:
                with no_file_longer_than(5000):  # the history fits, no checkpoint does
                    trained(folder, split)

        code, said = outcome(command)
        assert (code, len(said)) == (74, 1), said
        assert said[0].startswith(f"error: {folder}/")
        assert said[0].endswith(NO_SPACE)
        assert not list(folder.glob("*.part"))
        kept = load_checkpoint(folder)
        assert (kept["step"] if kept else 0) == (step - 1 if way == "tmpfs" else 0)
        disk.ballast.unlink(missing_ok=True)
        assert_equal(trained(folder, split), unbroken)


@pytest.mark.fault(
    "disk",
    "the disk fills up while an archive is fetched",
    "a tmpfs, a server that does not tell the length",
    "exit code 74, one line; what came is kept, and the rest is asked for the next time",
)
def test_a_download_goes_on_where_the_disk_was_full(tmp_path, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    content = write_tar(tmp_path / "a.tar", ("a/1.jpg", BYTES(300_000)), ("a/2.jpg", BYTES(300_000))).read_bytes()
    with small_disk(tmp_path / "disk", "3m") as disk, Server().running() as server:
        config = dataset_config("voc", {}, archives=(archive(f"{server.address}/a.tar", content),))
        where = (disk.path / "archives", disk.path / "raw/voc", disk.path / "voc.json", Patience(tries=2, pause=0))
        server.script["/a.tar"] = [file(content, length=False)]
        disk.fill(400_000)
        code, said = outcome(lambda: download.get("voc", config, *where))
        assert (code, said) == (74, [f"error: {disk.path}/archives/a.tar.part: {NO_SPACE}"])
        assert not (disk.path / "raw/voc").exists()
        kept = (disk.path / "archives/a.tar.part").stat().st_size
        assert kept > 100_000
        disk.free()
        server.script["/a.tar"] = [file(content)]
        assert outcome(lambda: download.get("voc", config, *where)) == (0, [])
        assert server.requests[-1][1] == f"bytes={kept}-"
        assert len(list((disk.path / "raw/voc/a").iterdir())) == 2


@pytest.mark.fault(
    "disk",
    "the disk fills up while an archive is unpacked",
    "a tmpfs with room for the first file of two",
    "exit code 74, one line that names the file; no half folder; with space it is unpacked",
)
def test_a_half_unpacked_archive_is_never_taken_for_the_data(tmp_path):
    with small_disk(tmp_path / "disk", "3m") as disk:
        (disk.path / "archives").mkdir()
        path = write_tar(disk.path / "archives/a.tar", ("a/1.jpg", BYTES(300_000)), ("a/2.jpg", BYTES(300_000)))
        config = dataset_config("voc", {}, archives=(archive("http://127.0.0.1:9/a.tar", path.read_bytes()),))
        where = (disk.path / "archives", disk.path / "raw/voc", disk.path / "voc.json")
        disk.fill(450_000)
        code, said = outcome(lambda: download.get("voc", config, *where))
        assert (code, said) == (74, [f"error: {disk.path}/raw/.voc.part/a/2.jpg: {NO_SPACE}"])
        assert list((disk.path / "raw").iterdir()) == []
        disk.free()
        assert outcome(lambda: download.get("voc", config, *where)) == (0, [])
        assert len(list((disk.path / "raw/voc/a").iterdir())) == 2


def archive(url, content):
    digest = hashlib.sha256(content).hexdigest()
    return Archive(name="a.tar", urls=(url,), size=None, sha256=digest, folders=("a",), max_unpacked=10**6)


SMALL_SHM = """
mount -t tmpfs -o size=4k tmpfs /dev/shm && head -c 4096 /dev/zero > /dev/shm/full || exit 99
exec "$0" "$@"
"""
PREPARE = """
from pathlib import Path
from pipeline.stages import prepare
from pipeline.errors import run_command
from tests.raw import dataset_config
config = dataset_config("shapes", {"train": 4, "val": 2})
run_command(lambda: prepare.build("shapes", config, ("train", "val"), Path("raw"), Path("store"), workers=2))
"""
FILL = """
import numpy as np
from deeplab.ring import fill_in_turn
for slot in fill_in_turn((((3,), np.float32),), range(6), lambda slot, job: slot[0].fill(job), workers=2, pin=False):
    print(slot[0][0])
"""


@pytest.mark.fault(
    "disk",
    "/dev/shm is too small",
    "a full tmpfs of 4 kB in its place",
    "the ring of training samples does not need it; prepare ends with exit code 74 and what to do",
)
@pytest.mark.parametrize(
    ("code", "status", "said"),
    [
        (
            PREPARE,
            74,
            "error: /dev/shm: No space left on device. Free some, or give the container more: --shm-size=64m\n",
        ),
        (FILL, 0, ""),
    ],
    ids=["prepare", "the ring"],
)
def test_a_full_shared_memory_is_told_or_not_needed(tmp_path, code, status, said):
    words = ["unshare", "--mount", "--propagation", "private", "sh", "-c", SMALL_SHM, sys.executable, "-c", code]
    done = subprocess.run(
        words, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=100
    )
    if done.returncode in (1, 99) and "unshare" in done.stderr + done.stdout:
        pytest.skip("only root may put a small /dev/shm in place of the large one")
    assert (done.returncode, done.stderr) == (status, said)
    assert not list(tmp_path.glob("store/*"))

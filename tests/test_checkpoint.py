import resource
import signal

import pytest
import torch

from deeplab.checkpoint import History, checkpoints, load_checkpoint, save_checkpoint, write_durably
from deeplab.errors import DataError
from tests.faults import tried


def state(value):
    return {"weights": torch.full((100,), float(value)), "step": value}


def test_the_newest_checkpoint_is_loaded_and_two_are_kept(tmp_path):
    for step in (1, 2, 30):
        save_checkpoint(tmp_path, step, state(step))
    assert load_checkpoint(tmp_path)["step"] == 30
    assert len(checkpoints(tmp_path)) == 2


def test_a_folder_without_checkpoints_has_nothing_to_go_on_from(tmp_path):
    assert load_checkpoint(tmp_path) is None


@pytest.mark.parametrize("damage", ["flip", "cut"])
@tried.CHECKPOINTS
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_is_used(tmp_path, damage):
    save_checkpoint(tmp_path, 1, state(1))
    save_checkpoint(tmp_path, 2, state(2))
    newest = checkpoints(tmp_path)[0]
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content if damage == "flip" else content[:-10])
    assert load_checkpoint(tmp_path)["step"] == 1
    assert newest.with_suffix(".damaged").exists()


@tried.CHECKPOINTS
def test_when_every_checkpoint_is_damaged_the_run_does_not_start_over_silently(tmp_path):
    save_checkpoint(tmp_path, 1, state(1))
    checkpoints(tmp_path)[0].write_bytes(b"")
    with pytest.raises(DataError, match="every checkpoint is damaged"):
        load_checkpoint(tmp_path)


@tried.CHECKPOINTS
def test_a_half_written_checkpoint_is_not_taken_for_one(tmp_path):
    save_checkpoint(tmp_path, 1, state(1))
    partial = tmp_path / "step-000000002-0123456789abcdef.pt.part"
    partial.write_bytes(b"half")
    assert load_checkpoint(tmp_path)["step"] == 1
    assert not partial.exists()


@tried.SMALL_DISK
def test_a_full_disk_is_an_os_error_and_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    write_durably(path, b"old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            write_durably(path, b"x" * 5000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert path.read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


def test_the_history_is_cut_back_to_where_a_checkpoint_left_it(tmp_path):
    history = History(tmp_path / "history.csv", ("step", "loss"), length=0)
    history.append((1, "0.5"))
    length = history.sync()
    history.append((2, None))
    History(tmp_path / "history.csv", ("step", "loss"), length).append((2, "0.4"))
    assert (tmp_path / "history.csv").read_text() == "step,loss\n1,0.5\n2,0.4\n"


@tried.CHECKPOINTS
def test_a_history_that_lost_rows_is_refused(tmp_path):
    (tmp_path / "history.csv").write_text("step,loss\n")
    with pytest.raises(DataError, match="history.csv: shorter than when the checkpoint was written"):
        History(tmp_path / "history.csv", ("step", "loss"), length=20)

"""`grid doctor` on one machine: each check from two real processes."""

import os

import pytest

from pipeline.cluster import doctor
from pipeline.settings.places import Places
from tests.tiny import tiny_params


@pytest.fixture
def places(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    (tmp_path / "reports").mkdir()
    tiny_params(tmp_path / "params.yaml")
    return Places(tmp_path)


def test_each_check_is_a_line_and_what_is_missing_is_no_failure(places, capsys):
    assert doctor.examine("here", places=places) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0].split() for line in lines] == [
        ["ok", "locks"], ["ok", "cache"], ["ok", "GPUs"], ["ok", "tracking"], ["warn", "data"],
    ]  # fmt: skip
    assert "not prepared yet: tiny" in lines[-1]
    assert not (places.runs / ".doctor.lock").exists()
    assert not list(places.root.rglob("doctor-*"))


def test_what_fails_is_named_and_the_exit_code_is_1(places, capsys, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    assert doctor.examine("slurm", places=places) == 1
    failed = [line.split()[1] for line in capsys.readouterr().out.splitlines() if line.startswith("FAIL")]
    assert failed == ["GPUs:", "tracking:", "commit:"]


def test_locks_that_keep_nobody_out_are_found(places, monkeypatch):
    monkeypatch.setattr(doctor, "hold", os.path.exists)  # the second process locks nothing
    with pytest.raises(OSError, match="does not keep another process out. Mount NFS in version 4"):
        doctor.check_locks(places.runs)


def test_a_database_for_one_machine_is_a_doubt_elsewhere(places):
    with pytest.raises(doctor.DoubtError, match="a SQLite file is for one machine"):
        doctor.check_tracking("ray")


def test_a_second_process_that_does_not_answer_is_given_up(monkeypatch):
    monkeypatch.setattr(doctor, "PATIENCE", 0)
    with pytest.raises(OSError, match="no answer from a second process"), doctor.second_process() as call:
        call(os.getpid)

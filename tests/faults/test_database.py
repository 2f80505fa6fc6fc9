"""MLflow's database on a full disk, and damaged: it is a record of the files, so that nothing else fails with it."""

import json
import os
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from pipeline.tracking import live as mirror
from tests.faults.disk import outcome, small_disk
from tests.faults.small_grid import record
from tests.records import CELL, OTHER, Folder, blank_database
from tests.test_tracking import training, write_history

pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")  # MLflow's own

UNMEASURED = f"{OTHER}: shown as -: not measured yet. Run: dvc repro evaluate@{OTHER}"
MOVE = "move it away, then fill a new one from the files: dvc repro --force --single-item --glob 'tables@*'"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A cell that was trained and measured, and whose table is to be filled."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return measured_in(tmp_path, monkeypatch)


def measured_in(path, patch):
    here = Folder(path)
    patch.chdir(path)
    here.train(CELL)
    here.evaluate(CELL)
    here.measure(CELL, 0.5)
    return here


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """The database after the table was filled."""
    path = tmp_path_factory.mktemp("recorded")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        (path / "mlflow.db").write_bytes(blank_database(tmp_path_factory.getbasetemp()).read_bytes())
        measured_in(path, patch).tables()
    return (path / "mlflow.db").read_bytes()


def mirrored(path, *steps):
    """What the mirror of the training in `path` says, which does one of `steps` before each look at it."""
    left = list(steps)

    def nap(_):
        if not left:
            raise KeyboardInterrupt
        left.pop(0)()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mirror.time, "sleep", nap)
        code, said = outcome(lambda: mirror.follow(path, 0.5, os.getppid()))
    assert (code, said[-1]) == (130, "interrupted")
    return said[:-1]


def nothing():
    """Since the last look."""


def check_once(shown):
    """One complete run with all points, one model, one version."""
    (run,) = shown["runs"][CELL]
    assert (run["status"], run["tags"]["complete"], run["tags"]["current"], run["twice"]) == ("FINISHED", "1", "1", [])
    assert [step for key, step, _ in run["points"] if key == "train/loss"] == [20, 40, 60]
    assert [status for _, status in shown["models"]] == [2]  # ready
    assert [version for _, version in shown["versions"]] == [1]


@pytest.mark.fault(
    "server",
    "the disk of the database is full",
    "a tmpfs without a free byte, and with some pages, which `tables` fills",
    "one warning, the table is filled; with space the next `tables` completes the record, without doubles",
)
@pytest.mark.parametrize("left", [0, 40_000, 60_000, 100_000])
def test_tables_are_filled_while_the_disk_of_the_database_is_full(folder, tmp_path, monkeypatch, recorded_blank, left):
    with small_disk(tmp_path / "disk", "20m") as disk:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{disk.path}/mlflow.db")
        (disk.path / "mlflow.db").write_bytes(recorded_blank)
        disk.fill(left)
        code, said = outcome(folder.tables)
        assert (code, len(said)) == (0, 2), said
        (warning,) = [line for line in said if line != UNMEASURED]
        assert warning.startswith("warning: no ")
        assert "no space left on the disk. Free some" in warning or "disk is full. Free some space." in warning
        assert "50.00%" in Path("reports/tables/shapes.md").read_text()
        disk.free()
        assert outcome(folder.tables) == (0, [UNMEASURED])
        check_once(record(disk.path))


@pytest.fixture
def recorded_blank(tmp_path_factory):
    return blank_database(tmp_path_factory.getbasetemp()).read_bytes()


@pytest.mark.fault(
    "server",
    "the disk of the database is full",
    "a tmpfs with room for a third of a database that MLflow is to make",
    "one warning, the table is filled, no half database",
)
@pytest.mark.parametrize("found", ["nothing", "an empty file"])
def test_a_full_disk_gets_no_half_database(folder, tmp_path, monkeypatch, found):
    with small_disk(tmp_path / "disk", "2m") as disk:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{disk.path}/mlflow.db")
        if found == "an empty file":
            (disk.path / "mlflow.db").touch()
        before = disk.files()
        disk.fill(300_000)
        code, said = outcome(folder.tables)
        assert (code, len(said)) == (0, 2), said
        assert said[0].endswith("disk is full. Free some space.")
        assert disk.files() == before | {"mlflow.db.lock": b""}


@pytest.mark.fault(
    "server",
    "the disk of the database is full",
    "a tmpfs that is full when a training begins, and later again",
    "one warning; it is mirrored when there is space, and the next `tables` completes the record, without doubles",
)
def test_a_training_is_mirrored_when_the_disk_of_the_database_has_space(folder, tmp_path, monkeypatch, recorded_blank):
    path = training(folder)
    with small_disk(tmp_path / "disk", "20m") as disk:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{disk.path}/mlflow.db")
        (disk.path / "mlflow.db").write_bytes(recorded_blank)
        disk.fill()
        mirrored_points = []

        def look():
            (run,) = record(disk.path)["runs"][CELL]
            mirrored_points.append([step for key, step, _ in run["points"] if key == "train/loss"])

        def more():
            look()
            disk.fill()
            write_history(path, *range(20, 4000))

        def space():
            look()
            disk.free()

        said = mirrored(path, nothing, nothing, disk.free, more, nothing, space, nothing)
        assert len(said) == 1
        assert said[0].startswith(f"warning: no live curves in MLflow for now: sqlite:///{disk.path}/mlflow.db: ")
        assert said[0].endswith(". Free some space.")
        look()
        assert mirrored_points == [[20], [20], list(range(20, 4000))]
        assert outcome(folder.tables) == (0, [UNMEASURED])
        (run,) = record(disk.path)["runs"][CELL]
        assert (run["status"], run["tags"]["complete"], run["twice"]) == ("FINISHED", "1", [])


def half(path, content):
    path.write_bytes(content[: len(content) // 2])


def cut(path, content):
    path.write_bytes(content[:-4096])


def zeros(path, content):
    path.write_bytes(bytes(len(content)))


def flipped(path, content):
    path.write_bytes(bytes(byte ^ 16 if index % 997 == 0 else byte for index, byte in enumerate(content)))


def newer(path, content):
    changed(path, content, "update alembic_version set version_num = 'ffffffffffff'")


def changed(path, content, *commands):
    path.write_bytes(content)
    with closing(sqlite3.connect(path)) as base:
        for command in commands:
            base.execute(command)
        base.commit()


def a_folder(path, _):
    path.mkdir()
    (path / "mine.txt").write_text("precious")


def a_link_into_nowhere(path, _):
    path.symlink_to("/nowhere/mlflow.db")


@pytest.mark.fault(
    "server",
    "the database cannot be read",
    "cut, zeroed, bits flipped, of a newer MLflow, a folder, a link to a disk that is not mounted",
    "one warning that names it and says what to do; the training goes on and the table is filled; it is not touched",
)
@pytest.mark.parametrize(
    ("damage", "remedy"),
    [
        (half, f"It is damaged: {MOVE}"),
        (cut, f"It is damaged: {MOVE}"),
        (zeros, f"It is damaged: {MOVE}"),
        (flipped, f"It is damaged: {MOVE}"),
        (newer, f"If a newer MLflow made it, install that one, or {MOVE}"),
        (a_folder, "mlflow.db: a folder is in the way of a file. Move it away, or name another place."),
        (a_link_into_nowhere, "/nowhere/mlflow.db.lock: no such file or folder"),
    ],
)
def test_a_damaged_database_costs_one_warning_and_is_not_touched(folder, recorded, damage, remedy):
    base = folder.path / "mlflow.db"
    damage(base, recorded)
    before = base.read_bytes() if base.is_file() else list(base.glob("*"))
    code, said = outcome(folder.tables)
    assert (code, len(said)) == (0, 2), said
    uri = f"sqlite:///{base.resolve()}"
    assert said[0].startswith(
        f"warning: no MLflow: reports/records/shapes alone fills the table, and is not recorded: {uri}: "
    )
    assert said[0].endswith(remedy)
    assert "50.00%" in Path("reports/tables/shapes.md").read_text()
    (said,) = mirrored(training(folder, OTHER), nothing, nothing, nothing)
    assert said.startswith(f"warning: no live curves in MLflow for now: {uri}: ")
    assert said.endswith(remedy)
    assert (base.read_bytes() if base.is_file() else list(base.glob("*"))) == before
    assert base.is_symlink() == (damage is a_link_into_nowhere)
    assert not list(folder.path.glob(".part-mlflow.db*"))


@pytest.mark.fault(
    "server", "the database cannot be read", "a link to a file of zero bytes", "it is made anew; the link stays"
)
def test_an_empty_file_is_no_database_and_is_made_one(folder, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder.path}/mlflow.db")
    Path("elsewhere").mkdir()
    Path("elsewhere/a.db").touch()
    Path("mlflow.db").symlink_to("elsewhere/a.db")
    assert outcome(folder.tables) == (0, [UNMEASURED])
    check_once(record(folder.path))
    assert Path("mlflow.db").is_symlink()


ROTTEN = {
    "a score": (
        "update metrics set value = 0.99 where key = 'final/mIoU'",
        "update latest_metrics set value = 0.99 where key = 'final/mIoU'",
    ),
    "a score less": ("delete from latest_metrics where key = 'final/mIoU'",),
    "text": ("update tags set value = '{\"train\": 320' where key = 'images'",),
}


@pytest.mark.fault(
    "server",
    "the database has rotted and can be read",
    "a score changed or gone, a text cut, of this folder's result and of a colleague's",
    "one warning that names the run; the table shows the folder's own record, and nothing of a colleague's that is damaged",
)
@pytest.mark.parametrize("what", ROTTEN)
def test_a_number_that_rotted_in_the_database_is_never_in_the_table(folder, recorded, what):
    changed(Path("mlflow.db"), recorded, *ROTTEN[what])
    code, said = outcome(folder.tables)
    assert (code, len(said)) == (0, 2), said
    assert "50.00%" in Path("reports/tables/shapes.md").read_text()
    (run,) = record_ids()
    assert said[0].startswith(f"warning: left out MLflow's run {run} of {CELL}: it is not what was recorded. ")

    Path(f"reports/records/shapes/{CELL}.json").unlink()  # as a colleague's: nothing of it is here
    code, said = outcome(folder.tables)
    assert (code, len(said)) == (0, 3), said
    assert said[0].startswith(f"warning: left out MLflow's run {run} of {CELL}: ")
    assert "%" not in Path("reports/tables/shapes.md").read_text()


def record_ids():
    with closing(sqlite3.connect("mlflow.db")) as base:
        return [run for (run,) in base.execute("select run_uuid from runs")]


def test_a_damaged_run_is_recorded_again_after_it_was_deleted(folder, recorded):
    from mlflow import MlflowClient

    changed(Path("mlflow.db"), recorded, *ROTTEN["a score"])
    (run,) = record_ids()
    MlflowClient(f"sqlite:///{folder.path}/mlflow.db").delete_run(run)
    assert outcome(folder.tables) == (0, [UNMEASURED])
    (found,) = record(folder.path)["runs"][CELL]
    assert json.loads(found["tags"]["images"]) == {"train": 320, "val": 64}
    assert ("final/mIoU", 0, 0.5) in found["points"]

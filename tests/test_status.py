import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.runner import status
from pipeline.runner.board import Board, only_runner, plan_board
from pipeline.runner.status import Screen, as_text, headline, read_rows, show, view, watch

REPOSITORY = Path(__file__).parents[1]
NAMES = [f"{kind}@{cell}" for cell in "abcdef" for kind in ("train", "evaluate")]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    return tmp_path


@pytest.fixture
def board():
    """A grid with a cell in each state."""
    reasons = {name: "code.py modified" for name in NAMES if name[-1] != "a"}
    board = plan_board("here, 2 at a time", ["prepare@x", *NAMES], reasons)
    board.set("train@b", "running")
    board.set("train@c", "done")
    board.set("evaluate@c", "running")
    board.set("train@d", "failed", "after 3 s: error: no weights")
    board.set("evaluate@d", "skipped", "train@d failed")
    board.set("train@e", "done")
    board.set("evaluate@e", "done")
    return board


def write_training(folder, cell, speeds, history, seed=0):
    work = folder / f"runs/.resume/{cell}/seed{seed}-abc"
    work.mkdir(parents=True)
    facts = {"cell": cell, "dataset": "x", "seed": seed, "started": "now", "iterations": 400, "fingerprint": {}}
    (work / "facts.json").write_text(json.dumps({**facts, "settings": {"batch_size": 8}}))
    (work / "speed.csv").write_text(speeds)
    (work / "history.csv").write_text(history)


def test_each_cell_is_shown_in_its_state(board):
    states = {row.cell: row.state for row in read_rows(board, alive=True)}
    assert states == {
        "a": "up to date", "b": "training", "c": "evaluating", "d": "failed", "e": "done", "f": "waiting",
    }  # fmt: skip
    assert next(row for row in read_rows(board, alive=True) if row.cell == "d").note == "after 3 s: error: no weights"


def test_a_training_shows_step_speed_time_left_and_its_last_validation(board, folder):
    history = "step,epoch,val/mIoU,train/loss\n50,0,0.1234,1\n60,0,,1\n1"  # the last line is being written
    write_training(folder, "b", "20,10.0\n100,16.0\n200,2", history)
    row = next(row for row in read_rows(board, alive=True) if row.cell == "b")
    assert (row.step, row.speed, row.left, row.miou) == ("100/400", "13.0", "0:03:05", "12.34%")


@pytest.mark.parametrize("speeds", ["20,10.0\n40,140,35.2\n", "20,\n40,x\n"])
def test_a_line_torn_by_a_full_disk_does_not_stop_the_runner(board, folder, speeds):
    write_training(folder, "b", speeds, "step,val/mIoU\n")
    row = next(row for row in read_rows(board, alive=True) if row.cell == "b")
    assert (row.state, row.step) == ("training", "")


def test_a_training_that_ends_while_it_is_looked_at_does_not_stop_the_runner(board, folder, monkeypatch):
    write_training(folder, "b", "20,10.0\n", "step,val/mIoU\n")
    stat = Path.stat

    def gone(path, **options):
        if path.name == "facts.json":
            raise FileNotFoundError(2, "No such file or directory", str(path))
        return stat(path, **options)

    monkeypatch.setattr(Path, "stat", gone)
    assert next(row for row in read_rows(board, alive=True) if row.cell == "b").state == "training"


def test_a_finished_cell_shows_its_result(board, folder):
    metrics = folder / "reports/metrics"
    metrics.mkdir(parents=True)
    (metrics / "e.json").write_text('{"mIoU": 0.75}')
    assert next(row for row in read_rows(board, alive=True) if row.cell == "e").miou == "75.00%"


def test_what_a_killed_runner_left_as_running_is_called_interrupted(board, folder):
    write_training(folder, "b", "20,10.0\n", "step,val/mIoU\n")
    rows = {row.cell: row for row in read_rows(board, alive=False)}
    assert (rows["b"].state, rows["b"].step, rows["b"].speed) == ("interrupted", "20/400", "")
    assert rows["f"].state == "not begun"
    assert "was killed. The same command continues" in headline(board, alive=False)


def test_lines_are_aligned_and_leave_out_what_no_cell_has(board):
    lines = as_text(read_rows(board, alive=True)).splitlines()
    assert lines[0].split() == ["cell", "state", "note"]
    assert len({line.index("  ") for line in lines if line.startswith(("a ", "b ", "c "))}) == 1


def test_the_board_is_read_back_as_it_was_written(board, folder):
    board.save()
    assert Board.read() == board
    assert [path.name for path in folder.joinpath("runs").iterdir()] == [".grid.json"]


def test_another_shell_sees_a_living_runner_by_its_lock(board):
    board.save()
    assert "was killed" in show()
    with only_runner():
        assert f"here, 2 at a time (process {os.getpid()})" in show()
    assert "was killed" in show()


def test_the_view_writes_the_same_table_to_a_log_file(board, folder, capsys):
    write_training(folder, "b", "100,16.0\n", "step,val/mIoU\n")
    with Screen(board, folder / "grid.log", every=-1) as screen:
        screen.say("start   train@b")
        screen.show()
    said = (folder / "grid.log").read_text()
    assert "start   train@b" in said
    assert "b     training    100/400      16.0  0:02:30" in said
    assert "failed" in said
    assert "waiting" not in said.partition("cell")[2]  # what waits is not repeated for hours
    assert capsys.readouterr().out == said
    assert Board.read().ended is not None


def test_the_terminal_gets_the_table_in_place(board, folder):
    from rich.console import Console

    write_training(folder, "b", "100,16.0\n", "step,val/mIoU\n")
    console = Console(width=120)
    with console.capture() as captured:
        console.print(view(headline(board, True), read_rows(board, True)))
    drawn = captured.get()
    assert "training" in drawn
    assert "100/400" in drawn


def test_the_watch_redraws_while_a_runner_works_and_ends_with_it(board, monkeypatch, capsys):
    """Each second is one state of the runner."""
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich then takes this for a terminal
    monkeypatch.setenv("COLUMNS", "160")
    states = iter(["training", "failed"])
    alive = iter([True, True, False])
    monkeypatch.setattr(status, "is_locked", lambda _: next(alive))
    monkeypatch.setattr(status.time, "sleep", lambda _: (board.set("train@b", next(states)), board.save()))
    board.save()
    watch()
    drawn = capsys.readouterr().out
    assert drawn.count("running for") == 2
    assert "was killed" in drawn.rpartition("running for")[2]


def test_a_note_in_square_brackets_is_text_and_no_style(board):
    board.set("train@d", "failed", "after 3 s: [Errno 28] No space left")
    assert "[Errno 28] No space left" in as_text(read_rows(board, alive=True))


def test_a_full_disk_does_not_stop_the_runner(board, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    board.save()


def test_status_loads_neither_torch_nor_dvc():
    code = "import sys, pipeline.runner.status; print([name for name in ('dvc', 'torch', 'mlflow') if name in sys.modules])"
    said = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert said.stdout == "[]\n"


def test_without_a_runner_the_cells_of_params_are_shown(folder):
    (folder / "params.yaml").write_bytes((REPOSITORY / "params.yaml").read_bytes())
    write_training(folder, "voc_resnet50_os8", "100,16.0\n", "step,val/mIoU\n")
    lines = show().splitlines()
    assert lines[0].startswith("the runner has not run here yet")
    assert next(line for line in lines if line.startswith("voc_resnet50_os8")).split()[1:3] == [
        "interrupted",
        "100/400",
    ]

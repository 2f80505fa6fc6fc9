import json

from deeplab.job import Plan
from pipeline import progress
from pipeline.progress import meter, planner, shown

PLAN = Plan(
    step=20, steps=39_660, images_per_second=228.0, seconds_left=2782.0, waiting=0.02, peak_memory=41_000_000_000
)


def test_the_plan_is_printed_and_written(tmp_path, capsys):
    planner("cell", tmp_path / "plan.json")(PLAN)
    said = capsys.readouterr().out
    assert said.startswith("cell: 20/39660 iterations measured: 228.0 images/s, 0:46:22 left, 41.00 GB of memory")
    assert "2% of the time spent waiting for samples" in said
    assert json.loads((tmp_path / "plan.json").read_text())["seconds_left"] == 2782.0


def test_of_several_processes_one_speaks(tmp_path, capsys):
    planner("cell", tmp_path / "plan.json", quiet=True)(PLAN)
    assert capsys.readouterr().out == ""
    assert not (tmp_path / "plan.json").exists()


def test_lines_show_the_progress_without_a_terminal(monkeypatch, capsys):
    monkeypatch.setattr(progress, "EVERY", 0)
    assert list(shown("ab", "read")) == ["a", "b"]
    assert list(shown(iter("ab"), "write", unit="file", total=3)) == ["a", "b"]
    with meter("fetch a.tar", 3_000_000, 1_000_000) as advance:
        advance(1_000_000)
    with meter("unpack a.tar", None) as advance:
        advance(5_000_000)
    said = capsys.readouterr()
    assert said.out.splitlines() == [
        "read: 1/2 images",
        "read: 2/2 images",
        "write: 1/3 files",
        "write: 2/3 files",
        "fetch a.tar: 2 of 3 MB",
        "unpack a.tar: 5 MB",
    ]
    assert said.err == ""


def test_a_bar_shows_the_progress_on_a_terminal(monkeypatch, capsys):
    monkeypatch.setattr(progress.sys.stderr, "isatty", lambda: True, raising=False)
    with meter("fetch a.tar", 3_000_000, 1_000_000) as advance:
        advance(1_000_000)
    assert list(shown("ab", "read")) == ["a", "b"]
    said = capsys.readouterr()
    assert "fetch a.tar:  67%" in said.err
    assert "2.00M/3.00M" in said.err
    assert "read: 100%" in said.err
    assert said.out == ""

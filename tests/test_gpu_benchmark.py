"""`python -m benchmarks.gpu` on a CPU with small stand-ins: what a GPU would be given, without its numbers."""

import io
import json
import subprocess
import sys
import time

import psutil
import pytest
import torch

from benchmarks.gpu import __main__ as command
from benchmarks.gpu import trainings
from benchmarks.gpu.__main__ import PARTS, ROOT
from benchmarks.gpu.results import Results, summarise, write_page
from benchmarks.gpu.setting import Setting
from pipeline.training.speeds import Speed, page_of, read_speeds, write_speeds

KINDS = {
    "facts": {"machine": 1, "ceiling": 2},
    "convs": {"convolution, TFLOP/s": 9, "batch normalisation": 2},
    "loss": {"loss": 6},
    "bf16": {"step": 3},
    "feed": {"feed": 4},
    "determinism": {"determinism": 2},
}


@pytest.fixture
def setting(tmp_path, one_thread):
    return Setting(out=tmp_path, work=tmp_path / "work", name="cpu", small=True, camvid=None, root=ROOT)


def function_of(name):
    from importlib import import_module

    module, _, function = next(part.place for part in PARTS if part.name == name).partition(":")
    return getattr(import_module(f"benchmarks.gpu.{module}"), function)


@pytest.mark.parametrize("name", KINDS)
def test_each_part_writes_its_numbers(name, setting):
    benchmark = torch.backends.cudnn.benchmark
    function_of(name)(setting)
    torch.backends.cudnn.benchmark = benchmark
    assert {kind: len(setting.results.read(kind)) for kind in KINDS[name]} == KINDS[name]
    assert not [row for kind in KINDS[name] for row in setting.results.read(kind) if "error" in row]
    if name == "determinism":
        assert all(row["two_runs_equal_to_the_bit"] for row in setting.results.read("determinism"))


def test_every_part_has_a_function():
    assert all(callable(function_of(part.name)) for part in PARTS)


STAGE = """
import sys, time
from pathlib import Path

kind, name = sys.argv[1:]
folder, run = Path("runs/.resume", name, "seed0"), Path("runs", name)
if kind == "prepare":
    Path("data", name).mkdir(parents=True)
    Path("data", name, "manifest.json").touch()
else:
    folder.mkdir(parents=True, exist_ok=True)
    begun = len(list(folder.iterdir()))
    for step in range(begun, 6):
        time.sleep(0.1 if step else 0)
        (folder / f"step-{step}-0.pt").touch()
    (run / "weights").mkdir(parents=True)
    (run / "history.csv").write_text("step,train/lr,train/loss\\n" + "".join(f"{step},0.1,{step + 1}\\n" for step in range(6)))
    (run / "weights/seed0.safetensors").write_text("DIFFERS" if begun else "same")
"""


@pytest.mark.parametrize("same", [True, False])
def test_a_training_that_was_killed_is_compared_with_an_unbroken_one(setting, monkeypatch, same):
    """The stages are stand-ins here: a real one takes some seconds to import torch, and there are four."""
    script = STAGE.replace("DIFFERS", "same" if same else "other")
    monkeypatch.setattr(trainings, "command", lambda *words: [sys.executable, "-c", script, *words])
    trainings.resume(setting)
    (found,) = setting.results.read("resume")
    assert found["killed_at_checkpoints"] == [0]
    assert found["seconds_until_workers_end"] < trainings.ORPHANS
    assert found["steps_and_rates_equal"]
    assert found["largest_relative_difference_of_a_loss"] == 0
    assert found["weights_equal_to_the_bit"] is same


def test_the_command_runs_its_parts_in_processes_and_writes_summary_and_page(tmp_path):
    words = ["--out", str(tmp_path), "--device", "cpu", "--small", "--only", "facts"]
    subprocess.run([sys.executable, "-m", "benchmarks.gpu", *words], cwd=ROOT, check=True, capture_output=True)
    assert [(row["name"], row["said"]) for row in Results(tmp_path).read("part")] == [
        ("facts", "done"),
    ]
    assert "## ceiling" in (tmp_path / "summary.md").read_text()
    assert not (tmp_path / "cpu.md").exists()  # no step was measured


def test_the_process_that_starts_the_parts_never_imports_torch():
    """An error of CUDA, or memory that ran out, would end it."""
    code = "import sys, benchmarks.gpu.__main__; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_a_part_without_time_is_left_out_and_named(tmp_path):
    words = ["--out", str(tmp_path), "--device", "cpu", "--small", "--only", "train", "--minutes", "0.1"]
    subprocess.run([sys.executable, "-m", "benchmarks.gpu", *words], cwd=ROOT, check=True, capture_output=True)
    assert [row["said"] for row in Results(tmp_path).read("part")] == ["left out: no time"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--only", "bf16,speed"], "--only: got speed, expected some of facts"),
        (["--camvid", "nowhere"], "--camvid: nowhere/classes.txt not found"),
    ],
)
def test_bad_words_are_one_line(words, message, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["gpu", "--out", str(tmp_path), *words])
    with pytest.raises(SystemExit):
        command.main()
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("code", "said"),
    [("import time; time.sleep(60)", "stopped"), ("raise SystemExit(3)", "failed with 3"), ("", "done")],
)
def test_a_part_that_hangs_or_fails_ends_alone_and_leaves_no_process(code, said, monkeypatch):
    started = []
    popen = subprocess.Popen

    def instead(words, **options):
        script = f"import subprocess; subprocess.Popen(['sleep', '60'])\n{code}"
        started.append(popen([sys.executable, "-c", script], **{**options, "stdout": subprocess.DEVNULL}))
        return started[0]

    monkeypatch.setattr(command.subprocess, "Popen", instead)
    assert command.run_part([], 1.5, io.BytesIO()).startswith(said)
    deadline = time.monotonic() + 10
    while alive := [each for each in psutil.process_iter(["status"]) if group_of(each) == started[0].pid]:
        assert time.monotonic() < deadline, alive
        time.sleep(0.05)


def group_of(process):
    import os

    try:
        return os.getpgid(process.pid) if process.info["status"] != psutil.STATUS_ZOMBIE else None
    except (ProcessLookupError, psutil.NoSuchProcess):
        return None


def test_a_summary_is_a_table_for_each_kind(tmp_path):
    results = Results(tmp_path)
    results.add("step", cell="a", ms=1.5)
    results.add("step", cell="b", error="x | y")
    results.add("part", name="bf16")
    summarise(tmp_path)
    text = (tmp_path / "summary.md").read_text()
    assert text.count("## ") == 2
    assert "| cell | ms | error |\n| --- | --- | --- |\n| a | 1.5 |  |\n| b |  | x / y |" in text


def test_the_page_of_a_device_is_read_as_it_was_written(tmp_path):
    speeds = [Speed("voc_a", "bf16, compiled", 170.5, 12_000_000_000, 40_000_000, "0123456789ab")]
    path = page_of(tmp_path, "NVIDIA H100 80GB HBM3")
    write_speeds(path, "NVIDIA H100 80GB HBM3", "Measured.", speeds)
    assert path.name == "nvidia-h100-80gb-hbm3.md"
    assert read_speeds(tmp_path, "NVIDIA H100 80GB HBM3") == {"0123456789ab": speeds[0]}
    assert read_speeds(tmp_path, "NVIDIA H200") == {}


def test_measured_steps_become_the_page(tmp_path):
    results = Results(tmp_path)
    results.add("run", commit="abc")
    results.add("machine", device="NVIDIA H200", gpu="NVIDIA H200, 570", torch="2.15.0")
    row = {"precision": "bf16", "images_per_second": 150.0, "peak_memory": 10**10, "parameters": 4 * 10**7}
    results.add("step", cell="voc_a", side="ours", compiled=True, pace="0123456789ab", **row)
    results.add("step", cell="torchvision", side="plain", compiled=False, pace="", **row)
    results.add("step", cell="voc_b", precision="fp32", error="out of memory")
    write_page(tmp_path, tmp_path / "reports")
    assert (tmp_path / "nvidia-h200.md").read_bytes() == (tmp_path / "reports/nvidia-h200.md").read_bytes()
    (speed,) = read_speeds(tmp_path / "reports", "NVIDIA H200").values()
    assert (speed.cell, speed.arithmetic, speed.images_per_second) == ("voc_a", "bf16, compiled", 150.0)
    assert json.loads(results.path.read_text().splitlines()[0])["commit"] == "abc"

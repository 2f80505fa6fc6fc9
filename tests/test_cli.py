"""`grid VERB`: what people type reaches the right function, and mistakes are one line."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import cli
from pipeline.__main__ import main
from pipeline.cluster.engines import ENGINES
from pipeline.predict.predict import tiling_of
from pipeline.settings.places import Places
from pipeline.verify.verbs import complete_cell

ROOT = Path(__file__).parents[1]
VERBS = list(cli.grid.commands)


def call(*words, folder=ROOT):
    """The command in a process of its own, with the code of this repository."""
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from pipeline.__main__ import main; main()"
    return subprocess.run(
        [sys.executable, "-c", code, *words], cwd=folder, capture_output=True, text=True, check=False, timeout=60
    )


def exit_of(monkeypatch, *words):
    """The exit code of the command in this process."""
    monkeypatch.setattr(sys, "argv", ["grid", *words])
    with pytest.raises(SystemExit) as end:
        main()
    return end.value.code


@pytest.mark.parametrize("verb", VERBS)
def test_help_is_quick_and_imports_nothing_heavy(verb):
    code = (
        f"import sys, time; sys.argv = ['grid', {verb!r}, '--help']\n"
        f"from pipeline.__main__ import main\n"
        f"try: main()\n"
        f"except SystemExit: pass\n"
        f"heavy = {{'torch', 'mlflow', 'pandas', 'numpy', 'cv2', 'dvc', 'matplotlib', 'timm'}} & set(sys.modules)\n"
        f"sys.exit(f'imports {{heavy}}' if heavy or time.process_time() > 1 else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"Usage: grid {verb}")


def test_grid_alone_lists_the_verbs_and_is_python_m_pipeline():
    alone, module = call(), subprocess.run([sys.executable, "-m", "pipeline"], cwd=ROOT, capture_output=True, text=True)
    assert alone.returncode == module.returncode == 0
    assert alone.stdout == module.stdout == call("--help").stdout
    listed = [line.split()[0] for line in alone.stdout.partition("Commands:\n")[2].splitlines()]
    assert listed == VERBS


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["statsu"], 2, "No such command 'statsu'. Did you mean 'status'? Run: grid --help"),
        (["xyz"], 2, "No such command 'xyz'. Run: grid --help"),
        (["run", "--on", "slrum"], 2, "Invalid value for '--on': 'slrum' is not one of 'here', 'ray', 'slurm'. Run: grid run --help"),
        (["run", "--slots", "0"], 2, "Invalid value for '--slots': 0 is not in the range x>=1. Run: grid run --help"),
        (["predict", "cell"], 2, "Missing argument 'SOURCE'. Run: grid predict --help"),
        (["run", "--address", "x:1"], 78, "--address: got 'x:1', which belongs to --on ray"),
        (["plan"], 78, "params.yaml: No such file or directory. Run the command from the folder that holds it."),
    ],
)  # fmt: skip
def test_a_mistake_on_the_command_line_is_one_line(words, code, message, tmp_path):
    done = call(*words, folder=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (code, "", f"error: {message}\n")


@pytest.mark.parametrize(
    ("words", "answers"),
    [
        ("grid sta", {"status"}),
        ("grid try voc_resnet50", {"voc_resnet50_os8", "voc_resnet50_os16"}),
        ("grid statsu ", set(VERBS)),  # what was mistyped is no error here
        ("grid run --sl", {"--slots"}),
    ],
)
def test_a_shell_completes_verbs_options_and_cells(words, answers, monkeypatch):
    monkeypatch.setenv("_GRID_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(words.count(" ")))
    done = call()
    assert done.stderr == ""
    assert {line.partition(",")[2] for line in done.stdout.splitlines()} == answers


@pytest.mark.parametrize("text", ["grid:", "grid: [1, 2]", "grid: {1: {}}", "grid: ["])
def test_a_shell_completes_nothing_from_a_wrong_file(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text(text)
    assert complete_cell(None, None, "a") == []


@pytest.mark.parametrize("below", [".", "examples/camvid"])
def test_another_copy_of_the_code_is_refused(below, tmp_path):
    (tmp_path / "pipeline").mkdir()
    (tmp_path / "pipeline/cli.py").touch()
    (tmp_path / below).mkdir(parents=True, exist_ok=True)
    done = call("status", folder=tmp_path / below)
    assert (done.returncode, done.stderr) == (
        78,
        f"error: {tmp_path}: has its own code, but `grid` is that of {ROOT}. Run: PYTHONPATH={tmp_path} python -m pipeline\n",
    )


CALLS = [
    ("run a 'b@*' --slots 2", "runner.run.run", (("a", "b@*"), ENGINES["here"], 2, None), {}),
    ("run --on ray --address h:1", "runner.run.run", ((), ENGINES["ray"], None, "h:1"), {}),
    ("doctor --on slurm", "cluster.doctor.examine", ("slurm", None), {}),
    ("try a lr=1 flip=0", "runner.trial.run", ("a", ("lr=1", "flip=0")), {}),
    ("status --watch", "runner.status.watch", (), {}),
    ("repair", "runner.repair.repair", (), {}),
    ("verify a b --fast", "verify.committed.run", (["a", "b"], Places(), True), {}),
    ("predict a b --out c", "predict.predict.run", ("a", Path("b"), Path("c")), {"seed": 0, "batch": 8, "device": None, "tiling": None}),
    ("predict a b --out c --window 64 32 --stride 32 32", "predict.predict.run", ("a", Path("b"), Path("c")), {"seed": 0, "batch": 8, "device": None, "tiling": tiling_of((64, 32), (32, 32))}),
    ("export a onnx --out c --seed 1", "predict.export.run", ("a", "onnx", Path("c")), {"seed": 1, "images": None}),
    ("equivalent --reason why", "stages.check.declare_equivalent", ("why",), {}),
    ("report", "stages.report.run", (), {}),
    ("ui --port 1", "tracking.ui.run", (1,), {}),
]  # fmt: skip


@pytest.mark.parametrize(("line", "function", "arguments", "options"), CALLS, ids=[line for line, *_ in CALLS])
def test_a_verb_calls_its_function(line, function, arguments, options, monkeypatch):
    calls = []
    monkeypatch.setattr(f"pipeline.{function}", lambda *args, **kwargs: calls.append((args, kwargs)) or [])
    assert exit_of(monkeypatch, *line.replace("'", "").split()) == 0
    assert calls == [(arguments, options)]


def test_the_port_of_the_server_can_be_a_variable_as_for_make(monkeypatch):
    ports = []
    monkeypatch.setattr("pipeline.tracking.ui.run", ports.append)
    monkeypatch.setenv("PORT", "5127")
    assert exit_of(monkeypatch, "ui") == 0
    assert ports == [5127]


def test_the_engines_are_those_of_the_cluster():
    assert tuple(ENGINES) == cli.ENGINES


def test_the_exit_code_is_that_of_the_function(monkeypatch):
    monkeypatch.setattr("pipeline.cluster.doctor.examine", lambda *_: 1)
    assert exit_of(monkeypatch, "doctor") == 1


def test_ctrl_c_is_no_traceback(monkeypatch, capsys):
    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setattr("pipeline.runner.status.show", interrupted)
    assert exit_of(monkeypatch, "status") == 130
    assert capsys.readouterr().err.split() == ["interrupted"]


@pytest.mark.parametrize(("encoding", "shown"), [("utf-8", b"caf\\udce9 \xc3\xbc"), ("ascii", b"caf\\udce9 \\xfc")])
def test_what_a_terminal_cannot_show_is_escaped(encoding, shown):
    code = "from pipeline.errors import run_command\nrun_command(lambda: print('caf\\udce9 \\xfc'))"
    environment = {**os.environ, "PYTHONIOENCODING": f"{encoding}:strict"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, timeout=60)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, shown, b"")

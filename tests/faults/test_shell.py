"""Values of params.yaml are data: none of them reaches a shell, a script or a path as something else."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from pipeline.errors import ParamsError
from pipeline.runner.graph import read_stages
from pipeline.settings.params import load_params
from pipeline.settings.places import Places
from pipeline.settings.schema import SlurmOptions
from pipeline.stages import check
from tests.tiny import tiny_params

ROOT = Path(__file__).parents[2]
HOSTILE = [
    "x; touch canary #",
    "$(touch canary)",
    "`touch canary`",
    "x\ntouch canary",
    "../../victim",
    "a b",
    "-x",
    "A",
    "",
]
PASTED = {"key", "item.dataset", "item.format", "grid", "datasets", "eval_splits"}

NAMES = pytest.mark.fault(
    "security",
    "a name in params.yaml that a shell would run",
    "`x; touch canary`, `$(...)`, backticks, line breaks and `../..` as names of cells, data sets and protocols",
    "refused before DVC pastes it: no command runs, no folder is deleted, also with plain `dvc repro`",
)


def dataset(params, name):
    params["datasets"][name] = params["datasets"].pop("tiny")
    params["recipes"][name] = params["recipes"].pop("tiny")
    params["grid"]["tiny_os8"]["dataset"] = name


def row(params, name):
    params["grid"]["tiny_os8"]["dataset"] = name


def cell(params, name):
    params["grid"][name] = params["grid"].pop("tiny_os8")


def protocol(params, name):
    params["protocols"][name] = params["protocols"]["single_scale"]


def further(params, name):
    params["recipes"][name] = params["recipes"]["tiny"]
    params["eval_splits"] = {name: ["val", "test"]}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("place", [dataset, row, cell, protocol, further])
@NAMES
def test_a_name_that_is_more_than_a_name_is_refused(tmp_path, place, name):
    path = tiny_params(tmp_path / "params.yaml", lambda params: place(params, name))
    with pytest.raises(ParamsError, match=r"params\.yaml: "):
        check.run(Places(path.parent))
    assert not Places(path.parent).code.exists()


@pytest.mark.fault(
    "security",
    "a setting that would become a line of the script of a Slurm job",
    "line breaks and other words in runtime.slurm: options and partition",
    "refused, with its place",
)
@pytest.mark.parametrize(
    ("changes", "place"),
    [
        ({"options": {"comment": "x\ntouch canary"}}, "options"),
        ({"options": {"x\ntouch canary": "y"}}, "options"),
        ({"options": {"comment=x\r": "y"}}, "options"),
        ({"options": {"wrap": "x\x1b[2J"}}, "options"),
        ({"partition": "gpu\ntouch canary"}, "partition"),
    ],
)
def test_a_setting_of_slurm_is_one_line(tmp_path, changes, place):
    path = tiny_params(tmp_path / "params.yaml", lambda params: params["runtime"]["slurm"].update(changes))
    with pytest.raises(ParamsError, match=rf"params\.yaml: runtime\.slurm\.{place}: "):
        load_params(path)


def test_what_slurm_is_usually_told_is_accepted():
    options = {"account": "vision", "qos": "long", "mail-user": "a@example.org", "comment": "two words"}
    assert SlurmOptions(partition="gpu,a100", time=1, cpus=1, options=options).options == options


def stages_of(text):
    return {name: stage.get("do", stage) for name, stage in YAML(typ="safe").load(text)["stages"].items()}


def unguarded(text):
    """What a dvc.yaml pastes that is no checked name, and its stages that could run before the names are checked."""
    stages = stages_of(text)
    pasted = set(re.findall(r"\$\{([^}]*)\}", text)) - PASTED
    behind = {"check"}
    for _ in stages:  # behind one that is behind the check, by a file that it writes
        outs = [
            out if isinstance(out, str) else next(iter(out))
            for name in behind
            for kind in ("outs", "metrics")
            for out in stages[name].get(kind, [])
        ]
        files = {re.sub(r"\$\{[^}]*\}", "*", out) for out in outs}
        for name, stage in stages.items():
            params = [next(iter(param)) for param in stage.get("params", []) if isinstance(param, dict)]
            if any(re.sub(r"\$\{[^}]*\}", "*", read) in files for read in [*stage.get("deps", []), *params]):
                behind.add(name)
    free = {name for name, stage in stages.items() if "${" in json.dumps(stage)} - behind
    return pasted | free


@pytest.mark.parametrize("file", sorted(ROOT.glob("**/dvc.yaml")), ids=lambda file: str(file.relative_to(ROOT)))
@NAMES
def test_every_stage_into_which_names_are_pasted_stands_behind_their_check(file):
    assert not unguarded(file.read_text(encoding="utf-8"))
    assert "${" not in json.dumps(stages_of(file.read_text(encoding="utf-8"))["check"])


@pytest.mark.parametrize(
    ("old", "new", "found"),
    [
        ("pipeline.stages.prepare ${key}", "pipeline.stages.prepare ${raw.folder}", {"raw.folder"}),
        ("        - reports/code.json: [compare, train]\n", "", {"compare"}),
        ('        - reports/code.json: ["download.${key}"]\n', "", {"download"}),
    ],
)
def test_a_dvc_yaml_that_forgets_it_is_noticed(old, new, found):
    text = (ROOT / "dvc.yaml").read_text(encoding="utf-8")
    assert old in text
    assert unguarded(text.replace(old, new)) == found


@pytest.mark.filterwarnings("ignore:_NoneStep.value:DeprecationWarning")  # in DVC
def test_dvc_itself_puts_every_stage_behind_the_check(monkeypatch):
    monkeypatch.chdir(ROOT)
    stages = read_stages([])
    for name in stages:
        needed, waiting = set(), {name}
        while waiting:
            needs = set(stages[waiting.pop()].needs) - needed
            needed |= needs
            waiting |= needs
        assert "check" in needed | {name}


def project(folder, edit):
    """A DVC repository with the stages of this one, before anything was run."""
    for name in ("pipeline", "deeplab"):
        (folder / name).symlink_to(ROOT / name)
    shutil.copy(ROOT / "dvc.yaml", folder)
    (folder / "reports").mkdir()
    for name in ("reference.csv", "equivalent_code.txt"):
        shutil.copy(ROOT / "reports" / name, folder / "reports")
    tiny_params(folder / "params.yaml", edit)
    dvc(folder, "init", "--no-scm", "--quiet")


def dvc(folder, *words):
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "DVC_NO_ANALYTICS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-m", "dvc", *words], cwd=folder, env=environment, capture_output=True, text=True, timeout=120
    )


@pytest.mark.parametrize("words", [("repro",), ("repro", "--keep-going")], ids=" ".join)
@pytest.mark.parametrize("place", [dataset, cell])
@NAMES
def test_plain_dvc_runs_no_command_with_such_a_name_in_it(tmp_path, place, words):
    project(tmp_path, lambda params: place(params, "$(touch canary)"))
    done = dvc(tmp_path, *words)
    ran = re.findall(r"^> (.*)", done.stdout, re.MULTILINE)
    assert ran == ["python -m pipeline.stages.check"], done.stdout + done.stderr
    assert done.returncode != 0
    assert not (tmp_path / "canary").exists()


@NAMES
def test_plain_dvc_deletes_no_folder_above_its_own(tmp_path):
    victim, folder = tmp_path / "victim", tmp_path / "a/b"
    victim.mkdir()
    (victim / "file").touch()
    folder.mkdir(parents=True)
    project(folder, lambda params: dataset(params, "../../victim"))
    assert dvc(folder, "repro").returncode != 0
    assert (victim / "file").exists()

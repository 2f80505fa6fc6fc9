"""`grid history` names what moved each number of a cell, and invents nothing; `grid plan --why` shows the lines."""

import copy
import json
import re
import shutil

import pytest

from pipeline.errors import ParamsError
from pipeline.runner.dvc import read_lock, write_lock
from pipeline.runner.graph import Stage
from pipeline.settings import code
from pipeline.settings.code import code_of
from pipeline.settings.places import Places
from pipeline.settings.yaml import stage_in
from pipeline.stages import check
from pipeline.training.provenance import git
from pipeline.verify import history, why
from tests.records import CELL, OTHER, ROOT, Folder

LOSS, METRICS, OVERLAY = "deeplab/losses/cross_entropy.py", "deeplab/metrics.py", "pipeline/page/layout.py"
RECORD = f"reports/records/shapes/{CELL}.json"


class Project(Folder):
    """A project in git with code of its own, whose stages write dvc.lock as DVC does."""

    def __init__(self, path):
        for package in ("deeplab", "pipeline"):
            shutil.copytree(ROOT / package, path / package, ignore=shutil.ignore_patterns("__pycache__"))
        super().__init__(path)
        self.raw["datasets"] = {"shapes": self.raw["datasets"]["shapes"]}
        self.write_params()
        self.versions, self.masks = {"torch": "2.14.0"}, "1" * 32
        git("init", "--quiet", folder=path)
        git("config", "user.email", "someone@example.org", folder=path)
        git("config", "user.name", "Someone", folder=path)
        (path / ".gitignore").write_text("/data/\n__pycache__\n")

    def commit(self, message):
        git("add", ".", folder=self.path)
        git("commit", "--quiet", "--allow-empty", "-m", message, folder=self.path)

    def edit(self, path, text):
        """Add `text` to a file, commit it."""
        (self.path / path).parent.mkdir(exist_ok=True)
        with (self.path / path).open("a") as file:
            file.write(text)
        self.commit(f"edit {path}")

    def setting(self, place, **values):
        """Change settings below `place`, such as `recipes.shapes`, and commit them."""
        section = self.raw
        for key in place.split("."):
            section = section.setdefault(key, {})
        section.update(values)
        self.write_params()
        self.commit(f"{place} {values}")

    def run(self, miou, cell=CELL):
        """Prepare, train, evaluate and commit a cell."""
        params, places = self.params, Places(self.path)
        self.measure(cell, miou)
        record = json.loads((self.path / f"reports/records/shapes/{cell}.json").read_text())
        self.write(f"reports/records/shapes/{cell}.json", record | {"versions": self.versions})
        shared = ("model", "train", "augment")
        of_cell = {f"grid.{cell}": self.raw["grid"][cell], "recipes.shapes": self.raw["recipes"]["shapes"]}
        of_cell |= {section: self.raw[section] for section in shared}
        of_data = {f"datasets.shapes.{key}": self.raw["datasets"]["shapes"][key] for key in ("format", "images")}
        outs = [{"path": "data/shapes/masks.bin", "hash": "md5", "md5": self.masks, "size": 1}]
        stages = {}
        for kind, name, values in (
            ("prepare", "shapes", of_data),
            ("train", cell, of_cell),
            ("evaluate", cell, of_cell),
        ):
            used = {"params.yaml": values, history.CODE: {f"{kind}.{name}": code_of(kind, params, places, name)}}
            stages[f"{kind}@{name}"] = {"cmd": f"python -m pipeline.stages.{kind} {name}", "params": used, "outs": outs}
        write_lock(self.path / "dvc.lock", json.loads(json.dumps(stages)))  # no values in common: DVC writes no aliases
        check.run(places)
        self.commit(f"measure {cell}")


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """A project with one measured cell. One for all tests, because reading its code takes a second."""
    here = tmp_path_factory.mktemp("project")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(code, "ROOT", here)
        project = Project(here)
        project.run(0.50)
    git("tag", "start", folder=here)
    return project


@pytest.fixture
def project(measured, monkeypatch):
    """The project as it was at first, which is the working folder."""
    monkeypatch.setattr(code, "ROOT", measured.path)
    monkeypatch.chdir(measured.path)
    git("checkout", "--quiet", "--force", "-B", "main", "start")
    git("clean", "--quiet", "--force", "-d")
    here = copy.copy(measured)
    here.raw = json.loads((here.path / "params.yaml").read_text())
    here.prepare("as first prepared")
    return here


def moves(cell=CELL):
    """The lines of each value that moved, newest first."""
    first, *steps = re.split(r"\n(?=\S)", history.run(cell))
    assert first == f"{cell}, mIoU, newest first"
    return [[line.strip() for line in step.splitlines()] for step in steps]


@pytest.mark.fault(
    "security",
    "a number moved, and nobody knows why",
    "30 commits of settings, data, code, comments and other cells, 5 of which move the number of a cell",
    "`grid history` names the five with their causes, and no other",
)
def test_five_moves_in_thirty_commits_are_named_and_none_is_invented(project):
    for number in range(5):  # nothing of it is about the cell
        project.edit("README.md", f"{number}\n")
        project.edit(LOSS, f"# comment {number}\n")
    project.setting("runtime", workers=1)
    project.setting("recipes.shapes", lr=0.03)
    project.run(0.51)
    project.edit(OVERLAY, "EDITED = 1\n")
    project.setting(f"grid.{OTHER}", recipe={"lr": 0.5})
    project.run(0.40, OTHER)
    project.prepare("one label corrected")
    project.masks = "2" * 32
    project.run(0.52)
    project.edit("deeplab/losses/another.py", "EDITED = 1\n")
    project.edit(METRICS, '"""A text."""\n')
    project.edit(LOSS, "EDITED = 1\n")
    project.run(0.49)
    project.edit("docs/page.md", "text\n")
    project.run(0.49)  # the same bytes: no commit has it
    project.edit(METRICS, "EDITED = 1\n")
    project.run(0.48)
    project.setting("publish", remote="storage")
    project.versions = {"torch": "2.15.0"}
    project.run(0.485)
    project.edit("README.md", "end\n")
    project.edit("README.md", "end\n")
    assert int(git("rev-list", "--count", "HEAD", folder=project.path)) == 30
    values = [[line.split("  ", 2)[2] if index == 0 else line for index, line in enumerate(step)] for step in moves()]
    data = values[3].pop(1)
    assert re.fullmatch(r"data: data/shapes/manifest\.json \(\w{8} -> \w{8}\), data/shapes/masks\.bin", data)
    assert values == [
        ["48.50 %  +0.50", "environment: torch (2.14.0 -> 2.15.0)"],
        ["48.00 %  -1.00", "code: evaluate: deeplab.metrics"],
        ["49.00 %  -3.00", "code: train: deeplab.losses.cross_entropy"],
        ["52.00 %  +1.00"],
        ["51.00 %  +1.00", "settings: recipe.lr (0.02 -> 0.03)"],
        ["50.00 %  first"],
    ]


def test_a_number_that_moved_by_itself_is_not_explained_away(project):
    project.run(0.53)
    assert moves()[0][1:] == [history.NOTHING]


def test_versions_that_only_one_record_has_are_no_cause(project):
    """Older records have none, so nothing is known."""
    for number, versions in enumerate(({}, {"torch": "2.15.0"}, {"torch": "2.15.0", "cuda": "13"})):
        project.versions = versions
        project.run(0.6 + number / 100)
    assert [step[1:] for step in moves()[:-1]] == [
        ["environment: cuda (None -> 13)"],
        [history.NOTHING],
        [history.NOTHING],
    ]


def test_seeds_and_the_protocol_of_the_table_are_settings(project):
    record = json.loads((project.path / RECORD).read_text())
    record["seeds"]["1"] = record["seeds"]["0"]
    record["protocols"]["single_scale"]["flip"] = True
    project.write(RECORD, record)
    project.commit("by hand")
    (last, cause), _ = moves()
    assert last.endswith("50.00 %  same")
    assert cause == "settings: protocol.single_scale.flip (False -> True), seeds (0 -> 0 1)"


def test_settings_that_the_current_code_cannot_read_are_compared_as_written(project):
    """As in a commit of another version, whose params.yaml had other keys."""
    lock = (project.path / "dvc.lock").read_text()
    (project.path / "dvc.lock").write_text(lock.replace("momentum:", "impulse:"))
    git("commit", "--quiet", "-a", "--amend", "--no-edit")
    project.setting("recipes.shapes", lr=0.03)
    project.run(0.51)
    (_, cause), _ = moves()
    assert cause == (
        "settings: recipes.shapes.lr (0.02 -> 0.03), train.impulse (0.9 -> None), train.momentum (None -> 0.9)"
    )


def test_a_merged_branch_is_one_step_and_a_damaged_record_none(project):
    git("checkout", "--quiet", "-B", "topic")
    project.setting("recipes.shapes", lr=0.03)
    project.run(0.51)
    project.setting("recipes.shapes", lr=0.04)
    project.run(0.52)
    git("checkout", "--quiet", "main")
    project.edit("README.md", "x\n")
    git("merge", "--quiet", "--no-edit", "topic")
    good = (project.path / RECORD).read_text()
    for damaged in ("{", "[]", '{"seeds": {}}'):
        (project.path / RECORD).write_text(damaged)
        project.commit("damaged")
    (project.path / RECORD).write_text(good)
    project.commit("repaired")
    _, (merged, cause), _ = moves()
    assert merged.endswith("52.00 %  +2.00")
    assert cause == "settings: recipe.lr (0.02 -> 0.04)"


def test_without_git_or_a_committed_record_the_error_is_one_line(project, tmp_path):
    with pytest.raises(ParamsError, match=f"{OTHER}.json: no commit has it. Run: grid run readme@shapes, and commit"):
        history.run(OTHER)
    shutil.copy("params.yaml", tmp_path)
    with pytest.raises(ParamsError, match=r"git log: .*not a git repository") as caught:
        history.run(CELL, Places(tmp_path))
    assert "\n" not in str(caught.value)


def test_the_entry_of_a_stage_is_read_without_the_rest_of_the_lock():
    text = (ROOT / "dvc.lock").read_text()
    from ruamel.yaml import YAML

    for name, entry in YAML(typ="safe").load(text)["stages"].items():
        assert stage_in(text, name) == entry
    assert stage_in(text, "train@x") == {}


def explain(monkeypatch, *names):
    """What `grid plan --why` prints when DVC finds the stages `names` changed."""
    stages = {name: Stage(needs=(), inputs=(), changes="something modified") for name in names}
    monkeypatch.setattr(why, "read_fresh_stages", lambda _: stages)
    check.run()
    return why.run(names).splitlines()


def test_a_stale_stage_is_explained_by_the_values_and_the_lines_of_the_code(project, monkeypatch):
    project.edit(METRICS, "# a comment\n")
    project.edit(LOSS, "EDITED = 1\n")
    project.setting("recipes.shapes", lr=0.03)
    head, *lines = explain(monkeypatch, f"train@{CELL}")
    assert head == f"train@{CELL}: something modified"
    assert lines[0] == "    recipes.shapes.lr (0.02 -> 0.03)"
    start = git("rev-parse", "--short=8", "start")
    assert lines[1] == f"    code of train.{CELL}: since commit {start} deeplab.losses.cross_entropy"
    assert [line for line in lines if line.startswith("    +")] == [f"    +++ b/{LOSS}", "    +EDITED = 1"]
    assert METRICS not in "\n".join(lines)


def test_the_lines_of_many_stages_are_shown_once_and_not_without_end(project, monkeypatch):
    project.run(0.4, OTHER)
    lock = read_lock(project.path / "dvc.lock")
    write_lock(project.path / "dvc.lock", lock | {f"train@{CELL}": lock[f"train@{OTHER}"]})
    project.edit(LOSS, "EDITED = 1\n" * 100)
    lines = explain(monkeypatch, f"train@{CELL}", f"train@{OTHER}")
    assert sum(line == "    +EDITED = 1" for line in lines) < why.LINES
    assert re.fullmatch(rf"    \.\.\. \d+ more lines: git diff \w{{8}} -- {LOSS}", lines[-3])
    assert lines[-1].endswith("deeplab.losses.cross_entropy, as above")


def test_code_that_no_commit_has_is_said(project, monkeypatch):
    lock = (project.path / "dvc.lock").read_text()
    known = code_of("train", project.params, Places(project.path), CELL)
    (project.path / "dvc.lock").write_text(lock.replace(known, "a" * 64))
    assert explain(monkeypatch, f"train@{CELL}")[1:] == [
        f"    code of train.{CELL}: no commit has the reports/code.json of dvc.lock, so the lines are unknown"
    ]
    assert explain(monkeypatch) == ["up to date: 0 stages"]

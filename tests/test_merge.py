"""Branches that each trained another cell merge without a conflict in dvc.lock; a contradiction still stops."""

import random
from pathlib import Path

import pytest

from pipeline.cluster import merge
from pipeline.errors import ParamsError
from pipeline.runner.dvc import is_readable_lock, read_lock, write_lock
from pipeline.training.provenance import git

ROOT = Path(__file__).parents[1]
CELLS = [f"cell{number:02}" for number in range(12)]


def entry(kind, name, made="0"):
    """An entry as DVC writes one; `made` stands for inputs and outputs."""
    deps = [{"path": "data/voc/manifest.json", "hash": "md5", "md5": "1" * 32, "size": 1}]
    outs = [{"path": f"runs/{name}/{kind}", "hash": "md5", "md5": made * 32, "size": 12}]
    params = {"params.yaml": {f"grid.{name}": {"lr": 0.01, "made": made}}}
    return {"cmd": f"python -m pipeline.stages.{kind} {name}", "deps": deps, "params": params, "outs": outs}


def trained(*cells, made="1"):
    """What a branch adds or changes that has trained `cells` and filled their table."""
    own = {f"{kind}@{cell}": entry(kind, cell, made) for kind in ("train", "evaluate") for cell in cells}
    return own | {"check": entry("check", "", cells[0][-1]), "tables@voc": entry("tables", "voc", cells[0][-1])}


START = {"check": entry("check", ""), "prepare@voc": entry("prepare", "voc"), "tables@voc": entry("tables", "voc")}
START |= {name: each for name, each in trained("cell03", made="0").items() if "@cell" in name}  # is trained again


def write(path, stages):
    write_lock(path, stages)
    return path


@pytest.mark.fault(
    "input",
    "twelve branches with one cell each are merged",
    "20 random orders",
    "no conflict in dvc.lock; the same bytes in each order, with the entries of all",
)
def test_twelve_branches_give_the_same_lock_in_any_order(record_property, tmp_path):
    branches = {cell: START | trained(cell) for cell in CELLS}
    texts = set()
    for seed in range(20):
        merged = START
        for cell in random.Random(seed).sample(CELLS, len(CELLS)):
            merged, contradictory = merge.merge_stages(START, merged, branches[cell])
            assert not contradictory
        texts.add(write(tmp_path / "dvc.lock", merged).read_text())
    (text,) = texts
    cells = {name for name in merged if name.startswith(("train@", "evaluate@"))}
    assert cells == {f"{kind}@{cell}" for kind in ("train", "evaluate") for cell in CELLS}
    assert all(merged[name] == branches[name.partition("@")[2]][name] for name in cells)
    assert any(merged["tables@voc"] == branches[cell]["tables@voc"] for cell in CELLS)
    assert list(merged)[: len(START)] == list(START)
    assert is_readable_lock(text)
    assert "&" not in text  # DVC writes no aliases
    record_property("tries", 20)


def test_the_text_is_what_dvc_writes(tmp_path):
    """The committed dvc.lock, read and written again, is the same file."""
    for lock in (ROOT / "dvc.lock", ROOT / "examples/camvid/dvc.lock"):
        ours = tmp_path / "ours"
        ours.write_bytes(lock.read_bytes())
        assert merge.run(lock, ours, lock) == 0
        assert ours.read_bytes() == lock.read_bytes()


@pytest.mark.parametrize(
    ("ours", "theirs", "kept"),
    [
        ({}, {"train@a": 1}, {"train@a": 1}),
        ({"train@a": 1}, {"train@a": 1, "train@b": 2}, {"train@a": 1, "train@b": 2}),
        ({"train@x": 0}, {}, {}),  # removed there, unchanged here
        ({}, {"train@x": 0}, {}),
        ({"train@x": 5}, {"train@x": 5}, {"train@x": 5}),
        ({"train@x": 5}, {"train@x": 0}, {"train@x": 5}),
        ({"tables@voc": 5}, {"tables@voc": 4}, {"tables@voc": 4}),
        ({"tables@voc": 4}, {"tables@voc": 5}, {"tables@voc": 4}),
    ],
)
def test_the_side_that_changed_wins(ours, theirs, kept):
    base = {"train@x": 0} if "train@x" in ours.keys() | theirs.keys() else {}
    numbered = [{name: entry("train", "x", str(made)) for name, made in each.items()} for each in (base, ours, theirs)]
    merged, contradictory = merge.merge_stages(*numbered)
    assert not contradictory
    assert merged == {name: entry("train", "x", str(made)) for name, made in kept.items()}


@pytest.mark.parametrize("change", [{"train@cell03": entry("train", "cell03", "7")}, {"train@cell03": None}])
@pytest.mark.fault(
    "input",
    "a cell was trained on two branches with other settings",
    "merged with `grid merge`",
    "a conflict in dvc.lock, as git leaves it; the other stages are merged",
)
def test_a_cell_that_was_trained_twice_is_a_conflict(tmp_path, capfd, change):
    base, ours = write(tmp_path / "base", START), write(tmp_path / "ours", START | trained("cell03", "cell01"))
    there = {name: each for name, each in (START | trained("cell02") | change).items() if each}
    assert merge.run(base, ours, write(tmp_path / "theirs", there)) == 1
    assert capfd.readouterr().err == (
        "dvc.lock: train@cell03: changed on both sides. Keep one side of each, then run: grid plan\n"
    )
    text = ours.read_text()
    assert text.count("<<<<<<< ours\n") == text.count(">>>>>>> theirs\n") >= 1
    here, side = "", "both"
    for line in text.splitlines(keepends=True):  # a person keeps the side of the other branch
        side = {"<<<<<<<": "ours", "=======": "theirs", ">>>>>>>": "both"}.get(line[:7], side)
        here += line if side != "ours" and line[:7] not in ("=======", ">>>>>>>") else ""
    ours.write_text(here)
    resolved = read_lock(ours)
    assert resolved.get("train@cell03") == change["train@cell03"]
    assert {"train@cell01", "train@cell02", "evaluate@cell03"} <= resolved.keys()


@pytest.mark.parametrize(
    "damaged", ["<<<<<<< ours\n", "schema: '2.0'\nstages:\n  x: [", "schema: '2.0'\ndatasets: []\n"]
)
def test_what_is_no_plain_lock_is_merged_by_lines(tmp_path, damaged):
    base, ours, theirs = (tmp_path / name for name in ("base", "ours", "theirs"))
    base.write_text("")
    ours.write_text(damaged)
    write(theirs, START)
    assert merge.run(base, ours, theirs) == 1
    text = ours.read_text()
    assert "<<<<<<< ours\n" in text
    assert not {*damaged.splitlines(), *theirs.read_text().splitlines()} - {*text.splitlines()}


def test_git_uses_it_after_one_command(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    git("init", "--quiet", "-b", "main")
    git("config", "user.email", "someone@example.org")
    git("config", "user.name", "Someone")
    Path(".gitattributes").write_text("*.png binary")
    for _ in range(2):
        assert merge.install() == (
            "git merges dvc.lock by stage in this clone. Commit .gitattributes; each other clone needs this command once, too."
        )
    assert Path(".gitattributes").read_text().splitlines() == ["*.png binary", *merge.ATTRIBUTES]
    Path("reports/tables").mkdir(parents=True)

    def commit(stages, table):
        write_lock(Path("dvc.lock"), stages)
        Path("reports/tables/voc.md").write_text(table)
        Path("reports/code.json").write_text(table)
        git("add", ".")
        git("commit", "--quiet", "-m", "results")

    commit(START, "none")
    for cell in ("cell01", "cell02", "cell03"):
        git("checkout", "--quiet", "-b", cell, "main")
        commit(START | trained(cell), cell)
    for cell in ("cell01", "cell02"):
        git("merge", "--quiet", "-m", "m", cell)
    assert {"train@cell01", "train@cell02", "train@cell03"} <= read_lock(Path("dvc.lock")).keys()
    git("checkout", "--quiet", "-b", "again", "main")
    commit(START | trained("cell03", made="9"), "again")
    with pytest.raises(ParamsError):
        git("merge", "cell03")
    assert git("diff", "--name-only", "--diff-filter=U") == "dvc.lock"


def test_other_arguments_and_a_folder_without_git_are_refused(tmp_path):
    for files, to_install in (((), False), ((Path("a"),), False), ((Path("a"),) * 3, True)):
        with pytest.raises(ParamsError, match="grid merge: expected --install, or the three files"):
            merge.main(files, to_install)
    with pytest.raises(ParamsError, match="git config: .*not in a git directory|git config: .*git repository"):
        merge.install(tmp_path)

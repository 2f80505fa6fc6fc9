"""Merge dvc.lock stage by stage: the driver that git calls when two branches have changed the file.

Git merges lines, and branches that each trained another cell write theirs in the same place. An entry of dvc.lock says
what a stage wrote from which inputs, so entries of different stages never contradict each other.
"""

import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pipeline.errors import ParamsError
from pipeline.files import write_whole
from pipeline.runner.dvc import is_readable_lock, read_lock, write_lock
from pipeline.settings.stage_names import kind_and_name
from pipeline.training.provenance import git

Stages = dict[str, Any]

# Made in seconds from what is committed: of two versions either will do, because DVC sees that it is stale.
DERIVED = ("check", "tables", "compare", "readme", "report")
GENERATED = ("reports/code.json", "reports/tables/*", "reports/statistics/*", "reports/cards/**")
ATTRIBUTES = ["dvc.lock merge=dvc-lock", *(f"{path} merge=generated" for path in GENERATED)]


def main(files: tuple[Path, ...], to_install: bool) -> int:
    """The verb `grid merge`. Returns its exit code; raises ParamsError for other arguments than one of its two uses."""
    if to_install == bool(files) or len(files) not in (0, 3):
        raise ParamsError("grid merge: expected --install, or the three files that git gives its driver")
    if to_install:
        print(install())
        return 0
    return run(*files)


def install(root: Path = Path()) -> str:
    """Make git merge the dvc.lock of the project `root` with this driver, and keep one side of GENERATED.

    Adds lines to .gitattributes, which is to be committed, and settings to this clone. Raises ParamsError without git.
    """
    settings = {
        "merge.dvc-lock.name": "stages of dvc.lock",
        "merge.dvc-lock.driver": f"{shlex.quote(sys.executable)} -m pipeline merge %O %A %B",
        "merge.generated.name": "written again by the next grid run",
        "merge.generated.driver": "true",
    }
    for key, value in settings.items():
        git("config", "--local", key, value, folder=root)
    path = root / ".gitattributes"
    known = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    if missing := [line for line in ATTRIBUTES if line not in known]:
        write_whole(path, "".join(f"{line}\n" for line in [*known, *missing]))
    return f"git merges dvc.lock by stage in this clone. Commit {path}; each other clone needs this command once, too."


def run(base: Path, ours: Path, theirs: Path) -> int:
    """Merge the changes from `base` to `theirs` into the file `ours`. An empty `base`: both sides have added the file.

    Returns 1, and leaves conflict markers, when a stage was changed differently on both sides.
    """
    if not all(map(is_plain_lock, (base, ours, theirs))):
        return min(merge_lines(ours, base, theirs), 1)
    sides = [read_lock(path) for path in (base, ours, theirs)]
    merged, contradictory = merge_stages(*sides)
    write_lock(ours, merged)
    if not contradictory:
        return 0
    common = {name: entry for name, entry in sides[0].items() if not (name in sides[1] and name in sides[2])}
    with TemporaryDirectory() as folder:
        texts = [Path(folder) / name for name in ("ours", "base", "theirs")]
        for text, stages in zip(texts, (sides[1], common, sides[2]), strict=True):  # without a common start: a conflict
            both = merged | {name: stages[name] for name in contradictory if name in stages}
            write_lock(text, {name: both[name] for name in in_order(sides[0], both)})
        merge_lines(*texts)
        shutil.copyfile(texts[0], ours)
    names = ", ".join(contradictory)
    print(f"dvc.lock: {names}: changed on both sides. Keep one side of each, then run: grid plan", file=sys.stderr)
    return 1


def merge_stages(base: Stages, ours: Stages, theirs: Stages) -> tuple[Stages, list[str]]:
    """The stages of both sides, and the names of those that each side has changed in another way, which are left out.

    The order depends on `base` and the names only.
    """
    merged, contradictory = {}, []
    for name in in_order(base, ours.keys() | theirs.keys()):
        old, one, other = (stages.get(name) for stages in (base, ours, theirs))
        if one == other or other == old:
            kept = one
        elif one == old:
            kept = other
        elif kind_and_name(name)[0] in DERIVED:
            kept = min((each for each in (one, other) if each), key=json.dumps)
        else:
            contradictory.append(name)
            continue
        if kept:
            merged[name] = kept
    return merged, contradictory


def in_order(base: Mapping[str, Any], names: Iterable[str]) -> list[str]:
    """The `names`: those of `base` as they are there, then the others by the alphabet."""
    wanted = set(names)
    return [name for name in base if name in wanted] + sorted(wanted - base.keys())


def is_plain_lock(path: Path) -> bool:
    """Whether a file is empty, or a dvc.lock of stages and nothing else."""
    text = path.read_text(encoding="utf-8")
    return not text.strip() or (
        set(re.findall(r"^(\w+):", text, re.MULTILINE)) <= {"schema", "stages"} and is_readable_lock(text)
    )


def merge_lines(ours: Path, base: Path, theirs: Path) -> int:
    """Merge as git does without a driver, into `ours`; returns the number of conflicts, which it marks there."""
    labels = [word for label in ("ours", "base", "theirs") for word in ("-L", label)]
    command = ["git", "merge-file", *labels, str(ours), str(base), str(theirs)]
    return subprocess.run(command, check=False).returncode

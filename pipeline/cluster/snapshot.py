"""The committed code in a folder of its own for one cell: its own DVC locks, the same cache, data and checkpoints.

On several machines the cells cannot share one workspace: DVC's path locks know the processes of one host only, and DVC
writes down inputs as they are after a command (treeverse/dvc 11058), so that an edit meanwhile would falsify dvc.lock.
"""

import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import chdir, contextmanager
from pathlib import Path

from pipeline.errors import ParamsError

CODE = ("deeplab", "pipeline", "params.yaml", "dvc.yaml", ".dvc/config", ".dvcignore")
LOCK = "dvc.lock"
SHARED = ("data", "runs/.resume")  # linked, not copied: the stores, and the checkpoints that a second try goes on from


def committed(root: Path) -> str:
    """The commit that is checked out; ParamsError when what a cell runs is not as it says."""
    try:
        changed = git(root, "status", "--porcelain", "--", *CODE).splitlines()
        commit = git(root, "rev-parse", "HEAD").strip()
    except (OSError, subprocess.CalledProcessError) as error:
        reason = (getattr(error, "stderr", None) or str(error)).strip().partition("\n")[0]
        raise ParamsError(
            f"{root}: a cell that runs elsewhere runs a snapshot of the commit, and git has none here ({reason})"
        ) from None
    if changed:
        files = ", ".join(line[3:] for line in changed[:3]) + ", ..." * (len(changed) > 3)
        raise ParamsError(
            f"{files}: changed and not committed. A cell that runs elsewhere runs a snapshot of the commit, which "
            f"would not be what stands here. Commit it, or run without --on."
        )
    return commit


@contextmanager
def snapshot(root: Path, commit: str, folder: Path, cell: str) -> Iterator[Path]:
    """`commit` of the repository `root`, checked out in `folder` for as long as the block runs, to work on `cell`.

    What DVC knows of the cell comes from a copy of dvc.lock beside `folder`: the one in `root` is being written.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        # A clone that shares the objects rather than a worktree: nothing to lock or to prune in `root`.
        git(root, "clone", "--quiet", "--shared", "--no-checkout", str(root), str(folder))
        git(folder, "checkout", "--quiet", "--detach", commit)
        share(root, folder)
        write_lock(folder, folder.parent / LOCK, (f"train@{cell}", f"evaluate@{cell}"))
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def share(root: Path, folder: Path) -> None:
    """Link what all cells share, and let DVC use the cache of `root`."""
    from configobj import ConfigObj

    for name in SHARED:
        (root / name).mkdir(parents=True, exist_ok=True)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).symlink_to((root / name).resolve(), target_is_directory=True)
    local = ConfigObj(str(root / ".dvc/config.local")) if (root / ".dvc/config.local").exists() else ConfigObj()
    for name in [name for name in local.sections if name.startswith(("remote", "'remote"))]:
        del local[name]  # no cell needs a remote, and its password may stand here
    local.filename = str(folder / ".dvc/config.local")
    local.setdefault("cache", {})["dir"] = str(cache_folder(root))
    local.setdefault("core", {})["site_cache_dir"] = str(folder.resolve() / ".dvc/site")  # goes with the snapshot
    local.write()


def write_lock(folder: Path, lock: Path, names: Sequence[str]) -> None:
    """Write the dvc.lock of a snapshot: short, for DVC reads and writes all of it for each stage."""
    from dvc.utils.serialize import dump_yaml, load_yaml

    known = load_yaml(str(lock)).get("stages", {}) if lock.exists() else {}
    stages = {name: known[name] for name in names if name in known}
    dump_yaml(str(folder / LOCK), {"schema": "2.0", "stages": stages})


def keep(folder: Path, name: str) -> None:
    """Put the result of stage `name`, which has just run in the snapshot `folder`, into DVC's run cache.

    DVC does it itself, but not for a stage with an out of `cache: false`, as the record of an evaluation is.
    """
    from dvc.repo import Repo

    with chdir(folder), Repo() as repo, repo.lock:  # DVC takes some paths as relative to the current folder
        stage = next(stage for stage in repo.index.stages if stage.addressing == name)
        repo.stage_cache.save(stage)


def cache_folder(root: Path) -> Path:
    """Where the DVC of `root` keeps its cache: `cache.dir` of its configuration, relative to that file."""
    from configobj import ConfigObj

    found = root / ".dvc/cache"
    for file in (root / ".dvc/config", root / ".dvc/config.local"):
        if file.exists() and (place := ConfigObj(str(file)).get("cache", {}).get("dir")):
            found = file.parent / place
    return found.resolve()


def git(folder: Path, *words: str) -> str:
    """What git prints."""
    done = subprocess.run(["git", *words], cwd=folder, check=True, capture_output=True, text=True, timeout=300)
    return done.stdout

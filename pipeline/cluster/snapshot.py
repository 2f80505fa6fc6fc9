"""The committed code in a folder of its own for one cell: its own DVC locks, the same cache, data and checkpoints.

On several machines the cells cannot share one workspace: DVC's path locks know the processes of one host only, and DVC
writes down inputs as they are after a command (treeverse/dvc 11058), so that an edit meanwhile would falsify dvc.lock.
"""

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.errors import ParamsError
from pipeline.runner.dvc import dvc_folder, read_lock, write_lock
from pipeline.training.provenance import git

CODE = (":(top)deeplab", ":(top)pipeline", "params.yaml", "dvc.yaml", ":(top).dvc/config", ":(top).dvcignore")
LOCK = "dvc.lock"
SHARED = ("data", "runs/.resume")  # linked, not copied: the stores, and the checkpoints that a second try goes on from


def committed(root: Path) -> str:
    """The commit that is checked out; ParamsError when what a cell runs is not as it says."""
    try:
        changed = git("status", "--porcelain", "--", *CODE, folder=root).splitlines()
        commit = git("rev-parse", "HEAD", folder=root)
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
        top = Path(git("rev-parse", "--show-toplevel", folder=root))
        project = folder / root.resolve().relative_to(top.resolve())
        # A clone that shares the objects, and not a worktree: nothing to lock or to prune in `root`.
        git("clone", "--quiet", "--shared", "--no-checkout", str(top), str(folder.resolve()), folder=root)
        git("checkout", "--quiet", "--detach", commit, folder=folder)
        share(root, project)
        configure(root, folder)
        names = (f"train@{cell}", f"evaluate@{cell}")
        known = read_lock(folder.parent / LOCK)
        # A short dvc.lock, because DVC reads and writes all of it for each stage.
        write_lock(project / LOCK, {name: known[name] for name in names if name in known})
        yield project
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def share(root: Path, project: Path) -> None:
    """Link what all cells share into the `project` of a snapshot."""
    for name in SHARED:
        (root / name).mkdir(parents=True, exist_ok=True)
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).symlink_to((root / name).resolve(), target_is_directory=True)


def configure(root: Path, folder: Path) -> None:
    """Let the DVC of the clone `folder` use the cache of `root`."""
    from configobj import ConfigObj

    own = dvc_folder(root) / "config.local"
    local = ConfigObj(str(own)) if own.exists() else ConfigObj()
    for name in [name for name in local.sections if name.startswith(("remote", "'remote"))]:
        del local[name]  # no cell needs a remote, and its password may be here
    local.filename = str(folder / ".dvc/config.local")
    local.setdefault("cache", {})["dir"] = str(cache_folder(root))
    local.setdefault("core", {})["site_cache_dir"] = str(folder.resolve() / ".dvc/site")  # goes with the snapshot
    local.write()


def cache_folder(root: Path) -> Path:
    """Where the DVC of `root` keeps its cache: `cache.dir` of its configuration, relative to that file."""
    from configobj import ConfigObj

    own = dvc_folder(root)
    found = own / "cache"
    for file in (own / "config", own / "config.local"):
        if file.exists() and (place := ConfigObj(str(file)).get("cache", {}).get("dir")):
            found = file.parent / place
    return found.resolve()

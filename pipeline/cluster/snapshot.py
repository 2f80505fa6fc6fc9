"""The committed code in a folder for one cell, with its own DVC locks and the shared cache, data and checkpoints.

Cells on several machines cannot share one folder: DVC's path locks know the processes of one host only, and DVC records
inputs as they are after a command (treeverse/dvc 11058), so an edit meanwhile would falsify dvc.lock.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.errors import ParamsError
from pipeline.runner.dvc import cache_folder, dvc_folder, read_lock, write_lock
from pipeline.settings.places import Places
from pipeline.training.provenance import git

CODE = (":(top)deeplab", ":(top)pipeline", "params.yaml", "dvc.yaml")
DVC = (".dvc/config", ".dvcignore", ":(top).dvc/config", ":(top).dvcignore")  # a project may have a DVC of its own
LOCK = "dvc.lock"
SHARED = ("data", "runs/.resume")  # linked, not copied: the stores, and the checkpoints from which a cell resumes


def committed(root: Path) -> str:
    """The commit that is checked out. Raises ParamsError when code or settings differ from it."""
    try:
        changed = git("status", "--porcelain", "--", *CODE, *DVC, folder=root).splitlines()
        commit = git("rev-parse", "HEAD", folder=root)
    except ParamsError as error:
        raise ParamsError(
            f"{root}: a cell on another machine runs a snapshot of the commit, but git has no commit here ({error})"
        ) from None
    if changed:
        files = ", ".join(line[3:] for line in changed[:3]) + ", ..." * (len(changed) > 3)
        raise ParamsError(
            f"{files}: changed and not committed, but a cell on another machine runs a snapshot of the commit. Commit "
            f"the changes, or run without --on."
        )
    return commit


@contextmanager
def snapshot(root: Path, commit: str, folder: Path, cell: str) -> Iterator[Path]:
    """The project `root` at `commit`, in a clone in `folder` that exists during the block, to work on `cell`.

    Its dvc.lock and reports/code.json come from the copies that `keep_state` made beside `folder`.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        top = Path(git("rev-parse", "--show-toplevel", folder=root))
        project = folder / root.resolve().relative_to(top.resolve())
        # A clone that shares the objects needs no lock and no pruning in `root`, as a worktree does.
        git("clone", "--quiet", "--shared", "--no-checkout", str(top), str(folder.resolve()), folder=root)
        git("checkout", "--quiet", "--detach", commit, folder=folder)
        share(root, project, cell)
        configure(root, project)
        names = (f"train@{cell}", f"evaluate@{cell}")
        code = Places(project).code
        if (kept := folder.parent / code.name).exists():
            code.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(kept, code)
        known = read_lock(folder.parent / LOCK)
        # A short dvc.lock, because DVC reads and writes all of it for each stage.
        write_lock(project / LOCK, {name: known[name] for name in names if name in known})
        yield project
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def keep_state(root: Path, call: Path) -> None:
    """Copy to `call` what stages of `root` have written and snapshots need: the commit can have older versions, and
    DVC writes to dvc.lock while cells run.
    """
    call.mkdir(parents=True)
    for path in (root / LOCK, Places(root).code):
        if path.exists():
            shutil.copyfile(path, call / path.name)


def share(root: Path, project: Path, cell: str) -> None:
    """Link what all cells share into the `project` of a snapshot, and the other trained cells: one may be a start."""
    for name in SHARED:
        (root / name).mkdir(parents=True, exist_ok=True)
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).symlink_to((root / name).resolve(), target_is_directory=True)
    for other in sorted(facts.parent for facts in Places(root).runs.glob("*/run.json")):
        if other.name != cell:
            (Places(project).runs / other.name).symlink_to(other.resolve(), target_is_directory=True)


def configure(root: Path, project: Path) -> None:
    """Let the DVC of the clone that holds `project` use the cache of `root`."""
    from configobj import ConfigObj

    own = dvc_folder(root) / "config.local"
    local = ConfigObj(str(own)) if own.exists() else ConfigObj()
    for name in [name for name in local.sections if name.startswith(("remote", "'remote"))]:
        del local[name]  # no cell needs a remote, and its password may be here
    clone = dvc_folder(project)
    local.filename = str(clone / "config.local")
    local.setdefault("cache", {})["dir"] = str(cache_folder(root))
    local.setdefault("core", {})["site_cache_dir"] = str(clone / "site")  # goes with the snapshot
    local.write()

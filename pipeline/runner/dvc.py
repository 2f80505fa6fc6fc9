"""What the runner needs of DVC: its repository, the run cache, and the repair of what a kill left behind.

The only file that imports below `dvc.repo` and `dvc.exceptions`.
"""

import json
import logging
import re
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.errors import BusyError, ParamsError
from pipeline.process import is_alive

EMPTY = "schema: '2.0'\n"  # a dvc.lock without stages


@contextmanager
def open_repo() -> Iterator[Any]:
    """The DVC repository of the current folder, locked for other DVC processes.

    Raises BusyError when another DVC is at work, ParamsError when DVC cannot read dvc.yaml, and OSError when DVC cannot
    write its notes about files, which are outside of the project.
    """
    from dvc.dirs import site_cache_dir
    from dvc.exceptions import DvcException
    from dvc.lock import LockError
    from dvc.repo import Repo

    try:
        with Repo(_wait_for_lock=True) as repo, repo.lock:
            yield repo
    except LockError as error:
        raise BusyError(f"DVC is at work in this folder: {' '.join(str(error).split())}") from None
    except DvcException as error:
        said = " ".join(str(error).split())
        if "not a git repository" in said or "not a DVC repository" in said:
            raise ParamsError(
                f"{said}. In a copy without .git, such as an unpacked zip, run: git init && git add . && git commit "
                "-m start. Or without git: dvc config core.no_scm true"
            ) from None
        raise ParamsError(f"dvc.yaml: {said} (`dvc status` says more)") from None
    except sqlite3.OperationalError as error:
        remedy = "Free some space there, or name another folder in DVC_SITE_CACHE_DIR."
        raise OSError(f"{site_cache_dir()}: DVC cannot write its notes about files: {error}. {remedy}") from None


def has_result(name: str) -> bool:
    """Whether DVC's run cache has the outputs of the stage `name` for its present inputs."""
    from dvc.exceptions import DvcException

    with open_repo() as repo:
        stage = find(repo, name)
        logging.disable(logging.INFO)  # DVC says that it checks out the outputs, which a dry run does not
        try:
            stage.save_deps()  # notes the present inputs on the stage, in memory
            repo.stage_cache.restore(stage, dry=True)
        except DvcException:
            return False
        finally:
            logging.disable(logging.NOTSET)
    return True


def keep_result(name: str) -> None:
    """Put the outputs of the stage `name`, which has just run, into DVC's run cache.

    DVC does so itself except for a stage with an output of `cache: false`, such as the record of an evaluation.
    """
    with open_repo() as repo:
        repo.stage_cache.save(find(repo, name))


def dvc_folder(root: Path) -> Path:
    """The folder `.dvc` of the repository that holds the project `root`."""
    places = [place / ".dvc" for place in (root.resolve(), *root.resolve().parents)]
    return next((place for place in places if place.is_dir()), places[0])


def cache_folder(root: Path) -> Path:
    """Where the DVC of `root` keeps its cache: as its configuration says, or that of the user or the machine.

    Raises ParamsError when DVC cannot read one of these files.
    """
    from dvc.config import Config, ConfigError

    own = dvc_folder(root)
    try:
        place = Config(str(own)).get("cache", {}).get("dir")
    except ConfigError as error:
        raise ParamsError(" ".join(str(error).split())) from None
    return Path(place or own / "cache").resolve()


def find(repo: Any, name: str) -> Any:
    """DVC's stage `name`."""
    return next(stage for stage in repo.index.stages if stage.addressing == name)


def read_lock(path: Path) -> dict[str, Any]:
    """The stages in a dvc.lock; none where there is no file."""
    from dvc.utils.serialize import load_yaml

    stages: dict[str, Any] = load_yaml(str(path)).get("stages", {}) if path.exists() else {}
    return stages


def write_lock(path: Path, stages: dict[str, Any]) -> None:
    """Write a dvc.lock."""
    from dvc.utils.serialize import dump_yaml

    dump_yaml(str(path), {"schema": "2.0", "stages": stages})


def is_readable_lock(text: str) -> bool:
    """Whether DVC can read `text` as a dvc.lock."""
    from dvc.schema import COMPILED_LOCKFILE_SCHEMA
    from dvc.utils.serialize import YAMLFileCorruptedError, parse_yaml
    from voluptuous import Invalid

    try:
        COMPILED_LOCKFILE_SCHEMA(parse_yaml(text, "dvc.lock"))
    except (YAMLFileCorruptedError, Invalid, UnicodeError):  # the last one for half a letter
        return False
    return True


def drop_dead_readers(folder: Path) -> str:
    """Remove DVC's list of readers and writers in `folder` when it is damaged or names dead processes only; says why.

    DVC looks at their numbers alone, and by now those may be the numbers of other processes, in a container above all.
    """
    from dvc.lock import make_lock

    path = folder / "rwlock"
    if not path.exists():
        return ""
    with make_lock(str(folder / "rwlock.lock"), tmp_dir=str(folder)):  # as DVC does while it writes
        text, written = path.read_text(encoding="utf-8"), path.stat().st_mtime
        processes = {int(number) for number in re.findall(r'"pid": (\d+)', text)}
        try:
            json.loads(text)
        except ValueError:
            why = "damaged by a kill or a full disk"
        else:
            if not processes or any(is_alive(process, written) for process in processes):
                return ""
            why = "left by processes that have ended"
        path.unlink()
        return why

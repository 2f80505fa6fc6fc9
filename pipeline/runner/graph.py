"""What has to run, in which order, and why: DVC's graph and status as plain values."""

import difflib
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any, Literal

from pipeline.errors import BusyError, ParamsError
from pipeline.runner.quick_params import quick_params
from pipeline.settings.stage_names import kind_and_name, short

PARTIAL = ("tables", "compare", "report")  # these leave out what is missing, so they run although cells failed

State = Literal["done", "failed", "skipped", "stopped"]


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A stage as DVC sees it now."""

    needs: tuple[str, ...]  # the stages whose outputs it reads
    inputs: tuple[Path, ...]  # the files and folders it reads
    changes: str  # what is not as in dvc.lock; empty when nothing is


def read_stages(targets: Sequence[str]) -> dict[str, Stage]:
    """The stages that `targets` name and all that these need, each after what it needs; no target: dvc.yaml.

    Raises ParamsError for a target that names nothing, and when DVC cannot read dvc.yaml; BusyError when another DVC
    works on one of the stages.
    """
    from dvc.exceptions import DvcException
    from dvc.lock import LockError

    try:
        with open_repo() as repo:
            graph = repo.index.graph
            found = {stage.addressing: stage for stage in repo.index.stages}
            needs = {
                name: () if stage.frozen else tuple(need.addressing for need in graph.successors(stage))
                for name, stage in found.items()
            }
            names = choose(needs, targets)
            # repo.status(targets=names) would read dvc.yaml again for each name
            with repo.lock, quick_params():
                status = {name: found[name].status().get(name, []) for name in names}
    except LockError as error:
        raise BusyError(f"DVC is at work in this folder: {' '.join(str(error).split())}") from None
    except DvcException as error:
        raise ParamsError(f"dvc.yaml: {' '.join(str(error).split())} (`dvc status` says more)") from None
    return {
        name: Stage(
            needs=needs[name],
            inputs=tuple(Path(dependency.fs_path) for dependency in found[name].deps),
            changes=describe_changes(found[name], status[name]),
        )
        for name in names
    }


@contextmanager
def open_repo() -> Iterator[Any]:
    """This folder as DVC sees it; OSError when DVC cannot write down, outside of it, what it has seen of files."""
    from dvc.dirs import site_cache_dir
    from dvc.repo import Repo

    try:
        with Repo(_wait_for_lock=True) as repo:
            yield repo
    except sqlite3.OperationalError as error:
        remedy = "Free some space there, or name another folder in DVC_SITE_CACHE_DIR."
        raise OSError(f"{site_cache_dir()}: DVC cannot write its notes about files: {error}. {remedy}") from None


def describe_changes(stage: Any, status: list[Any]) -> str:
    """One line for what DVC's status says of `stage`."""
    if not status:
        return ""
    if not any(entry.hash_info for entry in (*stage.deps, *stage.outs)):
        return "has not run yet"
    found: list[str] = []
    for change in status:  # {"changed deps": {path: "modified"}}, {"changed outs": ...}, or "changed command"
        for entries in change.values() if isinstance(change, dict) else ():
            for path, what in entries.items():
                if isinstance(what, dict):  # parameters of one file
                    found += [f"{key} {how}" for key, how in what.items()]
                else:
                    found.append(f"{path} {what}")
        if not isinstance(change, dict):
            found.append(str(change))
    return shorten(found)


def choose(needs: Mapping[str, Sequence[str]], targets: Sequence[str]) -> list[str]:
    """The names that `targets` (names, globs, or the part before the @) match and all they need, in running order.

    What stands in another file than dvc.yaml is meant by its full name, by that file, or where nothing in dvc.yaml is.
    """
    own = [name for name in needs if short(name) == name]
    wanted: list[str] = [] if targets else list(own)
    for target in targets:
        named = [name for name in own if fnmatchcase(name, target) or kind_and_name(name)[0] == target]
        named = named or [name for name in needs if name.startswith(f"{target}:") or fnmatchcase(name, target)]
        named = named or [name for name in needs if fnmatchcase(short(name), target)]
        if not named:
            near = difflib.get_close_matches(target, [*needs, *map(short, needs)], n=1, cutoff=0.5)
            known = sorted({kind_and_name(name)[0] for name in needs})
            raise ParamsError(
                f"dvc.yaml: no stage is called {target!r}; "
                + (f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(known)}")
            )
        wanted += named
    reached: set[str] = set()
    while wanted:
        name = wanted.pop()
        if name not in reached:
            reached.add(name)
            wanted += needs[name]
    return [name for name in TopologicalSorter(needs).static_order() if name in reached]


def outdated(stages: Mapping[str, Stage]) -> dict[str, str]:
    """Why each stage that has to run has to, in the order of `stages` (each after what it needs)."""
    reasons: dict[str, str] = {}
    for name, stage in stages.items():
        before = [need for need in stage.needs if need in reasons]
        if stage.changes:
            reasons[name] = stage.changes
        elif before:
            reasons[name] = f"after {shorten(before)}"
    return reasons


def deepest_first(stages: Mapping[str, Stage]) -> list[str]:
    """The names by their distance from the start, farthest first: a cell is finished before the next one is begun."""
    depth: dict[str, int] = {}
    for name, stage in stages.items():
        depth[name] = 1 + max((depth[need] for need in stage.needs if need in depth), default=0)
    return sorted(stages, key=lambda name: -depth[name])


def verdict(name: str, stages: Mapping[str, Stage], states: Mapping[str, State]) -> Literal["wait", "start", "skip"]:
    """What to do with a stage, given how others ended. What is not in `stages` is up to date."""
    ends = [states.get(need) for need in stages[name].needs if need in stages]
    if None in ends:
        return "wait"
    if all(end == "done" for end in ends):
        return "start"
    return "start" if kind_and_name(name)[0] in PARTIAL and has_results(stages[name]) else "skip"


def has_results(stage: Stage) -> bool:
    """Whether one of the folders that `stage` reads holds at least one result."""
    return any(any(folder.glob("*.json")) for folder in stage.inputs if folder.is_dir())


def shorten(words: Sequence[str], most: int = 3) -> str:
    """The first few of `words`, and how many more there are."""
    more = [f"{len(words) - most} more"] if len(words) > most else []
    return ", ".join([*words[:most], *more])

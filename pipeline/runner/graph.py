"""What has to run, in which order, and why: the graph and the state of DVC as plain values."""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any, Literal

from pipeline.errors import ParamsError
from pipeline.runner.dvc import changes_of, open_repo
from pipeline.settings.stage_names import kind_and_name

PARTIAL = ("tables", "compare", "report")  # these leave out what is missing, so they run even when cells failed

State = Literal["done", "failed", "skipped", "stopped"]


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A stage and its present state."""

    needs: tuple[str, ...]  # the stages whose outputs it reads
    inputs: tuple[Path, ...]  # the files and folders it reads
    changes: str  # what differs from dvc.lock; empty when nothing does


def read_stages(targets: Sequence[str]) -> dict[str, Stage]:
    """The stages that `targets` name and all that these need, each after what it needs; by default all of dvc.yaml.

    Raises ParamsError for a target that names nothing and for a dvc.yaml that DVC cannot read, BusyError when another
    DVC works here.
    """
    with open_repo() as repo:
        graph = repo.index.graph
        found = {stage.addressing: stage for stage in repo.index.stages if is_own(stage.addressing)}
        needs = {
            name: () if stage.frozen else tuple(need.addressing for need in graph.successors(stage))
            for name, stage in found.items()
        }
        names = choose(needs, targets)
        changes = dict(zip(names, changes_of([found[name] for name in names]), strict=True))
    return {
        name: Stage(
            needs=needs[name],
            inputs=tuple(Path(dependency.fs_path) for dependency in found[name].deps),
            changes=describe_changes(found[name], changes[name]),
        )
        for name in names
    }


def is_own(name: str) -> bool:
    """Whether a stage is in the dvc.yaml of this folder: the name of any other begins with its file."""
    return ":" not in name


def describe_changes(stage: Any, changes: Sequence[str]) -> str:
    """One line for what differs from dvc.lock."""
    if changes and not any(entry.hash_info for entry in (*stage.deps, *stage.outs)):
        return "has not run yet"
    return shorten(changes)


def choose(needs: Mapping[str, Sequence[str]], targets: Sequence[str]) -> list[str]:
    """The names that match `targets` (a name, a pattern, or a kind of stage), and all they need, in running order.

    Raises ParamsError with the nearest name for a target that matches nothing.
    """
    wanted: list[str] = [] if targets else list(needs)
    for target in targets:
        named = [name for name in needs if fnmatchcase(name, target) or kind_and_name(name)[0] == target]
        if not named:
            near = difflib.get_close_matches(target, needs, n=1, cutoff=0.5)
            known = sorted({kind_and_name(name)[0] for name in needs})
            hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(known)}"
            raise ParamsError(f"dvc.yaml: no stage is called {target!r}; {hint}")
        wanted += named
    reached: set[str] = set()
    while wanted:
        name = wanted.pop()
        if name not in reached:
            reached.add(name)
            wanted += needs[name]
    return [name for name in TopologicalSorter(needs).static_order() if name in reached]


def outdated(stages: Mapping[str, Stage]) -> dict[str, str]:
    """Why each stage runs that has to, in the order of `stages` (each after what it needs)."""
    reasons: dict[str, str] = {}
    for name, stage in stages.items():
        before = [need for need in stage.needs if need in reasons]
        if stage.changes:
            reasons[name] = stage.changes
        elif before:
            reasons[name] = f"after {shorten(before)}"
    return reasons


def deepest_first(stages: Mapping[str, Stage]) -> list[str]:
    """The names by their distance from the start, farthest first: a cell is finished before the next one starts."""
    depth: dict[str, int] = {}
    for name, stage in stages.items():
        depth[name] = 1 + max((depth[need] for need in stage.needs if need in depth), default=0)
    return sorted(stages, key=lambda name: -depth[name])


def verdict(name: str, stages: Mapping[str, Stage], states: Mapping[str, State]) -> Literal["wait", "start", "skip"]:
    """What to do with a stage, given how others ended. A stage that is missing in `stages` is up to date."""
    ends = [states.get(need) for need in stages[name].needs if need in stages]
    if None in ends:
        return "wait"
    if all(end == "done" for end in ends):
        return "start"
    return "start" if kind_and_name(name)[0] in PARTIAL and has_results(stages[name]) else "skip"


def has_results(stage: Stage) -> bool:
    """Whether one of the folders that `stage` reads has at least one result."""
    return any(any(folder.glob("*.json")) for folder in stage.inputs if folder.is_dir())


def shorten(words: Sequence[str], most: int = 3) -> str:
    """The first few of `words`, and how many more there are."""
    more = [f"{len(words) - most} more"] if len(words) > most else []
    return ", ".join([*words[:most], *more])

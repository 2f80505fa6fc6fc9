"""What has to run, in which order, and why: the graph and the state of DVC as plain values."""

import difflib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from pipeline.errors import ParamsError
from pipeline.runner.dvc import open_repo
from pipeline.settings.stage_names import kind_and_name
from pipeline.settings.yaml import look_up, read_yaml

PARTIAL = ("tables", "compare", "report")  # these leave out what is missing, so they run even when cells failed

State = Literal["done", "failed", "skipped", "stopped"]


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A stage and its present state."""

    needs: tuple[str, ...]  # the stages whose outputs it reads
    inputs: tuple[Path, ...]  # the files and folders it reads
    changes: str  # what differs from dvc.lock; empty when nothing does


def read_stages(targets: Sequence[str], after: Mapping[str, str] = MappingProxyType({})) -> dict[str, Stage]:
    """The stages that `targets` name and all that these need, each after what it needs; by default all of dvc.yaml.

    `after` adds to dvc.yaml: a stage -> another one that it needs.
    Raises ParamsError for a target that names nothing and for a dvc.yaml that DVC cannot read, BusyError when another
    DVC works here.
    """
    with open_repo() as repo:
        graph = repo.index.graph
        own = [stage for stage in repo.index.stages if ":" not in stage.addressing]  # not of another dvc.yaml
        found = {stage.addressing: stage for stage in own}
        needs = {stage.addressing: () if stage.frozen else names_of(graph.successors(stage), found) for stage in own}
        for name, before in after.items():
            if name in needs and before in needs:
                needs[name] = tuple(dict.fromkeys([*needs[name], before]))
        parse = cache(read_params)
        return {
            name: Stage(
                needs=needs[name],
                inputs=tuple(Path(dependency.fs_path) for dependency in found[name].deps),
                changes=shorten(list(changes_of(found[name], parse))),
            )
            for name in choose(needs, targets)
        }


def names_of(stages: Iterable[Any], known: Mapping[str, Any]) -> tuple[str, ...]:
    """The names of `stages`, of those that are `known`."""
    return tuple(stage.addressing for stage in stages if stage.addressing in known)


def changes_of(stage: Any, parse: Callable[[str], Any]) -> Iterator[str]:
    """What DVC's status says of `stage`, a few words for each change.

    DVC parses params.yaml again for each stage: 13 s for 200 cells. So it is asked only about parameters that are not
    as in dvc.lock according to `parse`, which reads a file once. `stage` loses the others of its `deps`.
    """
    has_run = any(entry.hash_info for entry in (*stage.deps, *stage.outs))
    stage.deps = [each for each in stage.deps if not is_recorded(each, stage.params, parse)] or stage.deps
    changes = stage.status().get(stage.addressing, [])
    if changes and not has_run:
        yield "has not run yet"
        return
    for change in changes:  # {"changed deps": {path: "modified"}}, {"changed outs": ...}, or "changed command"
        if not isinstance(change, dict):
            yield str(change)
            continue
        for entries in change.values():
            for path, what in entries.items():
                if isinstance(what, dict):  # the parameters of one file
                    yield from (f"{key} {how}" for key, how in what.items())
                else:
                    yield f"{path} {what}"


def is_recorded(dependency: Any, params: Sequence[Any], parse: Callable[[str], Any]) -> bool:
    """Whether `dependency` is one of `params` and has the values of dvc.lock; also False when only DVC can say."""
    if dependency not in params or not dependency.params or not dependency.hash_info:
        return False
    recorded = dependency.hash_info.value
    values = parse(dependency.fs_path)
    return all(key in recorded and look_up(values, key) == recorded[key] for key in dependency.params)


def read_params(path: str) -> Any:
    """The content of a file of parameters; None when only DVC can read it."""
    try:
        return json.loads(Path(path).read_bytes()) if path.endswith(".json") else read_yaml(Path(path))
    except (OSError, ValueError):
        return None


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

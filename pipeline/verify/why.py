"""What makes a stage stale, in full: each value with the old and the new one, and the lines of the code."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pipeline.errors import ParamsError
from pipeline.runner.dvc import read_lock
from pipeline.runner.graph import outdated, read_params
from pipeline.runner.run import load_settings, read_fresh_stages
from pipeline.settings import code
from pipeline.settings.equivalent import CODE
from pipeline.settings.params import Params
from pipeline.settings.places import Places
from pipeline.settings.yaml import look_up
from pipeline.training.facts import differences
from pipeline.training.provenance import git
from pipeline.verify.code_diff import changed_modules, code_at, file_at

LINES = 60  # of a diff of code that are shown


def run(targets: Sequence[str], places: Places = Places()) -> str:
    """For each stage of `targets` that would run, the reason of `grid plan` and what differs from dvc.lock.

    Raises ParamsError for a mistake in params.yaml or the targets, or when git cannot say what the code was.
    """
    code_lines = CodeLines(load_settings(), places)
    stages = read_fresh_stages(targets)
    locked, lines = read_lock(places.lock), []
    for name, reason in outdated(stages).items():
        lines.append(f"{name}: {reason}")
        if stages[name].changes and name in locked:
            lines += [f"    {line}" for line in changes_of(locked[name], code_lines, places)]
    return "\n".join(lines) or f"up to date: {len(stages)} stages"


def changes_of(entry: Mapping[str, Any], code_lines: "CodeLines", places: Places) -> Iterator[str]:
    """The values and the code of a stage that differ from its `entry` in dvc.lock."""
    for file, recorded in entry.get("params", {}).items():
        values = read_params(str(places.root / file))
        for key, old in recorded.items():
            new = look_up(values, key)
            if file != CODE:
                yield from differences(old, None if type(new) is object else new, key)
            elif isinstance(old, dict) and isinstance(new, dict):  # such as the code of all trainings, for a table
                moved = [cell for cell in old.keys() & new.keys() if old[cell] != new[cell]]
                yield from (line for cell in sorted(moved) for line in code_lines.of(f"{key}.{cell}", old[cell]))
            elif new != old:
                yield from code_lines.of(key, old)


class CodeLines:
    """Finds the lines of the code that differ from an older one. The same lines are returned once."""

    def __init__(self, params: Params, places: Places) -> None:
        self.params, self.places = params, places
        self.found: dict[tuple[str, str, frozenset[str]], tuple[str, list[str]]] = {}

    def of(self, entry: str, recorded: str) -> Iterator[str]:
        """The modules and lines that compute something else for `entry` of code.json than when it was `recorded`."""
        stage, _, name = entry.partition(".")
        key = (stage, recorded, code.choices(self.params, stage, name))
        said, lines = self.found.get(key) or self.compare(*key)
        again = (said, lines) in self.found.values()
        self.found[key] = said, lines
        yield f"code of {entry}: {said}{', as above' if again else ''}"
        yield from () if again else lines

    def compare(self, stage: str, recorded: str, chosen: frozenset[str]) -> tuple[str, list[str]]:
        """What differs from the commit whose code.json has `recorded`, and the lines of the diff, if known."""
        root = self.places.root
        found = git("log", f"-S{recorded}", "--format=%H", "--", CODE, folder=root).split()
        commit = next((each for each in found if recorded in file_at(root, each, self.places.code)), None)
        if commit is None:
            return "no commit has the reports/code.json of dvc.lock, so the lines are unknown", []
        with code_at(root, commit) as before:
            modules = changed_modules(stage, chosen, before, code.ROOT)
        if not modules:
            return f"no module differs from commit {commit[:8]}, or none can be compared; perhaps `columns` does", []
        files = [code.file_of(module, code.ROOT).relative_to(code.ROOT).as_posix() for module in modules]
        try:
            lines = git("diff", commit, "--", *files, folder=code.ROOT).splitlines()
        except ParamsError:  # an installed package is no part of a repository
            lines = []
        if len(lines) > LINES:
            more = f"... {len(lines) - LINES} more lines: git diff {commit[:8]} -- {' '.join(files)}"
            lines = [*lines[:LINES], more]
        return f"since commit {commit[:8]} {' '.join(modules)}", lines

"""Which change moved a number: the values that a cell had in git, and what changed between two of them.

Settings and code are those of dvc.lock in the commit of a record, which DVC wrote when it ran the stages; data,
protocols and environment are those of the record itself. Where a fingerprint is the same, nothing is listed.
"""

import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any

from pipeline.errors import ParamsError
from pipeline.settings.equivalent import CODE
from pipeline.settings.params import load_params, resolve
from pipeline.settings.places import Places
from pipeline.settings.yaml import stage_in
from pipeline.training.facts import differences
from pipeline.training.provenance import git
from pipeline.verify.code_diff import changed_modules, code_at, file_at

SHORT = 8  # digits of a hash that are shown
NOTHING = "nothing that is recorded: another machine, or a training that is not deterministic"


@dataclass(frozen=True)
class Measured:
    """A record of a cell as a commit has it."""

    commit: str
    date: str
    record: dict[str, Any]
    places: Places

    @cached_property
    def lock(self) -> str:
        """The text of dvc.lock in the commit."""
        return file_at(self.places.root, self.commit, self.places.lock)

    @property
    def value(self) -> float:
        """The mean mIoU over the seeds under the first protocol."""
        return fmean(next(iter(protocols.values()))["mIoU"] for protocols in self.record["seeds"].values())

    @property
    def protocol(self) -> dict[str, Any]:
        """The protocol that fills the tables, by its name."""
        return dict([next(iter(self.record["protocols"].items()))])

    def fingerprint(self, kind: str) -> str:
        return str(self.record["fingerprint"].get(kind))

    def stage(self, kind: str) -> dict[str, Any]:
        """The entry of `evaluate`, `train` or `prepare` in dvc.lock; empty where it has none."""
        name = self.record["dataset"] if kind == "prepare" else self.record["cell"]
        return stage_in(self.lock, f"{kind}@{name}")

    def params(self, kind: str) -> dict[str, Any]:
        """The values of params.yaml that a stage ran with."""
        found: dict[str, Any] = self.stage(kind).get("params", {}).get("params.yaml", {})
        return found

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The resolved settings of the cell; empty when the current code cannot read those of dvc.lock."""
        dataset, cell = self.record["dataset"], self.record["cell"]
        flat = self.params("evaluate") | self.params("train")  # older versions: all in evaluate
        with suppress(ParamsError, KeyError, TypeError, AttributeError):
            layers = {"grid": {cell: flat[f"grid.{cell}"]}, "recipes": {dataset: flat[f"recipes.{dataset}"]}}
            settings = asdict(resolve(self.places.params, {**flat, **layers, "datasets": [dataset]}, cell))
            resolved: dict[str, Any] = json.loads(json.dumps(settings))  # lists, as in params.yaml
            return resolved
        return {}

    def code(self, kind: str) -> str:
        """The hash of the code that a stage ran with."""
        known: dict[str, str] = self.stage(kind).get("params", {}).get(CODE, {})
        return next((value for entry, value in known.items() if entry.startswith(f"{kind}.")), "")


def run(cell: str, places: Places = Places()) -> str:
    """The values of `cell` in the commits of this branch, newest first, each with what changed before it.

    Raises ParamsError for an unknown cell, one without a committed record, and a folder without git.
    """
    dataset = load_params(places.params).cell(cell).dataset
    found = list(read_measured(places.record(dataset, cell), places))
    if not found:
        raise ParamsError(
            f"{places.record(dataset, cell)}: no commit has it. Run: grid run readme@{dataset}, and commit."
        )
    lines = [f"{cell}, mIoU, newest first"]
    for after, before in pairwise(found):
        change = 100 * (after.value - before.value)
        lines.append(f"{head(after)}  {f'{change:+.2f}' if after.value != before.value else 'same'}")
        causes = list(causes_of(before, after))
        lines += [f"    {cause}" for cause in causes or ([NOTHING] if after.value != before.value else [])]
    return "\n".join([*lines, f"{head(found[-1])}  first"])


def head(measured: Measured) -> str:
    return f"{measured.commit[:SHORT]}  {measured.date}  {100 * measured.value:.2f} %"


def read_measured(path: Path, places: Places) -> Iterator[Measured]:
    """The records of a cell on this branch, newest first; without those that cannot be read.

    A merged branch is one step, its merge, so that two neighbours always follow each other.
    """
    wanted = ("log", "--first-parent", "--format=%H %cs", "--")
    for line in git(*wanted, path.relative_to(places.root).as_posix(), folder=places.root).splitlines():
        commit, date = line.split()
        with suppress(ValueError, KeyError, TypeError, AttributeError, StopIteration):
            measured = Measured(commit, date, json.loads(file_at(places.root, commit, path)), places)
            measured.value, measured.record["fingerprint"].keys()
            yield measured


def causes_of(before: Measured, after: Measured) -> Iterator[str]:
    """A line for each kind of change between two records."""
    if found := list(settings_between(before, after)):
        yield f"settings: {', '.join(found)}"
    if found := list(data_between(before, after)):
        yield f"data: {', '.join(found)}"
    yield from (f"code: {found}" for found in code_between(before, after))
    old, new = (each.record.get("versions", {}) for each in (before, after))  # older records have none
    if found := differences({name: old[name] for name in old if new}, {name: new[name] for name in new if old}):
        yield f"environment: {', '.join(found)}"


def settings_between(before: Measured, after: Measured) -> Iterator[str]:
    """The settings of the cell that differ, its seeds and the protocol of the table."""
    if before.fingerprint("cell") != after.fingerprint("cell"):
        old, new = before.settings, after.settings
        if not (old and new):
            old, new = before.params("evaluate"), after.params("evaluate")
        yield from differences(old, new) or [changed("fingerprint", before, after, "cell")]
    one, other = ({"seeds": " ".join(each.record["seeds"]), "protocol": each.protocol} for each in (before, after))
    yield from differences(one, other)


def data_between(before: Measured, after: Measured) -> Iterator[str]:
    """The manifest of the prepared data, and which of its files and settings differ."""
    if before.fingerprint("data") == after.fingerprint("data"):
        return
    manifest = after.places.manifest(after.record["dataset"])
    yield changed(manifest.relative_to(after.places.root).as_posix(), before, after, "data")
    outs = (each.stage("prepare").get("outs", []) for each in (before, after))
    old, new = ({out["path"]: out.get("md5") for out in each} for each in outs)
    packed = ("images.bin", "image_files.txt", "masks.bin")
    yield from (path for path in new if path.endswith(packed) and old and old.get(path) != new[path])
    yield from differences(before.params("prepare"), after.params("prepare"))
    yield from differences(before.record["images"], after.record["images"], "images")


def code_between(before: Measured, after: Measured) -> Iterator[str]:
    """The entries of reports/code.json that differ, each with the modules that compute something else."""
    for kind in ("prepare", "train", "evaluate"):
        old, new = before.code(kind), after.code(kind)
        if kind == "train" and not (old and new):  # without an entry in dvc.lock the record is left
            old, new = before.fingerprint("code"), after.fingerprint("code")
        same_data = before.fingerprint("data") == after.fingerprint("data")
        if old == new or not (old and new) or (kind == "prepare" and same_data):
            continue
        of_data = kind == "prepare"
        named = frozenset(words([each.params(kind) if of_data else each.settings for each in (before, after)]))
        with code_at(after.places.root, before.commit) as one, code_at(after.places.root, after.commit) as other:
            modules = changed_modules(kind, named, one, other)
        if modules is None:
            yield f"{kind} ({old[:SHORT]} -> {new[:SHORT]})"
        elif modules:  # otherwise the settings name other code
            yield f"{kind}: {' '.join(modules)}"


def changed(what: str, before: Measured, after: Measured, kind: str) -> str:
    return f"{what} ({before.fingerprint(kind)[:SHORT]} -> {after.fingerprint(kind)[:SHORT]})"


def words(value: Any) -> Iterator[str]:
    """All texts in nested settings: among them the names of loss, backbone, format and transforms.

    And the names of the settings that choose code by being there.
    """
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list | tuple):
        yield from (key for key in ("folds", "init") if isinstance(value, dict) and value.get(key))
        for each in value.values() if isinstance(value, dict) else value:
            yield from words(each)

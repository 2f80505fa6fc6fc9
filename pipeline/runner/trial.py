"""Train a cell with other settings beside the recorded one: an experiment of DVC in a copy of the folder.

params.yaml, the tables and this folder's dvc.lock stay as they are. `dvc exp show` lists the experiments.
"""

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from deeplab.config import AugmentConfig, Cell, ModelConfig, RecipeConfig, TrainConfig
from deeplab.errors import DataError
from pipeline.errors import ParamsError
from pipeline.runner.checks import check_names
from pipeline.runner.dvc import dvc_folder
from pipeline.runner.local import environment
from pipeline.settings.messages import unknown
from pipeline.settings.params import as_params, load_params
from pipeline.settings.places import Places
from pipeline.settings.yaml import read_yaml

SECTIONS = {"recipe": RecipeConfig, "model": ModelConfig, "train": TrainConfig, "augment": AugmentConfig}
IN_ROW = ("backbone", "output_stride", "pretrained")  # of `model`, and written in the row itself


def run(cell: str, settings: Sequence[str], places: Places = Places()) -> str:
    """Train and evaluate `cell` with `settings`, such as `lr=0.02`. Returns its scores beside the recorded ones.

    Raises ParamsError for an unknown cell or key and a wrong value, DataError when the data is not prepared or the
    experiment fails.
    """
    values = [parse(setting) for setting in settings]
    dataset = check(cell, values, places)
    if not places.manifest(dataset).exists():
        raise DataError(f"{places.manifest(dataset)}: not found. Run: grid run prepare@{dataset}")
    name, top = name_of(cell, settings), dvc_folder(places.root).parent
    here = places.root.resolve().relative_to(top)  # DVC copies paths that are relative to its root
    command = [sys.executable, "-m", "dvc", "exp", "run", "--temp", "--name", name, f"{here}/dvc.yaml:evaluate@{cell}"]
    for key, value in values:
        command += ["--set-param", f"{here}/params.yaml:++grid.{cell}.{key}={as_override(value)}"]
    for path in copied(load_params(places.params).cell(cell), places):
        command += ["--copy-paths", str(here / path.relative_to(places.root))]
    if subprocess.run(command, cwd=top, env=environment({}), check=False).returncode:
        raise DataError(f"{name}: the experiment failed (see above)")
    return compare(cell, name, places)


def parse(setting: str) -> tuple[str, Any]:
    """`lr=0.02` as ("recipe.lr", 0.02): where the row of a cell has the key, and the value as YAML.

    Raises ParamsError for a key that no section has, or several have.
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    key, equals, text = setting.partition("=")
    if not equals or not text:
        raise ParamsError(f"{setting}: expected key=value, such as lr=0.02")
    try:
        value = YAML(typ="safe").load(text)
    except YAMLError:
        raise ParamsError(f"{setting}: the value is not YAML") from None
    known = {f"{section}.{field.name}" for section, kind in SECTIONS.items() for field in fields(kind)}
    short = {name.partition(".")[2]: name for name in known}
    full = key if key in known else short.get(key)
    if full is None:
        raise ParamsError(f"{setting}: {unknown(key, sorted({*short, *known}))}")
    return full.removeprefix("model.") if full.partition(".")[2] in IN_ROW else full, value


def check(cell: str, values: Sequence[tuple[str, Any]], places: Places) -> str:
    """Raise ParamsError when `cell` could not have these `values`. Returns its data set."""
    params, raw = load_params(places.params), read_yaml(places.params)
    dataset = params.cell(cell).dataset
    row = raw["grid"][cell]
    for key, value in values:
        section, _, name = key.rpartition(".")
        (row.setdefault(section, {}) if section else row)[name] = value
    changed = as_params(places.params, raw)
    if changed.cell(cell) == params.cell(cell):
        raise ParamsError(f"{cell}: has these settings already. `grid run evaluate@{cell}` trains it.")
    check_names(changed)
    return dataset


def as_override(value: Any) -> str:
    """`value` as Hydra reads it: without quotes around keys, and with a backslash as it is."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{as_override(each)}" for key, each in value.items()) + "}"
    return json.dumps(value, ensure_ascii=False).replace("\\\\", "\\")


def name_of(cell: str, settings: Sequence[str]) -> str:
    """A name for the experiment that is new, of letters, digits, dots and dashes."""
    words = [cell, *settings, time.strftime("%m%d-%H%M%S")]
    return re.sub(r"[^A-Za-z0-9.]+", "-", "-".join(words)).replace("..", ".")


def copied(cell: Cell, places: Places) -> Iterator[Path]:
    """What git ignores and the experiment needs."""
    found = [places.store(cell.dataset), places.download(cell.dataset).parent, places.pretrained]
    if cell.init and cell.init.cell:
        found.append(places.run(cell.init.cell))
    if cell.init and cell.init.file and (start := with_its_folder(Path(cell.init.file), places)):
        found += [start] if not {start, *start.parents} & set(found) else []
    yield from filter(Path.exists, found)


def with_its_folder(file: Path, places: Places) -> Path | None:
    """What to copy for the `file` that a cell starts from: its folder, which DVC does not make for a file alone.

    None for a file that the copy has, because it is committed or named from the root of the machine.
    """
    path = places.root / file
    if file.is_absolute() or ".." in file.parts or is_tracked(path, places):
        return None
    has_folder = path.parent in (places.root, places.data) or is_tracked(path.parent, places)
    return path if path.is_dir() or has_folder else path.parent


def is_tracked(path: Path, places: Places) -> bool:
    """Whether git knows a file at or below `path`."""
    command = ["git", "ls-files", "--", str(path.absolute())]
    return bool(subprocess.run(command, cwd=places.root, capture_output=True, check=False).stdout)


def compare(cell: str, name: str, places: Places) -> str:
    """The scores of the experiment `name` beside those that are here."""
    from dvc.api import read

    path, top = places.metrics(cell), dvc_folder(places.root).parent
    tried = json.loads(read(path.resolve().relative_to(top).as_posix(), repo=str(top), rev=name))
    own = json.loads(path.read_bytes()) if path.exists() else {}
    width = max(map(len, tried))
    lines = [f"{'':{width}}  {'recorded':>10}  {'tried':>10}"]
    for key, value in tried.items():
        if isinstance(value, float):
            before = f"{own[key]:10.4f}" if key in own else f"{'-':>10}"
            lines.append(f"{key:{width}}  {before}  {value:10.4f}")
    return "\n".join([*lines, f"experiment {name}; `dvc exp show` lists all, `dvc exp remove {name}` forgets it"])

"""Code as an input of a stage: a hash of everything that the stage can run for one cell or data set.

The hash covers the module of the stage and all that it imports, directly or not, with these exceptions:

- what computes nothing does not count: comments, layout, docstrings, names of files, import statements, annotations of
  functions, arguments of `raise`, calls of `print`;
- of a dictionary of choices (CHOICES) only the entries count that the cell or data set names, so that a new loss,
  format, backbone or transform changes no other cell;
- modules that carry values and messages (EDGES) are left out, and so is what a stage only reports (REPORTED).

`check` writes the hashes to reports/code.json, from which DVC reads them as parameters of the stages. The same code has
the same hash on every version of Python and in every folder.
"""

import ast
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any

from deeplab.config import Cell, digest
from pipeline.settings.equivalent import oldest, read_equivalences
from pipeline.settings.params import Params
from pipeline.settings.places import Places

ROOT = Path(__file__).parents[2]  # holds the packages `deeplab` and `pipeline`
CHOICES = frozenset(
    {"AUGMENTATIONS", "BACKBONES", "CLASS_WEIGHTS", "DIVISIONS", "FORMATS", "LOSSES", "MEASURES", "STARTS"}
)
EDGES = frozenset(
    {
        "deeplab.config",
        "deeplab.errors",
        "pipeline.errors",
        "pipeline.files",
        "pipeline.process",
        "pipeline.progress",
        "pipeline.settings.code",
        "pipeline.settings.equivalent",
        "pipeline.settings.messages",
        "pipeline.settings.params",
        "pipeline.settings.places",
        "pipeline.settings.schema",
        "pipeline.settings.stage_names",
        "pipeline.settings.yaml",
        "pipeline.tracking.client",
        "pipeline.tracking.live",
        "pipeline.training.facts",
        "pipeline.training.launch",
        "pipeline.training.parent",
        "pipeline.training.provenance",
        "pipeline.training.reuse",
    }
)  # a name stands for all modules below it, too
# Validation during training, the states that it keeps and departures from the recipe decide nothing.
VALIDATION = frozenset({"deeplab.inference", "deeplab.metrics"})
REPORTED = {"train": VALIDATION | {"deeplab.spots", "pipeline.settings.published"}}
SELECTION = "selection"  # among the chosen entries: validations choose the weights, so VALIDATION counts
PER_DATASET = ("download", "prepare", "extend")
PER_CELL = ("train", "evaluate")
FOR_ALL = ("tables", "compare", "readme", "report")

Hashes = dict[str, Any]  # stage -> hash, or stage -> cell or data set -> hash


def entries(params: Params, places: Places) -> dict[str, str]:
    """The hash of each stage, by the keys that dvc.yaml uses: `train.CELL`, `prepare.DATASET`, `tables`."""
    found = {
        f"{stage}.{name}": code_of(stage, params, places, name)
        for stage in PER_DATASET
        for name in (params.eval_splits if stage == "extend" else params.datasets)
    }
    found |= {f"{stage}.{name}": code_of(stage, params, places, name) for stage in PER_CELL for name in params.cells}
    return found | {stage: code_of(stage, params, places) for stage in FOR_ALL}


def nested(flat: Mapping[str, str]) -> Hashes:
    """The content of reports/code.json, of which DVC reads `a.b` as the key b of a."""
    found: Hashes = {}
    for entry, value in flat.items():
        stage, _, name = entry.partition(".")
        if name:
            found.setdefault(stage, {})[name] = value
        else:
            found[stage] = value
    return found


def code_of(stage: str, params: Params, places: Places, name: str = "") -> str:
    """The hash of the code of `stage` for the cell or data set `name`.

    Code that was proven equivalent to older code (pipeline/settings/equivalent.py) has the hash of the oldest one. The
    training of a cell that starts from another one depends on what that one depends on, and an evaluation on further
    splits on their names: dvc.yaml cannot say so for some rows only.
    """
    equivalent = read_equivalences(places.equivalent_code)
    now = oldest(hash_of(stage, choices(params, stage, name)), equivalent)
    if stage == "tables" and params.columns:  # dvc.yaml cannot name a key that params.yaml may lack
        now = oldest(digest([now, params.columns]), equivalent)
    if stage == "evaluate" and (further := params.further(params.cell(name).dataset)):
        return oldest(digest([now, *further]), equivalent)
    init = params.cell(name).init if stage == "train" else None
    if init is None or init.cell is None:
        return now
    parent = params.cell(init.cell)
    data = replace(params.dataset(parent.dataset), title="", archives=())  # they prepare nothing again
    needs = [code_of("train", params, places, init.cell), code_of("prepare", params, places, parent.dataset)]
    return oldest(digest([now, parent.fingerprint, digest(asdict(data)), *needs]), equivalent)


def choices(params: Params, stage: str, name: str) -> frozenset[str]:
    """The entries of CHOICES that `stage` of `name` can use."""
    if stage in PER_DATASET:
        return frozenset({params.dataset(name).format})
    asked = frozenset(params.columns) if stage == "evaluate" else frozenset()  # those of MEASURES cost an evaluation
    return chosen_by(params.cell(name)) | asked if stage in PER_CELL else frozenset()


def chosen_by(cell: Cell) -> frozenset[str]:
    """The entries of CHOICES that a cell names, and SELECTION if its validations choose the weights."""
    losses = (*cell.train.losses, cell.train.class_weights or "")
    more = (
        *getattr(cell.augment, "transforms", ()),
        *(("init",) if cell.init else ()),
        *(("folds",) if cell.recipe.folds else ()),
    )
    return frozenset({cell.model.backbone, *losses, *more, *((SELECTION,) if cell.train.validates else ())})


def hash_of(stage: str, chosen: frozenset[str]) -> str:
    """SHA-256 over the modules that `stage` can run with the entries `chosen`."""
    modules = modules_of(stage, chosen, ROOT)
    return hashlib.sha256("\n".join(sorted(modules.values())).encode()).hexdigest()


def modules_of(stage: str, chosen: frozenset[str], root: Path) -> dict[str, str]:
    """Module -> hash of what it computes, for all that `stage` can run with the entries `chosen`.

    root: the folder with the packages `deeplab` and `pipeline`.
    """
    left_out = REPORTED.get(stage, frozenset()) - (VALIDATION if SELECTION in chosen else frozenset())
    found: dict[str, str] = {}
    waiting = [f"pipeline.stages.{stage}"]
    while waiting:
        module = waiting.pop()
        if module not in found and module not in left_out and not is_edge(module):
            file = file_of(module, root)
            found[module], imported = read_module(file, chosen, root, state_of(file))
            waiting += imported
    return found


def is_edge(module: str) -> bool:
    """Whether `module` is one of EDGES or below one."""
    return any(module == edge or module.startswith(f"{edge}.") for edge in EDGES)


def state_of(file: Path) -> tuple[tuple[int, int], ...]:
    """Changes when the `file` of a module, or a file beside it that is no module, does."""
    beside = (path for path in file.parent.iterdir() if path.is_file() and path.suffix != ".py")
    states = [path.stat() for path in (file, *sorted(beside))]
    return tuple((state.st_mtime_ns, state.st_size) for state in states)


@cache
def read_module(file: Path, chosen: frozenset[str], root: Path, _state: object) -> tuple[str, tuple[str, ...]]:
    """The hash of what `file` computes with the entries `chosen`, and the modules below `root` that it uses."""
    tree = ast.parse(file.read_bytes())
    imports = dict(read_imports(tree, root))
    tree = Computation(chosen).visit(tree)
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    digest = hashlib.sha256(ascii(canonical(tree)).encode())
    for data in data_files(tree, file.parent):
        digest.update(data.read_bytes())
    return digest.hexdigest(), tuple(sorted({target for name, target in imports.items() if name in used}))


def read_imports(tree: ast.AST, root: Path) -> Iterator[tuple[str, str]]:
    """The names that `tree` imports, and for each the module of this project that it is or comes from."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and is_ours(node.module):
            for alias in node.names:
                below = f"{node.module}.{alias.name}"
                yield alias.asname or alias.name, below if file_of(below, root).exists() else node.module
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if is_ours(alias.name):
                    yield alias.asname or alias.name.partition(".")[0], alias.name


def is_ours(module: str) -> bool:
    """Whether `module` belongs to this project."""
    return module.partition(".")[0] in ("deeplab", "pipeline")


def file_of(module: str, root: Path) -> Path:
    """The file of a module or of a package below `root`."""
    path = root / module.replace(".", "/")
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def data_files(tree: ast.AST, folder: Path) -> list[Path]:
    """The files beside a module that its code names, such as templates."""
    names = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    return sorted(path for path in folder.iterdir() if path.name in names and path.suffix != ".py" and path.is_file())


class Computation(ast.NodeTransformer):
    """Leaves of a module what it computes, given the entries of CHOICES that are `chosen`."""

    def __init__(self, chosen: frozenset[str]) -> None:
        self.chosen = chosen

    def visit_Import(self, _: ast.Import) -> None:
        return None

    def visit_ImportFrom(self, _: ast.ImportFrom) -> None:
        return None

    def visit_If(self, node: ast.If) -> ast.AST | None:
        if isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            return None
        return self.generic_visit(node)

    def visit_Raise(self, node: ast.Raise) -> ast.AST:
        if isinstance(node.exc, ast.Call):
            node.exc.args, node.exc.keywords = [], []
        return self.generic_visit(node)

    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        value = node.value
        if isinstance(value, ast.Constant):  # a docstring
            return None
        if isinstance(value, ast.Call) and isinstance(value.func, ast.Name) and value.func.id == "print":
            return None
        return self.generic_visit(node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.returns = None
        for local in ast.walk(node):
            if isinstance(local, ast.AnnAssign):
                local.annotation = ast.Constant(None)
        return self.generic_visit(node)

    def visit_arg(self, node: ast.arg) -> ast.AST:
        node.annotation = None
        return node

    def visit_Assign(self, node: ast.Assign | ast.AnnAssign) -> ast.AST:
        """Remove what is not chosen from a dictionary of CHOICES."""
        target, value = node.targets[0] if isinstance(node, ast.Assign) else node.target, node.value
        if isinstance(target, ast.Name) and target.id in CHOICES and isinstance(value, ast.Dict):
            kept = [
                (key, entry)
                for key, entry in zip(value.keys, value.values, strict=True)
                if isinstance(key, ast.Constant) and key.value in self.chosen
            ]
            value.keys, value.values = [key for key, _ in kept], [entry for _, entry in kept]
        return self.generic_visit(node)

    visit_AnnAssign = visit_Assign  # noqa: N815  named by ast


def canonical(node: Any) -> Any:
    """A syntax tree as nested tuples, equal on every version of Python."""
    if isinstance(node, ast.JoinedStr):  # 3.12 splits the text between two values, 3.11 does not
        return "JoinedStr", *join_text(node.values)
    if isinstance(node, ast.AST):
        values = ((name, canonical(getattr(node, name, None))) for name in node._fields if name not in ("ctx", "kind"))
        return type(node).__name__, *(pair for pair in values if pair[1] not in (None, ()))  # 3.12 and 3.13 add fields
    if isinstance(node, list):
        return tuple(canonical(each) for each in node)
    return None if node is None else ascii(node)


def join_text(values: list[ast.expr]) -> Iterator[Any]:
    """The parts of an f-string, neighbouring texts as one. Python 3.12.1 ends a nested format with an empty text."""
    for is_text, parts in groupby(values, key=lambda value: isinstance(value, ast.Constant)):
        if is_text:
            text = "".join(str(part.value) for part in parts if isinstance(part, ast.Constant))
            yield from (ascii(text),) if text else ()
        else:
            yield from map(canonical, parts)

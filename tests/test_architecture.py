"""The structure that a reader may rely on: each folder is one concern, imports go one way, and dvc.yaml stays short."""

import ast
import re
from dataclasses import fields
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from pipeline.settings.schema import DatasetConfig

ROOT = Path(__file__).parents[1]
STAGES = {
    name: stage.get("do", stage)
    for name, stage in YAML(typ="safe").load((ROOT / "dvc.yaml").read_text())["stages"].items()
}
# From top to bottom: a part imports from the rows below its own, and from nothing else.
ORDER = [
    {"pipeline.__main__"},
    {"pipeline.cli"},
    {"pipeline.stages", "pipeline.cluster", "pipeline.verify"},
    {"pipeline.runner", "pipeline.tracking"},
    {"pipeline.page"},
    {"pipeline.predict"},
    {"pipeline.results"},
    {"pipeline.data", "pipeline.training", "pipeline.pictures"},
    {"pipeline.settings"},
    {"pipeline.files"},
    {"pipeline.errors", "pipeline.progress", "pipeline.markdown"},
    {"pipeline.process"},
    {"deeplab"},
]
FILES = sorted([*(ROOT / "deeplab").rglob("*.py"), *(ROOT / "pipeline").rglob("*.py")])


def module_of(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_of(path): ast.parse(path.read_text()) for path in FILES}


def part_of(module):
    """The folder or file of `pipeline` that a module belongs to, or the library."""
    return module if module == "pipeline" else ".".join(module.split(".")[: 1 if module.startswith("deeplab") else 2])


def imports(tree, typing=True):
    """The modules of this project that a module imports, anywhere in it; without those for type checkers if asked."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.ImportFrom):
            found = {f"{node.module}.{alias.name}" for alias in node.names} & MODULES.keys()
            yield from found or {node.module} & MODULES.keys()
        elif isinstance(node, ast.Import):
            yield from {alias.name for alias in node.names} & MODULES.keys()
        elif typing or not (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"):
            yield from imports(node, typing)


def test_imports_go_down():
    rows = {part: row for row, parts in enumerate(ORDER) for part in parts}
    arrows = {(module, other) for module, tree in MODULES.items() for other in imports(tree)}
    parts = {(module, other): (part_of(module), part_of(other)) for module, other in arrows if module != "pipeline"}
    assert not [
        f"{a} imports {b}" for (a, b), (here, there) in parts.items() if here != there and rows[there] <= rows[here]
    ]


def test_no_circle_is_imported():
    TopologicalSorter({module: set(imports(tree, typing=False)) for module, tree in MODULES.items()}).prepare()


def test_folders_stay_small_and_say_what_they_are_for():
    top = [path for path in (ROOT / "pipeline").iterdir() if path.name != "__pycache__"]
    assert len([path for path in top if path.is_dir()]) <= 12
    assert len([path for path in top if path.suffix == ".py"]) <= 8
    for folder in {path.parent for path in FILES if path.parent.name != "deeplab"}:
        own = [path for path in folder.iterdir() if path.name not in ("__init__.py", "__pycache__")]
        assert len(own) <= (20 if folder.name == "pipeline" else 13), folder
        assert ast.get_docstring(ast.parse((folder / "__init__.py").read_text())), folder


def test_functions_stay_short():
    """At most 60 lines and 7 parameters, beside `self`."""
    long = []
    for module, tree in MODULES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                own = node.args.posonlyargs + node.args.args + node.args.kwonlyargs
                count = len([argument for argument in own if argument.arg not in ("self", "cls")])
                lines = node.end_lineno - node.lineno + 1
                long += [f"{module}.{node.name}: {lines} lines, {count} parameters"] * (lines > 60 or count > 7)
    assert not long


def test_modules_stay_short():
    assert not [path for path in FILES if len(path.read_text().splitlines()) > 300]


def test_nothing_is_unpickled():
    unsafe = re.compile(r"weights_only=False|pickle\.load|torch\.hub|allow_pickle=True")
    assert not [path for path in FILES if unsafe.search(path.read_text())]


def test_the_library_does_not_know_the_tools_of_the_pipeline():
    tools = re.compile(
        r"^\s*(?:from|import) (?:pipeline|dvc|mlflow|yaml|ruamel|pandas|matplotlib|argparse|typer)\b", re.M
    )
    assert not [path for path in FILES if module_of(path).startswith("deeplab") and tools.search(path.read_text())]


def test_one_file_imports_below_the_public_face_of_dvc():
    below = re.compile(r"^\s*(?:from|import) dvc(?!\.(?:api|repo|exceptions) import)\b", re.M)
    assert [module_of(path) for path in FILES if below.search(path.read_text())] == ["pipeline.runner.dvc"]


def test_only_tracking_imports_mlflow():
    users = {
        part_of(module_of(path)) for path in FILES if re.search(r"^\s*(?:from|import) mlflow", path.read_text(), re.M)
    }
    assert users == {"pipeline.tracking"}


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_is_one_short_command_and_its_code_an_input(stage):
    body = STAGES[stage]
    name = "" if stage in ("check", "report") else " ${key}"
    assert body["cmd"] == f"python -m pipeline.stages.{stage}{name}"
    assert not [dep for dep in body.get("deps", []) if dep.endswith(".py")]
    if stage != "check":
        own = f"{stage}.${{key}}" if stage in ("download", "prepare", "extend", "train", "evaluate") else stage
        named = [param["reports/code.json"] for param in body["params"] if isinstance(param, dict)]
        assert own in named[0]


def test_only_names_are_pasted_into_commands_and_paths():
    """DVC pastes unquoted: any other value could run a command or make DVC delete a folder."""
    allowed = {"key", "item.dataset", "grid", "datasets", "eval_splits"}
    assert set(re.findall(r"\$\{([^}]*)\}", (ROOT / "dvc.yaml").read_text())) <= allowed


def test_raw_data_is_no_output_of_a_stage():
    """DVC deletes outputs before it runs a stage, and would delete a user's own or linked data."""
    for stage in STAGES.values():
        for out in (out for kind in ("outs", "metrics", "plots") for out in stage.get(kind, [])):
            path = out if isinstance(out, str) else next(iter(out))
            assert not path.startswith(("data/raw", "data/archives"))


def test_another_address_of_an_archive_or_another_title_prepares_nothing_again():
    params = {param for param in STAGES["prepare"]["params"] if str(param).startswith("datasets")}
    used = {field.name for field in fields(DatasetConfig)} - {"title", "archives"}
    assert params == {f"datasets.${{key}}.{name}" for name in used}


def test_no_stage_depends_on_the_runtime_settings():
    for stage in STAGES.values():
        assert not any(str(param).startswith("runtime") for param in stage.get("params", []))


def test_dvc_finds_no_pipeline_inside_the_code():
    """DVC reads every dvc.yaml of a repository, so a template must have another name."""
    assert not [*(ROOT / "pipeline").rglob("dvc.yaml"), *(ROOT / "pipeline").rglob("*.dvc")]

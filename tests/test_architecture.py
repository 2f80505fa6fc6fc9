"""The structure that a reader may rely on: data flows one way, and dvc.yaml names what each stage runs."""

import ast
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from pipeline.data.formats import FORMATS
from pipeline.settings.schema import DatasetConfig

ROOT = Path(__file__).parents[1]
# One stage for each data set or cell, but for the last, which is one for all.
STAGES = {
    name: stage.get("do", stage)
    for name, stage in YAML(typ="safe").load((ROOT / "dvc.yaml").read_text())["stages"].items()
}

# They carry values and messages and compute no number, so a change in them makes nothing stale.
EDGES = {
    "pipeline/__init__.py", "pipeline/data/formats/__init__.py", "deeplab/__init__.py", "deeplab/config.py",
    "deeplab/errors.py", "pipeline/errors.py", "pipeline/settings/params.py", "pipeline/process.py", "pipeline/progress.py",
    "pipeline/training/provenance.py", "pipeline/tracking/client.py", "pipeline/tracking/live.py", "pipeline/settings/folder_options.py",
    "pipeline/settings/slurm_options.py", "pipeline/settings/archive_options.py", "pipeline/training/launch.py", "pipeline/files.py",
}  # fmt: skip


def imports(path):
    """The project's files that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            continue
        for name in names:
            file = ROOT / (name.replace(".", "/") + ".py")
            package = ROOT / name.replace(".", "/") / "__init__.py"
            found |= {str(f.relative_to(ROOT)) for f in (file, package) if f.exists()}
    return found


def runs(path):
    """All of the project's files that running `path` can import."""
    seen, waiting = set(), {path}
    while waiting:
        file = waiting.pop()
        seen.add(file)
        # What an edge imports is its own business: the mirror, say, runs as another process.
        waiting |= set() if file in EDGES else imports(ROOT / file) - seen
    return seen


def modules(folder):
    return sorted((ROOT / folder).rglob("*.py"))


@pytest.mark.parametrize("path", modules("deeplab"), ids=lambda path: path.name)
def test_the_library_knows_nothing_of_the_pipeline_and_its_tools(path):
    forbidden = {"pipeline", "dvc", "mlflow", "yaml", "ruamel", "pandas", "matplotlib", "argparse"}
    for node in ast.walk(ast.parse(path.read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module] if isinstance(node, ast.ImportFrom) else []
        assert not {name.partition(".")[0] for name in names} & forbidden


@pytest.mark.parametrize("path", modules("deeplab") + modules("pipeline"), ids=lambda path: path.name)
def test_a_module_has_fewer_than_300_lines(path):
    assert len(path.read_text().splitlines()) <= 300


@pytest.mark.parametrize("path", modules("deeplab") + modules("pipeline"), ids=lambda path: path.name)
def test_nothing_is_unpickled(path):
    assert not re.search(r"weights_only=False|pickle\.load|torch\.hub|allow_pickle=True", path.read_text())


@pytest.mark.parametrize("stage", STAGES)
def test_dvc_lists_every_file_that_a_stage_runs_and_no_other(stage):
    body = STAGES[stage]
    script = "pipeline/" + re.match(r"python -m pipeline\.(\w+)", body["cmd"])[1] + ".py"
    needed = runs(script) - EDGES
    listed = {dep for dep in body["deps"] if dep.endswith(".py")}
    if stage == "prepare":  # the format is chosen by name
        formats = {f"pipeline/data/formats/{name}.py" for name in FORMATS}
        assert "pipeline/data/formats/${item.format}.py" in listed
        listed.remove("pipeline/data/formats/${item.format}.py")
        needed |= set().union(*(runs(file) for file in formats)) - EDGES - formats
    if stage == "train":  # validation while training and departures from the recipe are reported and decide nothing
        needed -= {"deeplab/inference.py", "deeplab/metrics.py", "pipeline/settings/published.py"}
    assert listed == needed


def test_the_code_fingerprint_covers_the_library_files_of_the_train_stage():
    from pipeline.training.provenance import TRAINING_CODE

    listed = {dep for dep in STAGES["train"]["deps"] if dep.startswith("deeplab/")}
    assert listed == {f"deeplab/{name}.py" for name in TRAINING_CODE}


def test_only_names_are_pasted_into_commands_and_paths():
    """DVC pastes unquoted: any other value could run a command or make DVC delete a folder."""
    allowed = {"key", "item.dataset", "item.format", "grid", "datasets"}
    assert set(re.findall(r"\$\{([^}]*)\}", (ROOT / "dvc.yaml").read_text())) <= allowed


def test_raw_data_is_no_out_of_a_stage():
    """DVC deletes outs before it runs a stage, and a user's own or linked data with them."""
    for stage in STAGES.values():
        for out in (out for kind in ("outs", "metrics", "plots") for out in stage.get(kind, [])):
            path = out if isinstance(out, str) else next(iter(out))
            assert not path.startswith(("data/raw", "data/archives"))


def test_a_moved_archive_or_another_title_prepares_nothing_again():
    params = {param for param in STAGES["prepare"]["params"] if param.startswith("datasets")}
    used = {field.name for field in fields(DatasetConfig)} - {"title", "archives"}
    assert params == {f"datasets.${{key}}.{name}" for name in used}


def test_no_stage_depends_on_the_runtime_settings():
    for stage in STAGES.values():
        assert not any(param.startswith("runtime") for param in stage.get("params", []))


@pytest.mark.parametrize(
    "command", [path.stem for path in modules("pipeline") if "run_command(main)" in path.read_text()]
)
def test_help_is_quick_and_imports_nothing_heavy(command):
    code = (
        f"import sys, runpy; sys.argv = ['{command}', '--help']\n"
        f"try: runpy.run_module('pipeline.{command}', run_name='__main__')\n"
        f"except SystemExit: pass\n"
        f"heavy = {{'torch', 'mlflow', 'pandas', 'cv2', 'dvc', 'matplotlib', 'scipy', 'timm'}} & set(sys.modules)\n"
        f"sys.exit(f'imports {{heavy}}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "usage:" in done.stdout

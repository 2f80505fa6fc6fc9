"""What the code may not contain, whatever it looks like: read from its syntax tree."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted(path for name in ("deeplab", "pipeline") for path in (ROOT / name).rglob("*.py"))
MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "yaml"}
CALLS = {
    "eval", "exec", "compile", "__import__", "os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput",
    "torch.hub.load", "torch.hub.load_state_dict_from_url", "torch.hub.download_url_to_file", "tempfile.mktemp",
    "shutil.unpack_archive", "pandas.read_pickle", "pd.read_pickle", "tarfile.TarFile.extractall",
}  # fmt: skip
METHODS = {"extractall", "extract", "load_model_pickle", "read_pickle"}
ALLOWED = {
    ("deeplab/checkpoint.py", "pickle.UnpicklingError"),  # what torch raises when it refuses a file
    ("pipeline/verify/toolboxes/checkpoint.py", "pickle.UnpicklingError"),
}


def found_in(text, file="a.py"):
    """The forbidden things in the source `text`, with their lines."""
    tree = ast.parse(text)
    found = []
    for node in ast.walk(tree):
        line = getattr(node, "lineno", 0)
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            found += [(line, name) for name in names if name.partition(".")[0] in MODULES]
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        words = {word.arg: ast.unparse(word.value) for word in node.keywords}
        if called in CALLS or called.rpartition(".")[2] in METHODS:
            found.append((line, called))
        if words.get("shell", "False") != "False" or words.get("allow_pickle", "False") != "False":
            found.append((line, f"{called} with {words}"))
        if called in ("torch.load", "load") and words.get("weights_only") != "True" and "torch" in called:
            found.append((line, "torch.load without weights_only=True"))
        if called in ("np.load", "numpy.load") and words.get("allow_pickle") != "False":
            found.append((line, "np.load without allow_pickle=False"))
        if called == "YAML" and words.get("typ") not in ("'safe'", None):
            found.append((line, f"YAML({words})"))
    return [
        each
        for each in found
        if (file, each[1]) not in ALLOWED
        and not (each[1] == "pickle" and file in {where for where, _ in ALLOWED} and only_names(tree, "pickle", file))
    ]


def only_names(tree, module, file):
    """Whether of `module` only what ALLOWED lists for `file` is used."""
    used = {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    return {name for name in used if name.startswith(f"{module}.")} <= {
        name for where, name in ALLOWED if where == file
    }


@pytest.mark.fault(
    "security",
    "code that runs what it reads",
    "a reading of the syntax trees of all files for pickle, eval, exec, shells, unsafe YAML, extractall and torch.hub",
    "there is none in deeplab and pipeline",
)
@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_code_runs_nothing_that_it_reads(path):
    assert not found_in(path.read_text(encoding="utf-8"), str(path.relative_to(ROOT)))


@pytest.mark.parametrize(
    "text",
    [
        "import pickle\npickle.loads(x)",
        "from pickle import loads",
        "import yaml",
        "from joblib import load",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path)",
        "np.load(path, allow_pickle=True)",
        "eval('1')",
        "exec(text)",
        "os.system('ls')",
        "subprocess.run('ls', shell=True)",
        "subprocess.run('ls', shell=wanted)",
        "tar.extractall(folder)",
        "packed.extract(member)",
        "YAML(typ='unsafe')",
        "torch.hub.load('a/b', 'c')",
        "tempfile.mktemp()",
    ],
)
def test_each_of_these_is_noticed(text):
    assert found_in(text)

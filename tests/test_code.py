"""What counts as a change of the code: a real edit makes the right stages stale, and nothing else makes any."""

import ast
import hashlib
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from deeplab.config import InitConfig
from pipeline.errors import ParamsError
from pipeline.settings import code, equivalent
from pipeline.settings.params import load_params
from pipeline.settings.places import Places

ROOT = Path(__file__).parents[1]
CELL = "voc_resnet50_os8"
SAMPLE = '''
"""A docstring."""
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


class Point:
    x: float = 1.5


def describe(name: "Path", *rest: int, key=None, **more) -> str:
    """Another docstring."""
    text = f"{name!r:>{rest[1]}} of {rest[0]:.2f} and {key}" f", {more}" "!" r"\\d"
    match rest:
        case (1, *others) if others:
            return text
        case _:
            pass
    try:
        value = [i for i in key if i] if key else {**more, "ü": ..., "bytes": b"1"}
    except* ValueError as error:
        raise KeyError(f"{error}") from None
    return lambda a, /, b=2, *, c: (a, b, c, value, 1_000, 0x10, 1e-7, 2j, None, True)
'''


# What runs again for CELL and its data set when a module changes. What is not listed runs nothing again.
RUNS_AGAIN = {
    "download": "data.archives data.fetch data.unpack stages.download",
    "prepare": (
        "deeplab.baselines deeplab.decode deeplab.histogram deeplab.metrics deeplab.store deeplab.store_writer data.card "
        "data.checks data.duplicates data.formats data.formats.base data.formats.masks data.formats.voc data.pack markdown "
        "pictures.overlay pictures.sheet stages.prepare"
    ),
    "train": (
        "deeplab.augmentations deeplab.augmentations.augmentation deeplab.augmentations.photometric "
        "deeplab.augmentations.photometric_on_cpu deeplab.backbone deeplab.checkpoint deeplab.data deeplab.decode "
        "deeplab.images deeplab.job deeplab.losses deeplab.losses.choice deeplab.losses.chunks deeplab.losses.cross_entropy "
        "deeplab.losses.fused deeplab.model deeplab.monitor deeplab.precision deeplab.ranks deeplab.ring "
        "deeplab.selection deeplab.step deeplab.store deeplab.training deeplab.transforms "
        "stages.train training.device training.publish training.seed"
    ),
    "evaluate": (
        "deeplab.backbone deeplab.counts deeplab.decode deeplab.images deeplab.inference deeplab.intervals deeplab.measures deeplab.metrics deeplab.model "
        "deeplab.precision deeplab.segmenter deeplab.store deeplab.transforms pictures.colors pictures.overlay pictures.panels "
        "results.records results.splits results.scores stages.evaluate training.device training.weights"
    ),
    "tables": (
        "deeplab.intervals markdown pictures.charts pictures.colors results.columns results.costs results.latex results.model_card settings.links "
        "results.records results.splits results.scores results.table results.values settings.published stages.tables tracking.models tracking.runs "
        "tracking.sync tracking.variants training.curves"
    ),
    "compare": (
        "deeplab.counts deeplab.decode deeplab.intervals deeplab.metrics deeplab.store results.records results.splits results.statistics "
        "stages.compare"
    ),
    "readme": (
        "deeplab.intervals results.columns results.costs results.readme results.records results.splits results.scores results.values "
        "stages.readme"
    ),
    "report": (
        "deeplab.decode deeplab.intervals deeplab.store page.embedded page.html page.inputs page.layout page.predictions page.results "
        "page.sections page.verdicts pictures.charts pictures.colors pictures.overlay results.columns results.costs "
        "results.records results.splits results.scores results.table results.values markdown settings.links settings.published stages.report"
    ),
}
MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for package in ("deeplab", "pipeline")
    for path in (ROOT / package).rglob("*.py")
)


@pytest.fixture
def copy(tmp_path, monkeypatch):
    """The code of this project in a folder of its own, which may be edited."""
    for package in ("deeplab", "pipeline"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(code, "ROOT", tmp_path)
    return tmp_path


@pytest.fixture
def params():
    return load_params(ROOT / "params.yaml")


@pytest.fixture
def hashes(copy, params, tmp_path):
    """A function that returns the hash of each stage, for the cell CELL and its data set."""

    def now():
        places = Places(tmp_path)
        named = {**dict.fromkeys(code.PER_DATASET, "voc"), **dict.fromkeys(code.PER_CELL, CELL)}
        return {stage: code.code_of(stage, params, places, named.get(stage, "")) for stage in RUNS_AGAIN}

    return now


def stale(before, now):
    return {stage for stage in now if now[stage] != before[stage]}


def edit(path, old="", new=""):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1) if old else text + new)


def test_a_hash_is_the_same_on_every_version_of_python():
    """3.12 splits f-strings otherwise than 3.11, and 3.12 and 3.13 add fields to the syntax tree."""
    tree = code.Computation(frozenset()).visit(ast.parse(SAMPLE))
    digest = hashlib.sha256(ascii(code.canonical(tree)).encode()).hexdigest()
    assert digest == "7d806df9dfb9209b37c60a5502cb8d4a7ba47a27a571de4a5c4d8bb2d859b8bc"


def test_an_empty_text_in_an_f_string_counts_nothing():
    """Python 3.12.1 adds one to a nested format: f"{a:>{b}}"."""
    without, with_one = (ast.parse('f"{a:>{b}}"', mode="eval").body for _ in range(2))
    with_one.values[0].format_spec.values.append(ast.Constant(""))
    assert code.canonical(with_one) == code.canonical(without)


def test_a_real_edit_of_a_module_makes_exactly_the_right_stages_stale(hashes, copy):
    before, wrong = hashes(), {}
    for module in MODULES:
        expected = {stage for stage, names in RUNS_AGAIN.items() if module.removeprefix("pipeline.") in names.split()}
        path = copy / module.replace(".", "/")
        path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        text = path.read_text()
        path.write_text(f"{text}\nEDITED = 1\n")
        if (found := stale(before, hashes())) != expected:
            wrong[module] = found
        path.write_text(text)
    assert not wrong


@pytest.mark.parametrize(
    ("folder", "table", "stages"),
    [
        ("deeplab/losses", "LOSSES: dict[str, Loss] = {", {"train"}),
        ("pipeline/data/formats", "FORMATS", {"prepare"}),
        ("deeplab/augmentations", "AUGMENTATIONS", {"train"}),
    ],
)
def test_a_new_loss_format_or_augmentation_makes_no_finished_cell_stale(hashes, copy, folder, table, stages):
    before = hashes()
    (copy / folder / "new.py").write_text("def new(*arguments):\n    return 0\n")
    path = copy / folder / "__init__.py"
    text = path.read_text()
    dictionary = text.index("{", text.index(f"\n{table.partition(':')[0]}"))
    head, tail = text[: dictionary + 1], text[dictionary + 1 :]
    path.write_text(f'from {folder.replace("/", ".")}.new import new\n{head}"new": new, {tail}')
    assert not stale(before, hashes())
    path.write_text(f'{head}"new": max, {tail}\nEDITED = 1\n')
    assert stale(before, hashes()) == stages


@pytest.mark.parametrize(
    ("settings", "modules"),
    [
        ({"loss": "focal"}, "losses.focal losses.pixelwise losses.weighted_cross_entropy"),
        ({"loss": "cross_entropy+0.5*dice"}, "losses.dice losses.pixelwise"),
        ({"class_weights": "median_frequency"}, "losses.class_weights losses.pixelwise losses.weighted_cross_entropy"),
        ({"keep": "best"}, "inference metrics"),
        ({"patience": 2}, "inference metrics"),
        ({"ema": 0.999}, ""),
    ],
)
def test_a_loss_that_a_cell_names_and_a_validation_that_decides_are_code_of_its_training(
    copy, params, settings, modules
):
    cell = params.cells[CELL]
    params.cells[CELL] = replace(cell, train=replace(cell.train, **settings))
    before, found = code.code_of("train", params, Places(copy), CELL), set()
    for name in (
        "inference",
        "metrics",
        *(f"losses.{path.stem}" for path in (copy / "deeplab/losses").glob("[!_]*.py")),
    ):
        path = copy / f"deeplab/{name.replace('.', '/')}.py"
        edit(path, new="\nEDITED = 1\n")
        found |= {name} if code.code_of("train", params, Places(copy), CELL) != before else set()
        edit(path, "\nEDITED = 1\n")
    own = {"losses.chunks"}
    if "cross_entropy" in params.cells[CELL].train.losses:
        own |= {"losses.cross_entropy", "losses.choice", "losses.fused"}
    assert found == {*modules.split(), *own}


def test_a_new_short_name_of_a_backbone_makes_no_finished_cell_stale(hashes, copy):
    before = hashes()
    edit(copy / "deeplab/backbone.py", "BACKBONES = {", 'BACKBONES = {"new": "resnet26.tag", ')
    assert not stale(before, hashes())
    edit(copy / "deeplab/backbone.py", '"resnet50c": "', '"resnet50c": "other')
    assert stale(before, hashes()) == {"train", "evaluate"}


def test_what_takes_weights_is_code_of_a_cell_with_a_start_alone(hashes, copy, params):
    cell = replace(params.cell(CELL), init=InitConfig(file="net.safetensors", sha256="0" * 64))
    tuned = replace(params, cells={**params.cells, "tuned": cell})

    def of_tuned():
        return {stage: code.code_of(stage, tuned, Places(copy), "tuned") for stage in code.PER_CELL}

    before, before_tuned = hashes(), of_tuned()
    edit(copy / "pipeline/training/start.py", new="\nEDITED = 1\n")
    assert not stale(before, hashes())
    assert stale(before_tuned, of_tuned()) == {"train"}


def test_a_comment_a_layout_or_a_message_makes_nothing_stale(hashes, copy):
    before = hashes()
    new = "\n# a comment\n\n\nif TYPE_CHECKING:\n    from pathlib import Path as Place\nimport deeplab.metrics\n"
    for path in [*copy.rglob("deeplab/*.py"), *copy.rglob("pipeline/**/*.py")]:
        edit(path, new=f'{new}print("a message", LIMIT)\n')
    assert not stale(before, hashes())


def test_another_docstring_annotation_or_text_of_an_error_makes_nothing_stale(hashes, copy):
    path = copy / "deeplab/metrics.py"
    edit(path, new='\ndef last(x: int) -> int:\n    """One."""\n    y: int = x\n    raise ValueError("one")\n')
    before = hashes()
    edit(path, '    """One."""\n    y: int', '    """Two."""\n    y: float')
    edit(path, "(x: int) -> int", "(x: str) -> None")
    edit(path, 'ValueError("one")', 'ValueError(f"two {x}")')
    assert not stale(before, hashes())
    edit(path, "ValueError", "TypeError")
    assert stale(before, hashes())


def test_a_module_that_is_renamed_or_moved_makes_nothing_stale(hashes, copy):
    before = hashes()
    (copy / "deeplab/model.py").rename(copy / "deeplab/network.py")
    (copy / "deeplab/sums").mkdir()
    (copy / "deeplab/counts.py").rename(copy / "deeplab/sums/counts.py")
    for path in copy.rglob("*.py"):
        text = path.read_text().replace("deeplab.model", "deeplab.network")
        path.write_text(text.replace("deeplab.counts", "deeplab.sums.counts"))
    assert not stale(before, hashes())


def test_a_template_that_the_code_names_is_code(hashes, copy):
    before = hashes()
    edit(copy / "pipeline/page/style.css", new="p { margin: 0 }\n")
    assert stale(before, hashes()) == {"report"}


def test_equivalent_code_counts_as_the_old_one_until_the_next_change(hashes, copy):
    places, loss = Places(copy), copy / "deeplab/metrics.py"
    places.reports.mkdir()
    before = hashes()
    edit(loss, new="\nx = 1\n")
    changed = hashes()
    locked = {f"{stage}@x": {"params": {equivalent.CODE: {stage: value}}} for stage, value in before.items()}
    lines = equivalent.declare(locked, changed, places.equivalent_code, "x is\nnot used")
    assert {line.split()[0] for line in lines} == {before[stage] for stage in stale(before, changed)}
    assert hashes() == before
    edit(loss, new="\nx = 2\n")
    twice = hashes()
    assert stale(before, twice) == stale(before, changed)
    equivalent.declare(locked, twice, places.equivalent_code, "still not")
    assert hashes() == before
    edit(loss, "x = 2", "x = 3")
    assert stale(before, hashes()) == stale(before, changed)


def test_a_damaged_line_of_equivalent_code_is_named(tmp_path):
    path = tmp_path / "equivalent_code.txt"
    path.write_text("# a comment\n\nabc def because\n")
    with pytest.raises(ParamsError, match=r"equivalent_code.txt:3: got 'abc def because', expected OLD NEW REASON"):
        equivalent.read_equivalences(path)


def test_equivalences_form_chains_and_a_circle_ends():
    a, b, c = ("a" * 64, "b" * 64, "c" * 64)
    assert equivalent.oldest(a, {a: b, b: c}) == c
    assert equivalent.oldest(a, {a: b, b: a}) == b

"""The light commands find a mistake in params.yaml before anything runs, each in one line and with exit code 78."""

import sys
from pathlib import Path

import pytest

from pipeline.__main__ import start
from pipeline.runner import run as runner
from pipeline.settings.places import Places
from pipeline.stages import readme
from tests.faults import tried
from tests.faults.disk import outcome
from tests.tiny import tiny_params

ROOT = Path(__file__).parents[2]


@pytest.fixture
def edited(tmp_path, monkeypatch):
    """A working folder whose params.yaml has one piece of its text replaced."""
    monkeypatch.chdir(tmp_path)

    def edit(old, new):
        text = (ROOT / "params.yaml").read_text(encoding="utf-8")
        assert old in text
        Path("params.yaml").write_text(text.replace(old, new, 1), encoding="utf-8")

    return edit


def command(monkeypatch, *words):
    """Call `grid` as its user does."""
    monkeypatch.setattr(sys, "argv", ["grid", *words])
    return outcome(start)


NAMES = [
    ("loss: cross_entropy", "loss: cross_entropi", "train.loss: unknown name 'cross_entropi'; did you mean 'cross_entropy'?"),
    ("loss: cross_entropy", "loss: cross_entropy+0.5*dise", "train.loss: unknown name 'dise'; did you mean 'dice'?"),
    ("format: ade20k", "format: ade20", "params.yaml: datasets.ade20k.format: unknown name 'ade20'; did you mean 'ade20k'?"),
    ("  crop_tries: 10", "  crop_tries: 10\n  transforms: [photometrik]",
     "augment.transforms: unknown name 'photometrik'; did you mean 'photometric'?"),
    ("backbone: resnet50c", "backbone: resnett50c", "grid.voc_resnet50_os8.backbone: unknown name 'resnett50c'; did you mean 'resnet50c'?"),
]  # fmt: skip


@tried.SETTINGS
@pytest.mark.parametrize("verb", ["plan", "run"])
@pytest.mark.parametrize(("old", "new", "message"), NAMES)
def test_a_misspelt_name_that_only_a_stage_would_miss_is_found_before_one_runs(
    edited, monkeypatch, verb, old, new, message
):
    edited(old, new)
    code, said = command(monkeypatch, verb)
    assert (code, len(said)) == (78, 1), said
    assert message in said[0]


EDITS = [
    ("lr: 0.01", "lr: 1e-2x", "lr: got '1e-2x', expected a valid number"),
    ("lr: 0.01", "lr: -0.01", "lr: got -0.01, expected greater than 0"),
    ("lr: 0.01", "lr: .inf", "lr: got inf, expected a finite number"),
    ("lr: 0.01", "lr: [0.01]", "lr: got [0.01], expected a valid number"),
    ("crop: [512, 512]", "crop: 512", "crop: got 512, expected a valid array"),
    ("crop: [512, 512]", "crop: [512]", "crop.1: missing"),
    ("crop: [512, 512]", "crop: [512, 512.5]", "crop.1: got 512.5, expected a valid integer"),
    ("resize: [2048, 512]", "resize: [512, 2048]", "resize: got [512, 2048], expected [long side, short side]"),
    ("val_split: val, crop: [512, 512]", "val_split: trainaug, crop: [512, 512]", "val_split: got 'trainaug', expected another split"),
    ("val_split: val, crop: [512, 512]", "val_split: 3, crop: [512, 512]", "val_split: got 3, expected the name of a split"),
    ("aspp_rates: [6, 12, 18]", "aspp_rates: [6, 0, 18]", "aspp_rates.1: got 0, expected greater than 0"),
    ("dropout: 0.1", "dropout: 1.0", "dropout: got 1.0, expected less than 1"),
    ("std: [58.395, 57.12, 57.375]", "std: [58.395, 0, 57.375]", "std.1: got 0, expected greater than 0"),
    ("mean: [123.675, 116.28, 103.53]", "mean: [123.675, 116.28]", "mean.2: missing"),
    ("threads: 2", "threads: 0", "threads: got 0, expected greater than 0"),
    ("loss: cross_entropy", "loss: cross_entropy+dice*2", "loss: got 'cross_entropy+dice*2', expected the name of a loss, or different ones"),
    ("tf32: false", "tf32: false\n  class_weights: inverse", "class_weights: got 'inverse', expected 'median_frequency'"),
    ("tf32: false", "tf32: false\n  ema: 1.0", "ema: got 1.0, expected less than 1"),
    ("tf32: false", "tf32: false\n  keep: first", "keep: got 'first', expected 'last' or 'best'"),
    ("flip: 0.5", "flip: 1.5", "flip: got 1.5, expected less than or equal to 1"),
    ("photometric: 0.5", "photometric: yes", "photometric: got 'yes', expected a valid number"),
    ("workers: 2 ", "workers: -1 ", "workers: got -1, expected greater than or equal to 0"),
    ("checkpoint_every: 600", "checkpoint_every: 0", "checkpoint_every: got 0, expected greater than 0"),
    ("scales: [1.0]", "scales: []", "scales: got [], expected at least 1 item"),
    ("single_scale: {", "'single scale': {", "the name 'single scale': expected lower-case letters, digits and _ only"),
    ("seeds: [0]", "seeds: [-1]", "seeds.0: got -1, expected greater than or equal to 0"),
    ("seeds: [0]", "seeds: 0", "seeds: got 0, expected a valid array"),
    ("seeds: [0]", "seeds: [4294967296]", "seeds.0: got 4294967296, expected less than 4294967296"),
    ("images: {train: 256, val: 48}", "images: {train: 0, val: 48}", "images.train: got 0, expected greater than 0"),
    ("images: {train: 256, val: 48}", "images: 304", "datasets.shapes.images: got 304, expected an object"),
    ("store: packed", "store: zip", "store: got 'zip', expected 'packed' or 'files'"),
    ("allow_subset: false", "allow_subset: 'false'", "allow_subset: got 'false', expected a valid boolean"),
    ("datasets:\n", "datasets: null\nold:\n", "unknown name 'old'"),
    ("\nmodel:\n", "\nmodel: {pretrained: true}\nmodel:\n", 'found duplicate key "model"'),
    ("\ngrid:\n", "\ngrid:\n\t", "params.yaml:"),
    ("lr: 0.01", "lr: !!python/object/apply:os.system [id]", "params.yaml:"),
    ("lr: 0.01", "lr: *unknown", "params.yaml:"),
    ("lr: 0.01", "lr: 2020-01-01", "lr: got '2020-01-01', expected a valid number"),
]  # fmt: skip


@tried.SETTINGS
@pytest.mark.parametrize(("old", "new", "message"), EDITS)
def test_a_wrong_value_is_named_with_its_place_and_what_is_expected(edited, monkeypatch, old, new, message):
    edited(old, new)
    code, said = command(monkeypatch, "plan")
    assert (code, len(said)) == (78, 1), said
    assert said[0].startswith("error: params.yaml:")
    assert message in said[0]


@tried.SETTINGS
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"# " + b"x" * 1_000_001, "1,000,003 bytes, expected at most 1,000,000"),
        (b"a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n", "unknown name 'a'"),
        (b"[" * 5000, "nested without end"),
        (b"grid: {a: 1}\n---\ngrid: {a: 2}\n", "params.yaml:"),
        (b"\x00\x01\x02", "params.yaml"),
        ("grid: {日本: 1}".encode("shift-jis"), "params.yaml"),
        (b"null\n", "expected a mapping of sections, got NoneType"),
    ],
    ids=["too long", "aliases", "nested", "two documents", "binary", "another encoding", "null"],
)
def test_a_file_that_is_no_settings_is_one_line(tmp_path, monkeypatch, content, message):
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_bytes(content)
    code, said = command(monkeypatch, "plan")
    assert (code, len(said)) == (78, 1), said
    assert message in said[0]


@tried.SETTINGS
def test_a_folder_without_params_says_where_the_command_belongs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert command(monkeypatch, "plan") == (
        78, ["error: params.yaml: No such file or directory. Run the command from the folder that holds it."],
    )  # fmt: skip


@tried.SETTINGS
@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--on", "slurmm"], 2, "'slurmm' is not one of 'here', 'ray', 'slurm'"),
        (["--slots", "0"], 2, "'--slots': 0 is not in the range x>=1"),
        (["--slots", "two"], 2, "'--slots': 'two' is not a valid integer"),
        (["--unknown"], 2, "No such option '--unknown'"),
        (["--on"], 2, "'--on' requires an argument"),
        (["--address", "auto"], 78, "--address: got 'auto', which belongs to --on ray"),
    ],
)
def test_a_wrong_argument_is_one_line_with_what_it_may_be(monkeypatch, words, code, message):
    found, said = command(monkeypatch, "run", *words)
    assert (found, len(said)) == (code, 1), said
    assert message in said[0]


BLOCK = "<!-- results:tiny -->\n| mIoU |\n<!-- /results:tiny -->\n"


@tried.README
@pytest.mark.parametrize(
    ("page", "wrong"),
    [
        (BLOCK, ""),
        (BLOCK.replace("mIoU", "99.99%"), "edited by hand"),
        ("# none\n", "Run: dvc repro -s -f readme@tiny"),
        ("<!-- results:tiny -->\n", "Put both lines"),
    ],
)
def test_the_runner_names_a_readme_that_shows_something_else_than_its_table(tmp_path, monkeypatch, page, wrong):
    monkeypatch.chdir(tmp_path)
    tiny_params(tmp_path / "params.yaml")
    Path("README.md").write_text(page)
    Path("reports/tables").mkdir(parents=True)
    Path("reports/tables/tiny.md").write_text("| mIoU |\n")
    monkeypatch.setattr(runner, "read_stages", lambda targets, after: {"tables@tiny": None, "readme@tiny": None})
    monkeypatch.setattr(runner, "outdated", lambda stages: {})
    code, said = command(monkeypatch, "run")
    assert code == (65 if wrong else 0)
    assert len(said) == bool(wrong)
    assert wrong in "".join(said)
    assert Path("README.md").read_text() == page


@tried.README
def test_a_readme_that_may_not_be_written_is_one_line(tmp_path, monkeypatch):
    places = Places(tmp_path)
    places.tables.mkdir(parents=True)
    places.table("tiny").write_text("| 1 |\n")
    tiny_params(places.params)
    places.readme.mkdir()
    code, said = outcome(lambda: readme.run("tiny", places))
    assert (code, said) == (
        74,
        [f"error: {tmp_path}/README.md: a folder is in the way of a file. Move it away, or name another place."],
    )


def test_the_settings_of_this_repository_are_right(edited):
    edited("seeds: [0]", "seeds: [0]")
    assert outcome(lambda: runner.load_settings() and None) == (0, [])

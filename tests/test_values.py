"""Numbers in prose and papers come from the table, and one that was typed is found."""

import re
import shutil
import subprocess
from dataclasses import replace

import pytest

from deeplab.errors import DataError
from pipeline.errors import ParamsError
from pipeline.results import latex, values
from pipeline.results.readme import check_pages, put, stale
from pipeline.results.records import read_results
from pipeline.results.scores import write_csv
from pipeline.results.table import COLUMNS, csv_row, make_rows, sheet
from pipeline.settings.params import load_params
from pipeline.settings.places import Places
from tests.records import CELL, OTHER, Folder

BLOCK = "<!-- results:shapes -->\n<!-- /results:shapes -->\n"


@pytest.fixture
def folder(tmp_path):
    """A project whose cell CELL is measured with two seeds and OTHER is not, with two pages."""
    made = Folder(tmp_path)
    made.raw["seeds"] = [0, 1]
    made.raw["prose"] = ["docs/paper.md"]
    made.write_params()
    made.measure(CELL, 0.41, 0.43)
    places = Places(tmp_path)
    places.tables.mkdir(parents=True)
    places.table("shapes").write_text("| the table |\n")
    places.sheet("shapes").write_text(sheet(rows_of(made)))
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/paper.md").write_text("")
    places.readme.write_text(BLOCK)
    return made


def rows_of(folder):
    places = Places(folder.path)
    results, reasons = read_results("shapes", folder.params, places)
    return make_rows("shapes", results, reasons, folder.params, places)


def fill(folder, text):
    """What becomes of the page docs/paper.md with `text`."""
    path = folder.path / "docs/paper.md"
    path.write_bytes(text.encode())
    put("shapes", Places(folder.path))
    assert not stale("shapes", Places(folder.path))
    return path.read_bytes().decode()


def test_values_are_filled_between_comments_that_stay_and_every_other_byte_too(folder):
    text = (
        f"a <!-- value: {CELL}.mIoU --><!-- /value -->,\r\n<!--value:{CELL}.pixel_accuracy-->1 %\n<!-- /value --> \\1\n"
        f"<!-- value:\n{CELL}.epochs -->x<!-- /value -->/<!-- value: {OTHER}.mIoU -->12.00%<!-- /value -->"
        "<!-- value: another.mIoU -->12.00%<!-- /value --> <!-- a comment -->"
    )
    folder.raw["datasets"]["another"] = folder.raw["datasets"]["shapes"]
    folder.raw["recipes"]["another"] = folder.raw["recipes"]["shapes"]
    folder.raw["grid"]["another"] = {**folder.raw["grid"][CELL], "dataset": "another"}  # filled by its own stage
    folder.write_params()
    filled = (
        f"a <!-- value: {CELL}.mIoU -->42.00% ± 1.41<!-- /value -->,\r\n<!--value:{CELL}.pixel_accuracy-->90.00%"
        f"<!-- /value --> \\1\n<!-- value:\n{CELL}.epochs -->4<!-- /value -->/<!-- value: {OTHER}.mIoU -->-<!-- /value -->"
        "<!-- value: another.mIoU -->12.00%<!-- /value --> <!-- a comment -->"
    )
    assert fill(folder, text) == filled
    assert fill(folder, filled) == filled


def test_the_readme_needs_no_list_and_a_value_there_is_filled_like_its_table(folder):
    places = Places(folder.path)
    places.readme.write_text(f"{BLOCK}<!-- value: {CELL}.mIoU_low --><!-- /value -->\n")
    put("shapes", places)
    assert "| the table |\n" in places.readme.read_text()
    assert f"<!-- value: {CELL}.mIoU_low -->41.00%<!-- /value -->\n" in places.readme.read_text()


def test_a_value_is_the_text_of_the_table(folder):
    for row in rows_of(folder):
        assert values.texts_of(csv_row(row))["mIoU"] == COLUMNS["mIoU"](row)
        assert set(values.texts_of(csv_row(row))) == {*values.SHARES, *values.COUNTS}


def write_classes(folder, *runs, protocol="single_scale"):
    """The IoU of the classes of CELL under a protocol: for each seed {class: text}."""
    rows = [(seed, protocol, name, iou, iou, 9) for seed, run in enumerate(runs) for name, iou in run.items()]
    plots = Places(folder.path).plots(CELL)
    plots.mkdir(parents=True, exist_ok=True)
    write_csv(
        plots / "classes.csv",
        ("seed", "protocol", "class", "IoU", "accuracy", "pixels"),
        rows,
    )


def test_the_iou_of_a_class_is_a_value_where_it_belongs_to_the_evaluation_of_the_table(folder):
    text = " ".join(
        f"<!-- value: {CELL}.IoU.{name} -->{{}}<!-- /value -->" for name in ("road", "traffic light", "pole")
    )
    text += f" <!-- value: {OTHER}.IoU.road -->-<!-- /value -->"
    runs = {"road": "0.6", "traffic light": "0.22", "pole": ""}, {"road": "0.7", "traffic light": "0.29", "pole": "0.3"}
    write_classes(folder, *runs)
    assert fill(folder, text.format(1, 2, 3)) == text.format("65.00% ± 7.07", "25.50% ± 4.95", "-")
    with pytest.raises(
        DataError, match=rf"paper\.md:2: value {CELL}\.IoU\.Road: unknown name .*; did you mean 'IoU\.road'"
    ):
        fill(folder, f"\n<!-- value: {CELL}.IoU.Road --><!-- /value -->")
    write_classes(folder, *runs, protocol="flip")  # the first one when it was evaluated
    assert fill(folder, text.format(1, 2, 3)) == text.format("-", "-", "-")
    write_classes(folder, runs[0], {**runs[1], "road": "0.71"})  # of another evaluation
    assert fill(folder, text.format(1, 2, 3)) == text.format("-", "-", "-")


@pytest.mark.fault(
    "input",
    "a number in prose is typed, edited or left behind",
    "a page of `prose` with a wrong value, half a pair of comments, an unknown cell or column",
    "`grid verify --fast` names file, line, value and what it should be; nothing is written",
)
@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"\n<!-- value: {CELL}.mIoU -->42.01%<!-- /value -->", f":2: value {CELL}.mIoU says '42.01%', expected '42.00% ± 1.41', by"),
        (f"<!-- value: {OTHER}.mIoU -->42.00%<!-- /value -->", f":1: value {OTHER}.mIoU says '42.00%', expected '-', by"),
        (f"\n\n<!-- value: {CELL}.mIoU -->42.00%", rf":3: <!-- value: {CELL}.mIoU --> is half a pair, expected <!-- value"),
        ("42.00%<!-- /value -->", ":1: <!-- /value --> is half a pair"),
        (f"<!-- value: {CELL}.mIoU --><!-- value: {CELL}.mIoU -->1<!-- /value -->", ":1: <!-- value: .* is half a pair"),
        (f"<!-- value: {CELL}x.mIoU --><!-- /value -->", f":1: value {CELL}x.mIoU: unknown name '{CELL}x'; did you mean '{CELL}'"),
        (f"<!-- value: {CELL}.miou --><!-- /value -->", "unknown name 'miou'; did you mean 'mIoU'"),
        (f"<!-- value: {CELL} --><!-- /value -->", "unknown name ''; known: mIoU, "),
    ],
)  # fmt: skip
def test_a_wrong_value_is_found_and_named(folder, text, message):
    page, places = folder.path / "docs/paper.md", Places(folder.path)
    put("shapes", places)
    page.write_text(text)
    if "says" in message:
        assert re.search(message, stale("shapes", places))
        check_pages(folder.params, places)  # filling repairs it
    else:
        for check in (lambda: put("shapes", places), lambda: check_pages(folder.params, places)):
            with pytest.raises(DataError, match=message):
                check()
    assert page.read_text() == text


def test_a_page_that_is_missing_or_outside_is_refused(folder):
    (folder.path / "docs/paper.md").unlink()
    with pytest.raises(
        ParamsError, match=r"prose: .*docs/paper\.md: no such file\. Write it, or take it from the list"
    ):
        check_pages(folder.params, Places(folder.path))
    for name in ("/etc/paper.md", "../paper.md", "paper.txt"):
        folder.raw["prose"] = [name]
        folder.write_params()
        with pytest.raises(ParamsError, match=f"prose: got '{name}', expected a Markdown file of this folder"):
            load_params(folder.path / "params.yaml")


def test_a_value_without_its_table_names_the_stage(folder):
    Places(folder.path).sheet("shapes").unlink()
    put("shapes", Places(folder.path))  # without a value of the data set none is needed
    with pytest.raises(DataError, match=r"shapes\.csv: not found\. Run: grid run tables@shapes"):
        fill(folder, f"<!-- value: {CELL}.mIoU --><!-- /value -->")


@pytest.mark.parametrize("change", [("0.42", "x"), ("mIoU,", "miou,"), ("cell,", "CELL,"), ("cell,", '"cell,')])
def test_a_damaged_table_names_the_stage(folder, change):
    sheet = Places(folder.path).sheet("shapes")
    sheet.write_text(sheet.read_text().replace(*change, 1))
    message = r"shapes\.csv: damaged, or edited by hand \(.*\)\. Run: dvc repro -f tables@shapes"
    with pytest.raises(DataError, match=message):
        fill(folder, f"<!-- value: {CELL}.mIoU --><!-- /value -->")


def test_the_name_of_a_class_in_another_encoding_is_an_unknown_name(folder):
    write_classes(folder, {"café": "0.41"}, {"café": "0.43"})
    page = folder.path / "docs/paper.md"
    page.write_bytes(f"<!-- value: {CELL}.IoU.café -->-<!-- /value -->".encode("latin-1"))
    with pytest.raises(DataError, match=rf"paper\.md:1: value {CELL}\.IoU\.caf\ufffd: unknown name .* 'IoU\.café'"):
        put("shapes", Places(folder.path))


@pytest.mark.parametrize("damage", [lambda text: text + "x" * 200_000, lambda text: text.replace("0.41", "nan")])
def test_classes_that_cannot_be_read_are_a_dash(folder, damage):
    write_classes(folder, {"road": "0.41"}, {"road": "0.43"})
    classes = Places(folder.path).plots(CELL) / "classes.csv"
    text = f"<!-- value: {CELL}.IoU.road -->{{}}<!-- /value -->"
    assert fill(folder, text.format("")) == text.format("42.00% ± 1.41")
    classes.write_text(damage(classes.read_text()))
    assert fill(folder, text.format("")) == text.format("-")


def test_latex_escapes_what_it_would_run(folder):
    first, second = rows_of(folder)
    text = latex.latex("shapes", [replace(first, overrides=r"loss=a_b&c#1 50% $x$ {~^\input"), second])
    assert r"loss=a\_b\&c\#1 50\% \$x\$ \{\textasciitilde{}\textasciicircum{}\textbackslash{}input) & 64x64 &" in text
    assert rf"\csname gridvalue:{CELL}.mIoU\endcsname{{42.00\% $\pm$ 1.41}}" in text
    assert rf"\csname gridvalue:{OTHER}.mIoU\endcsname{{-}}" in text


@pytest.mark.skipif(not shutil.which("pdflatex"), reason="without pdflatex")
def test_pdflatex_compiles_a_page_with_the_table_and_a_number(folder):
    first, second = rows_of(folder)
    odd = replace(first, overrides=r"loss=a_b&c#1 50% $x$ {~^\input")
    (folder.path / "shapes.tex").write_text(latex.latex("shapes", [odd, second]))

    def compile_page(value):
        page = (
            r"\documentclass{article}\usepackage{booktabs}\input{shapes.tex}\input{shapes.tex}\begin{document}"
            rf"\section{{\gridvalue{{{value}}}}}\begin{{table}}\caption{{\gridvalue{{{value}}}}}\gridtable{{shapes}}\end{{table}}"
            r"\typeout{THE VALUE \gridvalue{" + value + r"}}\end{document}"
        )
        (folder.path / "page.tex").write_text(page)
        command = ["pdflatex", "-halt-on-error", "-interaction=nonstopmode", "page.tex"]
        return subprocess.run(command, cwd=folder.path, capture_output=True, text=True, check=False)

    done = compile_page(f"{CELL}.epochs")
    assert done.returncode == 0, done.stdout
    assert "THE VALUE 4\n" in done.stdout
    wrong = compile_page(f"{CELL}.epoch")
    assert wrong.returncode != 0
    assert f"No value {CELL}.epoch" in wrong.stdout

"""The page of results: valid, self-contained, escaped, and honest about what is missing."""

import base64
import json
import re
import shutil
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import html5lib
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.page.html import table
from pipeline.page.inputs import read_pages
from pipeline.pictures.colors import COLORS
from pipeline.results.records import Row
from pipeline.settings.params import load_params
from pipeline.settings.places import Places
from pipeline.stages import report
from tests.fake_grid import ROOT, FakeGrid
from tests.faults import tried

CELL = "voc_resnet50_os8"
NASTY = ["</td><script>alert(1)</script>", "a & b", "\"'><img src=x>", "$\\frac{1}{2}$", "{{ 7 * 7 }}", "日本語"]
NAMESPACE = "{http://www.w3.org/1999/xhtml}"


def page(grid: FakeGrid) -> str:
    report.run(Places(grid.path))
    return Places(grid.path).page.read_text(encoding="utf-8")


def drawings(tree) -> dict[str, str]:
    """The charts: what their words say -> their SVG."""
    images = [(image.get("alt"), image.get("src")) for image in elements(tree, "img")]
    head = "data:image/svg+xml;base64,"
    return {alt: base64.b64decode(src.removeprefix(head)).decode() for alt, src in images if src.startswith(head)}


def parsed(text: str):
    """The tree of a page without any error."""
    return html5lib.HTMLParser(strict=True).parse(text.replace("<wbr>", ""))  # which is no letter of a name


def elements(tree, name: str):
    return tree.iter(f"{NAMESPACE}{name}")


def words(tree) -> str:
    return " ".join(" ".join(tree.itertext()).split())


def without(cells: str) -> str:
    """params.yaml without some cells: fewer are quicker to draw."""
    lines = (ROOT / "params.yaml").read_text(encoding="utf-8").splitlines()
    return "\n".join(line for line in lines if not re.match(rf"  ({cells}).*_os", line))


def two_cells(path: Path, seeds: str = "[0]") -> FakeGrid:
    """VOC with two cells."""
    return FakeGrid(path, without("shapes|ade20k|city|voc_resnet101").replace("seeds: [0]", f"seeds: {seeds}"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The page of all data sets with two cells each, one of which is not measured."""
    grid = FakeGrid(tmp_path_factory.mktemp("whole"), without(r"\w+_resnet(34|101)")).fill("ade20k_resnet50_os16")
    return page(grid)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return two_cells(tmp_path_factory.mktemp("small")).fill()


@pytest.fixture(scope="module")
def drawn(small):
    return page(small)


@pytest.fixture
def grid(small, tmp_path):
    """A copy that a test may spoil."""
    shutil.copytree(small.path, tmp_path / "copy")
    copy = object.__new__(FakeGrid)
    copy.__dict__ = {**small.__dict__, "path": tmp_path / "copy", "params_file": tmp_path / "copy/params.yaml"}
    return copy


def test_the_page_is_valid_html_with_each_id_once_and_every_link_leading_somewhere(whole):
    tree = parsed(whole)
    ids = [element.get("id") for element in tree.iter() if element.get("id")]
    assert len(ids) == len(set(ids))
    targets = [link.get("href") for link in elements(tree, "a")]
    assert {target[1:] for target in targets if target.startswith("#")} <= set(ids)
    assert len([target for target in targets if target.startswith("#provenance-")]) == 7


@tried.PAGE
def test_the_page_loads_nothing_and_runs_nothing(whole):
    tree = parsed(whole)
    assert not list(elements(tree, "script"))
    for element in tree.iter():
        for name, value in element.items():
            if name in ("src", "srcset", "data", "poster", "action", "background") or (
                name.endswith("href") and element.tag != f"{NAMESPACE}a"
            ):
                assert value.startswith(("data:", "#")), (element.tag, name, value[:80])
            assert not name.startswith("on")
    assert not re.findall(r"@import|url\((?!#)", whole)


def test_pictures_and_plots_have_words_tables_have_captions_and_headings_skip_no_level(whole):
    tree = parsed(whole)
    images = list(elements(tree, "img"))
    assert len(images) > 250
    assert all(image.get("alt") and image.get("width") and image.get("height") for image in images)
    assert len(drawings(tree)) > 20
    assert all(each.find(f"{NAMESPACE}caption") is not None for each in elements(tree, "table"))
    levels = [int(element.tag[-1]) for element in tree.iter() if re.fullmatch(rf"{NAMESPACE}h[1-6]", str(element.tag))]
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))


def test_every_published_cell_has_one_number_to_be_compared_with():
    reference = pd.read_csv(ROOT / "reports/reference.csv")
    primary = reference[reference["tolerance"].notna()]
    params = load_params(ROOT / "params.yaml")
    wanted = {
        (cell.dataset, cell.model.backbone, cell.model.output_stride)
        for cell in params.cells.values()
        if cell.dataset != "shapes"
    }
    kinds = list(zip(primary["dataset"], primary["backbone"], primary["output_stride"], strict=True))
    assert set(kinds) == wanted
    assert len(kinds) == len(wanted) == 12
    assert set(primary["source"]) == {"sssegmentation"}


def test_what_is_measured_comes_first_and_the_rest_is_folded(grid, whole):
    """And a data set without published numbers is compared with none."""
    text = words(parsed(whole))
    titles = [text.index(f"Results on {title}") for title in ("PASCAL VOC", "ADE20k", "CityScapes", "Demo")]
    assert titles == sorted(titles)
    demo = text[titles[-1] :]
    assert "reproduced" not in demo
    assert "below" not in demo
    grid.table("voc", [Row(results=(), **not_measured) for not_measured in rows_of(grid, "voc")])
    tree = parsed(page(grid))
    (folded,) = [each for each in tree.iter() if each.get("id") == "not-measured"]
    assert [each.get("open") is None for each in elements(folded, "details")][:1] == [False]  # nothing else to see
    assert "voc_resnet50_os8" in words(folded)


def rows_of(grid: FakeGrid, dataset: str) -> list[dict[str, object]]:
    return [
        {
            "name": name,
            "cell": cell,
            "overrides": "",
            "dataset": grid.params.datasets[dataset],
            "published": (),
            "card": None,
        }
        for name, cell in grid.params.cells_of(dataset).items()
    ]


def test_the_contents_lead_to_every_section(whole):
    tree = parsed(whole)
    (contents,) = [each for each in tree.iter() if each.get("id") == "contents"]
    targets = {link.get("href") for link in elements(contents, "a")}
    sections = [each for article in elements(tree, "article") for each in elements(article, "section")]
    assert targets == {f"#{each.get('id')}" for each in (*elements(tree, "article"), *sections)}
    assert len(sections) > 20


def test_the_head_says_when_where_and_with_which_commit(grid):
    path = grid.path / f"runs/{CELL}/run.json"
    run = json.loads(path.read_text())
    run["seeds"]["0"] |= {"started": "2001-02-03T04:05:06+00:00", "host": "a host", "commit": "e" * 40, "dirty": True}
    path.write_text(json.dumps(run))
    said = "trained on 2001-02-03 04:05 UTC at commit eeeeeeeeee with uncommitted changes, on a host, no device."
    assert said in words(parsed(page(grid)))


def test_a_click_enlarges_each_picture_and_another_one_leads_back(whole):
    tree = parsed(whole)
    links = {link.get("id"): link for link in elements(tree, "a") if link.get("id")}
    shown = [link for link in links.values() if link.get("class") == "zoom"]
    masks = [image for image in elements(tree, "img") if "svg" not in image.get("src")[:30]]
    assert len(shown) == len(masks) > 250
    for link in shown:
        assert link.get("href") == f"#{link.get('id')}"
        assert links[f"{link.get('id')}-"].get("class") == "close"


def test_two_cells_that_differ_in_loss_have_different_names(tmp_path):
    row = "  voc_resnet50_os8: {dataset: voc, backbone: resnet50c, output_stride: 8"
    other = f"{row.replace('os8', 'smooth')}, train: {{loss: smooth}}}}"
    text = without(r"shapes|ade20k|city|voc_resnet101|voc_resnet50_os16").replace(f"{row}}}", f"{row}}}\n{other}")
    titles = [words(small) for small in elements(parsed(page(FakeGrid(tmp_path, text).fill())), "small")]
    assert "ResNet50 (OS=8, PRE=ImageNet, loss=smooth)" in titles
    assert titles.count("ResNet50 (OS=8, PRE=ImageNet)") == 1


def test_the_best_number_is_marked_units_do_not_mix_and_dashes_are_no_numbers(grid):
    path = grid.path / f"runs/{CELL}/run.json"
    path.write_text(path.read_text().replace("12345.0", "60.0"))
    tree = parsed(page(grid))
    tables = {words(each.find(f"{NAMESPACE}caption")): each for each in elements(tree, "table")}
    results = tables["Results on PASCAL VOC, mIoU in percent"]
    found = {float(words(link)) for link in elements(results, "a")}
    assert [float(words(best)) for best in elements(results, "strong")] == [max(found)]
    assert "0.0 h" in words(tables["Cost of training"])
    assert "3.4 h" in words(tables["Cost of training"])
    assert str(table([{"a": 1, "b": "-"}], "c")).count("number") == 0
    assert str(table([{"a": 1, "b": "-"}, {"a": 1, "b": "2.0"}], "c")).count("number") == 3


def test_a_single_cell_without_a_comparison_has_an_interval(grid):
    path = grid.path / "reports/tables/voc.csv"
    rows = pd.read_csv(path, dtype=str, keep_default_na=False).head(1)
    rows.assign(mIoU_low="0.01", mIoU_high="0.125").to_csv(path, index=False)
    assert "[1.00, 12.50]" in words(parsed(page(grid)))


def test_the_same_files_give_the_same_bytes(small, drawn):
    assert page(small) == drawn


@tried.PAGE
def test_names_from_the_data_are_shown_as_they_are_and_never_read_as_html(tmp_path):
    grid = two_cells(tmp_path).fill(classes=NASTY)
    text = page(grid)
    tree = parsed(text)
    assert not list(elements(tree, "script"))
    assert "{{ 7 * 7 }}" in words(tree)
    for name in NASTY:
        assert name in "".join(tree.itertext()), name
    for svg in drawings(tree).values():
        shown = "".join(ElementTree.fromstring(svg).itertext())
        assert "iteration" in shown or all(name in shown for name in NASTY)


@given(st.text(st.characters(exclude_categories=("C", "Z")), min_size=1, max_size=30).filter(lambda text: text != "b"))
@tried.PAGE
def test_any_text_survives_a_table(text):
    tree = html5lib.parse(str(table([{text: text, "b": text}], text)))
    cells = ["".join(cell.itertext()) for cell in (*elements(tree, "td"), *elements(tree, "th"))]
    assert cells.count(text) == 3


def test_without_any_run_the_page_says_so_and_shows_the_published_numbers(tmp_path):
    grid = two_cells(tmp_path)
    grid.table("voc", [])
    text = words(parsed(page(grid)))
    assert "0 of 0 cells" in text
    shutil.rmtree(tmp_path / "reports/tables")
    text = words(parsed(page(grid)))
    assert "reports/tables/voc.csv: missing. Run: dvc repro tables@voc" in text
    assert "77.72" in text


def test_a_table_made_with_other_settings_is_not_shown(grid):
    grid.params_file.write_text(grid.params_file.read_text().replace("epochs: 60", "epochs: 61"))
    text = words(parsed(page(grid)))
    assert f"{CELL} was made with other settings than those in params.yaml. Run: dvc repro tables@voc" in text
    assert "0 of 0 cells" in text


FILES = [
    f"runs/{CELL}/run.json", f"runs/{CELL}/history.csv", f"reports/plots/{CELL}/classes.csv", f"reports/plots/{CELL}/confusion.csv",
    f"reports/figures/{CELL}/parts/about.json", "reports/data/voc/card.json", "reports/statistics/voc.json", "reports/reference.csv",
]  # fmt: skip
PICTURES = [f"reports/figures/{CELL}/parts/{part}" for part in ("0.image.jpg", "0.truth.png", "0.prediction.png")]


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize(
    "content", [None, b"", b"{\x00\xff", b"[1]", b"{}", b"a,b\n1\n", b'{"cells": {"a": 1}, "seeds": {"0": 1}}']
)
def test_a_file_that_is_missing_or_damaged_is_named_and_the_rest_is_read(grid, file, content):
    spoil(grid.path / file, content)
    first = read(grid)[0]
    optional = ("card.json", "statistics/voc.json")  # the page is whole without them, and with empty statistics
    assert [gap for gap in first.gaps if file in gap] or (content in (None, b"{}") and file.endswith(optional))
    assert [cell.measured for cell in first.cells] == [True, True]
    other = first.cells[1]
    assert other.facts
    assert None not in (other.history is None, other.classes is None, other.pairs is None, other.parts)


def spoil(path: Path, content: bytes | None) -> None:
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True) if content is None else path.write_bytes(content)


def read(grid: FakeGrid):
    return read_pages(load_params(grid.params_file), Places(grid.path))


@pytest.mark.parametrize("content", [None, b"no picture"])
def test_with_every_file_missing_or_damaged_the_page_still_shows_the_table(grid, content):
    for file in (*FILES, *PICTURES, "data/voc/sheet.png"):
        spoil(grid.path / file, content)
    text = words(parsed(page(grid)))
    assert "2 of 2 cells" in text
    assert f"No cost, commit and curves of {CELL}" in text


def test_a_picture_that_is_damaged_is_named_beside_the_others(grid):
    for file in PICTURES[:2]:
        spoil(grid.path / file, b"no picture")
    tree = parsed(page(grid))
    assert "image is missing or damaged" in words(tree)
    assert f"prediction of {CELL}, fake/0" in [image.get("alt") for image in elements(tree, "img")]


def test_files_of_other_weights_are_not_shown_as_a_cells_own(grid):
    for name in (f"runs/{CELL}/run.json", f"reports/figures/{CELL}/parts/about.json"):
        path = grid.path / name
        path.write_text(re.sub(r"[0-9a-f]{64}", "0" * 64, path.read_text()))
    classes = grid.path / f"reports/plots/{CELL}/classes.csv"
    classes.write_text(classes.read_text().replace("0.0", "0.1"))
    text = words(parsed(page(grid)))
    for name in ("run.json", "about.json", "classes.csv"):
        assert f"{name}: of another run than the table" in text
    assert f"largest confusions {CELL}" not in text


def test_a_class_that_never_occurred_has_a_dash_and_no_bar(grid):
    path = grid.path / f"reports/plots/{CELL}/classes.csv"
    rows = pd.read_csv(path)
    unseen = rows.assign(IoU=rows["IoU"].where(rows["class"] != "fake class 3"))
    unseen.loc[unseen["IoU"].notna(), "IoU"] = rows["IoU"].mean()
    unseen.to_csv(path, index=False)
    text = words(parsed(page(grid)))
    assert re.search(r"fake class 3 [\d.]+ % - \d", text)


def test_without_validation_during_training_the_page_says_which_setting_gives_it(grid):
    for path in grid.path.glob("runs/*/history.csv"):
        pd.read_csv(path).assign(**{"val/mIoU": None}).to_csv(path, index=False)
    text = words(parsed(page(grid)))
    assert "runtime.validate_every" in text
    assert "mIoU on the validation set during training" not in text


def test_intervals_and_paired_differences_are_shown_where_there_are_some(grid):
    grid.json(
        "reports/statistics/voc.json",
        {
            "level": 0.95,
            "cells": {CELL: {"mIoU": 0.05, "low": 0.04, "high": 0.06}},
            "pairs": [{"better": CELL, "than": "voc_resnet50_os16", "difference": 0.009, "low": 0.004, "high": 0.014}],
            "note": "over images",
        },
    )
    text = words(parsed(page(grid)))
    assert "[4.00, 6.00]" in text
    assert f"{CELL} voc_resnet50_os16 +0.90 [+0.40, +1.40]" in text
    assert "what another set of as many validation images would change" in text
    assert "clear difference" in text


def test_each_number_leads_to_its_key_weights_and_commit(small, drawn):
    tree = parsed(drawn)
    row = pd.read_csv(small.path / "reports/tables/voc.csv", index_col="cell").loc[CELL]
    (facts,) = [each for each in tree.iter() if each.get("aria-label") == "Provenance, PASCAL VOC"]
    assert f"provenance-{CELL}" in [each.get("id") for each in facts.iter()]
    for value in (row["keys"], row["weights_sha256"], row["cell_fingerprint"], "f" * 40):
        assert value in words(facts)
    assert "2000-01-01 00:00" in words(facts)


def test_a_cell_keeps_its_colour_when_another_has_no_curve(grid):
    (grid.path / f"runs/{CELL}/history.csv").unlink()
    (loss,) = [svg for words, svg in drawings(parsed(page(grid))).items() if words.startswith("loss over")]
    assert COLORS[1] in loss
    assert COLORS[0] not in loss


def test_several_seeds_have_a_curve_and_a_provenance_each_and_one_mean_with_its_spread(tmp_path):
    tree = parsed(page(two_cells(tmp_path, seeds="[0, 7]").fill()))
    (facts,) = [each for each in tree.iter() if each.get("aria-label") == "Provenance, PASCAL VOC"]
    assert re.search(rf"{CELL}, seed 0 commit .* key \w{{64}} .* {CELL}, seed 7 commit .* key \w{{64}} ", words(facts))
    assert re.search(rf"{CELL} ?ResNet50 .* \d\.\d\d ± \d\.\d\d \[?.* 77.72", words(tree))
    (rate,) = [svg for words, svg in drawings(tree).items() if words.startswith("learning rate over")]
    assert rate.count(f"stroke: {COLORS[0]}; stroke-width: 1.5") == 2

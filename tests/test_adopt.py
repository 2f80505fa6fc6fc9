"""Weights of other toolboxes compute here what they compute there, and whatever is not such weights is refused in one line."""

import csv
import hashlib
import io
import json
import os
import pickle
import re
from dataclasses import replace
from pathlib import Path

import click
import pytest
import torch
from ruamel.yaml import YAML
from torchvision.models.segmentation import deeplabv3_resnet50, deeplabv3_resnet101

from deeplab import load_model
from deeplab.errors import DataError, SettingsError
from deeplab.inference import evaluate
from deeplab.metrics import score
from deeplab.model import DeepLabV3
from deeplab.store import Store
from pipeline import cli
from pipeline.data.fetch import Patience
from pipeline.errors import ParamsError
from pipeline.settings.params import load_params
from pipeline.settings.places import Places
from pipeline.settings.yaml import read_yaml
from pipeline.verify.adopt import adopt, adopt_known, obtain
from pipeline.verify.adopted import read_adopted, read_known
from pipeline.verify.toolboxes import TOOLBOXES
from pipeline.verify.toolboxes.checkpoint import as_ours
from tests.server import Server, answer, file
from tests.tiny import model_config, tiny_params, write_store
from tests.toolboxes import Mmsegmentation, Sssegmentation, randomized

pytestmark = pytest.mark.usefixtures("one_thread")

ROOT = Path(__file__).parents[1]
ORACLES = {"mmsegmentation": Mmsegmentation, "sssegmentation": Sssegmentation}
TORCHVISION = {"aspp_channels": 256, "projection_kernel": 1, "head_convolution": True, "auxiliary_channels": 256}
QUICK = Patience(connect=2, silence=2, tries=1, pause=0)
CELL = "tiny_os8"
# SHA-256 of the sorted names that the classes of mmsegmentation 1.2.2 and sssegmentation 1.7.0 gave, one a line.
NAMES = {
    ("mmsegmentation", 50): "d58e5f73bb9fb3f85a81f0ce3003af17d55129e1985d7d97f50eeda53d6fbd84",
    ("mmsegmentation", 101): "6bc0bfda2e2c327936b25bdc9a11ab01f18fc2be86324c6f72d7ff666a425df0",
    ("sssegmentation", 50): "814a4fc96160f193e3cb993651d694bda1deeeacda9863b55144f41948be8405",
    ("sssegmentation", 101): "41f730769007478bd519d308fed27413f2213a7a5a3296a7d07ccd2edc25ff02",
}


def both(network, images):
    """The logits of our network and of its auxiliary head; the mode of its parts stays that of evaluation."""
    network.eval()
    network.training = True
    with torch.inference_mode():
        found = network(images)
    return found if isinstance(found, tuple) else (found, None)


@pytest.mark.parametrize("toolbox", ORACLES)
@pytest.mark.parametrize(("output_stride", "auxiliary"), [(8, 6), (16, 0)])
def test_the_logits_are_those_of_the_toolbox(tmp_path, toolbox, output_stride, auxiliary):
    theirs = randomized(ORACLES[toolbox](50, output_stride, classes=5, width=16, auxiliary=auxiliary))
    torch.save(theirs.checkpoint(), tmp_path / "theirs.pth")
    model = model_config(backbone="resnet50c", output_stride=output_stride, aspp_channels=16)
    found, ours = as_ours(tmp_path / "theirs.pth", TOOLBOXES[toolbox], "cell", model, tuple("abcde"))
    assert found == replace(model, auxiliary_channels=auxiliary)
    images = torch.randn(1, 3, 33, 49)
    with torch.inference_mode():
        expected = theirs(images)
    for mine, other in zip(both(ours, images), expected, strict=True):
        if other is None:
            assert mine is None
        else:
            torch.testing.assert_close(mine, other, rtol=0, atol=1e-5 * other.abs().max().item())


def test_the_logits_are_those_of_torchvision(tmp_path):
    theirs = randomized(deeplabv3_resnet50(weights=None, weights_backbone=None, num_classes=5, aux_loss=True))
    torch.save(theirs.state_dict(), tmp_path / "theirs.pth")
    model = model_config(backbone="resnet50", **TORCHVISION)
    _, ours = as_ours(tmp_path / "theirs.pth", TOOLBOXES["torchvision"], "cell", model, tuple("abcde"))
    images = torch.randn(1, 3, 33, 49)
    with torch.inference_mode():  # theirs are upsampled
        features = theirs.backbone(images)
        expected = theirs.classifier(features["out"]), theirs.aux_classifier(features["aux"])
    for mine, other in zip(both(ours, images), expected, strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-5 * other.abs().max().item())


@pytest.mark.parametrize(("toolbox", "depth"), [*NAMES, ("torchvision", 50), ("torchvision", 101)])
def test_every_name_of_a_toolbox_has_one_place_of_its_shape(toolbox, depth):
    torchvision = {50: deeplabv3_resnet50, 101: deeplabv3_resnet101}
    with torch.device("meta"):
        if toolbox == "torchvision":
            theirs = torchvision[depth](weights=None, weights_backbone=None, aux_loss=True)
            ours = DeepLabV3(model_config(backbone=f"resnet{depth}", **TORCHVISION), 21)
        else:
            theirs = ORACLES[toolbox](depth, 8, auxiliary=512)
            wide = model_config(backbone=f"resnet{depth}c", aspp_channels=512, auxiliary_channels=512)
            ours = DeepLabV3(wide, 21)
            names = "\n".join(sorted(theirs.state_dict()))
            assert hashlib.sha256(names.encode()).hexdigest() == NAMES[toolbox, depth]
    found = [(TOOLBOXES[toolbox].rename(name), value.shape) for name, value in theirs.state_dict().items()]
    assert sorted(found) == sorted((name, value.shape) for name, value in ours.state_dict().items())


def theirs_of(name, toolbox):
    """A name of ours as the toolbox has it."""
    for their_prefix, prefix in sorted(toolbox.keys.items(), key=lambda pair: -len(pair[1])):
        theirs = their_prefix + name.removeprefix(prefix)
        if name.startswith(f"{prefix}.") and toolbox.rename(theirs) == name and "stem" not in theirs:
            return theirs
    raise AssertionError(name)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A small network with blocks of three convolutions, and its tensors as mmsegmentation would name them."""
    torch.manual_seed(0)
    network = randomized(DeepLabV3(model_config(backbone="resnet26"), 3))
    toolbox = TOOLBOXES["mmsegmentation"]
    tensors = {theirs_of(name, toolbox): value for name, value in network.state_dict().items()}
    bottleneck = "decode_head.bottleneck.conv.weight"
    tensors[bottleneck] = tensors[bottleneck].roll(8, dims=1)
    content = io.BytesIO()
    torch.save({"meta": {"CLASSES": ("a", "b", "c")}, "state_dict": tensors}, content)
    return network, tensors, content.getvalue()


@pytest.fixture
def project(tmp_path, monkeypatch, trained):
    """A project with one prepared data set, the cell of `trained`, and theirs.pth."""
    monkeypatch.chdir(tmp_path)

    def edit(params):
        params["grid"][CELL]["backbone"] = "resnet26"
        params["grid"]["tiny_os16"] = {**params["grid"][CELL], "output_stride": 16}

    tiny_params(tmp_path / "params.yaml", edit)
    write_store(tmp_path / "data/tiny", {"train": 2, "val": 4})
    (tmp_path / "reports").mkdir()
    Path("theirs.pth").write_bytes(trained[2])
    return Places(tmp_path)


def listed(*rows):
    lines = ["cell,toolbox,mIoU,url", *(",".join(map(str, row)) for row in rows)]
    Path("reports/published_weights.csv").write_text("\n".join(lines) + "\n")


def test_adopted_weights_have_the_miou_of_the_network_and_a_table_of_their_own(project, trained):
    listed((CELL, "mmsegmentation", 12.34, "https://example.org/some/theirs.pth"))
    message = adopt(CELL, "theirs.pth", "mmsegmentation", project)
    params = load_params()
    split, cell = Store(Path("data/tiny")).split("val"), params.cell(CELL)
    network = trained[0].to(memory_format=torch.channels_last)
    protocol = params.protocols["single_scale"]
    expected = score(evaluate(network, split, 3, cell.inference, protocol, torch.device("cpu"))).mean_iou
    (entry,) = read_adopted(project.adopted_table(".json"))
    sha256 = hashlib.sha256(Path("theirs.pth").read_bytes()).hexdigest()
    weights = project.adopted(f"{CELL}_mmsegmentation_{sha256[:8]}")
    scores = entry.scores
    assert scores["mIoU"] == pytest.approx(expected, abs=1e-5)
    assert scores["mIoU_low"] < scores["mIoU"] < scores["mIoU_high"]
    assert (entry.source, entry.source_sha256, entry.departs) == ("theirs.pth", sha256, "")
    assert f"{CELL}: {100 * expected:.2f} %, published 12.34 %; weights in {weights}" in message
    last = project.adopted_table(".md").read_text().splitlines()[-1]
    between = f"[{100 * scores['mIoU_low']:.2f}, {100 * scores['mIoU_high']:.2f}]"
    shown = f"12.34% | {100 * expected:.2f}% | {between} | {100 * expected - 12.34:+.2f} |  |"
    assert last == f"| {CELL} | mmsegmentation: `theirs.pth` | {shown}"
    adopt(CELL, "theirs.pth", "mmsegmentation", project)
    assert read_adopted(project.adopted_table(".json")) == [entry]
    model = load_model(weights)
    assert model.predict(split.image(0)).shape == split.image(0).shape[:2]
    origin = {"adopted_from": "mmsegmentation", "source": "theirs.pth", "source_sha256": sha256}
    assert model.about.items() >= origin.items()
    # Nothing counts as trained here.
    assert not {"cell", "data", "code"} & model.about.keys()
    written = {path.name for path in Path("reports").rglob("*") if path.is_file()}
    assert written == {"published_weights.csv", "adopted.json", "adopted.md"}
    assert not Path("runs").exists()


def test_a_number_of_other_settings_is_shown_as_outdated_and_a_subset_is_not_compared(project):
    listed((CELL, "mmsegmentation", 12.34, "https://example.org/theirs.pth"))
    params = json.loads(Path("params.yaml").read_text())
    params["datasets"]["tiny"].update(images={"train": 2, "val": 5}, allow_subset=True)
    Path("params.yaml").write_text(json.dumps(params))
    adopt(CELL, "theirs.pth", "mmsegmentation", project)
    last = project.adopted_table(".md").read_text().splitlines()[-1]
    assert last.endswith("| - | subset: 4 of 5 images |")
    params["recipes"]["tiny"]["resize"] = [64, 32]
    Path("params.yaml").write_text(json.dumps(params))
    Path("other.pth").write_bytes(Path("theirs.pth").read_bytes())
    adopt("tiny_os16", "other.pth", "mmsegmentation", project)
    new, old = project.adopted_table(".md").read_text().splitlines()[-2:]
    assert "other.pth" in new
    assert "outdated" not in new
    assert old.endswith("| 12.34% | - | - | - | outdated: adopt it again |")


def spoiled(tensors, drop=(), **changed):
    kept = {name: value for name, value in tensors.items() if name not in drop}
    return {"state_dict": kept | {name.replace("__", "."): value for name, value in changed.items()}}


class Code:
    def __reduce__(self):
        return os.system, ("touch ran",)


BN = "decode_head.image_pool.1.bn.running_var"
SPOILED = {
    "a name too many": (lambda t: spoiled(t, backbone__layer3__2__conv1__weight=torch.zeros(1)), "'backbone.layer3.2.conv1.weight' has no place in the network of tiny_os8"),
    "a name too few": (lambda t: spoiled(t, drop=["backbone.layer1.0.conv3.weight"]), "lacks 'backbone.layer1.0.conv3.weight' of the network of tiny_os8"),
    "other classes": (lambda t: spoiled(t, decode_head__conv_seg__weight=torch.zeros(19, 8, 1, 1)), "'decode_head.conv_seg.weight' has 19 classes, but the data set of tiny_os8 has 3"),
    "another width": (lambda t: spoiled(t, decode_head__conv_seg__weight=torch.zeros(3, 9, 1, 1)), r"has the shape \(3, 9, 1, 1\), but the network of tiny_os8 has \(3, 8, 1, 1\)"),
    "NaN": (lambda t: spoiled(t, **{BN.replace(".", "__"): torch.full((8,), float("nan"))}), f"'{BN}' holds NaN or infinity"),
    "no network": (lambda t: {"model": t}, "has no 'state_dict'"),
    "only a list": (lambda t: {"state_dict": list(t)}, "not a dictionary of tensors"),
    "a number": (lambda t: spoiled(t, backbone__bn1__weight=3), "'backbone.bn1.weight' is no plain tensor, but int"),
    "a huge tensor of one element": (lambda t: spoiled(t, backbone__bn1__weight=torch.zeros(1).expand(1 << 40)), "is no plain tensor"),
    "code": (lambda t: spoiled(t) | {"meta": Code()}, "wants to run posix.system, and nothing but tensors is read"),
}  # fmt: skip


@pytest.mark.parametrize("kind", SPOILED)
def test_what_is_not_the_network_of_the_cell_is_refused_in_one_line(project, trained, kind):
    make, message = SPOILED[kind]
    torch.save(make(trained[1]), "bad.pth")
    with pytest.raises(DataError, match=rf"^bad\.pth: .*{message}") as caught:
        adopt(CELL, "bad.pth", "mmsegmentation", project)
    assert "\n" not in str(caught.value)
    assert not Path("ran").exists()
    assert not project.adopted_table(".json").exists()
    assert not Path("data/adopted").exists()


def test_files_of_no_form_are_refused(project, trained):
    torch.save({"state_dict": Code()}, "old.pth", _use_new_zipfile_serialization=False)
    Path("plain.pth").write_bytes(pickle.dumps(Code(), protocol=2))
    Path("cut.pth").write_bytes(trained[2][:1000])
    Path("empty.pth").touch()
    Path("page.pth").write_text("<!doctype html>")
    messages = {"old": "wants to run posix.system", "plain": "wants to run posix.system"}
    for name in ("old", "plain", "cut", "empty", "page"):
        message = messages.get(name, "not a checkpoint of torch, or damaged")
        with pytest.raises(DataError, match=rf"^{name}\.pth: {message}"):
            adopt(CELL, f"{name}.pth", "mmsegmentation", project)
    assert not Path("ran").exists()


def test_files_in_the_old_form_of_torch_and_without_counters_of_batches_are_complete(project, trained):
    tensors = {name: value for name, value in trained[1].items() if not name.endswith("num_batches_tracked")}
    torch.save({"state_dict": tensors}, "old.pth", _use_new_zipfile_serialization=False)
    model = model_config(backbone="resnet26")
    _, network = as_ours(Path("old.pth"), TOOLBOXES["mmsegmentation"], "cell", model, ("a", "b", "c"))
    assert network.state_dict().keys() == trained[0].state_dict().keys()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"aspp_rates": (1, 2, 3)}, r"cell: model.aspp_rates: got \(1, 2, 3\), but these weights need \[6, 12, 18\]"),
        ({"multi_grid": (1, 2, 4)}, "model.multi_grid"),
        ({"mean": (0.0, 0.0, 0.0)}, "model.mean"),
        (
            {"backbone": "resnet18"},
            "model.backbone: got 'resnet18', but only ResNets with blocks of three convolutions",
        ),
        ({"backbone": "resnet26d"}, "model.backbone: got 'resnet26d'"),
    ],
)
def test_settings_that_no_tensor_shows_must_be_those_of_the_toolbox(project, settings, message):
    model = model_config(**({"backbone": "resnet26"} | settings))
    with pytest.raises(SettingsError, match=message):
        as_ours(Path("theirs.pth"), TOOLBOXES["mmsegmentation"], "cell", model, ("a", "b", "c"))


def test_the_row_of_the_docs_fits_torchvision(tmp_path):
    (row,) = re.findall(
        r"^  voc_torchvision50: ((?:.|\n    )*)$", (ROOT / "docs/use-a-model.md").read_text(), re.MULTILINE
    )
    params = read_yaml(ROOT / "params.yaml")
    params["grid"] = {"voc_torchvision50": YAML(typ="safe").load(row)}
    (tmp_path / "params.yaml").write_text(json.dumps(params))
    model = load_params(tmp_path / "params.yaml").cell("voc_torchvision50").model
    assert (model.backbone, model.output_stride) == ("resnet50", 8)
    assert {key: getattr(model, key) for key in TORCHVISION} == TORCHVISION


def test_torchvision_has_one_output_stride(project):
    model = model_config(backbone="resnet26", output_stride=16, **TORCHVISION)
    with pytest.raises(SettingsError, match="model.output_stride: got 16, but these weights need 8"):
        as_ours(Path("theirs.pth"), TOOLBOXES["torchvision"], "cell", model, ("a",))


def test_wrong_words_are_named(project):
    with pytest.raises(ParamsError, match="tiny_os9"):
        adopt("tiny_os9", "theirs.pth", "mmsegmentation", project)
    with pytest.raises(DataError, match=r"^missing.pth: no such file, and no address"):
        adopt(CELL, "missing.pth", "mmsegmentation", project)
    with pytest.raises(ParamsError, match="expected sssegmentation, mmsegmentation, torchvision"):
        adopt(CELL, "theirs.pth", "keras", project)
    with pytest.raises(ParamsError, match="address with a password"):
        adopt(CELL, "https://me:secret@example.org/theirs.pth", "mmsegmentation", project)
    project.manifest("tiny").unlink()
    with pytest.raises(DataError, match=r"data/tiny: not prepared.* Run: dvc repro prepare@tiny"):
        adopt(CELL, "theirs.pth", "mmsegmentation", project)


def test_a_name_with_a_checksum_must_keep_it(project, trained):
    right = hashlib.sha256(trained[2]).hexdigest()[:16]
    Path(f"net-{right}.pth").write_bytes(trained[2])
    assert obtain(f"net-{right}.pth", project, QUICK).sha256.startswith(right)
    for name in ("net-0123456f.pth", "net-20200617.pth"):
        Path(name).write_bytes(trained[2])
    assert obtain("net-20200617.pth", project, QUICK).origin == "net-20200617.pth"
    with pytest.raises(DataError, match=f"its SHA-256 begins with {right[:8]}, but its name states 0123456f"):
        adopt(CELL, "net-0123456f.pth", "mmsegmentation", project)


def test_weights_that_are_listed_for_another_output_stride_are_refused(project):
    listed(("tiny_os16", "mmsegmentation", 12.34, "https://example.org/theirs.pth"))
    with pytest.raises(
        DataError, match=r"theirs.pth: weights of tiny_os16, not of tiny_os8, by .*published_weights.csv"
    ):
        adopt(CELL, "theirs.pth", "mmsegmentation", project)


@pytest.fixture
def server():
    with Server().running() as server:
        yield server


def test_an_address_is_fetched_continued_after_a_cut_and_recorded_without_its_query(project, server, trained):
    body = trained[2]
    address = f"{server.address}/zoo/net.pth?token=secret"
    server.script["/zoo/net.pth?token=secret"] = [file(body, cut=len(body) // 2), file(body)]
    for _ in range(2):  # the second time it is there
        found = obtain(address, project, replace(QUICK, tries=2))
        assert found.file.read_bytes() == body
        assert found.origin == f"{server.address}/zoo/net.pth"
    (first, then) = server.requests
    assert first[1] is None
    assert then[1].startswith("bytes=")


def test_an_address_that_fails_is_one_line_and_a_wrong_file_is_fetched_again(project, server, trained):
    with pytest.raises(DataError, match=r"could not be fetched: .*answered 404") as caught:
        adopt(CELL, f"{server.address}/gone.pth", "mmsegmentation", project, QUICK)
    assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match="could not be fetched: .*refused"):
        adopt(CELL, "http://127.0.0.1:9/net.pth", "mmsegmentation", project, QUICK)
    right = hashlib.sha256(trained[2]).hexdigest()[:16]
    path = f"/net-{right}.pth"
    server.script[path] = [answer(b"other bytes"), answer(trained[2])]
    with pytest.raises(DataError, match=f"its name states {right}"):
        adopt(CELL, server.address + path, "mmsegmentation", project, QUICK)
    assert obtain(server.address + path, project, QUICK).sha256.startswith(right)


def test_known_weights_are_adopted_one_by_one_and_a_failure_does_not_stop_the_others(project, server, trained):
    server.script["/good.pth"] = [answer(trained[2])]
    rows = [
        ("tiny_os16", "mmsegmentation", 50, f"{server.address}/gone.pth"),
        (CELL, "mmsegmentation", 60, f"{server.address}/good.pth"),
    ]
    listed(*rows, ("voc_of_others", "mmsegmentation", 70, f"{server.address}/other.pth"))
    lines = []
    with pytest.raises(DataError, match="1 of 2 published weights were not adopted"):
        lines += adopt_known([], None, project, QUICK)
    assert lines[0].startswith("tiny_os16: ")
    assert "answered 404" in lines[0]
    assert lines[1].startswith(f"{CELL}: ")
    assert [(entry.published, entry.source) for entry in read_adopted(project.adopted_table(".json"))] == [
        (60, f"{server.address}/good.pth")
    ]
    assert f"[mmsegmentation]({server.address}/good.pth)" in project.adopted_table(".md").read_text()
    with pytest.raises(
        ParamsError, match=r"published_weights.csv: lists no weights of tiny_os8 by torchvision. Add a line"
    ):
        list(adopt_known([CELL], "torchvision", project, QUICK))


def test_a_damaged_list_is_named(project):
    listed((CELL, "mmsegmentation", "good", "https://example.org/theirs.pth"))
    with pytest.raises(DataError, match="published_weights.csv: damaged, or edited by hand") as caught:
        adopt(CELL, "theirs.pth", "mmsegmentation", project)
    assert "\n" not in str(caught.value)


def test_the_list_has_the_twelve_cells_with_the_numbers_of_the_reference():
    known, cells = read_known(ROOT / "reports/published_weights.csv"), load_params(ROOT / "params.yaml").cells
    with (ROOT / "reports/reference.csv").open() as lines:
        reference = {
            (row["dataset"], row["backbone"], int(row["output_stride"]), row["source"].split()[0], float(row["mIoU"]))
            for row in csv.DictReader(lines)
        }
    assert {entry.cell for entry in known} == {name for name in cells if not name.startswith("shapes")}
    assert len({entry.url.rpartition("/")[2] for entry in known}) == len(known) == 24
    for entry in known:
        cell = cells[entry.cell]
        assert (
            cell.dataset,
            cell.model.backbone,
            cell.model.output_stride,
            entry.toolbox,
            entry.published,
        ) in reference
        assert entry.url.startswith("https://")
        stated = entry.toolbox == "mmsegmentation"
        assert bool(re.search(r"-[0-9a-f]{8}\.pth$", entry.url)) == stated
        size = f"{cell.model.backbone.removesuffix('c')}os{cell.model.output_stride}"
        assert stated or size in entry.url


def test_the_command_names_the_toolboxes_and_says_what_is_missing(project):
    help_text = " ".join(cli.adopt.get_help(click.Context(cli.adopt)).split())
    assert all(name in help_text for name in TOOLBOXES)
    for words, message in (
        (["adopt"], "expected a cell or --all"),
        (["adopt", CELL, "a.pth"], "--from: missing, expected sss"),
    ):
        with pytest.raises(ParamsError, match=message):
            cli.grid.main(words, standalone_mode=False)

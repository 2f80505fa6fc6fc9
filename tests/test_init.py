"""A cell that starts from other weights: what its row may say, what is taken, and what makes it stale."""

import json
import os
import re
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import huggingface_hub
import pytest
import torch
from ruamel.yaml import YAML
from safetensors.torch import load_file, save_file

from deeplab.config import InitConfig
from deeplab.errors import DataError, SettingsError
from deeplab.model import DeepLabV3
from pipeline.errors import ParamsError
from pipeline.results.records import Record, read_results
from pipeline.results.table import title_of
from pipeline.runner.graph import read_stages
from pipeline.runner.run import starts_after
from pipeline.settings.code import entries
from pipeline.settings.params import load_params
from pipeline.settings.places import Places
from pipeline.settings.published import departures
from pipeline.settings.yaml import read_yaml
from pipeline.stages import evaluate, train
from pipeline.training.facts import InitFacts, Inputs, read_run
from pipeline.training.parent import find_starts
from pipeline.training.provenance import file_sha256
from pipeline.training.reuse import is_of
from pipeline.training.start import in_one_line, take_weights
from tests.forked import forked
from tests.records import CELL, OTHER, Folder
from tests.tiny import model_config, tiny_cell, tiny_params, train_config, write_store, write_weights

CLASSES = ("class 0", "class 1", "class 2")
PARENT, CHILD = "tiny_os8", "child"
BACKBONE = "test_resnet"  # of timm, 0.4 million parameters
ROW = {"dataset": "tiny", "backbone": BACKBONE, "output_stride": 8}
SHA = "0" * 64
LAST = {"classifier.weight", "classifier.bias", "auxiliary.2.weight", "auxiliary.2.bias"}


def write(folder, edit=lambda params: None, **row):
    """params.yaml with a parent and its child, whose row has `row`."""

    def both(params):
        params["grid"][PARENT]["backbone"] = BACKBONE
        params["grid"][CHILD] = {**ROW, "init": {"cell": PARENT}, **row}
        edit(params)

    return tiny_params(folder / "params.yaml", both)


# --- Settings


@pytest.mark.parametrize(
    ("init", "message"),
    [
        ({"cell": "tiny_os"}, r"params.yaml: grid.child.init.cell: unknown name 'tiny_os'; did you mean 'tiny_os8'\?"),
        ({"cel": PARENT}, r"params.yaml: grid.child.init: unknown name 'cel'; did you mean 'cell'\?"),
        ({"cell": PARENT, "parent": {}}, "grid.child.init: unknown name 'parent'; known: cell, file, hub, revision"),
        ({"cell": ["a"]}, "grid.child.init.cell: unknown name"),
        ({}, "params.yaml: grid.child.init: got neither, expected one of cell, file and hub"),
        ({"cell": PARENT, "file": "a"}, "grid.child.init: got cell and file, expected one of cell, file and hub"),
        ({"file": "a.safetensors"}, "params.yaml: grid.child.init.sha256: missing beside file. Add the SHA-256"),
        ({"hub": "me/net"}, "grid.child.init.sha256: missing beside hub"),
        ({"file": "a", "sha256": "12"}, "grid.child.init.sha256: got '12', expected 64 digits 0-9 a-f"),
        ({"cell": PARENT, "sha256": SHA}, "grid.child.init.sha256: got one beside cell"),
        ({"file": "a", "sha256": SHA, "revision": "main"}, "grid.child.init.revision: got one without hub"),
        ({"cell": CHILD}, "grid.child.init.cell: got 'child', but then cells start in a circle: child from child"),
    ],
)
def test_a_wrong_start_is_one_line_with_its_key(tmp_path, init, message):
    with pytest.raises(ParamsError, match=f"{message}.*") as error:
        load_params(write(tmp_path, init=init))
    assert "\n" not in str(error.value)


def test_a_circle_of_cells_is_refused(tmp_path):
    def circle(params):
        params["grid"] = {name: {**ROW, "init": {"cell": other}} for name, other in ("ab", "bc", "ca")}

    with pytest.raises(
        ParamsError, match=r"init.cell: got 'a', but then cells start in a circle: a from b from c from a"
    ):
        load_params(write(tmp_path, circle))


def test_the_start_of_a_recipe_holds_for_its_rows_and_null_turns_it_off(tmp_path):
    def edit(params):
        params["recipes"]["tiny"]["init"] = {"cell": PARENT}
        del params["grid"][CHILD]["init"]
        params["grid"]["other"] = {**ROW, "init": {"file": "nets/a.safetensors", "sha256": SHA}}

    with pytest.raises(ParamsError, match=r"recipes.tiny.init.cell: .*circle: tiny_os8 from tiny_os8.*init: null"):
        load_params(write(tmp_path, edit))
    cells = load_params(write(tmp_path, lambda params: (edit(params), params["grid"][PARENT].update(init=None)))).cells
    assert {name: cell.pretraining for name, cell in cells.items()} == {
        PARENT: "none", CHILD: PARENT, "other": "a.safetensors",
    }  # fmt: skip
    assert title_of(cells[CHILD], "") == f"{BACKBONE} (OS=8, PRE={PARENT})"


def test_a_start_replaces_imagenet_weights_and_asking_for_both_is_refused(tmp_path):
    cell = load_params(write(tmp_path)).cell(CHILD)
    assert not cell.model.pretrained  # `model` says true for all
    with pytest.raises(
        ParamsError, match="grid.child.pretrained: got true beside grid.child.init, expected one of the two"
    ):
        load_params(write(tmp_path, pretrained=True))
    with pytest.raises(ParamsError, match="recipes.tiny.model.pretrained: got true beside grid.child.init"):
        load_params(write(tmp_path, lambda params: params["recipes"]["tiny"]["model"].update(pretrained=True)))


def test_the_example_of_the_docs_is_read(tmp_path):
    params = read_yaml(Path("params.yaml"))
    (text,) = re.findall(r"```yaml\n(grid:\n.*?)```", Path("docs/training.md").read_text(), re.DOTALL)
    params["grid"].update(YAML(typ="safe").load(text)["grid"])
    params["datasets"]["streets"], params["recipes"]["streets"] = params["datasets"]["shapes"], params["recipes"]["voc"]
    (tmp_path / "params.yaml").write_text(json.dumps(params))
    cell = load_params(tmp_path / "params.yaml").cell("streets_from_voc")
    assert (cell.pretraining, cell.train.backbone_lr, cell.train.freeze_norm) == ("voc_resnet50_os8", 0.1, True)
    assert cell.init.parent == load_params().cell("voc_resnet50_os8")


def test_new_settings_at_their_defaults_move_no_fingerprint():
    """As it was before they existed."""
    assert tiny_cell().fingerprint == "c93d6033545d4d793b93643dc102bd59c72201296c9474ecea6b07f8523c02e3"


def test_fine_tuning_is_named_as_a_departure():
    cell = replace(load_params().cell("voc_resnet50_os8"), init=InitConfig(cell="a"))
    assert departures(cell) == ()  # PRE tells it apart
    tuned = replace(cell, train=replace(cell.train, freeze=("backbone",), freeze_norm=True, backbone_lr=0.1))
    assert departures(tuned) == ("freeze backbone", "freeze_norm", "backbone_lr 0.1 instead of 1.0")


# --- What makes the child stale


def state(path, name=CHILD):
    """The fingerprint of a cell and the entries of code.json that its stages depend on."""
    params = load_params(path)
    code = entries(params, Places(path.parent))
    return params.cell(name).fingerprint, code[f"train.{name}"], code[f"evaluate.{name}"]


def test_a_child_is_stale_when_its_parent_is(tmp_path):
    def grandchild(params):
        params["grid"]["grandchild"] = {**ROW, "init": {"cell": CHILD}}

    def other_lr(params):
        grandchild(params)
        params["grid"][PARENT]["recipe"] = {"lr": 0.02}

    def other_data(params):
        grandchild(params)
        params["datasets"]["tiny"]["images"]["train"] = 13

    def unrelated(params):
        grandchild(params)
        params["grid"]["third"] = ROW
        params["datasets"]["tiny"]["title"] = "another title"

    names = (CHILD, "grandchild")
    before = [state(write(tmp_path, grandchild), name) for name in names]
    assert [state(write(tmp_path, unrelated), name) for name in names] == before
    for now, then in zip([state(write(tmp_path, other_lr), name) for name in names], before, strict=True):
        assert now[0] != then[0]
        assert now[1] != then[1]
        assert now[2] == then[2]
    for now, then in zip([state(write(tmp_path, other_data), name) for name in names], before, strict=True):
        assert now[0] == then[0]
        assert now[1] != then[1]


@pytest.mark.filterwarnings("ignore:_NoneStep.value:DeprecationWarning")  # in DVC
def test_the_runner_trains_the_parent_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_NO_ANALYTICS", "1")
    after = starts_after(load_params(write(tmp_path)))
    assert after == {"train@child": "train@tiny_os8"}
    stages = {"train": {"foreach": [CHILD, PARENT], "do": {"cmd": "touch ${item}", "outs": ["${item}"]}}}
    (tmp_path / "dvc.yaml").write_text(json.dumps({"stages": stages}))
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc/config").write_text("[core]\n    no_scm = true\n")
    assert list(read_stages(["train@child"])) == ["train@child"]
    found = read_stages(["train@child"], after)
    assert list(found) == ["train@tiny_os8", "train@child"]
    assert found["train@child"].needs == ("train@tiny_os8",)


# --- What is taken


@pytest.fixture(scope="module")
def net(tmp_path_factory):
    """The weights of a tiny network of three classes."""
    return write_weights(tmp_path_factory.mktemp("net") / "net.safetensors", model={"backbone": BACKBONE})


def network(seed=1, **model):
    torch.manual_seed(seed)
    return DeepLabV3(model_config(**{"backbone": BACKBONE, **model}), len(CLASSES))


def take(file, classes=CLASSES, **model):
    """A network before and after it took the weights in `file`, and what was taken."""
    before, now = network(**model), network(**model)
    cell = tiny_cell(model=model_config(**{"backbone": BACKBONE, **model}), init=InitConfig(file=str(file), sha256=SHA))
    facts = take_weights(now, file, cell, classes)
    return before.state_dict(), now.state_dict(), facts


def test_everything_is_taken_when_the_classes_agree(net):
    _, now, facts = take(net)
    torch.testing.assert_close(now, load_file(net), rtol=0, atol=0)
    assert (facts.not_taken, facts.unused, facts.sha256) == ({}, (), file_sha256(net))
    assert in_one_line(facts) == (
        f"starting from net.safetensors (SHA-256 {facts.sha256[:12]}): {facts.taken} of {facts.taken} tensors taken"
    )


@pytest.mark.parametrize("classes", [("class 0", "class 1", "a dog"), ("class 1", "class 0", "class 2")])
def test_the_classifier_is_new_for_other_names_or_another_order_of_the_classes(net, classes):
    before, now, facts = take(net, classes)
    given = load_file(net)
    assert facts.not_taken == dict.fromkeys(facts.not_taken, "other classes")
    assert set(facts.not_taken) == LAST
    for key, value in now.items():
        torch.testing.assert_close(value, before[key] if key in LAST else given[key], rtol=0, atol=0)
    assert "; new: classifier 2 (weight: other classes), auxiliary 2 (2.weight: other classes)" in in_one_line(facts)


def test_classes_without_names_are_compared_by_their_number(tmp_path):
    for count, expected in ((3, set()), (5, LAST)):
        tensors = load_file(write_weights(tmp_path / "net.safetensors", classes=count, model={"backbone": BACKBONE}))
        save_file(tensors, tmp_path / "plain.safetensors")
        assert set(take(tmp_path / "plain.safetensors")[2].not_taken) == expected


def test_an_aspp_of_another_width_is_listed_as_not_taken(net):
    _, now, facts = take(net, aspp_channels=12, auxiliary_channels=0)
    assert facts.not_taken["aspp.point.0.weight"] == "8x96x1x1 instead of 12x96x1x1"
    assert {key.partition(".")[0] for key in facts.not_taken} == {"aspp", "classifier"}
    assert {key.partition(".")[0] for key in facts.unused} == {"auxiliary"}
    key = "backbone.layer4.0.conv2.weight"
    torch.testing.assert_close(now[key], load_file(net)[key], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path, tensors: path.write_bytes(path.read_bytes()[:-100]), "not a safetensors file, or cut short"),
        (
            lambda path, tensors: torch.save(tensors, path),
            "a pickle, which can run code and is not read. Save its tensors",
        ),
        (lambda path, tensors: path.write_bytes(b"GIF89a" * 50), "not a safetensors file, or cut short"),
        (lambda path, tensors: save_file({"conv1": torch.ones(2)}, path), "no tensor agrees .*conv1 instead of aspp."),
        (
            lambda path, tensors: save_file({}, path),
            r"no tensor agrees in name and shape with the network \(it is empty",
        ),
        (
            lambda path, tensors: save_file(
                tensors | {"aspp.point.0.weight": tensors["aspp.point.0.weight"] * float("nan")}, path
            ),
            "aspp.point.0.weight has NaN or infinity",
        ),
    ],
)
def test_a_file_that_cannot_be_taken_is_one_line(net, tmp_path, spoil, message):
    file = tmp_path / "net.safetensors"
    shutil.copyfile(net, file)
    spoil(file, {key: value.clone() for key, value in load_file(file).items()})  # not a map of what is overwritten
    with pytest.raises(DataError, match=rf"net.safetensors: {message}.*\.$") as error:
        take(file)
    assert "\n" not in str(error.value)


def test_weights_for_images_of_another_mean_are_refused(tmp_path):
    file = write_weights(tmp_path / "net.safetensors", model={"backbone": BACKBONE, "mean": (127.5, 127.5, 127.5)})
    with pytest.raises(SettingsError, match=r"model.mean: got \[123.675, .*\], but .*net.safetensors expect \[127.5, "):
        take(file)


# --- Which file


def test_a_named_file_must_be_there_and_be_the_right_one(tmp_path):
    file = write_weights(tmp_path / "nets/model.safetensors", model={"backbone": BACKBONE})
    for named in ("nets/model.safetensors", "nets"):
        params = load_params(write(tmp_path, init={"file": named, "sha256": file_sha256(file)}))
        assert find_starts(CHILD, params, Places(tmp_path)) == {0: file}
    assert find_starts(PARENT, params, Places(tmp_path)) == {}
    wrong = load_params(write(tmp_path, init={"file": "nets", "sha256": SHA}))
    with pytest.raises(DataError, match=f"model.safetensors: has the SHA-256 {file_sha256(file)}, but init.sha256"):
        find_starts(CHILD, wrong, Places(tmp_path))
    file.unlink()
    with pytest.raises(DataError, match=r"nets.model.safetensors: not found. The cell child starts from it"):
        find_starts(
            CHILD,
            load_params(write(tmp_path, init={"file": "nets/model.safetensors", "sha256": SHA})),
            Places(tmp_path),
        )


def test_a_repository_of_the_hub_comes_from_the_cache_or_is_downloaded(tmp_path, monkeypatch):
    file = write_weights(tmp_path / "snapshot/model.safetensors", model={"backbone": BACKBONE})
    params = load_params(write(tmp_path, init={"hub": "me/net", "sha256": file_sha256(file), "revision": "v1"}))
    asked = []

    class Hub:
        def model_info(self, repository, revision, timeout):
            asked.append((repository, revision, timeout))
            if not online:
                raise ConnectionError("no route\nto host")

    def snapshot_download(repository, revision, allow_patterns, local_files_only=False):
        assert (repository, revision, allow_patterns) == ("me/net", "v1", ["model.safetensors", "config.json"])
        if local_files_only and not cached:
            raise FileNotFoundError(repository)
        return str(file.parent)

    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    cached = online = True
    assert find_starts(CHILD, params, Places(tmp_path)) == {0: file}
    assert not asked
    cached = False
    assert find_starts(CHILD, params, Places(tmp_path)) == {0: file}
    assert asked == [("me/net", "v1", 5)]
    online = False
    with pytest.raises(
        DataError, match=r"init.hub: 'me/net' is not in the Hugging Face cache .*ConnectionError: no route\)"
    ):
        find_starts(CHILD, params, Places(tmp_path))


# --- A parent and its child, trained


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder in which the parent is trained."""
    place = tmp_path_factory.mktemp("trained")
    write(place)
    write_store(place / "data/tiny", {"train": 12, "val": 3})
    train.run(PARENT, Places(place))
    return place


@pytest.fixture
def place(trained, tmp_path):
    """The same, with links to what the parent left."""
    for name in ("data", f"runs/{PARENT}"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).symlink_to(trained / name)
    write(tmp_path)
    return tmp_path


def test_a_child_records_what_it_started_from(place, capsys):
    write(place, train={"freeze": ["backbone"]}, recipe={"epochs": 1})
    train.run(CHILD, Places(place))
    parent = place / f"runs/{PARENT}/weights/seed0.safetensors"
    facts = read_run(place / "runs/child/run.json")["0"]
    assert facts.init == InitFacts(source=PARENT, sha256=file_sha256(parent), taken=114, not_taken={}, unused=())
    assert facts.settings["init"] == PARENT
    assert "child seed 0: starting from tiny_os8 (SHA-256 " in capsys.readouterr().out
    given, now = load_file(parent), load_file(place / "runs/child/weights/seed0.safetensors")
    for key, value in now.items():
        same = torch.equal(value, given[key])
        assert same if key.startswith("backbone.") else not same or value.numel() == 1, key
    evaluate.run(CHILD, Places(place))
    record = Record.read(place / "reports/records/tiny/child.json")
    assert record.model_dump()["init"] == {"0": {"source": PARENT, "sha256": file_sha256(parent)}}


def test_a_parent_that_is_absent_stale_or_damaged_is_one_line(place, trained):
    remedy = "Train it first: dvc repro train@tiny_os8"
    write(place, lambda params: params["grid"][PARENT].update(recipe={"lr": 0.02}))
    with pytest.raises(
        DataError, match=f"seed0.safetensors: trained with different settings. The cell child.* {remedy}"
    ):
        train.run(CHILD, Places(place))
    write(place)
    (place / f"runs/{PARENT}").unlink()
    with pytest.raises(DataError, match=f"seed0.safetensors: not found, but the cell child starts from it. {remedy}"):
        train.run(CHILD, Places(place))
    weights = place / f"runs/{PARENT}/weights/seed0.safetensors"
    weights.parent.mkdir(parents=True)
    weights.write_bytes(b"other")
    (place / f"runs/{PARENT}/run.json").write_bytes((trained / f"runs/{PARENT}/run.json").read_bytes())
    with pytest.raises(DataError, match=r"not the file that .*run.json describes. Run: dvc checkout --force"):
        train.run(CHILD, Places(place))


@pytest.mark.usefixtures("one_thread")
def test_a_killed_child_with_frozen_norm_and_a_slower_backbone_ends_as_an_unbroken_one(place, tmp_path_factory):
    """The kill comes behind a checkpoint in the middle; the parent's weights are found again when it goes on."""
    settings = {"freeze_norm": True, "freeze": ["auxiliary"], "backbone_lr": 0.1}

    def often(params):
        params["runtime"]["checkpoint_every"] = 1e-9

    write(place, often, train=settings)
    train.run(CHILD, Places(place))
    unbroken = (place / "runs/child/weights/seed0.safetensors").read_bytes()

    def killed():
        from deeplab import training

        save = training.save_checkpoint

        def save_and_die(folder, step, state):
            save(folder, step, state)
            if step == 3:
                os.kill(os.getpid(), signal.SIGKILL)

        training.save_checkpoint = save_and_die
        train.run(CHILD, Places(place))

    _, status = os.waitpid(forked(killed), 0)
    assert os.WTERMSIG(status) == signal.SIGKILL
    (folder,) = (place / "runs/.resume/child").glob("seed0-*")
    assert [path.name[:14] for path in sorted(folder.glob("step-*.pt"))][-1] == "step-000000003"
    train.run(CHILD, Places(place))
    assert (place / "runs/child/weights/seed0.safetensors").read_bytes() == unbroken
    given, now = (
        load_file(place / f"runs/{PARENT}/weights/seed0.safetensors"),
        load_file(place / "runs/child/weights/seed0.safetensors"),
    )
    names = {key.rpartition(".")[0] for key in now if key.endswith("running_mean")}
    norm = {key for key in now if key.rpartition(".")[0] in names}
    assert len(norm) > 100
    for key, value in now.items():
        assert torch.equal(value, given[key]) == (key in norm or key.startswith("auxiliary.")), key


def test_other_weights_of_the_parent_start_another_folder_and_no_trained_seed_is_taken():
    one, two = (
        Inputs(cell=tiny_cell(), seeds=(3, 4), data="d", code="c", starts=starts) for starts in (("a", "b"), ("a", "x"))
    )
    assert (one.start(4), two.start(4)) == ("b", "x")
    assert one.fingerprint(3) == two.fingerprint(3)
    assert one.fingerprint(4) != two.fingerprint(4)
    plain = Inputs(cell=tiny_cell(), seeds=(3, 4), data="d", code="c")
    assert plain.start(3) == ""

    class Facts:
        seed, fingerprint = 4, {"cell": tiny_cell().fingerprint, "data": "d", "code": "c"}
        init = InitFacts(source="p", sha256="b", taken=1, not_taken={}, unused=())

    assert is_of(Facts, one)
    assert not is_of(Facts, two)
    assert not is_of(Facts, plain)


def test_a_result_is_not_shown_after_its_parent_was_trained_again(tmp_path):
    folder = Folder(tmp_path)
    folder.raw["grid"][OTHER] = {
        "dataset": "shapes",
        "backbone": "resnet18",
        "output_stride": 16,
        "init": {"cell": CELL},
    }
    folder.write_params()
    folder.measure(CELL, 0.5)
    folder.measure(OTHER, 0.6)
    path = Path(tmp_path / f"reports/records/shapes/{OTHER}.json")
    for sha, shown in ((folder.weights(CELL, 0)["sha256"], True), (SHA, False)):
        path.write_text(json.dumps({**json.loads(path.read_text()), "init": {"0": {"source": CELL, "sha256": sha}}}))
        results, reasons = read_results("shapes", folder.params, Places(tmp_path))
        assert ((OTHER, 0) in results) == shown
    assert (
        f"{CELL}, from which it started, was trained again since. Run: dvc repro -f -s train@{OTHER}" in reasons[OTHER]
    )


# --- What is frozen: deeplab/step.py


def test_the_backbone_steps_by_its_factor():
    from deeplab.step import build_optimizer, set_rate

    moved = []
    for factor in (1.0, 0.25):
        own = network()
        before = {name: value.detach().clone() for name, value in own.named_parameters()}
        optimizer = build_optimizer(own, train_config(weight_decay=0.0, backbone_lr=factor))
        assert len(optimizer.param_groups) == (1 if factor == 1 else 2)
        for parameter in own.parameters():
            parameter.grad = torch.ones_like(parameter)
        set_rate(optimizer, 0.5)
        optimizer.step()
        moved.append({name: before[name] - value for name, value in own.named_parameters()})
    for name, whole in moved[0].items():
        torch.testing.assert_close(moved[1][name], whole * (0.25 if name.startswith("backbone.") else 1.0))


def test_what_is_frozen_stays_so_after_a_validation():
    from deeplab.step import freeze, training_mode

    own, settings = network(), train_config(freeze=("aspp",), freeze_norm=True)
    freeze(own, settings)
    own.eval()
    training_mode(own, settings)
    still = {name for name, module in own.named_modules() if not module.training}
    norms = {name for name, module in own.named_modules() if isinstance(module, torch.nn.BatchNorm2d)}
    aspp = {name for name, _ in own.named_modules() if name.partition(".")[0] == "aspp"}
    assert still == norms | aspp
    assert own.training


def test_a_part_that_is_not_there_and_nothing_to_train_are_refused():
    from deeplab.step import build_optimizer, freeze

    own = network(auxiliary_channels=0)
    with pytest.raises(
        SettingsError, match="freeze: got 'auxiliary', but with auxiliary_channels 0 the network has none"
    ):
        freeze(own, train_config(freeze=("auxiliary",)))
    everything = train_config(freeze=("backbone", "aspp", "classifier"))
    freeze(own, everything)
    with pytest.raises(
        SettingsError, match=r"freeze: got \['backbone', .*\], expected at least one part that is trained"
    ):
        build_optimizer(own, everything)

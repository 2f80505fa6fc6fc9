"""Nothing that comes from elsewhere is unpickled: each file would create a canary, through each way that reads one."""

import hashlib
import shutil
import subprocess
import sys

import pytest

from deeplab import load_model
from deeplab.backbone import build_backbone
from deeplab.checkpoint import load_checkpoint
from deeplab.counts import read_counts
from deeplab.decode import read_image
from deeplab.errors import DataError
from deeplab.store import Store
from pipeline.data.formats.masks import read_labels
from pipeline.data.formats.voc import read_sbd
from pipeline.errors import ParamsError
from pipeline.settings.yaml import read_yaml
from pipeline.training.weights import check_weights
from pipeline.verify.toolboxes import TOOLBOXES
from pipeline.verify.toolboxes.checkpoint import read_tensors
from tests.faults.hostile import PICKLES
from tests.tiny import model_config, tiny_cell, write_store

PICKLED = pytest.mark.fault(
    "security",
    "a pickle from outside",
    "plain, torch, .npy and .npz pickles in place of weights, checkpoints, counts, images, masks, stores, records, settings",
    "never unpickled: one error names the file, and the code in it does not run",
)


def imagenet_file(path):
    build_backbone(model_config(backbone="resnet18", pretrained=True), path.parent)


def checkpoint(path):
    content = path.read_bytes()  # under the name that its content asks for, as someone who knows the rule would do it
    path.rename(path.with_name(f"step-000000001-{hashlib.sha256(content).hexdigest()[:16]}.pt"))
    load_checkpoint(path.parent)


def manifest(path):
    folder = write_store(path.parent / "store")
    shutil.copy(path, folder / "manifest.json")
    Store(folder)


def repository(path):
    """The folder of a model, as from a hub: weights in the one form that is read, and pickles beside them."""
    for name in ("pytorch_model.bin", "training_args.bin", "config.json"):
        shutil.copy(path, path.with_name(name))
    load_model(path.parent)


READERS = {
    "weights": ("seed0.safetensors", load_model),
    "weights to evaluate": ("seed0.safetensors", lambda path: check_weights([path], "cell", tiny_cell(), None)),
    "a model from a hub": ("model.safetensors", repository),
    "ImageNet weights": ("resnet18.a1_in1k.safetensors", imagenet_file),
    "weights of another toolbox": ("net.pth", lambda path: read_tensors(path, TOOLBOXES["torchvision"])),
    "a checkpoint": ("checkpoint", checkpoint),
    "counts": ("cell.npz", read_counts),
    "a store": ("file", manifest),
    "an image": ("image.png", read_image),
    "a mask": ("mask.png", read_labels),
    "a mask of SBD": ("mask.mat", read_sbd),
    "settings": ("params.yaml", read_yaml),
}


@pytest.mark.parametrize("kind", PICKLES)
@pytest.mark.parametrize("reader", READERS)
@PICKLED
def test_a_pickle_is_refused_and_its_code_does_not_run(tmp_path, reader, kind):
    name, read = READERS[reader]
    canary, folder = tmp_path / "canary", tmp_path / "folder"
    folder.mkdir()
    (folder / name).write_bytes(PICKLES[kind](canary))
    with pytest.raises((DataError, ParamsError)) as caught:
        read(folder / name)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not canary.exists()


@pytest.mark.parametrize("kind", PICKLES)
def test_each_of_these_files_does_create_the_canary_when_it_is_believed(tmp_path, kind):
    """Else the tests above would prove nothing."""
    canary, file = tmp_path / "canary", tmp_path / "file"
    file.write_bytes(PICKLES[kind](canary))
    loads = {
        "pickle": "import pickle; pickle.loads(file.read_bytes())",
        "torch": "import torch; torch.load(file, weights_only=False)",
        "npy": "import numpy; numpy.load(file, allow_pickle=True)",
        "npz": "import numpy; numpy.load(file, allow_pickle=True)['images']",
    }
    code = f"from pathlib import Path; file = Path({str(file)!r}); {loads[kind]}"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
    assert canary.exists()


@PICKLED
def test_yaml_that_names_an_object_makes_none(tmp_path):
    canary = tmp_path / "canary"
    path = tmp_path / "params.yaml"
    path.write_text(f"grid: !!python/object/apply:os.system ['touch {canary}']\n")
    with pytest.raises(ParamsError, match=r"params\.yaml:1: "):
        read_yaml(path)
    assert not canary.exists()

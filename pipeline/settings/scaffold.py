"""A new project: the templates beside this file, filled with what is known about its data."""

import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2

from pipeline.errors import ParamsError
from pipeline.files import write_whole
from pipeline.settings.params import NAME, Params, load_params
from pipeline.settings.places import Places

TEMPLATES = Path(__file__).with_name("templates")
FILES = {
    **{name: name for name in ("params.yaml", "README.md", "classes.txt")},
    "stages.yaml": "dvc.yaml",  # under its own name DVC would take it for a pipeline of this repository
    **{name: f".{name}" for name in ("gitignore", "dvcignore", "dvc/config")},
    "dvc/gitignore": ".dvc/.gitignore",
    "dvc/class_iou.json": ".dvc/plots/class_iou.json",
    "dvc/confusion_share.json": ".dvc/plots/confusion_share.json",
    "reference.csv": "reports/reference.csv",
    "equivalent_code.txt": "reports/equivalent_code.txt",
}  # template -> file. A `.dvc` of its own makes the folder a DVC repository, whatever is around it.
# Folders in data/, and words of YAML.
TAKEN = {"adopted", "archives", "downloads", "pretrained", "raw", "true", "false", "null"}
STRIDE = 16  # sizes are multiples of the larger output stride

Lists = Mapping[str, Sequence[tuple[Path, Path]]]  # split -> image and mask, below their folders


@dataclass(frozen=True, kw_only=True)
class Source:
    """What is known about the images and masks of a new project."""

    images: Path | None  # None: with the masks or annotations
    masks: Path  # or annotations
    splits: Lists  # the one to train on first, then the one to validate on
    split_note: str
    size: tuple[int, int]  # height, width of most images
    classes: Sequence[str]  # the lines of classes.txt
    class_note: str
    masks_are: str
    ignore: Sequence[int]
    report: str  # what was found, for a person
    format: str = "folder"
    where: Mapping[str, str] = field(default_factory=lambda: {"pairs": "../../../{split}.txt"})  # keys of `folder`

    @property
    def links(self) -> dict[str, Path]:
        """The links in the raw folder."""
        images = {"images": self.images} if self.images else {}
        return images | {"masks" if self.format == "folder" else "annotations": self.masks}


@dataclass(frozen=True, kw_only=True)
class Network:
    """What is trained on them."""

    backbones: Sequence[str]
    weights: Path | None  # a file with ImageNet weights
    pretrained: bool
    gpu: bool  # whether the recipe is for a GPU

    @classmethod
    def of(cls, backbones: Sequence[str], weights: str, gpu: bool) -> "Network":
        """The networks of the options of `grid new`. Raises ParamsError for weights that are no file."""
        file = None if weights in ("none", "imagenet") else Path(weights)
        if file and (file.suffix != ".safetensors" or not file.is_file()):
            raise ParamsError(
                f"--weights: got {weights!r}, expected none, imagenet or a file ARCHITECTURE.TAG.safetensors"
            )
        usual = file.stem if file else "resnet18" if weights == "none" else "resnet50c"
        return cls(backbones=backbones or (usual,), weights=file, pretrained=weights != "none", gpu=gpu)


def check_new(name: str) -> Path:
    """The folder of the new project `name`. Raises ParamsError for an odd name, and for one that is taken."""
    if not (NAME.fullmatch(name) and name[0].isalpha()) or name in TAKEN:
        raise ParamsError(
            f"{name!r}: expected a name of lower-case letters, digits and _ that begins with a letter, and none of "
            f"{', '.join(sorted(TAKEN))}"
        )
    if (folder := Path(name)).exists() or folder.is_symlink():
        raise ParamsError(f"{folder}: exists, and nothing is overwritten. Choose another name, or move it away.")
    return folder


def write_project(name: str, source: Source, network: Network, check: Callable[[Params], None]) -> str:
    """Write the project `name` and say where its history is kept. What `check` or the settings refuse is not written.

    Raises ParamsError for a folder that exists, or a setting that is wrong.
    """
    folder = check_new(name)
    folder.mkdir()
    try:
        fill(folder, name, source, network)
        check(load_params(Places(folder).params))
        return keep_history(folder)
    except BaseException:
        shutil.rmtree(folder)
        raise


def fill(folder: Path, name: str, source: Source, network: Network) -> None:
    """Write the files of the project `name` into `folder`, and link its images, masks and weights."""
    loader = jinja2.FileSystemLoader(TEMPLATES)
    made = jinja2.Environment(loader=loader, undefined=jinja2.StrictUndefined, keep_trailing_newline=True)  # noqa: S701
    values = values_of(name, source, network)
    files = {target: made.get_template(file).render(values) for file, target in FILES.items()}
    for split, pairs in source.splits.items() if source.format == "folder" else ():
        files[f"{split}.txt"] = "".join(f"images/{image}\tmasks/{mask}\n" for image, mask in pairs)
    for file, text in files.items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        write_whole(folder / file, text)
    raw, pretrained = Places(folder).raw(name), Places(folder).pretrained
    links = {raw / link: target for link, target in source.links.items()}
    if network.weights:
        links[pretrained / network.weights.name] = network.weights
    for link, target in links.items():
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(target.resolve())


def values_of(name: str, source: Source, network: Network) -> dict[str, Any]:
    """What the templates name."""
    train, val = list(source.splits)[:2]
    cells = [
        (f"{name}_{''.join(c if c.isalnum() else '_' for c in backbone.lower())}_os{stride}", backbone, stride)
        for backbone in network.backbones
        for stride in (8, 16)
    ]
    counts = ", ".join(f"{split}: {len(pairs)}" for split, pairs in source.splits.items())
    own = {"name": name, "title": name.replace("_", " ").strip().capitalize() or name, "cells": cells}
    own |= {"counts": f"{{{counts}}}", "train": train, "val": val}
    own |= {"links": list(source.links)}
    return {**vars(source), **vars(network), **own, **recipe(source.size, len(source.splits[train]), network.gpu)}


def recipe(size: tuple[int, int], images: int, gpu: bool) -> dict[str, Any]:
    """Settings to begin with: on a GPU about 6000 steps of large crops, else 100 small ones, which take minutes.

    The long side is the multiple of the output stride at which the short side is nearest to one too: a network loses
    accuracy at other sizes.
    """
    height, width = size
    short, long = sorted(size)
    most = min(long, 1024 if gpu else 224)
    sides = range(max(STRIDE, most // STRIDE * STRIDE), most * 2 // 3, -STRIDE) or [STRIDE]

    def multiple(value: float) -> int:
        return max(STRIDE, round(value / STRIDE) * STRIDE)

    best = min(sides, key=lambda side: abs(side * short / long - multiple(side * short / long)))
    batch = max(2, min(8, images))
    return {
        "crop": [min(512, multiple(side * best / long * (1 if gpu else 0.8))) for side in (height, width)],
        "resize": [best, multiple(short * best / long)],
        "batch": batch,
        "epochs": max(1, round((6000 if gpu else 100) * batch / images)),
        "channels": 512 if gpu else 64,
    }


def keep_history(folder: Path) -> str:
    """Make the project a git repository, unless it is in one that does not ignore it. Returns a text about it."""
    is_inside = run_git(folder, "rev-parse", "--is-inside-work-tree")
    if is_inside and not run_git(folder, "check-ignore", "--quiet", "dvc.yaml"):
        return "part of the git repository around it, with a .dvc of its own"
    if not run_git(folder, "init", "--quiet"):
        raise ParamsError(f"{folder}: git init failed, and DVC needs it. Install git, or run it in a folder of yours.")
    return "a git and DVC repository of its own"


def run_git(folder: Path, *arguments: str) -> bool:
    """Whether git succeeds in `folder`."""
    try:
        return subprocess.run(["git", *arguments], cwd=folder, capture_output=True, check=False).returncode == 0
    except OSError as error:
        raise ParamsError(f"git: {error.strerror}. DVC needs it: install git.") from None

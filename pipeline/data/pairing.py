"""Folders as other people have them: which mask belongs to which image, and which pairs are for training."""

import hashlib
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from deeplab.decode import ENDINGS
from deeplab.errors import DataError
from deeplab.groups import COPY, group_of
from pipeline.data.find import find_pictures
from pipeline.data.formats.arrays import ENDING
from pipeline.data.formats.base import read_lines
from pipeline.data.formats.pairs import listed_pairs
from pipeline.data.formats.split import SERIES
from pipeline.errors import ParamsError
from pipeline.settings.schema import FolderOptions

VAL_SHARE = 0.2  # of the pairs, in a proposed split
MASK = re.compile(r"(?i)masks?|label(?:ids?|s)?|annot(?:ations?)?|segm(?:entations?)?|(?<![a-z])gt(?:fine)?(?![a-z])")
IMAGE = re.compile(r"(?i)images?|(?<![a-z])(?:imgs?|photos?)(?![a-z])")
SPLIT = re.compile(r"(?i)(?<![a-z])(train|val|test)(?:ing|id|idation)?(?![a-z])")


class Pair(NamedTuple):
    """An image and its mask, as paths below the folder of the images and that of the masks."""

    image: Path
    mask: Path


class Found(NamedTuple):
    """The pairs of two folders by split, the one to train on first, then the one to validate on."""

    images: Path
    masks: Path
    splits: dict[str, list[Pair]]
    note: str  # where the splits come from
    alone: list[Path]  # files without a partner


def find(images: Path, masks: Path) -> Found:
    """The pairs in two folders, which may be the same one.

    Raises ParamsError without a folder, DataError without pairs or when a name fits several files.
    """
    left, right = divide(images, masks)
    for root, files in ((images, left), (masks, right)):
        if not files:
            raise DataError(
                f"{root}: no pictures here ({' '.join(ENDINGS)}). For an export of a labelling tool: --annotations"
            )
    pairs, alone = matched(images, masks, left, right)
    if len(pairs) < 2:
        raise DataError(
            f"{images}: {len(pairs)} pairs with {masks}, expected 2 or more. An image is called {left[0]} and a mask "
            f"{right[0]}. Rename them alike, or write a list `image mask` for --pairs."
        )
    return Found(images, masks, *split(pairs, images), alone)


def matched(images: Path, masks: Path, left: list[Path], right: list[Path]) -> tuple[list[Pair], list[Path]]:
    """The pairs of the images `left` and the masks `right` by their names, and the files without a partner.

    Raises DataError when a name fits several files.
    """
    with_folders = len({tuple(words(file, False)) for file in left}) < len(left)
    ours, theirs = keyed(left, right, with_folders), keyed(right, left, with_folders)
    for root, found in ((images, ours), (masks, theirs)):
        if several := next((files for files in found.values() if len(files) > 1), None):
            raise DataError(
                f"{root}: the names of {several[0]} and {several[1]} look the same. Name the folder that has one file "
                "for each."
            )
    alone = [images / ours[key][0] for key in ours.keys() - theirs.keys()]
    alone += [masks / theirs[key][0] for key in theirs.keys() - ours.keys()]
    return sorted(Pair(ours[key][0], theirs[key][0]) for key in ours.keys() & theirs.keys()), sorted(alone)


def divide(images: Path, masks: Path) -> tuple[list[Path], list[Path]]:
    """The pictures of both folders, as paths from there. In one folder for both, masks are known by name or kind."""
    left, right = pictures(images), pictures(masks, with_arrays=True)
    if images.resolve() == masks.resolve():
        every, right = right, [file for file in right if MASK.search(file.as_posix())]
        if len(right) in (0, len(every)):
            right = [file for file in every if file.suffix.lower() not in (".jpg", ".jpeg", ".webp")]
        left = sorted(set(left) - set(right))
    return left, right


def pictures(root: Path, with_arrays: bool = False) -> list[Path]:
    """The pictures below `root`, as paths from there. Raises ParamsError when it is no folder."""
    if not root.is_dir():
        raise ParamsError(f"{root}: no such folder")
    found, others = find_pictures(root)
    arrays = [path for path in others if with_arrays and path.suffix.lower() == ENDING]
    files = sorted(path.relative_to(root) for path in (*found, *arrays))
    if odd := [file for file in files if not str(file).isprintable() or "\t" in str(file)]:
        raise DataError(f"{root}: the file name {str(odd[0])!a} cannot be printed. Rename the file.")
    return files


def words(file: Path, with_folders: bool) -> list[str]:
    """The words and numbers of a file's name; of its folders only what does not say `images` or `masks`."""
    folders = IMAGE.sub("", MASK.sub("", file.parent.as_posix())) if with_folders else ""
    return re.findall(r"[^\W\d_]+|\d+", f"{folders}/{file.stem}")


def keyed(files: Sequence[Path], others: Sequence[Path], with_folders: bool) -> dict[tuple[str, ...], list[Path]]:
    """The files by their words, without those that all of them and none of the others have: `_mask`, `leftImg8bit`."""
    own = {file: words(file, with_folders) for file in files}
    elsewhere = {word for file in others for word in words(file, with_folders)}
    left_out = set.intersection(*map(set, own.values())) - elsewhere
    found: dict[tuple[str, ...], list[Path]] = defaultdict(list)
    for file, each in own.items():
        found[tuple(word for word in each if word not in left_out)].append(file)
    return found


def listed_files(lists: Sequence[Path]) -> Found:
    """The pairs in lists with lines `image mask`, whose paths start at the list. One list is divided; of several each
    is the split in its name.

    Raises DataError for a line that is no pair, ParamsError for lists that are no splits.
    """
    pairs: dict[Path, list[Pair]] = {}
    for path in lists:
        found, problems = listed_pairs(path.parent, FolderOptions(pairs=path.name, classes=""), "")
        if problems or not found:
            raise DataError(problems[0] if problems else f"{path}: empty, expected lines `image mask`")
        pairs[path] = [Pair(*((path.parent.absolute() / file) for file in both)) for both in found.values()]
    every = [pair for each in pairs.values() for pair in each]
    images, masks = (Path(os.path.commonpath([file.parent for file in files])) for files in zip(*every, strict=True))

    def below(each: Iterable[Pair]) -> list[Pair]:
        return sorted(Pair(pair.image.relative_to(images), pair.mask.relative_to(masks)) for pair in each)

    if len(lists) == 1:
        return Found(images, masks, *split(below(every), images), [])
    splits = {split_of(path.name): below(each) for path, each in pairs.items()}
    is_complete = "train" in splits and bool(splits.keys() & {"val", "test"})
    if not is_complete or "" in splits or len(splits) < len(pairs):  # no list is left out silently
        names = ", ".join(path.name for path in lists)
        raise ParamsError(f"--pairs: got {names}, expected one list, or one with train and one with val in its name")
    return Found(images, masks, ordered(splits), f"by the lists {', '.join(path.name for path in lists)}", [])


def split(pairs: list[Pair], images: Path) -> tuple[dict[str, list[Pair]], str]:
    """The pairs by split, and where that comes from: their folders, lists of names beside them, or a proposal."""
    by_folder: dict[str, list[Pair]] = defaultdict(list)
    for pair in pairs:
        by_folder[split_of(pair.image.parent.as_posix())].append(pair)
    if by_folder["train"] and (by_folder["val"] or by_folder["test"]):
        rest = f"; {len(by_folder[''])} in no such folder are left out" if by_folder[""] else ""
        return ordered(by_folder), f"by folders{rest}"
    for place in (images, images.parent, images.parent / "ImageSets/Segmentation"):
        lists = {name: place / f"{name}.txt" for name in ("train", "val")}
        if all(path.is_file() for path in lists.values()):
            names = {
                name: {Path(line.split()[0]).stem for line in read_lines(path, "id") if line.strip()}
                for name, path in lists.items()
            }
            by_list = {name: [pair for pair in pairs if pair.image.stem in names[name]] for name in names}
            if all(by_list.values()) and not names["train"] & names["val"]:
                return by_list, f"by train.txt and val.txt in {place.name}"
    return propose(by_folder["train"] or pairs)


def split_of(text: str) -> str:
    """The split that a folder or file name names: train, val, test or none."""
    found = SPLIT.findall(text)
    return str(found[-1]).lower() if found else ""


def ordered(splits: dict[str, list[Pair]]) -> dict[str, list[Pair]]:
    """The named splits that have pairs: train, then val, or test when there is no val."""
    return {name: splits[name] for name in ("train", "val", "test") if splits.get(name)}


def propose(pairs: list[Pair]) -> tuple[dict[str, list[Pair]], str]:
    """A split with about a fifth of the pairs for validation, drawn by hash: the same on every machine.

    Names that differ in their last number only are mostly neighbouring frames, and stay together.
    """
    originals: dict[str, list[Pair]] = defaultdict(list)
    for pair in pairs:
        originals[(pair.image.parent / COPY.sub("", pair.image.stem)).as_posix()].append(pair)
    if len(originals) < 2:
        raise DataError(f"{pairs[0].image}: all images are copies of one, expected 2 or more to divide")
    groups: dict[str, list[Pair]] = defaultdict(list)
    for name, each in originals.items():
        groups[group_of(name, SERIES) or ""] += each
    note = f"proposed: {len(groups)} groups of names that differ in their last number only, each in one split"
    if len(groups) < 2:
        groups = originals
        note = "proposed: drawn image by image, for all names begin alike. Frames of one film belong into one split"
    drawn = sorted(groups, key=lambda name: hashlib.sha256(name.encode()).digest())
    val: list[Pair] = []
    for name in drawn:
        if len(val) + len(groups[name]) <= max(1, VAL_SHARE * len(pairs)):
            val += groups[name]
    val = val or min(groups.values(), key=len)
    return {"train": sorted(set(pairs) - set(val)), "val": sorted(val)}, note

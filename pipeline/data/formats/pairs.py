"""Find the images and masks of a folder and pair them: by a list of pairs, or by names in two places."""

import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from unicodedata import normalize

from deeplab.decode import ENDINGS
from deeplab.errors import DataError
from pipeline.data.find import find_pictures
from pipeline.data.formats.base import read_ids, read_lines
from pipeline.settings.schema import FolderOptions

HEADER = re.compile(r"(?i)(image|img|photo|file)[a-z_]* (mask|label|annotation)[a-z_]*")  # begins a table of pairs
Pairs = dict[str, tuple[Path, Path]]  # id -> image, mask; below the raw folder


def listed_pairs(raw: Path, options: FolderOptions, split: str) -> tuple[Pairs, list[str]]:
    """The pairs in the list of `split`, and the problems of its lines. The files may be missing."""
    path = raw / (options.pairs or "").replace("{split}", split)
    pairs: Pairs = {}
    problems: list[str] = []
    for number, line in enumerate(read_lines(path, "image mask"), start=1):
        words = [word.strip() for word in line.split("\t")] if "\t" in line else line.split()
        if "\t" not in line and "," in line and (len(words) != 2 or words[0].endswith(",")):
            words = [word.strip() for word in next(csv.reader([line], skipinitialspace=True))]
        if not words or (number == 1 and len(words) == 2 and HEADER.fullmatch(" ".join(words))):
            continue
        if len(words) != 2 or not all(word and word.isprintable() for word in words):
            problems.append(f"{path}:{number}: got {line!r}, expected `image mask`, with a tab if a path has spaces")
            continue
        image, mask = find_listed(raw, words[0]), find_listed(raw, words[1])
        if (name := image.with_suffix("").as_posix()) in pairs:
            problems.append(f"{path}:{number}: the image {name} is already listed above")
        else:
            pairs[name] = (image, mask)
    return pairs, problems


def find_listed(raw: Path, word: str) -> Path:
    """The path that `word` of a list means, below `raw`: with other slashes, letters or ending if only that exists."""
    slashed = word.replace("\\", "/")
    stem, dot, ending = slashed.rpartition(".")
    endings = (ending, ending.lower(), ending.upper())
    texts = [f"{stem}{dot}{each}" for each in endings]
    forms = [text for each in texts for text in (normalize("NFC", each), normalize("NFD", each))]
    return next((Path(each) for each in (word, slashed, *forms) if (raw / each).exists()), Path(slashed))


def paired_files(raw: Path, options: FolderOptions, split: str) -> tuple[Pairs, list[str]]:
    """The images and masks of `split` with equal names, and the problems of all others."""
    problems: list[str] = []
    images, masks = (find_place(raw, pattern or "", split) for pattern in (options.images, options.masks))
    found_masks = masks.find(problems, leave=[images.folder])
    found_images = images.find(problems, leave=[masks.folder], other=set(found_masks.values()))
    both = list(found_images.keys() & found_masks.keys())
    if options.ids:
        both = listed_names(raw / options.ids.replace("{split}", split))
    elif not found_images and not found_masks:
        problems += [f"{place.folder}: no {place} for {split!r}" for place in (images, masks)]
    wanted = both if options.ids else sorted(found_images.keys() | found_masks.keys())
    for name in wanted:
        if name not in found_masks:
            seen = found_images[name] if name in found_images else Path(name)
            problems.append(f"{raw / seen}: no mask of this name{masks.hint(name)}")
        if name not in found_images:
            seen = found_masks[name] if name in found_masks else Path(name)
            problems.append(f"{raw / seen}: no image of this name{images.hint(name)}")
    pairs = [(found_images[name], found_masks[name]) for name in both if name in found_images and name in found_masks]
    return {image.with_suffix("").as_posix(): (image, mask) for image, mask in pairs}, problems


def listed_names(path: Path) -> list[str]:
    """The names in a list of ids, in the form of `Place.find`. An ending of pictures does not count."""
    names = (normalize("NFC", each.replace("\\", "/")) for each in read_ids(path))
    return [name[: -len(Path(name).suffix)] if name.lower().endswith(ENDINGS) else name for name in names]


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where the images or the masks of a split are: a folder, and what surrounds the name of each file."""

    raw: Path
    folder: Path
    start: str
    end: str  # may contain the ending, whose case does not matter
    files: list[Path]  # that were found but do not match

    def __str__(self) -> str:
        return f"{self.start}*{self.end}" if self.start or self.end else "picture"

    def find(
        self, problems: list[str], leave: Sequence[Path], other: frozenset[Path] | set[Path] = frozenset()
    ) -> dict[str, Path]:
        """Name -> path below `raw` of the pictures that match and are not in `other`. Adds to `problems`.

        A name is the path below the folder without what surrounds it, in composed letters. Folders in `leave` are not
        searched if they are below this one.
        """
        pictures, others = find_pictures(self.folder, [each for each in leave if each != self.folder])
        self.files.extend(others)
        found: dict[str, Path] = {}
        for path in pictures:
            relative, name = path.relative_to(self.raw), self.name_of(path)
            if relative in other:
                continue
            if not name:
                self.files.append(path)
            elif not name.isprintable():
                problems.append(f"{self.folder}: the file name {path.name!a} cannot be printed. Rename the file.")
            elif name in found:
                problems.append(f"{path}: {found[name].name} has the same name. Remove or rename one of them.")
            else:
                found[name] = relative
        return found

    def name_of(self, path: Path) -> str:
        """The name of a picture; "" when its file is not called as the pattern says."""
        text, end, place = path.name, self.end, path.relative_to(self.folder).parent
        if not end.lower().endswith(ENDINGS):
            text = path.stem
        elif text.lower().endswith(Path(f"x{end}").suffix.lower()):
            text, end = path.stem, end[: -len(Path(f"x{end}").suffix)]
        if not (text.startswith(self.start) and text.endswith(end) and len(text) > len(self.start) + len(end)):
            return ""
        return normalize("NFC", (place / text[len(self.start) : len(text) - len(end)]).as_posix())

    def hint(self, name: str) -> str:
        """What may be meant by a missing `name`: a file of this name that is no picture, or does not match."""
        last = name.rpartition("/")[2]
        near = [each for each in self.files if normalize("NFC", each.stem) == last]
        return f", but {near[0]} is there: {self} is expected" if near else ""


def find_place(raw: Path, pattern: str, split: str) -> Place:
    """The place that a `pattern` of the options means for `split`. Raises DataError when there is no such folder."""
    pattern = pattern.replace("{split}", split)
    folder, _, file = pattern.rpartition("/") if "{name}" in pattern else (pattern, "", "{name}")
    start, end = file.split("{name}")
    if not (raw / folder).is_dir():
        raise DataError(f"{raw / folder}: not found. This is where folder.images or folder.masks looks for {split!r}.")
    return Place(raw=raw, folder=raw / folder, start=start, end=end, files=[])

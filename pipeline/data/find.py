"""Find the pictures in a folder as people have them: in subfolders, behind links, among what other programs leave."""

import os
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Final

from deeplab.decode import ENDINGS

# Beside hidden files: thumbnails and copies of macOS, a NAS and Windows.
LITTER: Final = {"__macosx", "@eadir", "#recycle", "$recycle.bin", "thumbs.db", "desktop.ini"}


def find_pictures(folder: Path, leave: Collection[Path] = ()) -> tuple[list[Path], list[Path]]:
    """The pictures in `folder` and below, by their endings, and the other files. Both are sorted.

    Links are followed, and a folder that they reach twice is searched once. Hidden files, LITTER, and the folders
    `leave` are left out.
    """
    pictures: list[Path] = []
    others: list[Path] = []
    seen: set[str] = set()
    for place, folders, files in os.walk(folder, followlinks=True):
        here, real = Path(place), os.path.realpath(place)
        folders[:] = [name for name in folders if not is_litter(name) and here / name not in leave and real not in seen]
        for path in (here / name for name in files if not is_litter(name) and real not in seen):
            (pictures if path.suffix.lower() in ENDINGS else others).append(path)
        seen.add(real)
    return sorted(pictures), sorted(others)


def is_litter(name: str) -> bool:
    """Whether a file or folder of this name is none of the user's."""
    return name.startswith(".") or name.lower() in LITTER


def endings_of(files: Sequence[Path]) -> str:
    """How many of `files` have each ending, as text: `2 .mp4, 1 .txt`."""
    return ", ".join(
        f"{count} {ending or 'without an ending'}"
        for ending, count in Counter(path.suffix.lower() for path in files).most_common()
    )

"""Repair files that DVC left half-written when it was killed or the disk was full.

DVC writes dvc.lock and its list of readers and writers in place. The runner repairs both when it starts; before a plain
`dvc repro` it is `grid repair`. A stage whose entry was lost runs again, or comes from DVC's run cache without running.
"""

import os
import re
from pathlib import Path

from pipeline.files import whole
from pipeline.runner.dvc import EMPTY, drop_dead_readers, dvc_folder, is_readable_lock
from pipeline.settings.places import Places

STAGES = "stages:\n"  # the second line of a dvc.lock with stages


def repair(places: Places = Places()) -> list[str]:
    """Repair both files and return a line for each repair. A file that is damaged in another way is left alone."""
    folder, done = dvc_folder(places.root) / "tmp", []
    if lost := cut_damaged(places.lock):
        done.append(f"{places.lock}: damaged by a kill or a full disk, {lost} bytes cut off its end")
    if why := drop_dead_readers(folder):
        done.append(f"{folder / 'rwlock'}: {why}, removed")
    return done


def cut_damaged(lock: Path) -> int:
    """Cut the last entry, if it was not written to its end, off dvc.lock. Returns how many bytes that was."""
    # A kill may cut a letter of several bytes in two. What is left of it is no YAML, so it is never written back.
    text = lock.read_text(encoding="utf-8", errors="surrogateescape") if lock.exists() else EMPTY
    begins = [match.start() for match in re.finditer(r"^  \S", text, re.M)]
    # A kill damages the end, so only that is read: all of a long file takes DVC's reader seconds.
    end = EMPTY + STAGES + text[begins[-1] :] if begins else text
    if is_readable_lock(end) or not (EMPTY + STAGES).startswith(text[: len(EMPTY + STAGES)]):
        return 0
    kept = text[: begins[-1]] if begins[1:] else EMPTY
    if not is_readable_lock(kept) or "\n<<<<<<<" in text:  # an unfinished merge is for a person to end
        return 0
    with whole(lock) as partial, partial.open("w", encoding="utf-8") as file:
        file.write(kept)
        file.flush()
        os.fsync(file.fileno())
    return max(1, len(text) - len(kept))

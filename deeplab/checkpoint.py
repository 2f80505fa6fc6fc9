"""The folder of an unfinished run: its checkpoints and its history, written so that a kill at any moment loses nothing.

A checkpoint is written beside its final name, synced, renamed, and the folder synced: it is there whole or not at all.
Its name carries the hash of its content, so that a damaged one is found before it is used. The history is append-only,
and a checkpoint knows how long it was: going on from one cuts off the rows that will be written again.
"""

import hashlib
import io
import os
import pickle
import re
from pathlib import Path
from typing import Any

import torch

from deeplab.errors import DataError, naming

State = dict[str, Any]

KEPT = 2  # the newest may be on its way to the disk while the power fails
NAME = re.compile(r"step-(\d+)-([0-9a-f]{16})\.pt")


def save_checkpoint(folder: Path, step: int, state: State) -> None:
    """Write `state` (tensors, plain values) as the folder's newest checkpoint; OSError when the disk is full."""
    buffer = io.BytesIO()  # torch.save into a file hides a full disk behind an unrelated error
    torch.save(state, buffer)
    content = buffer.getbuffer()
    name = f"step-{step:09d}-{hashlib.sha256(content).hexdigest()[:16]}.pt"
    write_durably(folder / name, content)
    for old in checkpoints(folder)[KEPT:]:
        old.unlink()


def load_checkpoint(folder: Path) -> State | None:
    """The newest checkpoint that is whole, or None when the folder has none; what a kill left half-written is removed.

    Raises DataError when there are checkpoints and all of them are damaged, also when they were set aside before.
    """
    for partial in folder.glob("step-*.pt.part"):
        partial.unlink(missing_ok=True)
    for path in checkpoints(folder):
        content = path.read_bytes()
        match = NAME.fullmatch(path.name)
        if match and hashlib.sha256(content).hexdigest().startswith(match[2]):
            try:
                state: State = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
            except (pickle.UnpicklingError, RuntimeError, EOFError):  # not of ours, whatever its name says
                pass
            else:
                return state
        path.rename(path.with_suffix(".damaged"))
    if any(folder.glob("step-*.damaged")):
        raise DataError(f"{folder}: every checkpoint is damaged. Remove the folder to train from the start.")
    return None


def checkpoints(folder: Path) -> list[Path]:
    """The folder's checkpoints, newest first."""
    return sorted((path for path in folder.glob("step-*.pt") if NAME.fullmatch(path.name)), reverse=True)


def write_durably(path: Path, content: bytes | memoryview) -> None:
    """Put `content` at `path` so that after a crash there is the old file or the new one, never a part."""
    partial = path.with_name(path.name + ".part")
    try:
        with naming(path):
            with partial.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            partial.rename(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class History:
    """A CSV file that only grows, but for the rows after a checkpoint, which are written again."""

    def __init__(self, path: Path, columns: tuple[str, ...], length: int) -> None:
        """Open `path` and keep its first `length` bytes; 0 starts it with its head line.

        Raises DataError when it has fewer.
        """
        self.path, self.columns = path, columns
        path.touch()
        if self.path.stat().st_size < length:
            raise DataError(f"{path}: shorter than when the checkpoint was written. Remove its folder to start over.")
        os.truncate(path, length)
        if length == 0:
            self.append(columns)

    def append(self, values: tuple[object, ...]) -> None:
        """Add one row; None is an empty field."""
        assert len(values) == len(self.columns)
        with naming(self.path), self.path.open("a", encoding="utf-8", newline="") as file:
            file.write(",".join("" if value is None else str(value) for value in values) + "\n")

    def sync(self) -> int:
        """Make the rows durable, so that no checkpoint knows of rows that a power cut takes; the length in bytes."""
        with self.path.open("rb") as file:
            os.fsync(file.fileno())
            return os.fstat(file.fileno()).st_size

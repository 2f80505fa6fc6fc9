"""The folder of an unfinished run: checkpoints and history, written so that a kill at any moment loses nothing.

A checkpoint is written beside its final name, synced, renamed, and the folder synced: the write is atomic.
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

KEPT = 2  # the newest may not have reached the disk when the power fails
NAME = re.compile(r"step-(\d+)-([0-9a-f]{16})\.pt")


def save_checkpoint(folder: Path, step: int, state: State) -> None:
    """Write `state` (tensors, plain values) as the newest checkpoint. Raises OSError when the disk is full."""
    buffer = io.BytesIO()  # torch.save into a file hides a full disk behind an unrelated error
    torch.save(state, buffer)
    content = buffer.getbuffer()
    name = f"step-{step:09d}-{hashlib.sha256(content).hexdigest()[:16]}.pt"
    write_durably(folder / name, content)
    for old in checkpoints(folder)[KEPT:]:
        old.unlink()


def load_checkpoint(folder: Path) -> State | None:
    """The newest intact checkpoint, or None when the folder has none. Removes what a kill left half-written.

    Damaged checkpoints are renamed. Raises DataError when all of them are damaged, now or in an earlier call.
    """
    for partial in folder.glob("step-*.pt.part"):
        partial.unlink(missing_ok=True)
    for path in checkpoints(folder):
        content = path.read_bytes()
        match = NAME.fullmatch(path.name)
        if match and hashlib.sha256(content).hexdigest().startswith(match[2]):
            try:
                state: State = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
            except (pickle.UnpicklingError, RuntimeError, EOFError):  # not a checkpoint of this project
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
    """Write `content` to `path` atomically: after a crash the file is the old one or the new one."""
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
    """Sync `folder`, so that renamed files survive a crash."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class History:
    """An append-only CSV file. Going on from a checkpoint first removes the rows after it."""

    def __init__(self, path: Path, columns: tuple[str, ...], length: int) -> None:
        """Open `path` and keep its first `length` bytes; with 0 write the head line.

        Raises DataError when the file is shorter.
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
        """Sync the rows, before a checkpoint refers to them. Returns the length of the file in bytes."""
        with self.path.open("rb") as file:
            os.fsync(file.fileno())
            return os.fstat(file.fileno()).st_size

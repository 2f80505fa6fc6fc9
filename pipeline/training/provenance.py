"""Where a number comes from: the commit, the code that can move it, and the machine."""

import ast
import hashlib
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

# The library's files that training runs; dvc.yaml lists the same ones.
TRAINING_CODE = (
    "backbone", "checkpoint", "data", "decode", "losses/cross_entropy", "losses/chunks", "model",
    "monitor", "photometric", "precision", "ranks", "ring",
    "step", "store", "training", "transforms",
)  # fmt: skip
LIBRARY = Path(__file__).parents[2] / "deeplab"


def code_fingerprint() -> str:
    """SHA-256 of what the training code does: comments and layout do not count, so mending one keeps a checkpoint."""
    files = [LIBRARY / f"{name}.py" for name in TRAINING_CODE]
    states = [file.stat() for file in files]
    return fingerprint_of(tuple(files), tuple((state.st_mtime_ns, state.st_size) for state in states))


@cache
def fingerprint_of(files: tuple[Path, ...], _: tuple[tuple[int, int], ...]) -> str:
    """The same of `files`, once for each state that they were in: a table asks for it for every cell."""
    trees = (ast.dump(ast.parse(file.read_bytes())) for file in files)
    return hashlib.sha256("\n".join(trees).encode()).hexdigest()


def git_state() -> dict[str, Any]:
    """`commit` and `dirty` (uncommitted changes in tracked files); the commit is unknown, and why, outside git."""
    try:
        commit = git("rev-parse", "HEAD")
        # Stages write reports and dvc.lock while they run: only changes to what was run make a result unclean.
        code = ("deeplab", "pipeline", "params.yaml", "dvc.yaml", "examples/dvc.yaml")
        changed = git("status", "--porcelain", "--untracked-files=no", "--", *code)
    except (OSError, subprocess.CalledProcessError) as error:
        reason = getattr(error, "stderr", None) or str(error)
        return {"commit": "unknown", "dirty": None, "why_unknown": reason.strip().partition("\n")[0]}
    return {"commit": commit, "dirty": bool(changed)}


def git(*arguments: str) -> str:
    """What git prints for `arguments`."""
    return subprocess.run(["git", *arguments], check=True, capture_output=True, text=True, timeout=30).stdout.strip()


def machine(device: Any) -> dict[str, str]:
    """The versions and the device that a result depends on; `device` is a torch.device."""
    import timm
    import torch

    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    return {"device": name, "torch": torch.__version__, "timm": timm.__version__}


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

"""Where a number comes from: the commit and the machine."""

import hashlib
import socket
import subprocess
from pathlib import Path
from typing import Any

# What a commit must contain for its number. A project may be a folder of the repository that holds the code. Stages
# write reports and dvc.lock while they run, so changes there do not count.
INPUTS = (":(top)deeplab", ":(top)pipeline", "params.yaml", "dvc.yaml")


def git_state() -> dict[str, Any]:
    """The `commit`, and whether tracked code or settings are `dirty`. Outside of git the commit is "unknown", and
    `why_unknown` is the reason.
    """
    try:
        commit = git("rev-parse", "HEAD")
        changed = uncommitted()
    except (OSError, subprocess.SubprocessError) as error:
        reason = getattr(error, "stderr", None) or str(error)
        return {"commit": "unknown", "dirty": None, "why_unknown": reason.strip().partition("\n")[0]}
    return {"commit": commit, "dirty": bool(changed)}


def uncommitted() -> list[str]:
    """The tracked files of code and settings that differ from the commit. Raises as `git` does."""
    return [line[3:] for line in git("status", "--porcelain", "--untracked-files=no", "--", *INPUTS).splitlines()]


def git(*arguments: str, folder: Path = Path()) -> str:
    """The output of git, run in `folder`. Raises CalledProcessError, with git's message in `stderr`, when git fails."""
    done = subprocess.run(["git", *arguments], cwd=folder, check=True, capture_output=True, text=True, timeout=300)
    return done.stdout.rstrip("\n")


def machine(device: Any) -> dict[str, str]:
    """The host, the device, a torch.device, by name, and the versions of the libraries that a result depends on."""
    import timm
    import torch

    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    versions = {"torch": torch.__version__, "timm": timm.__version__}
    return {"host": socket.gethostname(), "device": name, **versions}


def file_sha256(path: Path) -> str:
    """SHA-256 of the content of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

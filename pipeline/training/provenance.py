"""Where a number comes from: the commit, the machine and the versions of what computes there."""

import hashlib
import json
import platform
import re
import socket
import subprocess
from collections.abc import Mapping
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from pipeline.errors import ParamsError

LOCK = Path(__file__).parents[2] / "requirements" / "run.txt"  # not in a wheel
PINNED = re.compile(r"^([A-Za-z0-9._-]+)==([^\s;]+)", re.MULTILINE)
MOVE_BITS = ("torch", "timm", "numpy", "opencv-python-headless", "numba")
PROCESSOR = re.compile(r"^model name\s*: (.*)$", re.MULTILINE)

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
    except ParamsError as error:
        return {"commit": "unknown", "dirty": None, "why_unknown": str(error)}
    return {"commit": commit, "dirty": bool(changed)}


def uncommitted() -> list[str]:
    """The tracked files of code and settings that differ from the commit. Raises as `git` does."""
    return [line[3:] for line in git("status", "--porcelain", "--untracked-files=no", "--", *INPUTS).splitlines()]


def git(*arguments: str, folder: Path = Path()) -> str:
    """The output of git, run in `folder`. Raises ParamsError, with the first line of its message, when git fails."""
    try:
        done = subprocess.run(["git", *arguments], cwd=folder, check=True, capture_output=True, text=True, timeout=300)
    except (OSError, subprocess.SubprocessError) as error:
        said = (getattr(error, "stderr", "") or str(error)).strip().partition("\n")[0]
        raise ParamsError(f"git {arguments[0]}: {said}") from None
    return done.stdout.rstrip("\n")


def machine(device: Any) -> dict[str, Any]:
    """The host, the device, a torch.device, by name, and the processor and the versions that a result depends on."""
    import timm
    import torch

    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    found = {"torch": torch.__version__, "timm": timm.__version__, "versions": versions(device)}
    return {"host": socket.gethostname(), "device": name, "processor": processor(), **found}


def processor() -> str:
    """The processor and the instructions that torch takes of it: others give other bits."""
    import torch

    info = Path("/proc/cpuinfo")
    model = PROCESSOR.search(info.read_text(encoding="utf-8")) if info.exists() else None
    return f"{model[1] if model else platform.machine()} ({torch.backends.cpu.get_cpu_capability()})"


def versions(device: Any) -> dict[str, str]:
    """The versions that can move a bit of what is computed on `device`, a torch.device, and the hash of `packages`."""
    import torch

    installed = {distribution.name: distribution.version for distribution in distributions()}
    found = {name: installed[name] for name in MOVE_BITS if name in installed}
    if device.type == "cuda":
        found |= {"CUDA": str(torch.version.cuda), "cuDNN": str(torch.backends.cudnn.version())}  # type: ignore[no-untyped-call]
    return found | {"packages": packages(installed, LOCK)}


def packages(installed: Mapping[str, str], lock: Path) -> str:
    """The hash of `lock`, where each installed package has a version in it, else of the names and versions."""
    text = lock.read_text(encoding="utf-8") if lock.exists() else ""
    pinned: dict[str, set[str]] = {}
    for name, version in PINNED.findall(text):  # two lines where versions of Python differ
        pinned.setdefault(name, set()).add(version)
    if pinned and all(version in pinned.get(normal(name), {version}) for name, version in installed.items()):
        return f"lock {hashlib.sha256(text.encode()).hexdigest()}"
    listed = sorted([normal(name), version] for name, version in installed.items())
    return f"list {hashlib.sha256(json.dumps(listed).encode()).hexdigest()}"


def normal(name: str) -> str:
    """The name of a package as a lock has it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def differing(then: Mapping[str, str], now: Mapping[str, str]) -> str:
    """What both know and is not the same, as `torch 2.14.0, now 2.15.0; numba ...`; other packages only if nothing else
    is.
    """
    odd = [name for name in then if name in now and then[name] != now[name]]
    named = [f"{name} {then[name]}, now {now[name]}" for name in odd if name != "packages"]
    return "; ".join(named) or ("other packages" if odd else "")


def file_sha256(path: Path) -> str:
    """SHA-256 of the content of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

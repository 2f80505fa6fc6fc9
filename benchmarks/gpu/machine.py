"""The machine and its ceilings, and the tests that need a GPU."""

import mmap
import os
import shutil
import subprocess
import sys

import numpy as np
import timm
import torch

from benchmarks.clock import typical
from benchmarks.gpu.setting import Setting


def facts(setting: Setting) -> None:
    """Versions, copy bandwidth, matrix rate, and copies from the memory of a ring."""
    device, add = setting.device, setting.results.add
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total,clocks.sm,clocks.mem,power.limit"]
    said = "none"
    if shutil.which("nvidia-smi"):
        done = subprocess.run([*query, "--format=csv,noheader"], capture_output=True, text=True, check=False)
        said = done.stdout.strip()
    add(
        "machine", device=setting.title, gpu=said, torch=torch.__version__, cudnn=torch.backends.cudnn.version(),
        timm=timm.__version__, python=sys.version.split()[0], cores=len(os.sched_getaffinity(0)),
    )  # fmt: skip
    size = 2**20 if setting.small else 2**32
    pair = [torch.empty(size, dtype=torch.uint8, device=device) for _ in range(2)]
    ms = typical(lambda: pair[0].copy_(pair[1]), setting.rounds(10), device, 2)
    add("ceiling", what="copy on the device, read and written", value=round(2 * size / ms / 1e9, 3), unit="TB/s")
    pair.clear()
    side = 256 if setting.small else 8192
    one, other = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    ms = typical(lambda: one @ other, setting.rounds(12), device, 4)
    add("ceiling", what=f"bf16 product of {side}", value=round(2 * side**3 / ms / 1e9, 1), unit="TFLOP/s")
    if device.type == "cuda":
        copies(setting)


def copies(setting: Setting) -> None:
    """The memory of a ring: shared, registered with CUDA, and written by a process that was forked afterwards."""
    memory, device, add = mmap.mmap(-1, 64 * 2**20), setting.device, setting.results.add
    view = np.frombuffer(memory, np.uint8)
    code = int(torch.cuda.cudart().cudaHostRegister(view.ctypes.data, len(memory), 0))  # type: ignore[no-untyped-call]
    add("ring", what="cudaHostRegister of a shared mapping, 0 is success", value=code)
    child = os.fork()
    if not child:
        view[:] = 7
        os._exit(0)
    add("ring", what="wait status of a child that was forked after it and writes there", value=os.waitpid(child, 0)[1])
    hosts = {"registered": torch.from_numpy(view), "pageable": torch.zeros(len(memory), dtype=torch.uint8)}
    for title, host in hosts.items():
        ms = typical(lambda host=host: host.to(device, non_blocking=True), 6, device, 2)
        add("ceiling", what=f"copy to the device, {title}", value=round(len(memory) / ms / 1e6, 1), unit="GB/s")
    add("ring", what="the copy has what the child wrote", value=bool((hosts["registered"].to(device) == 7).all()))


def tests(setting: Setting) -> None:
    """`pytest -m gpu` on the files that have such tests: others import what may not be here, as DVC."""
    files = [str(path) for path in sorted((setting.root / "tests").glob("test_*.py")) if "mark.gpu" in path.read_text()]
    command = [sys.executable, "-m", "pytest", "-o", "addopts=--strict-markers", "-m", "gpu", "-rA", *files]
    done = subprocess.run(command, cwd=setting.root, capture_output=True, text=True, check=False)
    print(done.stdout[-20_000:], done.stderr[-4_000:])
    setting.results.add("tests", code=done.returncode, said=(done.stdout.strip().splitlines() or [""])[-1])
    sys.exit(done.returncode not in (0, 5))  # 5: no test was chosen

"""A grid of two tiny cells, the commands that run it, and what has to be the same however often they were killed."""

import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from contextlib import closing, suppress
from pathlib import Path

import psutil

from tests.test_pipeline import checkout, run
from tests.tiny import tiny_params

DVC = (sys.executable, "-m", "dvc", "repro")
GRID = (sys.executable, "-m", "pipeline", "run", "--slots", "2")
REPAIR = (sys.executable, "-m", "pipeline", "repair")
MARK = "FAULTS_PROJECT"  # in the environment of all that works on a project, however it was started
RESULTS = ("data/", "runs/", "reports/", "README.md")
CHANGING = re.compile(
    r"runs/(\.(logs|grid)|.*run\.json)|reports/index\.html"
)  # hold times, or are of the runner itself
OF_A_TRY = ("commit", "started", "host", "folder", "mlflow.user", "mlflow.source.git.commit", "mlflow.loggedArtifacts")


def make(folder, epochs=16, **runtime):
    """A clean commit of this code with two cells; `runtime` goes into params.yaml."""
    folder.mkdir()
    checkout(folder)

    def two_cells(params):
        row = params["grid"]["tiny_os8"]
        row["backbone"] = "mobilenetv3_small_050"  # a checkpoint of 3 MB
        params["grid"]["tiny_os16"] = {**row, "output_stride": 16}
        params["recipes"]["tiny"]["epochs"] = epochs
        params["runtime"].update(runtime)

    tiny_params(folder / "params.yaml", two_cells)
    (folder / "README.md").write_text("# Mine\n\n<!-- results:tiny -->\n<!-- /results:tiny -->\n\nThe end.\n")
    run("git", "init", "-q", cwd=folder)
    run("git", "add", "-A", cwd=folder)
    run("git", "-c", "user.name=a", "-c", "user.email=a@example.org", "commit", "-qm", "start", cwd=folder)
    return folder


def start(folder, command, **settings):
    """`command` in `folder`, the leader of a process group, its output added to out.txt beside it."""
    environment = {
        **os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "DVC_NO_ANALYTICS": "1", "CI": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true", "DVC_SITE_CACHE_DIR": str(folder / ".site"), MARK: str(folder), **settings,
    }  # fmt: skip
    if "MLFLOW_TRACKING_URI" not in settings:
        environment.pop("MLFLOW_TRACKING_URI", None)
    with output(folder).open("a") as out:
        print("---", *command, file=out, flush=True)
        return subprocess.Popen(
            command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=out, process_group=0
        )


def output(folder):
    return folder.with_name(f"{folder.name}.out.txt")


def finish(folder, command, **settings):
    """Run `command` to its end."""
    process = start(folder, command, **settings)
    try:
        code = process.wait(1500)
    finally:
        end_all(folder)
    assert code == 0, output(folder).read_text()[-5000:]
    return folder


def at_work(folder):
    """The processes that belong to the project."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.status() != psutil.STATUS_ZOMBIE and process.environ().get(MARK) == str(folder):
                found.append(process)
    return found


def end_all(folder):
    for process in at_work(folder):
        with suppress(psutil.Error):
            process.kill()


def left_after(folder, patience):
    """What of the project is still at work after so many seconds."""
    deadline = time.monotonic() + patience
    while (left := at_work(folder)) and time.monotonic() < deadline:
        time.sleep(0.2)
    return [" ".join(process.cmdline()) for process in left]


def below(root, word=""):
    """The processes below `root` whose command has `word` in it."""
    found = []
    with suppress(psutil.Error):
        for process in psutil.Process(root).children(recursive=True):
            with suppress(psutil.Error):
                if word in " ".join(process.cmdline()):
                    found.append(process)
    return found


def send(processes, number):
    for process in processes:
        with suppress(psutil.Error):
            process.send_signal(number)


def kill_group(process, number=signal.SIGKILL):
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def results(folder):
    """Path -> content of all that has to be byte for byte the same."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    names = {path.relative_to(folder).as_posix(): path for path in paths}
    chosen = (name for name in names if name.startswith(RESULTS) and not CHANGING.match(name))
    return {name: names[name].read_bytes() for name in chosen}


def strays(folder):
    """Files that nobody will ever read: half-written ones, and what is in DVC's cache under no hash."""
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file() or path.is_symlink()]
    kept = re.compile(
        r"\.dvc/cache/(files/md5/[0-9a-f]{2}/[0-9a-f]{30}(\.dir)?|runs/[0-9a-f]{2}/[0-9a-f]{64}/[0-9a-f]{64})"
    )
    parts = [
        name for name in names if re.search(r"\.(part|tmp|gone)\b", name) and not name.startswith((".git/", ".site/"))
    ]
    return sorted({*parts, *(name for name in names if name.startswith(".dvc/cache/") and not kept.fullmatch(name))})


def record(folder, experiment="%"):
    """What MLflow shows of the project, without times and ids; `experiment` is its name in a base that has others."""
    with closing(sqlite3.connect(folder / "mlflow.db")) as base:
        own = "experiment_id in (select experiment_id from experiments where name like ?)"
        alive = f"lifecycle_stage = 'active' and {own}"
        runs = base.execute(f"select run_uuid, name, status from runs where {alive}", [experiment]).fetchall()
        linked = "select source_type, destination_type from inputs where source_id = ? or destination_id = ?"
        shown = {}
        for run_id, name, status in runs:
            tags = dict(base.execute("select key, value from tags where run_uuid = ?", [run_id]))
            params = dict(base.execute("select key, value from params where run_uuid = ?", [run_id]))
            points = base.execute("select key, step, value from metrics where run_uuid = ?", [run_id]).fetchall()
            places = Counter((key, step) for key, step, _ in points)
            timeless = [point for point in points if not point[0].startswith("perf/") and "second" not in point[0]]
            shown.setdefault(name, []).append(
                {
                    "status": status,
                    "tags": {key: value for key, value in tags.items() if key not in OF_A_TRY},
                    "params": params,
                    "points": sorted(timeless),
                    "twice": [place for place, count in places.items() if count > 1],
                    "links": sorted(base.execute(linked, [run_id, run_id]).fetchall()),
                }
            )
        models = base.execute(f"select name, status from logged_models where {alive}", [experiment]).fetchall()
        of_models = f"model_id in (select model_id from logged_models where {alive})"
        scores = base.execute(
            f"select metric_name, metric_value from logged_model_metrics where {of_models}", [experiment]
        ).fetchall()
        named = "where name like ?"
        versions = base.execute(
            f"select name, version from model_versions {named} and current_stage != 'Deleted_Internal'", [experiment]
        ).fetchall()
        aliases = base.execute(f"select name, alias from registered_model_aliases {named}", [experiment]).fetchall()
    return {
        "runs": shown,
        "models": sorted(models),
        "scores": sorted(scores),
        "versions": sorted(versions),
        "aliases": sorted(aliases),
    }

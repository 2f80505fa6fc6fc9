"""`make test-slurm`: a grid on a real Slurm, with a worker killed, a job preempted and a node lost."""

import subprocess
import time

import pytest

from tests.engines import twelve
from tests.engines.slurm_cluster import said, slurm, wait_for


@pytest.fixture
def cluster():
    with slurm() as cluster:
        yield cluster


def test_a_grid_on_slurm_survives_what_clusters_do_and_gives_the_tables_of_dvc_repro(cluster, tmp_path):
    reference = twelve.one_by_one(tmp_path / "reference")
    project = twelve.make_project(tmp_path / "project")
    runner = twelve.start_grid(project, "--on", "slurm")
    try:
        first, second = twelve.LONG
        worker, other = twelve.worker_of(first, project), twelve.worker_of(second, project)
        # A job of higher priority preempts the first cell, which is queued again.
        urgent = ["-p", "high", "-w", node_of(worker), "--gres=gpu:1", "-o", "/dev/null", "--wrap", "sleep 5"]
        subprocess.run(["sbatch", *urgent], check=True)
        other.parent().kill()  # submitit's process on the node
        lost = node_of(twelve.worker_of(second, project, after=other))
        cluster.lose(lost)
        time.sleep(20)  # until Slurm has noticed
        cluster.restart(lost)
    except BaseException:
        runner.terminate()
        raise
    printed = twelve.finish(runner, project)
    twelve.check_nothing_failed(printed)
    logs = [(project / f"runs/.logs/train@{cell}.log").read_text() for cell in twelve.LONG]
    assert "stopped by a signal, state saved" in logs[0]  # not a failure
    assert logs[0].partition("was lost")[0].count("Running stage") > 1  # Slurm queued it again
    assert "the worker of tiny_01 was lost; try 2 of 4" in logs[1]
    for log in logs:
        twelve.check_went_on(log)
    twelve.check_same(project, reference)
    twelve.check_collected(project)
    wait_for(lambda: not said("squeue", "-h"), 60)


def node_of(worker):
    """Where a worker runs."""
    return worker.environ()["SLURMD_NODENAME"]

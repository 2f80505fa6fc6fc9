"""`make test-slurm`: a grid on a real Slurm, with a worker killed, a job preempted and a node lost."""

import subprocess
import time

import pytest

from tests.engines import twelve
from tests.engines.slurm_cluster import said, slurm, wait_for


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with slurm(tmp_path_factory.mktemp("slurm")) as cluster:
        yield cluster


def test_a_grid_on_slurm_survives_what_clusters_do_and_gives_the_tables_of_dvc_repro(cluster, tmp_path):
    reference = twelve.one_by_one(tmp_path / "reference")
    project = twelve.make_project(tmp_path / "project")
    runner = twelve.start_grid(project, "--on", "slurm")
    try:
        first, second = twelve.LONG
        job_of(first, project).kill()
        nodes = {cell: node_of(cell, project) for cell in (first, second)}
        # A more urgent job takes the first cell's node; its cell is queued again.
        subprocess.run(
            ["sbatch", "-p", "high", "-w", nodes[first], "--gres=gpu:1", "-o", "/dev/null", "--wrap", "sleep 5"],
            check=True,
        )
        cluster.lose(nodes[second])
        time.sleep(20)  # until Slurm has noticed
        cluster.bring_back(nodes[second])
    except BaseException:
        runner.terminate()
        raise
    printed = twelve.finish(runner, project)
    assert "failed" not in printed
    assert "the worker of tiny_00 was lost; try 2" in (project / "runs/.logs/train@tiny_00.log").read_text()
    twelve.check_same(project, reference)
    twelve.check_collected(project)
    wait_for(lambda: not said("squeue", "-h"), 60)


def job_of(cell, project):
    """The process of submitit that started a cell's worker."""
    return twelve.worker_of(cell, project).parent()


def node_of(cell, project):
    """Where a cell is trained."""
    return twelve.worker_of(cell, project).environ()["SLURMD_NODENAME"]

"""`make test-ray`: a grid on a real Ray of two nodes, with a worker killed and a node lost."""

import subprocess
import sys
import time

import pytest
from ray.cluster_utils import Cluster

from tests.engines import twelve


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """A head without resources and two nodes with a GPU each, on this machine."""
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    cluster = Cluster()
    cluster.add_node(num_cpus=0, num_gpus=0, include_dashboard=False)
    cluster.nodes = [cluster.add_node(num_cpus=4, num_gpus=1) for _ in range(2)]
    cluster.wait_for_nodes()
    yield cluster
    cluster.shutdown()


def test_a_grid_on_ray_survives_a_lost_worker_and_a_lost_node_and_gives_the_tables_of_dvc_repro(cluster, tmp_path):
    reference = twelve.one_by_one(tmp_path / "reference")
    project = twelve.make_project(tmp_path / "project")
    runner = twelve.start_grid(project, "--on", "ray", "--address", cluster.address)
    try:
        first, second = twelve.LONG
        twelve.worker_of(first, project).parent().kill()  # Ray's process
        twelve.worker_of(second, project)
        cluster.remove_node(cluster.nodes[0], allow_graceful=False)
        time.sleep(5)
        cluster.add_node(num_cpus=4, num_gpus=1)
    except BaseException:
        runner.terminate()
        raise
    printed = twelve.finish(runner, project)
    twelve.check_nothing_failed(printed)
    assert "on 3 nodes" in printed
    for cell in twelve.LONG:
        twelve.check_went_on((project / f"runs/.logs/train@{cell}.log").read_text())
    assert (project / f"runs/.logs/train@{first}.log").read_text().count("--- train@") > 1
    twelve.check_same(project, reference)
    twelve.check_collected(project)


def test_an_address_where_no_ray_answers_is_named(tmp_path):
    project = twelve.make_project(tmp_path / "project")
    command = [sys.executable, "-m", "pipeline", "run", "--on", "ray", "--address", "127.0.0.1:1"]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 78
    assert "no Ray answers at '127.0.0.1:1'" in done.stderr.splitlines()[-1]

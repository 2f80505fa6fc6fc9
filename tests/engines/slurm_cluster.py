"""A real Slurm of two nodes with a GPU each, all on this machine: munged, slurmctld and two slurmd (Debian: slurm-wlm).

The GPUs are terminals. Needs root, for Slurm starts jobs as their user.
"""

import os
import shutil
import socket
import subprocess
import tempfile
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
AuthType=auth/munge
# cred_expire: a job that is queued again waits until old credentials expire, two minutes by default
AuthInfo=socket={folder}/munge/socket,cred_expire=6
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
GresTypes=gpu
MpiDefault=none
ReturnToService=2
SlurmdTimeout=15
KillWait=10
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName=n[1-2] NodeHostname={host} NodeAddr=127.0.0.1 Port=[{first}-{second}] CPUs=8 RealMemory=4000 Gres=gpu:1
PartitionName=low Nodes=n[1-2] Default=YES PriorityTier=1 MaxTime=INFINITE
PartitionName=high Nodes=n[1-2] PriorityTier=10 PreemptMode=OFF MaxTime=INFINITE
"""
GRES = """
NodeName=n1 Name=gpu File=/dev/tty0
NodeName=n2 Name=gpu File=/dev/tty1
"""


class Cluster:
    """The daemons, and the faults that they suffer."""

    def __init__(self, folder):
        self.folder = folder
        self.daemons = {}

    def start(self):
        """Start all daemons and wait until both nodes are idle."""
        folder, port = self.folder, free_ports()
        munge = folder / "munge"
        for name in ("state", "n1", "n2", "munge"):
            (folder / name).mkdir()
        subprocess.run(["mungekey", "-c", "-k", munge / "key"], check=True)
        for path in (munge, munge / "key"):
            shutil.chown(path, "munge", "munge")
        munge.chmod(0o755)
        words = ["munged", "--foreground", *(f"--{name}={munge / name[:-5]}" for name in ("key-file", "pid-file"))]
        words += [f"--log-file={munge}/log", f"--seed-file={munge}/seed", f"--socket={munge}/socket"]
        self.spawn("munged", ["runuser", "-u", "munge", "--", *words])
        wait_for(lambda: (munge / "socket").exists(), 10)
        values = {"host": socket.gethostname(), "folder": folder, "port": port, "first": port + 1, "second": port + 2}
        (folder / "slurm.conf").write_text(CONF.format(**values))
        (folder / "gres.conf").write_text(GRES)
        os.environ["SLURM_CONF"] = str(folder / "slurm.conf")
        self.spawn("slurmctld", ["slurmctld", "-D", "-i"])
        for node in ("n1", "n2"):
            self.spawn(node, ["slurmd", "-D", "-N", node])
        wait_for(idle, 60)

    def spawn(self, name, words):
        """Start a daemon."""
        with (self.folder / f"{name}.out").open("w") as log:
            self.daemons[name] = subprocess.Popen(words, stdout=log, stderr=log, stdin=subprocess.DEVNULL)

    def lose(self, node):
        """Kill the daemon of a node and all its jobs, as a power cut does."""
        self.daemons[node].kill()
        kill_jobs("SLURMD_NODENAME", node)

    def restart(self, node):
        """Start a lost node again."""
        self.daemons[node].wait()
        self.spawn(node, ["slurmd", "-D", "-N", node])

    def stop(self):
        """End all daemons and their jobs."""
        if "slurmctld" in self.daemons and self.daemons["slurmctld"].poll() is None:
            subprocess.run(["scancel", "--user=root"], check=False)
            time.sleep(2)
        for daemon in reversed(self.daemons.values()):
            for process in [*psutil.Process(daemon.pid).children(recursive=True)] if daemon.poll() is None else []:
                process.kill()
            daemon.kill()
            daemon.wait()
        kill_jobs("SLURM_CONF", str(self.folder / "slurm.conf"))
        os.environ.pop("SLURM_CONF", None)


def idle():
    """Whether both nodes wait for work."""
    return said("sinfo", "-h", "-N", "-o", "%N %T").split() == ["n1", "idle", "n1", "idle", "n2", "idle", "n2", "idle"]


def kill_jobs(key, value):
    """Kill the processes with this in their environment, except our own, and those that manage them for Slurm."""
    victims = [process for process in psutil.process_iter() if environment(process).get(key) == value]
    victims = [process for process in victims if process.pid != os.getpid()]
    parents = {process.parent() for process in victims}
    managers = {parent for parent in parents if parent and parent.name().startswith("slurmstepd")}
    for process in [*managers, *victims]:
        with suppress(psutil.NoSuchProcess):
            process.kill()


def environment(process):
    """The environment of a process; empty when it has ended."""
    try:
        return process.environ()
    except (psutil.Error, OSError):
        return {}


def said(*words):
    """The output of a command."""
    return subprocess.run(words, capture_output=True, text=True, check=False, timeout=30).stdout


def wait_for(condition, seconds):
    """Wait until `condition` holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.2)


def free_ports():
    """The first of three free ports in a row."""
    for first in range(21000, 30000, 3):
        try:
            for port in range(first, first + 3):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", port))
        except OSError:
            continue
        return first
    raise OSError("no free ports")


@contextmanager
def slurm():
    """A cluster for as long as the block runs."""
    with tempfile.TemporaryDirectory(prefix="slurm") as folder:  # a short path for sockets, open to the user munge
        cluster = Cluster(Path(folder))
        cluster.folder.chmod(0o755)
        try:
            cluster.start()
            yield cluster
        finally:
            cluster.stop()

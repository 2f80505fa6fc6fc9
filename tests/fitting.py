"""A training small enough to be run, broken and killed many times."""

import torch
from torch import nn

from deeplab.job import Job, Pace, Watch
from deeplab.training import fit
from tests.tiny import tiny_cell

PACE = Pace(workers=0, log_every=2, checkpoint_every=1e9, validate_every=0)


class Small(nn.Module):
    """A network with all that makes resuming hard: batch normalisation, dropout, two outputs."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 6, 3, stride=8), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout2d(0.5))
        self.head, self.extra = nn.Conv2d(6, 3, 1), nn.Conv2d(6, 3, 1)

    def forward(self, x):
        x = self.features(x)
        return (self.head(x), self.extra(x)) if self.training else self.head(x)


def small():
    torch.manual_seed(0)
    return Small()


def run(folder, split, network=None, pace=PACE, cell=None, **options):
    """Train; returns the network's final state, the history and what was reported."""
    folder.mkdir(exist_ok=True)
    network = network or small()
    reports = []
    ranks = {"ranks": options.pop("ranks")} if "ranks" in options else {}
    device = options.pop("device", torch.device("cpu"))
    job = Job(
        network=network, split=split, cell=cell or tiny_cell(), seed=3, device=device, folder=folder, pace=pace, **ranks,
    )  # fmt: skip
    finished = fit(job, Watch(report=reports.append, **options))
    return finished, network.state_dict(), (folder / "history.csv").read_bytes(), reports


def assert_equal(one, other):
    torch.testing.assert_close(one, other, rtol=0, atol=0)

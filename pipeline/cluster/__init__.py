"""Run cells on other machines: Ray, Slurm, snapshots of the commit."""

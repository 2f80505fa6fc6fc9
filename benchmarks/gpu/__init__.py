"""What this project does on a GPU, measured in one go: `python -m benchmarks.gpu --out DIR`."""

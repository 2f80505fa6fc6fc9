"""Use a trained network: predict masks for images and videos, and export it."""

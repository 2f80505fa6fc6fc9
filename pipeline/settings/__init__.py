"""Checked values from params.yaml."""

"""The stages of dvc.yaml, and the edges to params.yaml and MLflow."""

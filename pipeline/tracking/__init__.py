"""Everything that talks to MLflow, and nothing else does."""

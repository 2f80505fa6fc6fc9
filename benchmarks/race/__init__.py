"""A race of equal minutes on CamVid between this project and others; each file but `job` and `plain` is a runner."""

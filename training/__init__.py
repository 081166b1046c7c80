"""Training: `training.core`, a package for each task, and one entry module for each room."""

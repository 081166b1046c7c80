"""Hippocampus in 3D MR: its networks, what ships, and how it is served."""

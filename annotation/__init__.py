"""Preparing raw frames for annotators, and reading back what annotation tools export."""

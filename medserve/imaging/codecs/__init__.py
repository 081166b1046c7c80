"""Readers and writers between bytes and images, volumes and frames."""

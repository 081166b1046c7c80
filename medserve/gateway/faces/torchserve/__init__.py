"""TorchServe's own inference and management contracts."""

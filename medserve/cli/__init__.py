"""The `medserve` command: one module per command, the shared parts beside them."""

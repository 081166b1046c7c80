"""The typed contract `medserve.v1`."""

"""TorchServe handlers: a shared line from bytes to answer, and one file per model."""

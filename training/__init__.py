"""Training, export and evaluation; one module per model."""

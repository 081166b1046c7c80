"""Training of diffusion models that make images."""

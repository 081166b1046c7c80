"""Training and judging of diffusion models."""

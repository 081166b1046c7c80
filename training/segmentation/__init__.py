"""Training of networks that segment volumes, one module a step."""

"""Training of networks that segment volumes."""

"""Training of networks that segment ultrasound frames."""

"""Prostate in transrectal ultrasound frames: its networks, what ships, and how it is served."""

"""Simulated transrectal ultrasound of the prostate, with the truth of every pixel."""

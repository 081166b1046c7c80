"""Ultrasound of the prostate: data, training and judging of a segmentation of single frames."""

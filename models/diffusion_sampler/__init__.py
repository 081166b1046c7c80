"""Synthetic brain MR slices from a denoising diffusion model."""

"""Shared by the training of every task: settings, splits, the loop, export, shipping, pages."""

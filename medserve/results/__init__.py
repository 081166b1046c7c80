"""What models find, measured and written down; numpy only, no torch."""

"""The API of MONAI Label, for its clients: inference alone."""

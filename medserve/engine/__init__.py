"""What executes archives: an interface, and one folder for each engine behind it."""

"""The parts that commands share: consoles, files, tables and pictures."""

"""Engines behind one small interface: artifact and arrays in, arrays out."""

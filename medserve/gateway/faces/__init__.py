"""The contracts that callers speak; each face turns them into requests of the core."""

"""Batches of studies: each is answered once, and its receipt says how; a rerun goes on there."""

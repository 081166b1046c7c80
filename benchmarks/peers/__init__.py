"""What a user might run instead of medserve's server, each around the same work."""

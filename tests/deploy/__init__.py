"""What runs medserve: images, manifests, monitoring, and the commands that the pages show."""

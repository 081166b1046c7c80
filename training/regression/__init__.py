"""Models that tell numbers of images: how well these agree with measured ones."""

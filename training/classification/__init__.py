"""Training of classifiers of single images."""

"""Training of classifiers of blood cells, one module a step."""

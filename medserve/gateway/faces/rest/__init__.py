"""The HTTP interface with its OpenAPI description."""

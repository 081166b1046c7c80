"""medserve: medical-imaging models, served over gRPC and proven before they answer."""

__all__ = ["__version__"]

__version__ = "0.1.0"

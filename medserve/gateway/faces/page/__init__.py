"""The web page: classify, segment and generate in a browser."""

from medserve.gateway.faces.page.app import create_app
from medserve.gateway.faces.page.jobs import PageLimits

__all__ = ["PageLimits", "create_app"]

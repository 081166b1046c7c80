"""The web page: classify, segment and generate in a browser."""

from medserve.gateway.web.app import create_app
from medserve.gateway.web.limits import PageLimits

__all__ = ["PageLimits", "create_app"]

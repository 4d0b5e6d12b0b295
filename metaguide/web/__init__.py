"""Serving an adapted guide by HTTP, with a page; needs the extra `serve`."""

from metaguide.web.app import create_app
from metaguide.web.schemas import Limits
from metaguide.web.server import ServeError, serve

__all__ = ["Limits", "ServeError", "create_app", "serve"]

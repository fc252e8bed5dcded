"""Addresses of hubs, checked before the hub's client is imported: it reads them then."""

import os
from urllib.parse import urlsplit

from quantkit.errors import UsageError


def is_web_address(text: str) -> bool:
    """Whether `text` is http(s)://HOST, with a valid port or none and a path or none."""
    if not text.isprintable() or " " in text:
        return False
    try:
        parts = urlsplit(text)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def check_endpoint() -> None:
    """Raises UsageError if HF_ENDPOINT is not a web address."""
    endpoint = os.environ.get("HF_ENDPOINT", "")
    if endpoint and not is_web_address(endpoint):
        raise UsageError(f"HF_ENDPOINT {endpoint!r} is not a web address; set it to https://HOST, or unset it")

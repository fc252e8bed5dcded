"""The access token of ModelScope: from the environment, or as ModelScope's own client stored it at its login."""

import io
import os
import pickle
import time
from pathlib import Path
from typing import Any

_COOKIE = "m_session_id"


def stored_token() -> str | None:
    """MODELSCOPE_API_TOKEN, or the token of `modelscope login`; None without one."""
    named = os.environ.get("MODELSCOPE_API_TOKEN")
    if named is not None:
        return named.strip() or None
    home = Path(os.environ.get("MODELSCOPE_HOME") or Path.home() / ".modelscope").expanduser()
    try:
        jar = _Cookies(io.BytesIO((home / "credentials" / "cookies").read_bytes())).load()
        cookies = _entries(jar.__dict__.get("_cookies"))
    except (OSError, pickle.UnpicklingError, EOFError, AttributeError, ValueError, TypeError, IndexError, KeyError):
        return None
    for cookie in cookies:
        expires = cookie.get("expires")
        if cookie.get("name") == _COOKIE and not (isinstance(expires, int | float) and expires <= time.time()):
            value = cookie.get("value")
            return value if isinstance(value, str) and value else None
    return None


class _Plain:
    """Stands in for every class of the pickle: it only keeps the attributes."""

    def __init__(self, *_: object) -> None:
        pass


class _Cookies(pickle.Unpickler):
    """Reads the cookie jar of the client, which is a pickle, without calling anything that the pickle names."""

    def find_class(self, module: str, name: str) -> Any:
        return _Plain


def _entries(tree: Any) -> list[dict[str, Any]]:
    """The attributes of the cookies in a jar: domain -> path -> name -> cookie."""
    return [
        vars(cookie)
        for paths in tree.values()
        for names in paths.values()
        for cookie in names.values()
        if isinstance(cookie, _Plain)
    ]

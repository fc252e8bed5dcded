"""How many examples a test by hypothesis tries: all of them in `make test-full`, a quarter in `make test`."""

import os

_SHARE = 1 if os.environ.get("QUANTKIT_EXAMPLES") == "all" else 4


def examples(count: int) -> int:
    """The value of max_examples for a test that tries `count` in `make test-full`."""
    return count // _SHARE

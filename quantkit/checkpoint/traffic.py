"""What a conversion received from a hub."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Traffic:
    """What was received of weight files: bytes, those among them that had been received before, requests."""

    bytes: int
    again: int
    requests: int

"""Convert one Hugging Face checkpoint to every quantized format in one pass; measure, plan and publish the results.

`open_source`, `plan`, `convert`, `measure` and `inspect` are the public functions (docs/reference/api.md). They are
loaded when they are first used.
"""

from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

if TYPE_CHECKING:
    from quantkit.api import ConvertOptions, MeasureOptions, PlanOptions, convert, inspect, measure, open_source, plan

__all__ = [
    "ConvertOptions",
    "MeasureOptions",
    "PlanOptions",
    "__version__",
    "convert",
    "inspect",
    "measure",
    "open_source",
    "plan",
]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from quantkit import api

        return getattr(api, name)
    raise AttributeError(f"module 'quantkit' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)

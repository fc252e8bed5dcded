"""For each recipe a tiny model of its family, with the family's published config and layout."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from tests.families.expected import write_checkpoint
from tests.helpers.tiny import tiny_llama

Maker = Callable[[Path], Path]


def _llama(variant: str) -> Maker:
    return partial(tiny_llama, variant=variant, hidden=64, intermediate=96)


def _case(name: str) -> Maker:
    return partial(write_checkpoint, name)


_YI, _MISTRAL, _QWEN1, _QWEN2 = _llama("yi"), _llama("mistral"), _case("qwen"), _case("qwen2")

TINY: dict[str, Maker] = {
    "huozi3": _llama("mixtral"),
    "huozi-7b": _case("huozi"),
    "baichuan-7b": _case("baichuan"),
    "baichuan2-7b-chat": _case("baichuan2"),
    "baichuan2-13b-chat": _case("baichuan2-13b"),
    "blossom-v4-yi-34b": _YI,
    "blossom-v4-qwen-14b": _QWEN1,
    "blossom-v4-qwen-1_8b": _QWEN1,
    "blossom-v4-baichuan2-7b": _case("baichuan2"),
    "blossom-v4-mistral-7b": _MISTRAL,
    "blossom-v5-34b": _YI,
    "blossom-v5-14b": _QWEN2,
    "blossom-v5-9b": _YI,
    "blossom-v5-4b": _QWEN2,
    "blossom-v5-mistral-7b": _MISTRAL,
    "blossom-v5.1-34b": _YI,
    "blossom-v5.1-9b": _YI,
    "smollm2": partial(tiny_llama, variant="smollm2", hidden=64, intermediate=96, heads=4, kv_heads=2),
}

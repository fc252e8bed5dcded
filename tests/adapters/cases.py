"""The adapters whose merge is compared with PEFT's."""

from dataclasses import dataclass
from pathlib import Path

from tests.families.expected import write_checkpoint
from tests.helpers.adapters import AdapterCase, write_adapter
from tests.helpers.tiny import tiny_llama

TOKENS = [5, 9, 3, 7, 2, 30, 11, 3]
_ENDS = ("embed_tokens", "lm_head", "q_proj")
_DORA = {"use_dora": True}
# PEFT's model names; those of GPT-2's checkpoint lack the first part
GPT2 = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")


@dataclass(frozen=True)
class Case:
    """A base model and the adapters that are merged into it, in order.

    `merge_is_peft`: PEFT's merged weights are those of the trained model. It merges an adapter of one of two tied
    matrices into both.
    """

    base: str
    adapters: tuple[AdapterCase, ...]
    merge_is_peft: bool = True


CASES = {
    "lora": Case("plain", (AdapterCase(),)),
    "rslora": Case("plain", (AdapterCase(settings={"use_rslora": True}),)),
    "dora": Case("plain", (AdapterCase(settings=_DORA),)),
    "patterns": Case(
        "plain",
        (
            AdapterCase(
                ranks={"layers.0.self_attn.q_proj": 2, "up_proj": 6},
                settings={
                    "rank_pattern": {"layers.0.self_attn.q_proj": 2, "up_proj": 6},
                    "alpha_pattern": {r"layers\.1\..*down_proj": 3},
                },
            ),
        ),
    ),
    "modules to save": Case(
        "plain", (AdapterCase(("q_proj",), saved=("lm_head.weight", "embed_tokens.weight", "model.norm.weight")),)
    ),
    "embedding and head": Case("plain", (AdapterCase(_ENDS),)),
    "embedding and head, dora": Case("plain", (AdapterCase(_ENDS, settings=_DORA),)),
    "tied, embedding": Case("tied", (AdapterCase(("embed_tokens", "q_proj")),), merge_is_peft=False),
    "tied, embedding saved": Case("tied", (AdapterCase(("q_proj",), saved=("embed_tokens.weight",)),)),
    "tokens": Case("plain", (AdapterCase(("q_proj",), tokens=(3, 7)),)),
    "tied tokens": Case("tied", (AdapterCase(("q_proj",), tokens=(3, 7)),)),
    "several, scaled": Case(
        "plain",
        (
            AdapterCase(scale=0.5, seed=1),
            AdapterCase(("o_proj", "up_proj"), settings=_DORA, scale=2.0, seed=2),
            AdapterCase(("o_proj",), rank=2, scale=-1.0, seed=3),
        ),
    ),
    "conv1d": Case("gpt2", (AdapterCase(GPT2, conv1d=True),)),
    "conv1d, dora": Case("gpt2", (AdapterCase(GPT2, conv1d=True, settings=_DORA),)),
    "conv1d, bias": Case("gpt2", (AdapterCase(GPT2, conv1d=True, bias=True),)),
}


def write_base(name: str, folder: Path) -> Path:
    """A tiny checkpoint in float32: `plain`, `tied` (embedding and head are one), or `gpt2` (linears as (in, out))."""
    if folder.exists():
        return folder
    if name == "gpt2":
        return write_checkpoint("gpt2", folder)
    variant, heads, hidden = ("llama3", 4, 64) if name == "plain" else ("smollm2", 9, 72)
    return tiny_llama(
        folder,
        variant=variant,
        dtype="f32",
        hidden=hidden,
        intermediate=96,
        heads=heads,
        kv_heads=2 if name == "plain" else 3,
    )


def write_case(case: Case, folder: Path) -> tuple[Path, list[tuple[Path, float]]]:
    """The base and its adapters with their scales, written into `folder`."""
    base = write_base(case.base, folder / case.base)
    adapters = []
    for number, adapter in enumerate(case.adapters):
        adapters.append((write_adapter(folder / f"adapter{number}", base, adapter), adapter.scale))
    return base, adapters

"""T5, Flan-T5, mT5 and UMT5: an encoder, and a decoder that attends to its output.

Shape of the GGUF: llama.cpp's `t5` architecture (src/models/t5.cpp).
"""

from collections.abc import Iterable
from typing import Any

from quantkit.errors import UnsupportedError
from quantkit.families.base.family import Family, Key, Rule
from quantkit.families.base.hyperparameters import Hyperparameters, optional_size, size
from quantkit.families.base.traits import Traits
from quantkit.families.t5encoder import (
    DEFAULTS,
    EMBEDDINGS,
    ENCODER,
    ROLES,
    SAME_EMBEDDING,
    is_gated,
    is_plain,
    layers_with_table,
    length_keys,
)
from quantkit.families.t5encoder import dimensions as encoder_dimensions
from quantkit.families.t5encoder import keys as encoder_keys
from quantkit.families.t5encoder import prepare as prepare_encoder


def prepare(config: dict[str, Any]) -> dict[str, Any]:
    """As the encoder's, and the number of the decoder's layers."""
    config = prepare_encoder(config)
    layers, decoder = size(config, "num_layers"), optional_size(config, "num_decoder_layers")
    if decoder is not None and decoder > layers:
        raise UnsupportedError(
            f"config.json: num_decoder_layers is {decoder}, more than num_layers ({layers}); quantkit"
            " converts T5 with at most as many layers in the decoder as in the encoder"
        )
    return {**config, "num_decoder_layers": decoder or layers}


def keys(arch: str, sizes: Hyperparameters) -> list[Key]:
    """The encoder's keys, the number of the decoder's layers, and the token that begins an answer."""
    lengths = length_keys(arch, sizes)
    start = sizes.config.get("decoder_start_token_id")
    return [
        *lengths,
        Key(f"{arch}.decoder_block_count", "u32", size(sizes.config, "num_decoder_layers")),
        *encoder_keys(arch, sizes)[len(lengths) :],
        Key(f"{arch}.decoder_start_token_id", "u32", start if isinstance(start, int) else 0),
    ]


def _decoder_layers(sizes: Hyperparameters) -> Iterable[int]:
    return range(size(sizes.config, "num_decoder_layers"))


def _decoder_tables(sizes: Hyperparameters) -> Iterable[int]:
    decoder = set(_decoder_layers(sizes))
    return [layer for layer in layers_with_table(sizes) if layer in decoder]


def cautions(sizes: Hyperparameters) -> list[str]:
    """The first T5 scales the decoder's output before its tied head; llama.cpp does not."""
    if not _scales_output(sizes):
        return []
    return [
        "the checkpoint scales the decoder's output before its tied head, and llama.cpp does not: the most likely token"
        f" is the same, and its temperature is that of the checkpoint times {sizes.hidden**-0.5:.3g}"
    ]


def _scales_output(sizes: Hyperparameters) -> bool:
    """As in transformers 5, which writes tie_word_embeddings true for every T5 and has a setting of its own for this.

    In a config.json without that setting tie_word_embeddings says it. mT5 never scales.
    """
    stated = sizes.config.get("scale_decoder_outputs")
    if sizes.config.get("model_type") == "mt5":
        return False
    return sizes.tied if stated is None else bool(stated)


_AT, _TO = "decoder.block.{layer}.layer", "dec.blk.{layer}"
_ATTENTIONS = (("0.SelfAttention", "attn"), ("1.EncDecAttention", "cross_attn"))
DECODER = (
    Rule(f"{_AT}.0.layer_norm.weight", f"{_TO}.attn_norm.weight", ("hidden",), layers=_decoder_layers),
    Rule(f"{_AT}.1.layer_norm.weight", f"{_TO}.cross_attn_norm.weight", ("hidden",), layers=_decoder_layers),
    Rule(f"{_AT}.2.layer_norm.weight", f"{_TO}.ffn_norm.weight", ("hidden",), layers=_decoder_layers),
    *(
        Rule(f"{_AT}.{source}.{x}.weight", f"{_TO}.{target}_{x}.weight", ("q", "hidden"), layers=_decoder_layers)
        for source, target in _ATTENTIONS
        for x in "qkv"
    ),
    *(
        Rule(f"{_AT}.{source}.o.weight", f"{_TO}.{target}_o.weight", ("hidden", "q"), layers=_decoder_layers)
        for source, target in _ATTENTIONS
    ),
    Rule(
        f"{_AT}.0.SelfAttention.relative_attention_bias.weight",
        f"{_TO}.attn_rel_b.weight",
        ("buckets", "n_head"),
        layers=_decoder_tables,
    ),
    # old checkpoints have this table, and no runtime uses it
    Rule(
        f"{_AT}.1.EncDecAttention.relative_attention_bias.weight",
        f"{_TO}.cross_attn_rel_b.weight",
        ("buckets", "n_head"),
        layers=lambda sizes: range(1),
        required=False,
    ),
    Rule(
        f"{_AT}.2.DenseReluDense.wi.weight",
        f"{_TO}.ffn_up.weight",
        ("ffn", "hidden"),
        layers=_decoder_layers,
        when=is_plain,
    ),
    *(
        Rule(
            f"{_AT}.2.DenseReluDense.{source}.weight",
            f"{_TO}.{target}.weight",
            ("ffn", "hidden"),
            layers=_decoder_layers,
            when=is_gated,
        )
        for source, target in (("wi_0", "ffn_gate"), ("wi_1", "ffn_up"))
    ),
    Rule(f"{_AT}.2.DenseReluDense.wo.weight", f"{_TO}.ffn_down.weight", ("hidden", "ffn"), layers=_decoder_layers),
    Rule("decoder.final_layer_norm.weight", "dec.output_norm.weight", ("hidden",)),
    Rule("lm_head.weight", "output.weight", ("vocab", "hidden"), required=False),
)

FAMILY = Family(
    name="T5",
    models="T5, Flan-T5, mT5, UMT5",
    architectures=(
        "T5ForConditionalGeneration",
        "T5WithLMHeadModel",
        "MT5ForConditionalGeneration",
        "UMT5ForConditionalGeneration",
        "UMT5Model",
    ),
    gguf_arch="t5",
    rules=(*EMBEDDINGS, *ENCODER, *DECODER),
    keys=keys,
    defaults=DEFAULTS,
    prepare=prepare,
    dropped=(SAME_EMBEDDING,),
    dimensions=encoder_dimensions,
    cautions=cautions,
    traits=Traits(positions="stated", relative_positions=True, layer_prefix="dec."),
    token_roles=ROLES,
)

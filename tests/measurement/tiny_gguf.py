"""A GGUF of a tiny checkpoint, float32, made with the gguf package's own writer: none of quantkit's conversion."""

import json
from pathlib import Path

import gguf
import numpy as np
import sentencepiece

from tests.forward.test_forward import load

_LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_OUTER = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def write_tiny_gguf(checkpoint: Path, path: Path) -> Path:
    """`checkpoint` is a tiny_llama of dtype f32 whose rope is not scaled by llama3's rule."""
    tensors, config = load(checkpoint)
    heads, kv_heads = config["num_attention_heads"], config.get("num_key_value_heads", config["num_attention_heads"])
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config.get("rope_theta", 10000.0))
    writer.add_vocab_size(config["vocab_size"])
    _vocabulary(writer, checkpoint)
    for name, data in tensors.items():
        if "q_proj" in name or "k_proj" in name:
            data = _adjacent_pairs(data, heads if "q_proj" in name else kv_heads)
        writer.add_tensor(_name(name), np.ascontiguousarray(data))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _vocabulary(writer: gguf.GGUFWriter, checkpoint: Path) -> None:
    config = json.loads((checkpoint / "config.json").read_text())
    writer.add_bos_token_id(config["bos_token_id"])
    writer.add_eos_token_id(config["eos_token_id"])
    if (checkpoint / "tokenizer.model").exists():
        model = sentencepiece.SentencePieceProcessor(model_file=str(checkpoint / "tokenizer.model"))
        ids = range(model.GetPieceSize())
        writer.add_tokenizer_model("llama")
        writer.add_token_list([model.IdToPiece(i) for i in ids])
        writer.add_token_scores([model.GetScore(i) for i in ids])
        kinds = [2 if model.IsUnknown(i) else 3 if model.IsControl(i) else 6 if model.IsByte(i) else 1 for i in ids]
        writer.add_token_types(kinds)
        return
    fast = json.loads((checkpoint / "tokenizer.json").read_text(encoding="utf-8"))
    special = {token["id"] for token in fast["added_tokens"]}
    vocab = sorted(fast["model"]["vocab"], key=fast["model"]["vocab"].__getitem__)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(vocab)
    writer.add_token_types([3 if i in special else 1 for i in range(len(vocab))])
    writer.add_token_merges([" ".join(pair) for pair in fast["model"]["merges"]])
    writer.add_add_bos_token(False)


def _name(name: str) -> str:
    stem, kind = name.rsplit(".", 1)
    if stem in _OUTER:
        return f"{_OUTER[stem]}.{kind}"
    _, _, layer, part = stem.split(".", 3)
    return f"blk.{layer}.{_LAYER[part]}.{kind}"


def _adjacent_pairs(weight: np.ndarray, heads: int) -> np.ndarray:
    halves = weight.reshape(heads, 2, weight.shape[0] // heads // 2, -1)
    return halves.swapaxes(1, 2).reshape(weight.shape)

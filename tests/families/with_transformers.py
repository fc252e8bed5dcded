"""Makes the tiny models with transformers and writes down what llama.cpp must agree with. Runs in the peer's venv.

    <peer's python> -m tests.families.with_transformers FOLDER CASE ...

For each case FOLDER/CASE gets the checkpoint in f32 as it would be published, its logits (logits.npy, float32,
(tokens, vocabulary), eager attention) and what the native model was (native.json: config and shapes of its tensors).
`--convert` runs llama.cpp's own converter on it too, into FOLDER/CASE.gguf.
tests/families/expected.py calls this.
"""

import importlib
import json
import math
import sys
import tempfile
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors import safe_open
from safetensors.numpy import save_file
from transformers import AutoConfig, AutoModelForCausalLM

from tests.families.models import TOKENS, Case, all_cases, weight, write_tokenizer

GATED = ("gate_proj", "up_proj", "down_proj")


def build_newest(case: Case) -> tuple[dict[str, Any], dict[str, np.ndarray], np.ndarray, dict[str, Any]]:
    """As `build`, by transformers 5: what its class saves is what is published, and is loaded again for the logits."""
    auto = getattr(transformers, case.auto)
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        settings = {**case.config}
        (here / "config.json").write_text(json.dumps(settings))
        model = auto.from_config(AutoConfig.from_pretrained(here), dtype=torch.float32, attn_implementation="eager")
        settings.setdefault("architectures", [type(model).__name__])
        model.save_pretrained(here)
        with safe_open(here / "model.safetensors", "np") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        tensors = {name: weight(case.seed, name, shape) for name, shape in shapes.items()}
        native = {"config": settings, "layout": shapes}
        save_file(tensors, here / "model.safetensors", {"format": "pt"})
        (here / "config.json").write_text(json.dumps(settings))
        model, report = auto.from_pretrained(
            here, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
        )
    missing = {key: report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys") if report[key]}
    assert not missing, missing
    if case.patch:
        globals()[case.patch](model)
    with torch.no_grad():
        if case.encoder:
            logits, native["scores"] = of_encoder(model.eval())
        else:
            output = model.eval()(torch.tensor([TOKENS]), use_cache=False)
            if case.auto == "AutoModel":
                output.logits = output.last_hidden_state @ model.get_input_embeddings().weight.T
            logits = output.logits[0].float().numpy()
    settings, tensors = (native["config"], tensors) if not case.publish else case.publish(native["config"], tensors)
    return settings, tensors, logits, native


def of_encoder(model: Any) -> tuple[np.ndarray, list[float] | None]:
    """The last hidden states (tokens, hidden) of an encoder, and the scores of a classifier."""
    ids = torch.tensor([TOKENS])
    states = model.base_model(ids).last_hidden_state[0].float().numpy()
    scores = getattr(model(ids), "logits", None)
    return states, scores[0].tolist() if type(model).__name__.endswith("ForSequenceClassification") else None


def build(case: Case) -> tuple[dict[str, Any], dict[str, np.ndarray], np.ndarray, dict[str, Any]]:
    """config.json and tensors of the case's model as published, its logits, and the native config and shapes."""
    if case.reference:
        own = ("maple", "smallthinker", "spark")
        name = {"kimi_k3": "with_kimi", **{name: f"with_{name}" for name in own}}.get(case.reference, "with_rwkv")
        module = importlib.import_module(f"tests.families.{name}")
        return getattr(module, case.reference)(case)  # type: ignore[no-any-return]
    if case.newest:
        return build_newest(case)
    from transformers.modeling_utils import no_init_weights

    settings = dict(case.config)
    config = AutoConfig.for_model(settings.pop("model_type"), **settings)
    config._attn_implementation = "eager"
    # every weight is replaced below; StableLM's own initial values stumble over norms without biases
    with no_init_weights():
        model = AutoModelForCausalLM.from_config(config, torch_dtype=torch.float32, attn_implementation="eager").eval()
    model.tie_weights()
    tied = set(getattr(model, "_tied_weights_keys", None) or ()) if config.tie_word_embeddings else set()
    state = {name: tensor for name, tensor in model.state_dict().items() if name not in tied}
    tensors = {name: weight(case.seed, name, tuple(tensor.shape)) for name, tensor in state.items()}
    native = {"config": config.to_diff_dict(), "layout": {name: tensor.shape for name, tensor in tensors.items()}}
    native["config"]["architectures"] = [type(model).__name__]
    # a layout may tie the native model down too (Baichuan 2's head has rows of one length): publish changes `tensors`
    settings, published = (native["config"], tensors) if not case.publish else case.publish(native["config"], tensors)
    with torch.no_grad():
        for name, tensor in state.items():
            tensor.copy_(torch.from_numpy(tensors[name]))
        if case.patch:
            globals()[case.patch](model)
        logits = model(torch.tensor([TOKENS]), use_cache=False).logits[0].float().numpy()
    return settings, published, logits, native


def read_and_answer(model: Any) -> None:
    """T5 reads and answers the same tokens; logits without the scale of a tied head, which llama.cpp leaves out."""
    forward, scales = model.forward, model.config.scale_decoder_outputs

    def both(ids: torch.Tensor, **settings: Any) -> Any:
        output = forward(input_ids=ids, decoder_input_ids=ids, **settings)
        output.logits = output.logits * (model.config.d_model**0.5 if scales else 1.0)
        return output

    model.forward = both


def turn_neighbours(model: Any) -> None:
    """Rotary positions turn neighbouring values of a head together, not a value of each half."""
    module = sys.modules[type(model).__module__]
    turn_halves = module.apply_rotary_pos_emb

    def apart(x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x[..., ::2], x[..., 1::2]], dim=-1)

    def joined(x: torch.Tensor) -> torch.Tensor:
        return torch.stack(x.chunk(2, dim=-1), dim=-1).flatten(-2)

    def turned(q: torch.Tensor, k: torch.Tensor, *angles: Any, **settings: Any) -> tuple[torch.Tensor, ...]:
        return tuple(joined(part) for part in turn_halves(apart(q), apart(k), *angles, **settings))

    module.apply_rotary_pos_emb = turned


def run_again(model: Any) -> None:
    """Nanbeige: the layers run `num_loops` times, with the last norm after each time if nothing skips it."""
    inner = model.model
    once, loops = list(inner.layers), model.config.num_loops
    before = [] if model.config.skip_loop_final_norm else [Normed(once[-1], inner.norm)]
    inner.layers = torch.nn.ModuleList([*(once[: len(once) - len(before)] + before) * (loops - 1), *once])
    inner.config.num_hidden_layers = len(inner.layers)


class Normed(torch.nn.Module):
    """A layer and the norm after it."""

    def __init__(self, layer: Any, norm: Any) -> None:
        super().__init__()
        self.layer, self.norm = layer, norm

    def forward(self, *states: Any, **settings: Any) -> Any:
        """The normed output of the layer."""
        return self.norm(self.layer(*states, **settings))


def slopes(count: int) -> list[float]:
    """ALiBi's slope of each head.

    "Train Short, Test Long" (Press et al. 2022): powers of 2^(-8 / heads); where heads are no power of two, those of
    the power below, then every other one of the power above.
    """
    below = 2 ** (count.bit_length() - 1)
    if below == count:
        return [2.0 ** (-8.0 * (head + 1) / count) for head in range(count)]
    return slopes(below) + slopes(2 * below)[::2][: count - below]


def linear_biases(heads: int, n: int) -> torch.Tensor:
    """ALiBi as a causal mask of n tokens: (1, heads, n, n)."""
    position = torch.arange(n)
    distance = (position[None, :] - position[:, None]).float()
    bias = torch.tensor(slopes(heads))[:, None, None] * distance
    return bias.masked_fill(distance > 0, torch.finfo(torch.float32).min)[None]


def attend_with_linear_biases(model: Any) -> None:
    """Llama with ALiBi instead of rotary positions, as Baichuan 13B's published code has it."""
    heads = model.config.num_attention_heads

    def unturned(x: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        shape = (*position_ids.shape, model.config.hidden_size // heads)
        return x.new_ones(shape), x.new_zeros(shape)

    def forward(ids: torch.Tensor, **settings: Any) -> Any:
        return plain(ids, attention_mask=linear_biases(heads, ids.shape[1]), **settings)

    plain = model.forward
    model.model.rotary_emb.forward = unturned
    model.forward = forward


class SwiGlu(torch.nn.Module):
    """GPT-2's feed-forward `mlp` with a gate (in, out): down(silu(gate(x)) * up(x))."""

    def __init__(self, mlp: Any, weight: np.ndarray, bias: np.ndarray) -> None:
        super().__init__()
        self.mlp, self.weight, self.bias = mlp, torch.from_numpy(weight), torch.from_numpy(bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate = torch.nn.functional.silu(x @ self.weight + self.bias)
        return self.mlp.c_proj(gate * self.mlp.c_fc(x))


def make_jais(model: Any) -> None:
    """GPT-2 as the published code of Jais has it: ALiBi, a gated feed-forward, scores over the width, scaled ends."""
    from tests.families.models.jais import EMBEDDING_SCALE, OUTPUT_ALPHA, WIDTH_SCALE, part_values

    config, tensors = model.config, part_values(model.config.to_dict())
    for number, layer in enumerate(model.transformer.h):
        for values in (layer.attn.c_attn.weight.data, layer.attn.c_attn.bias.data):
            values[..., : config.n_embd] *= (config.n_embd // config.n_head) ** -0.5
        at = f"transformer.h.{number}.mlp.c_fc2."
        layer.mlp = SwiGlu(layer.mlp, tensors[at + "weight"], tensors[at + "bias"])
    model.transformer.wpe.weight.data.zero_()
    model.transformer.wte.weight.data *= EMBEDDING_SCALE
    model.lm_head.weight.data *= OUTPUT_ALPHA * WIDTH_SCALE
    plain = model.forward

    def forward(ids: torch.Tensor, **settings: Any) -> Any:
        return plain(ids, attention_mask=linear_biases(config.n_head, ids.shape[1]), **settings)

    model.forward = forward


def scale_attention_by_yarn(model: Any) -> None:
    """DeepSeek-V2 with yarn, as DeepSeek's modeling_deepseek.py has it: transformers' V2 (not V3) leaves it out."""
    rope = model.config.rope_scaling
    scale = 1 + 0.1 * rope["mscale_all_dim"] * math.log(rope["factor"])
    for layer in model.model.layers:
        layer.self_attn.scaling *= scale * scale


def read_to_both_sides(model: Any) -> None:
    """LFM2 as an encoder: attention to all tokens, and convolutions whose middle tap is for the token itself."""
    plain = model.forward
    no_mask = {"full_attention": None, "conv": None}
    model.forward = lambda ids, **settings: plain(ids, attention_mask=no_mask, **settings)

    def centered(part: Any) -> Any:
        def forward(hidden_states: torch.Tensor, **_: Any) -> torch.Tensor:
            before, after, values = part.in_proj(hidden_states).transpose(1, 2).chunk(3, dim=1)
            side = part.conv_kernel_size // 2
            mixed = torch.nn.functional.conv1d(before * values, part.conv.weight, padding=side, groups=values.shape[1])
            return part.out_proj((after * mixed).transpose(1, 2))  # type: ignore[no-any-return]

        return forward

    for layer in model.layers:
        if hasattr(layer, "conv"):
            layer.conv.forward = centered(layer.conv)


def make_plamo3(model: Any) -> None:
    """Gemma 3 as PLaMo 3: the embedding is not scaled, and the norms after the parts add another constant than 1."""
    model.model.embed_tokens.embed_scale.fill_(1.0)
    for layer in model.model.layers:
        layer.post_attention_layernorm.weight.data += 1 / 5 - 1
        layer.post_feedforward_layernorm.weight.data += 1 / 5**1.5 - 1


class InPlaceOfAttention(torch.nn.Module):
    """A linear (out, in) in place of a layer's attention, or nothing."""

    def __init__(self, matrix: np.ndarray | None) -> None:
        super().__init__()
        self.matrix = None if matrix is None else torch.from_numpy(matrix)

    def forward(self, hidden_states: torch.Tensor, **_: Any) -> tuple[torch.Tensor, None]:
        return hidden_states * 0 if self.matrix is None else hidden_states @ self.matrix.T, None


def differ_in_heads(model: Any) -> None:
    """Qwen 3 as the published code of OpenELM has it: layers with other heads and widths."""
    from tests.families.models.openelm import layer_parts

    for number, layer in enumerate(model.model.layers):
        own = layer_parts(number)
        for part, names in ((layer.self_attn, ("q_proj", "k_proj", "v_proj", "o_proj")), (layer.mlp, GATED)):
            for name in names:
                getattr(part, name).weight.data = torch.from_numpy(own[name])
        attention = layer.self_attn
        attention.num_key_value_groups = len(own["q_proj"]) // len(own["k_proj"])


def differ_by_layer(model: Any) -> None:
    """Llama as the published code of Nemotron-NAS has it: layers with other key heads and widths, or without a part."""
    from tests.families.models.deci import part_values

    def put(linear: Any, values: np.ndarray) -> None:
        linear.weight.data = torch.from_numpy(values)

    tensors = part_values()
    for number, layer in enumerate(model.model.layers):
        at = f"model.layers.{number}."
        own = {name.removeprefix(at): values for name, values in tensors.items() if name.startswith(at)}
        if "self_attn.k_proj.weight" in own:
            attention = layer.self_attn
            for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
                put(getattr(attention, name), own[f"self_attn.{name}.weight"])
            kv_heads = len(own["self_attn.k_proj.weight"]) // attention.head_dim
            attention.num_key_value_groups = model.config.num_attention_heads // kv_heads
        else:
            layer.self_attn = InPlaceOfAttention(own.get("self_attn.linear_attn.weight"))
        if "mlp.up_proj.weight" in own:
            for name in GATED:
                put(getattr(layer.mlp, name), own[f"mlp.{name}.weight"])
        else:
            layer.mlp.forward = lambda x: x * 0


class Experts(torch.nn.Module):
    """The feed-forward of nomic-embed-text-v2: GELU between two linears, or the two best experts by a softmax."""

    def __init__(self, config: Any, tensors: dict[str, np.ndarray], at: str) -> None:
        super().__init__()
        self.config, self.at = config, at
        self.tensors = {name[len(at) :]: torch.from_numpy(v) for name, v in tensors.items() if name.startswith(at)}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        part, gelu = self.tensors, torch.nn.functional.gelu
        if "fc1.weight" in part:
            inner = gelu(x @ part["fc1.weight"].T + part["fc1.bias"])
            return inner @ part["fc2.weight"].T + part["fc2.bias"]
        count, used = self.config.num_experts, self.config.moe_top_k
        w1, w2 = (part[f"experts.mlp.{name}"].view(count, -1, x.shape[-1]) for name in ("w1", "w2"))
        weights, chosen = torch.topk((x @ part["router.layer.weight"].T).softmax(-1), used, dim=-1)
        every = torch.stack([gelu(x @ w1[expert].T) @ w2[expert] for expert in range(count)], dim=-2)
        best = torch.gather(every, -2, chosen[..., None].expand(*chosen.shape, x.shape[-1]))
        return (best * weights[..., None]).sum(-2) + part["experts.bias"]


def mix_nomic_experts(model: Any) -> None:
    """NomicBERT as nomic-embed-text-v2's published code has it: biases in attention, experts in every other layer."""
    from tests.families.models.nomic_bert import part_values

    config = model.config
    tensors = part_values({**config.to_dict(), "n_layer": config.num_hidden_layers})
    for number, layer in enumerate(model.layers):
        at, attention = f"encoder.layers.{number}.", layer.self_attn
        biases = torch.from_numpy(tensors[at + "attn.Wqkv.bias"]).chunk(3)
        for linear, bias in zip((attention.q_proj, attention.k_proj, attention.v_proj), biases, strict=True):
            linear.bias = torch.nn.Parameter(bias)
        attention.o_proj.bias = torch.nn.Parameter(torch.from_numpy(tensors[at + "attn.out_proj.bias"]))
        layer.mlp = Experts(config, tensors, at + "mlp.")


class Gated(torch.nn.Module):
    """GELU of one half of a linear, times the other half."""

    def __init__(self, matrix: np.ndarray) -> None:
        super().__init__()
        self.matrix = torch.from_numpy(matrix)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate, up = (x @ self.matrix.T).chunk(2, dim=-1)
        return torch.nn.functional.gelu(gate) * up


def make_jina_bert(model: Any) -> None:
    """BERT as jina-embeddings-v2's published code has it: ALiBi to both sides, no positions, a gated feed-forward."""
    from tests.families.models.jina_bert import part_values

    heads, tensors = model.config.num_attention_heads, part_values(model.config.to_dict())
    model.embeddings.position_embeddings.weight.data.zero_()
    for number, layer in enumerate(model.encoder.layer):
        at = f"encoder.layer.{number}.mlp."
        layer.intermediate = Gated(tensors[at + "gated_layers.weight"])
        for linear, name in ((layer.output.dense, "wo"), (layer.output.LayerNorm, "layernorm")):
            linear.weight.data = torch.from_numpy(tensors[f"{at}{name}.weight"])
            linear.bias.data = torch.from_numpy(tensors[f"{at}{name}.bias"])
    by_head = torch.tensor(slopes(heads))
    plain = model.forward

    def forward(ids: torch.Tensor, **settings: Any) -> Any:
        position = torch.arange(ids.shape[1])
        bias = -by_head[:, None, None] * (position[None, :] - position[:, None]).abs()
        return plain(ids, attention_mask=bias[None], **settings)

    model.forward = forward


def limit_ling3_experts(model: Any) -> None:
    """Ling 3.0's experts with the limits of config.json, as vLLM and llama.cpp have them; transformers has none."""
    silu, linear = torch.nn.functional.silu, torch.nn.functional.linear

    def limited(gate: torch.Tensor, up: torch.Tensor, limit: float) -> torch.Tensor:
        bound = limit or math.inf
        return silu(gate).clamp(max=bound) * up.clamp(-bound, bound)

    def routed(part: Any, limit: float) -> Any:
        def forward(x: torch.Tensor, chosen: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
            out = torch.zeros_like(x)
            for token, slot in np.ndindex(*chosen.shape):
                expert = chosen[token, slot]
                gate, up = linear(x[token], part.gate_up_proj[expert]).chunk(2)
                out[token] += shares[token, slot] * linear(limited(gate, up, limit), part.down_proj[expert])
            return out

        return forward

    def shared(part: Any, limit: float) -> Any:
        return lambda x: part.down_proj(limited(part.gate_proj(x), part.up_proj(x), limit))

    lists = model.config.expert_swiglu_limit_list, model.config.share_expert_swiglu_limit_list
    for layer, *limits in zip(model.model.layers, *lists, strict=True):
        if hasattr(layer.mlp, "experts"):
            layer.mlp.experts.forward = routed(layer.mlp.experts, limits[0] or 0.0)
            layer.mlp.shared_experts.forward = shared(layer.mlp.shared_experts, limits[1] or 0.0)


def convert(folder: Path, out: Path, pre: str | None, **settings: Any) -> None:
    """llama.cpp's converter on `folder`, f32. `pre`: the pre-tokenizer's name; None leaves the vocabulary out.

    `settings` are arguments of the converter's class.

    The converter knows pre-tokenizers by a hash over the ids of a text, which a tokenizer of a test cannot have.
    """
    import conversion
    import gguf
    from conversion.base import ModelBase, ModelType, get_model_architecture

    architecture = get_model_architecture(ModelBase.load_hparams(folder, False), ModelType.TEXT)
    kind = conversion.get_model_class(architecture)
    # RWKV's class keeps tensors of one model for the next
    changes: dict[str, Any] = {"lerp_weights": {}}
    if pre is None:
        changes["set_vocab"] = lambda self: None
    else:
        changes["get_vocab_base_pre"] = lambda self, tokenizer: pre
    changed = type(kind.__name__, (kind,), {"model_arch": kind.model_arch, **changes})
    with torch.inference_mode():
        converter = changed(folder, gguf.LlamaFileType.ALL_F32, out, **settings)
        if hasattr(converter, "impl"):
            # a class that only chooses another one
            for name, function in changes.items():
                setattr(converter.impl, name, function.__get__(converter.impl))
        converter.write()


def main() -> None:
    folder, names = Path(sys.argv[1]), [name for name in sys.argv[2:] if name != "--convert"]
    for name in names:
        case = all_cases()[name][1]
        config, tensors, logits, native = build(case)
        here = folder / name
        here.mkdir(parents=True)
        (here / "config.json").write_text(json.dumps(config, indent=1, sort_keys=True))
        save_file({key: np.ascontiguousarray(value) for key, value in tensors.items()}, here / "model.safetensors")
        np.save(here / "logits.npy", logits)
        (here / "native.json").write_text(json.dumps(native))
        write_tokenizer(here, case.tokenizer)
        if "--convert" in sys.argv and case.converter:
            print(name, file=sys.stderr)
            # the converter changes what it is given, and cases share parts of a config
            settings = {"hparams": deepcopy(config)} if case.raw_config else {}
            convert(here, folder / f"{name}.gguf", case.pre if case.vocabulary else None, **settings)


if __name__ == "__main__":
    main()

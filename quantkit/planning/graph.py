"""The largest graph llama.cpp reserves for a model: one physical batch of a prompt, every token with an output.

Follows llm_graph_context and the graphs of src/models in llama.cpp; which of their branches a model takes is told by
its tensors, and by quantkit.planning.traits where they do not tell.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

from quantkit.gguf.types import block_size
from quantkit.planning.context import KV_TYPES, Context
from quantkit.planning.shape import Layer, ModelShape
from quantkit.planning.tensors import (
    F16,
    F32,
    I32,
    I64,
    Graph,
    Tensor,
    contiguous,
    fresh,
    held,
    leaf,
    matmul,
    matmul_id,
    permuted,
    same,
    stored,
    view,
)
from quantkit.planning.traits import (
    LAYER_NORM,
    NO_ROPE,
    OUTPUT_LAST,
    PARALLEL,
    SCALED_EMBEDDING,
    SCALED_QUERY,
    SOFTMAX_AFTER,
    UNGATED_EXPERT_NORM,
)

_TELLING = 4


@dataclass(frozen=True)
class _Cache:
    """The inputs of one kind of layer: cells, where new rows go, the mask, and the rotation of a quantized cache."""

    cells: int
    k_index: Tensor
    v_index: Tensor
    mask: Tensor
    k_turn: Tensor | None
    v_turn: Tensor | None


def prompt_graph(shape: ModelShape, context: Context, layers: Sequence[int] | None = None) -> Graph:
    """The graph of a whole physical batch; of these `layers` only, the last one among them, where not of all."""
    return _Builder(shape, context, range(shape.n_layer) if layers is None else layers).graph


def telling_layers(shape: ModelShape, kinds: Sequence[Hashable]) -> list[int]:
    """Layers enough for the memory of all: of a run of equal ones four, since what is freed is taken again at once.

    `kinds` sets apart layers that are alike in themselves, by where they run.
    """
    found, run = [], 0
    before: Hashable = None
    for i, layer in enumerate(shape.layers):
        sizes = (layer.n_head, layer.n_head_kv, layer.head_k, layer.head_v, layer.slides)
        sign = (sizes, tuple(layer.tensors.items()), kinds[i])
        run = run + 1 if sign == before else 1
        before = sign
        if run <= _TELLING or i == shape.n_layer - 1:
            found.append(i)
    return found


class _Builder:
    def __init__(self, shape: ModelShape, context: Context, layers: Sequence[int]) -> None:
        self.shape, self.context = shape, context
        self.graph = Graph()
        self.n = context.tokens
        self.layer: int | None = None
        arch = shape.arch
        x = self._embedding()
        if arch in SCALED_EMBEDDING or shape.number("embedding_scale"):
            x = same(x)
        self.positions = leaf("positions", self.n, size=I32)
        self.caches = {slides: self._cache(slides) for slides in (False, True) if not slides or shape.window}
        if "position_embd.weight" in shape.tensors:
            x = same(x, self._rows("position_embd.weight", self.positions))
        if "token_embd_norm.weight" in shape.tensors:
            x = self._norm(x, "token_embd_norm", shape.tensors)
        self.outputs = leaf("outputs", self.n, size=I32)
        for number in layers:
            self.layer = number
            x = self._decoder_layer(x, shape.layers[number], number)
        self.layer = None
        if arch in OUTPUT_LAST:
            # the last layer's result is offered to a draft model
            x.kept = True
            x = fresh((shape.n_embd, self.n), x, self.outputs)
        x = self._norm(x, "output_norm", shape.tensors)
        x.kept = True
        x = matmul("output.weight", shape.n_vocab, x)
        if shape.number("logit_scale"):
            x = same(x)
        if shape.number("final_logit_softcapping"):
            x = same(same(same(x)))
        x.kept = True
        self.graph.expand(x)

    def _named(self, name: str) -> str:
        """The name in the file of a weight of the layer being drawn, or of one outside the layers."""
        return name if self.layer is None else f"blk.{self.layer}.{name}"

    def _rows(self, weight: str, ids: Tensor) -> Tensor:
        out = fresh((self.shape.n_embd, self.n), ids)
        out.weight = weight
        return out

    def _embedding(self) -> Tensor:
        tokens, vectors = leaf("tokens", self.n, size=I32), leaf("embeddings", self.shape.n_embd, self.n)
        x = self._rows("token_embd.weight", tokens)
        self.graph.expand(x)
        # the graph keeps a place for embeddings given instead of tokens
        self.graph.expand(vectors)
        return x

    def _cache(self, slides: bool) -> _Cache:
        shape, context = self.shape, self.context
        cells = context.window_cells(shape.window) if slides else context.cells
        widest = max(layer.n_head_kv * layer.head_v for layer in shape.layers)
        v_rows = self.n if context.flash_on else self.n * widest
        turns: list[Tensor | None] = [None, None]
        if context.kv_type != "f16":
            for i, sizes in enumerate(({x.head_k for x in shape.layers}, {x.head_v for x in shape.layers})):
                head = next(iter(sizes)) if len(sizes) == 1 else 0
                if head and head % 64 == 0 and not shape.is_mla:
                    size = 64 if i else _largest_turn(head)
                    turns[i] = leaf("turn", size, size)
        return _Cache(
            cells,
            leaf("k index", self.n, size=I64),
            leaf("v index", v_rows, size=I64),
            leaf("mask", cells, self.n, size=F16 if context.flash_on else F32),
            *turns,
        )

    def _norm(self, x: Tensor, name: str, tensors: Mapping[str, tuple[int, ...]]) -> Tensor:
        x = same(x, inplace=self.shape.arch not in LAYER_NORM)
        for part in ("weight", "bias"):
            if f"{name}.{part}" in tensors:
                x = same(x, weight=self._named(f"{name}.{part}"))
        return x

    def _linear(self, layer: Layer, name: str, x: Tensor) -> Tensor:
        x = matmul(self._named(name + ".weight"), layer.rows(name), x)
        return same(x, weight=self._named(name + ".bias")) if layer.has(name + ".bias") else x

    def _decoder_layer(self, x: Tensor, layer: Layer, number: int) -> Tensor:
        shape, arch = self.shape, self.shape.arch
        before = self._norm(x, "attn_norm", layer.tensors) if layer.has("attn_norm.weight") or arch == "olmo" else x
        attended = before
        if layer.has("attn_norm_2.weight"):
            attended = self._norm(x, "attn_norm_2", layer.tensors)
        draw = self._mla if layer.has("attn_kv_a_mqa.weight") else self._attention
        out = draw(attended, layer)
        last = number == shape.n_layer - 1 and arch not in OUTPUT_LAST
        if last:
            out = fresh((out.shape[0], self.n), out, self.outputs)
            x = fresh((x.shape[0], self.n), x, self.outputs)
            if arch in PARALLEL:
                before = fresh((before.shape[0], self.n), before, self.outputs)
        scaled = bool(shape.number("residual_scale"))
        if layer.has("post_attention_norm.weight") and arch != "gpt-oss":
            out = self._norm(out, "post_attention_norm", layer.tensors)
        parallel = arch in PARALLEL or (arch == "stablelm" and not layer.has("ffn_norm.weight"))
        if parallel:
            return same(same(self._feed_forward(before, layer), out), x)
        joined = same(same(out) if scaled else out, x)
        normed = joined
        for name in ("ffn_norm", *(("post_attention_norm",) if arch == "gpt-oss" else ())):
            if layer.has(name + ".weight") or (arch == "olmo" and name == "ffn_norm"):
                normed = self._norm(joined, name, layer.tensors)
        out = self._feed_forward(normed, layer)
        if layer.has("post_ffw_norm.weight"):
            out = self._norm(out, "post_ffw_norm", layer.tensors)
        return same(same(out) if scaled else out, joined)

    def _attention(self, x: Tensor, layer: Layer) -> Tensor:
        if layer.has("attn_qkv.weight"):
            whole = self._linear(layer, "attn_qkv", x)
            width = layer.rows("attn_qkv") * F32
            sizes = ((layer.head_k, layer.n_head), (layer.head_k, layer.n_head_kv), (layer.head_v, layer.n_head_kv))
            q, k, v = (view(whole, (*each, self.n), (each[0] * F32, width)) for each in sizes)
        else:
            q, k, v = (self._linear(layer, name, x) for name in ("attn_q", "attn_k", "attn_v"))
            if layer.has("attn_q_norm.weight") and layer.rows("attn_q_norm") == q.shape[0] != layer.head_k:
                # normed over all heads at once, before they are told apart
                q, k = self._norm(q, "attn_q_norm", layer.tensors), self._norm(k, "attn_k_norm", layer.tensors)
            q = view(q, (layer.head_k, layer.n_head, self.n))
            k = view(k, (layer.head_k, layer.n_head_kv, self.n))
            v = view(v, (layer.head_v, layer.n_head_kv, self.n))
        if layer.has("attn_q_norm.weight") and layer.rows("attn_q_norm") == layer.head_k:
            q, k = self._norm(q, "attn_q_norm", layer.tensors), self._norm(k, "attn_k_norm", layer.tensors)
        if self.shape.arch not in NO_ROPE and not (self.shape.arch == "baichuan" and self.shape.n_layer != 32):
            q, k = self._rope(q), self._rope(k)
        if self.shape.arch in SCALED_QUERY:
            q = same(q)
        out = self._attend(q, k, v, layer)
        return self._linear(layer, "attn_output", out)

    def _rope(self, x: Tensor) -> Tensor:
        out = Tensor(x.shape, F32, (x, self.positions), inplace=True)
        out.stride = contiguous(out.shape, F32)
        return out

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, layer: Layer, v_rows: int = 0) -> Tensor:
        """Store keys and values, attend to all cells, (head_v * n_head, n); `v_rows` are those of MLA's attn_v_b."""
        cache = self.caches[layer.slides]
        if cache.k_turn is not None:
            q, k = _turned(q, cache.k_turn), _turned(k, cache.k_turn)
        if cache.v_turn is not None:
            v = _turned(v, cache.v_turn)
        flash, cells = self.context.flash_on, cache.cells
        for each in (q, k, v) if self.shape.window else (q, v, k):
            self.graph.expand(each)
        size = block_size(KV_TYPES[self.context.kv_type])
        element = size[1] / size[0]
        k_cache = held("k cache", layer.head_k * layer.n_head_kv, cells, size=element, layer=self.layer)
        self.graph.expand(stored(k_cache, view(k, (layer.head_k * layer.n_head_kv, self.n)), cache.k_index))
        keys = view(k_cache, (layer.head_k, layer.n_head_kv, cells))
        head_v, n_head = v.shape[0], layer.n_head
        if layer.head_v:
            v_cache = held("v cache", layer.head_v * layer.n_head_kv, cells, size=element, layer=self.layer)
            merged = view(v, (head_v * layer.n_head_kv, self.n))
            if not flash and v.stride != contiguous(v.shape, F32):
                merged = fresh((head_v * layer.n_head_kv, self.n), v)
            self.graph.expand(stored(v_cache, merged, cache.v_index))
            values = view(v_cache, (layer.head_v, layer.n_head_kv, cells))
        else:
            values = view(keys, (head_v, layer.n_head_kv, cells), (layer.head_k * element, layer.head_k * element))
        q = permuted(view(q, (*q.shape[:3], 1), q.stride[1:]))
        if flash:
            out = fresh((head_v, n_head, self.n), q, permuted(keys), permuted(values), cache.mask)
            if v_rows:
                out = fresh((v_rows, n_head, self.n), permuted(self._decompressed(out, v_rows, n_head)))
            out = view(out, (out.shape[0] * n_head, self.n))
        else:
            scores = fresh((cells, self.n, n_head), permuted(keys), q)
            if self.shape.number("attn_logit_softcapping"):
                scores = same(same(same(scores)))
            scores = same(scores, cache.mask)
            if not layer.head_v:
                values = fresh((cells, head_v, layer.n_head_kv), values, size=F16)
            out = fresh((head_v, self.n, n_head), permuted(values), scores)
            if v_rows:
                out = self._decompressed(out, v_rows, n_head)
            out = fresh((out.shape[0] * n_head, self.n), permuted(out))
        self.graph.expand(out)
        if cache.v_turn is not None:
            out = _turned(out, cache.v_turn)
        return out

    def _decompressed(self, x: Tensor, rows: int, n_head: int) -> Tensor:
        out = Tensor((rows, self.n, n_head, 1), F32, (x,))
        out.weight = self._named("attn_v_b.weight")
        return out

    def _mla(self, x: Tensor, layer: Layer) -> Tensor:
        shape, n, n_head = self.shape, self.n, layer.n_head
        rank = int(shape.number("attention.kv_lora_rank"))
        rope = int(shape.number("rope.dimension_count"))
        if layer.has("attn_q_a.weight"):
            q = self._norm(self._linear(layer, "attn_q_a", x), "attn_q_a_norm", layer.tensors)
            q = self._linear(layer, "attn_q_b", q)
        else:
            q = self._linear(layer, "attn_q", x)
        head = q.shape[0] // n_head
        q = view(q, (head, n_head, n))
        whole = self._linear(layer, "attn_kv_a_mqa", x)
        width = (rank + rope) * F32
        k_rope = self._rope(view(whole, (rope, 1, n), (width, width)))
        squeezed = self._norm(view(whole, (rank, n), (width,)), "attn_kv_a_norm", layer.tensors)
        if shape.is_mla:
            q_rope = self._rope(view(q, (rope, n_head, n), (head * F32, head * n_head * F32)))
            q_rest = view(q, (head - rope, n_head, n), (head * F32, head * n_head * F32))
            absorbed = matmul(self._named("attn_k_b.weight"), rank, permuted(q_rest))
            q = fresh((rank + rope, n_head, n), permuted(absorbed), q_rope)
            v = view(squeezed, (rank, 1, n))
            k = fresh((rank + rope, 1, n), v, k_rope)
            out = self._attend(q, k, v, layer, v_rows=layer.rows("attn_v_b"))
        else:
            kv = self._linear(layer, "attn_kv_b", squeezed)
            each = kv.shape[0] // n_head
            value = each - (head - rope)
            rest = view(kv, (head - rope, n_head, n), (each * F32, each * n_head * F32))
            v = fresh((value, n_head, n), view(kv, (value, n_head, n), (each * F32, each * n_head * F32)))
            q = self._rope(q)
            k = fresh((head, n_head, n), rest, fresh((rope, n_head, n), k_rope))
            out = self._attend(q, k, v, layer)
        return self._linear(layer, "attn_output", out)

    def _feed_forward(self, x: Tensor, layer: Layer) -> Tensor:
        if not layer.has("ffn_down_exps.weight"):
            return self._dense_ffn(x, layer)
        out = self._experts(x, layer)
        if layer.has("ffn_down_shexp.weight"):
            shared = self._dense_ffn(x, layer, "_shexp")
            if layer.has("ffn_gate_inp_shexp.weight"):
                gate = matmul(self._named("ffn_gate_inp_shexp.weight"), 1, x)
                shared = same(shared, same(same(gate), gate))
            out = same(out, shared)
        return out

    def _dense_ffn(self, x: Tensor, layer: Layer, suffix: str = "") -> Tensor:
        up = self._linear(layer, "ffn_up" + suffix, x)
        if layer.has(f"ffn_gate{suffix}.weight"):
            gate = self._linear(layer, "ffn_gate" + suffix, x)
            # the gate comes first in the operation, but was drawn after the up projection
            hidden = fresh(gate.shape, gate, up)
        elif up.shape[0] == 2 * layer.tensors[f"ffn_down{suffix}.weight"][-1]:
            hidden = fresh((up.shape[0] // 2, self.n), up)
        else:
            hidden = same(up)
        return self._linear(layer, "ffn_down" + suffix, hidden)

    def _experts(self, x: Tensor, layer: Layer) -> Tensor:
        n, arch, used = self.n, self.shape.arch, self.shape.n_expert_used
        count = layer.tensors["ffn_down_exps.weight"][0]
        logits = self._linear(layer, "ffn_gate_inp", x)
        probabilities = logits if arch in SOFTMAX_AFTER else same(logits)
        chosen = (
            same(probabilities, weight=self._named("exp_probs_b.bias"))
            if layer.has("exp_probs_b.bias")
            else probabilities
        )
        order = fresh((count, n), chosen, size=I32)
        ids = view(order, (used, n), (count * I32,))
        weights = fresh((1, used, n), view(probabilities, (1, count, n)), ids)
        if arch in SOFTMAX_AFTER:
            weights = view(same(view(weights, (used, n))), (1, used, n))
        elif arch not in UNGATED_EXPERT_NORM and self.shape.keys.get("expert_weights_norm", True):
            flat = view(weights, (used, n))
            weights = view(same(flat, same(fresh((1, n), flat))), (1, used, n))
        if self.shape.number("expert_weights_scale") not in (0.0, 1.0):
            weights = same(weights)
        self.graph.expand(weights)
        inner = layer.tensors["ffn_down_exps.weight"][-1]
        x = view(x, (x.shape[0], 1, n))
        if layer.has("ffn_gate_up_exps.weight"):
            both = matmul_id(self._named("ffn_gate_up_exps.weight"), 2 * inner, x, ids)
            stride = (2 * inner * F32, 2 * inner * used * F32)
            hidden = fresh((inner, used, n), *(view(both, (inner, used, n), stride) for _ in range(2)))
        else:
            up = self._expert_linear("ffn_up_exps", layer, inner, x, ids)
            if layer.has("ffn_gate_exps.weight"):
                gate = self._expert_linear("ffn_gate_exps", layer, inner, x, ids)
                hidden = fresh((inner, used, n), gate, up)
            else:
                hidden = same(up)
        each = self._expert_linear("ffn_down_exps", layer, self.shape.n_embd, hidden, ids)
        each = same(each, weights)
        self.graph.expand(each)
        width = self.shape.n_embd * F32
        views = [self.graph.expand(view(each, (self.shape.n_embd, n), (width * used,))) for _ in range(used)]
        total = views[0] if used > 1 else fresh((self.shape.n_embd, n), views[0])
        for part in views[1:]:
            total = self.graph.expand(same(total, part))
        return total

    def _expert_linear(self, name: str, layer: Layer, rows: int, x: Tensor, ids: Tensor) -> Tensor:
        out = matmul_id(self._named(name + ".weight"), rows, x, ids)
        return same(out, ids, weight=self._named(name + ".bias")) if layer.has(name + ".bias") else out


def _largest_turn(head: int) -> int:
    size = 64
    while head % (2 * size) == 0:
        size *= 2
    return size


def _turned(x: Tensor, turn: Tensor) -> Tensor:
    """Rotated before it goes into a quantized cache (llama_mul_mat_hadamard)."""
    size = turn.shape[0]
    rows = x.shape[0] * x.shape[1] * x.shape[2] // size
    flat = view(x, (size, rows)) if x.stride == contiguous(x.shape, F32) else fresh((size, rows), x)
    return view(fresh((size, rows), turn, flat), x.shape)

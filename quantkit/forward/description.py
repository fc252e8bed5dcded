"""An architecture as data: names of tensors, the parts they belong to, keys of config.json.

A name is a tensor's without `.weight` or `.bias`; a bias is used where the checkpoint has one. Names of a part are
under its `at`, those of a layer under the architecture's `layer`. What differs from layer to layer or hangs on several
keys is a function of config.json (and the layer's number).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from quantkit.forward.config_keys import Config
from quantkit.forward.kimi_parts import KimiDelta, Latent, ResidualAttention
from quantkit.forward.mixers import Attention, CompressedAttention
from quantkit.forward.parts import Form, Norm
from quantkit.forward.recurrent_mixers import ChannelMix, DeltaNet, Mamba, Mamba2, OneLinear, ShortConvolution, TimeMix


@dataclass(frozen=True)
class FeedForward:
    """down(activation(gate) * up), or down(activation(up)) if `gate` is None.

    Attributes:
        fused: one linear for gate and up: one after the other, or `alternating`.
        clamped: gpt-oss's variant: gate and up are limited, the gate is x sigmoid(1.702 x), and 1 is added to up.
        down_turned: whether `down` is stored the other way round than `form` has it.
        limit_before: the config key of the limit L: before its activation the gate is at most L, up is from -L to L.
        inner: width between up and down.
        sparsity: by layer, the share of gates that are set to zero, if gates were normal; 0 keeps all. The others are
            what they exceed that quantile by.
        activation: config keys of the activation's name; `default_activation` if config.json lacks them.
        multipliers: factors of the gate before its activation, and of the output (muP).
        limit: by layer, what the activated gate is at most, and up on both sides; 0 for none.
        situ: SiTU's limits (b, l): the product is b tanh(gate / b) sigmoid(gate) times l tanh(up / l); l may be 0, and
            then up has no limit.
    """

    at: str = "mlp."
    gate: str | None = "gate_proj"
    up: str = "up_proj"
    down: str = "down_proj"
    fused: str | None = None
    alternating: bool = False
    clamped: bool = False
    limit_before: str | None = None
    form: Form = Form()
    down_turned: bool = False
    inner: Callable[[Config], int] = lambda config: int(config["intermediate_size"])
    sparsity: Callable[[Config, int], float] = lambda _config, _layer: 0.0
    activation: tuple[str, ...] = ("hidden_act",)
    default_activation: str = "silu"
    xielu: str | None = None
    multipliers: Callable[[Config], tuple[float, float]] | None = None
    limit: Callable[[Config, int], float] = lambda _config, _layer: 0.0
    situ: Callable[[Config], tuple[float, float]] | None = None

    @property
    def down_form(self) -> Form:
        """How `down` is stored."""
        return replace(self.form, turned=not self.form.turned) if self.down_turned else self.form


@dataclass(frozen=True)
class Beside:
    """Norms of a layer whose experts run beside its feed-forward: the outputs of both are normed and added.

    Attributes:
        norm: norm of the experts' input.
        after_experts, after_dense: norms of the two outputs.
        router_scale: vector; the router reads the hidden states over their root mean square, times this vector, times
            1 / sqrt(hidden).
    """

    norm: str
    after_experts: str
    after_dense: str
    router_scale: str


@dataclass(frozen=True)
class Experts:
    """Feed-forwards of which each token uses the best by the router's score.

    Attributes:
        router: the linear that scores the experts; `router_form`: how it is stored.
        expert: one expert; `{}` in its names stands for its number.
        stacked: all experts in one tensor; used where the checkpoint has it.
        mlx: where mlx-lm has the stacked experts; None: its model has not been compared with quantkit's forward.
        count: config keys of the number of experts.
        used: config keys of the number of experts per token, or of a list with one number per layer.
        score: the function from the router's output to scores; `sparse_mixer` gives weights too (see `route`),
            `sqrt_softplus` is the square root of softplus.
        table: a tensor (vocabulary, experts per token) of the experts of each token, in layers that have it; the scores
            then only give the weights.
        correction: a vector added to the scores for the choice only.
        groups: (number of groups, groups chosen); experts come from the best groups only.
        group_by: a group's score is the sum of its best scores, this many.
        normalised: whether the weights of the chosen experts are scaled to a sum of one.
        scale: factor on the weights.
        expert_scale: a vector; the weight of each expert is multiplied by its element.
        weighted_input: whether the weights scale an expert's input instead of its output.
        shared: an expert for every token, times the sigmoid of `shared_gate` if there is one.
        beside: the norms, if experts run beside the layer's feed-forward and do not replace it.
        latent: what routed experts read in place of the hidden states.
        early: whether the router reads the hidden states that enter the layer, before attention and its norm.
        layers: whether a layer has experts.
    """

    router: str
    router_form: Form = Form()
    expert: FeedForward | None = None
    stacked: FeedForward | None = None
    mlx: str | None = None
    count: tuple[str, ...] = ("num_local_experts", "num_experts", "n_routed_experts")
    used: tuple[str, ...] = ("num_experts_per_tok", "num_experts_per_token")
    score: Literal["softmax", "sigmoid", "sparse_mixer", "sqrt_softplus"] = "softmax"
    table: str | None = None
    correction: str | None = None
    groups: Callable[[Config], tuple[int, int]] = lambda _: (1, 1)
    group_by: int = 1
    normalised: Callable[[Config], bool] = lambda _: True
    scale: Callable[[Config], float] = lambda _: 1.0
    expert_scale: str | None = None
    weighted_input: bool = False
    shared: FeedForward | None = None
    shared_gate: str | None = None
    beside: Beside | None = None
    latent: Latent | None = None
    early: bool = False
    layers: Callable[[Config, int], bool] = lambda _config, _layer: True


@dataclass(frozen=True)
class LayerInputs:
    """Per-layer embeddings: each layer has a vector for each token, which gates a part after the others.

    The vector is (embedding row * sqrt(width) + norm(projection of the model's embedding / sqrt(hidden))) / sqrt(2).
    The part adds norm(out(activation(gate(x)) * vector)) to the hidden states x.

    Attributes:
        width: elements of the vector; 0 if the model has none.
        rows: tokens in the table of vectors; later tokens have the first row. 0: all have their own.
        embedding, projection, norm: names outside the layers; the tensors hold all layers one after the other.
        gate, out, after: names within a layer.
        activation: config keys of the activation's name.
    """

    width: Callable[[Config], int]
    rows: Callable[[Config], int] = lambda config: int(config.get("vocab_size_per_layer_input") or 0)
    embedding: str = "embed_tokens_per_layer"
    projection: str = "per_layer_model_projection"
    norm: str = "per_layer_projection_norm"
    gate: str = "per_layer_input_gate"
    out: str = "per_layer_projection"
    after: str = "post_per_layer_input_norm"
    activation: tuple[str, ...] = ("hidden_activation",)
    default_activation: str = "gelu_pytorch_tanh"


@dataclass(frozen=True)
class AltUp:
    """Several streams of hidden states, of which a layer computes one (see `altup`).

    Attributes:
        projection, unembedding: linears outside the layers that make a stream from the embedding and merge it; a number
            follows the name.
        prediction, correction, router, router_norm, output_scale: names within a layer, below `at`.
    """

    at: str = "altup."
    projection: str = "altup_projections"
    unembedding: str = "altup_unembed_projections"
    prediction: str = "prediction_coefs"
    correction: str = "correction_coefs"
    router: str = "modality_router"
    router_norm: str = "router_norm"
    output_scale: str = "correct_output_scale"
    count: Callable[[Config], int] = lambda config: int(config["altup_num_inputs"])
    active: Callable[[Config], int] = lambda config: int(config["altup_active_idx"])


@dataclass(frozen=True)
class HyperConnections:
    """DeepSeek-V4's manifold-constrained hyper-connections: several residual streams, which each part mixes anew.

    All tensors are of a part (`attention`, `feed`: prefixes within a layer) or of the end of the model (`head`), where
    the streams become one: `{prefix}_fn` (see `hyper_connections`), `{prefix}_base` and `{prefix}_scale`.

    Attributes:
        mixed: whether the streams are mixed among themselves; False for Hunyuan 4's, which stay as they are.
        magnitude: how much of a part's output a stream gets at most.
    """

    attention: str = "hc_attn"
    feed: str = "hc_ffn"
    head: str = "hc_head"
    mixed: bool = True
    magnitude: Callable[[Config], float] = lambda _: 2.0
    count: Callable[[Config], int] = lambda config: int(config["hc_mult"])
    iterations: Callable[[Config], int] = lambda config: int(config["hc_sinkhorn_iters"])
    eps: Callable[[Config], float] = lambda config: float(config["hc_eps"])

    def coefficients(self, config: Config) -> int:
        """Coefficients of a part: what it reads of each stream, what each gets, and how they are mixed."""
        count = self.count(config)
        return (2 + count if self.mixed else 2) * count


@dataclass(frozen=True)
class Laurel:
    """LAuReL (arXiv 2411.07501), a low-rank residual: the layer gives (state + x + norm(right(left(x)))) / sqrt(2).

    x is the normed input of attention. All names are below `at`.
    """

    at: str = "laurel."
    left: str = "linear_left"
    right: str = "linear_right"
    norm: str = "post_laurel_norm"
    rank: Callable[[Config], int] = lambda config: int(config["laurel_rank"])


@dataclass(frozen=True)
class Architecture:
    """A decoder, or an encoder. The defaults are Llama's.

    Attention and feed-forward each read the hidden states through a norm (`attention_norm`, `feed_norm`; None: no norm)
    and may have a norm after them (`after_attention`, `after_feed`). Their output times `residual_scale` is added to
    the hidden states.

    Attributes:
        head: the output head; "" for an encoder, whose results are its hidden states.
        base: prefix of all names but the head's; checkpoints saved from the bare model lack it.
        layer: prefix of a layer's names.
        positions: the tensor of learned positions; `first_position` is its row for the first token.
        embedding_norm: the norm of the embeddings; `embedding_norm_kind` where it differs from `norm`.
        first_normed: whether the first layer has `attention_norm`.
        token_types: the tensor of token types; its first row is added to every embedding.
        norms_after: the kinds of `after_attention` and `after_feed`, where they differ from `norm`.
        sum_norms: norms of the hidden states after attention and after the feed-forward have been added (BERT).
        compressed: attention with compressed tokens, which all layers have in its place.
        delta_net, kimi_delta, mamba, mamba2, short_convolution, one_linear: what some layers have in place of attention
            (Mamba 2 also beside it).
        time_mix, channel_mix: RWKV's parts, which all layers have in place of attention and feed-forward.
        mixes: whether a layer has attention or what stands in its place.
        feeds: whether a layer has a feed-forward or experts.
        parallel: both parts read the same hidden states, the feed-forward through `feed_norm` or, if that is None,
            through attention's norm.
        layer_inputs: per-layer embeddings.
        altup: several streams of hidden states.
        laurel: a low-rank residual beside attention.
        hyper_connections: several streams of hidden states, which each part of a layer mixes.
        residual_attention: attention over earlier hidden states in place of the residual.
        layer_scale: the tensor of one number that multiplies a layer's output.
        last_norm: the norm after the last layer, or ""; `last_norm_kind` where it differs from `norm`.
        tied: whether the embedding is the head where config.json does not say.
        per_layer: the config of a layer, where layers differ in sizes.
        variant: fields that depend on config.json.
        refused: the setting of config.json that the forward does not support, or None.
        unpacked: why loaders of AWQ and GPTQ folders do not run the model, or None.
        mlx_type: the model_type by which mlx-lm finds the model, if it differs from that of config.json.
        not_mlx: why mlx-lm does not run a folder of quantized weights of the model, or None.
    """

    base: str = "model."
    embedding: str = "embed_tokens"
    embedding_norm: str | None = None
    embedding_norm_kind: Norm | None = None
    embedding_scale: Callable[[Config], float] = lambda _: 1.0
    positions: str | None = None
    first_position: Callable[[Config], int] = lambda _: 0
    token_types: str | None = None
    sum_norms: tuple[str, str] | None = None
    layer: str = "layers.{}."
    norm: Norm = Norm()
    attention_norm: str | None = "input_layernorm"
    first_normed: bool = True
    after_attention: str | None = None
    feed_norm: str | None = "post_attention_layernorm"
    after_feed: str | None = None
    norms_after: tuple[Norm, Norm] | None = None
    mixes: Callable[[Config, int], bool] = lambda _config, _layer: True
    feeds: Callable[[Config, int], bool] = lambda _config, _layer: True
    parallel: bool = False
    residual_scale: Callable[[Config], float] = lambda _: 1.0
    attention: Attention = field(default_factory=Attention)
    compressed: CompressedAttention | None = None
    delta_net: DeltaNet | None = None
    kimi_delta: KimiDelta | None = None
    mamba: Mamba | None = None
    mamba2: Mamba2 | None = None
    short_convolution: ShortConvolution | None = None
    one_linear: OneLinear | None = None
    time_mix: TimeMix | None = None
    channel_mix: ChannelMix | None = None
    feed: FeedForward = field(default_factory=FeedForward)
    experts: Experts | None = None
    layer_inputs: LayerInputs | None = None
    altup: AltUp | None = None
    laurel: Laurel | None = None
    hyper_connections: HyperConnections | None = None
    residual_attention: ResidualAttention | None = None
    layer_scale: str | None = None
    last_norm: str = "norm"
    last_norm_kind: Norm | None = None
    head: str = "lm_head"
    tied: bool = False
    logit_scale: Callable[[Config], float] = lambda _: 1.0
    logit_softcap: str | None = None
    per_layer: Callable[[Config, int], Config] = lambda config, _: config
    variant: Callable[[Config], Mapping[str, Any]] = lambda _: {}
    refused: Callable[[Config], str | None] = lambda _: None
    unpacked: Callable[[Config], str | None] = lambda _: None
    mlx_type: str | None = None
    not_mlx: str | None = None

    def norm_before(self, layer: int) -> str | None:
        """The norm of attention's input in a layer, or None."""
        return self.attention_norm if layer or self.first_normed else None

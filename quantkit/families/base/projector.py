"""The projector of a family as data: the tower that sees or hears, and what leads into the text model (mmproj).

llama.cpp loads it beside the text model (tools/mtmd). Its GGUF has the architecture `clip`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from quantkit.errors import CheckpointError
from quantkit.families.base.family import Dropped, Key, Rule
from quantkit.families.base.hyperparameters import Hyperparameters, number, optional_size, size

_PER_CHANNEL = 3


@dataclass(frozen=True)
class Sources:
    """What a projector is made from, beside the weights.

    `config`: config.json. `processor`: preprocessor_config.json and processor_config.json, merged. `text`: sizes of the
    text model. `token_id` gives the id of a token's text, or raises CheckpointError.
    """

    config: Mapping[str, Any]
    processor: Mapping[str, Any]
    text: Hyperparameters
    token_id: Callable[[str], int]


@dataclass(frozen=True)
class Tower(Hyperparameters):
    """Sizes of the tower. `config` is its own config, complete; `own`: further sizes that rules name."""

    sources: Sources | None = None
    own: Mapping[str, int] = field(default_factory=dict)

    def dimension(self, name: str) -> int:
        """Size of a dimension that a rule names: a further size, a number, or a field."""
        return self.own[name] if name in self.own else super().dimension(name)

    @property
    def whole(self) -> Mapping[str, Any]:
        """config.json of the checkpoint."""
        assert self.sources is not None
        return self.sources.config

    @property
    def processor(self) -> Mapping[str, Any]:
        """The settings of the image processor."""
        assert self.sources is not None
        return self.sources.processor


@dataclass(frozen=True)
class Projector:
    """The projector of some architectures.

    Attributes:
        name: what messages call it.
        rules: its tensors; their order does not matter.
        keys: keys that follow those that every projector has.
        tensors: a regular expression for the names (after `rename`) that belong to it; each needs a rule.
        defaults: what the tower's config may leave out: the defaults of its class in transformers.
        prepare: the tower's config under the standard names (hidden_size, num_hidden_layers...); refuses settings that
            llama.cpp does not run.
        own: further sizes that rules name.
        computed_rules: rules that depend on the config.
        fixed: by name in the GGUF, the type (f32 or f16) of a tensor whatever the type of the file; or a function that
            gives these types.
        rename: see `Family.rename`.
        section: the key of the tower's config in config.json.
        hears: the tower hears audio, and none sees.
        unused: tensors among `tensors` that llama.cpp does not need.
    """

    name: str
    rules: tuple[Rule, ...]
    keys: Callable[[Tower], list[Key]]
    tensors: str
    defaults: Mapping[str, Any] = field(default_factory=dict)
    prepare: Callable[[dict[str, Any], Sources], dict[str, Any]] | None = None
    own: Callable[[Tower], Mapping[str, int]] = lambda tower: {}
    computed_rules: Callable[[Tower], tuple[Rule, ...]] = lambda tower: ()
    fixed: Mapping[str, str] | Callable[[Tower], Mapping[str, str]] = field(default_factory=dict)
    rename: tuple[tuple[str, str], ...] = ()
    section: str = "vision_config"
    unused: tuple[Dropped, ...] = ()
    hears: bool = False
    scalars: None = None

    @property
    def dropped(self) -> tuple[Dropped, ...]:
        """Tensors of other parts of the checkpoint, and those that llama.cpp does not need."""
        return (Dropped(rf"(?!(?:{self.tensors})$).*"), *self.unused)

    def dimension(self, sizes: Hyperparameters, name: str, layer: int | None = None) -> int:
        """Size of a dimension named by a rule, the same in each layer."""
        del layer
        return sizes.dimension(name)

    def fixed_types(self, tower: Tower) -> Mapping[str, str]:
        """By name in the GGUF, the type of a tensor whatever the type of the file."""
        return self.fixed(tower) if callable(self.fixed) else self.fixed

    def tower(self, sources: Sources) -> Tower:
        """The sizes of the tower.

        Raises:
            CheckpointError: a size or the tower's config is missing or not valid.
            UnsupportedError: llama.cpp does not run a setting.
        """
        stated = sources.config.get(self.section)
        if not isinstance(stated, Mapping):
            raise CheckpointError(
                f"config.json has no {self.section}, so the tower's sizes are not known; use the config.json that"
                " belongs to these weights"
            )
        config = {**self.defaults, **{key: value for key, value in stated.items() if value is not None}}
        config = self.prepare(config, sources) if self.prepare else config
        hidden, n_head = size(config, "hidden_size"), size(config, "num_attention_heads")
        tower = Tower(
            n_layer=size(config, "num_hidden_layers"),
            hidden=hidden,
            n_head=n_head,
            n_head_kv=n_head,
            head_dim=optional_size(config, "head_dim") or hidden // n_head,
            ffn=size(config, "intermediate_size"),
            vocab=0,
            norm_eps=number(config, "layer_norm_eps"),
            config=config,
            sources=sources,
        )
        tower_sizes = {"text": sources.text.hidden, "qkv": 3 * hidden}
        if not self.hears:
            tower_sizes |= {"patch": size(config, "patch_size"), "image": size(config, "image_size")}
        tower = replace(tower, own=tower_sizes)
        return replace(tower, own={**tower_sizes, **self.own(tower)})

    def all_keys(self, tower: Tower) -> list[Key]:
        """The keys of the GGUF besides those of every file, in the converter's order. Raises as `tower_keys`."""
        return [*(_audio_keys(tower) if self.hears else tower_keys(tower)), *self.keys(tower)]


def tower_keys(tower: Tower) -> list[Key]:
    """The keys that every projector of images has, in the converter's order (MmprojModel.set_gguf_parameters).

    Raises:
        CheckpointError: the files of the image processor are missing or have no mean or standard deviation.
    """
    config, tower_sizes = tower.config, tower.own
    return [
        Key("clip.has_vision_encoder", "bool", True),
        Key("clip.vision.projection_dim", "u32", tower_sizes["text"]),
        Key("clip.vision.image_size", "u32", tower_sizes["image"]),
        Key("clip.vision.patch_size", "u32", tower_sizes["patch"]),
        Key("clip.vision.embedding_length", "u32", tower.hidden),
        Key("clip.vision.feed_forward_length", "u32", tower.ffn),
        Key("clip.vision.block_count", "u32", tower.n_layer),
        Key("clip.vision.attention.head_count", "u32", size(config, "num_attention_heads")),
        Key("clip.vision.image_mean", "f32s", _per_channel(tower.processor, "image_mean")),
        Key("clip.vision.image_std", "f32s", _per_channel(tower.processor, "image_std")),
    ]


def _audio_keys(tower: Tower) -> list[Key]:
    """The keys of every projector that hears only."""
    return [
        Key("clip.has_audio_encoder", "bool", True),
        Key("clip.audio.projection_dim", "u32", tower.own["text"]),
        Key("clip.audio.embedding_length", "u32", tower.hidden),
        Key("clip.audio.feed_forward_length", "u32", tower.ffn),
        Key("clip.audio.block_count", "u32", tower.n_layer),
        Key("clip.audio.attention.head_count", "u32", tower.n_head),
    ]


def _per_channel(processor: Mapping[str, Any], name: str) -> list[float]:
    values = processor.get(name)
    if values is None:
        raise CheckpointError(
            f"preprocessor_config.json and processor_config.json give no {name}, which the projector needs; copy the"
            " file of the image processor from the original checkpoint"
        )
    if not isinstance(values, list) or len(values) != _PER_CHANNEL:
        raise CheckpointError(f"the image processor's {name} is {values!r}, but it must be a list of three numbers")
    return [_finite({name: value}, name) for value in values]


def _finite(config: Mapping[str, Any], name: str) -> float:
    value = number(config, name)
    if value is None:
        raise CheckpointError(f"the image processor's {name} has a null; it must be a list of three numbers")
    return value

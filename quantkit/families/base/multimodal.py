"""The text model of a checkpoint that also sees images or hears audio: its config.json and its tensor names."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from quantkit.errors import CheckpointError

TEXT_KEYS = ("text_config", "llm_config", "language_config")
"""Keys of config.json that hold the config of the text model."""

TEXT_PREFIXES = (
    (r"^(thinker|llm)\.", ""),
    (r"^model\.language_model\.(?=lm_head\.)", ""),
    (r"^model\.language_model\.(model\.)?", "model."),
    (r"^language_model\.(?=model\.|lm_head\.|output\.)", ""),
    (r"^model\.text_model\.", "model."),
)
"""`Family.rename` of text models that are saved within another model."""

BARE_PREFIX = ((r"^(?!model\.|lm_head\.)", "model."),)
"""`Family.rename` of models that may be saved without a head, under names without a prefix."""

VISION = r"(model\.)?(visual|vision_tower|vision_model|multi_modal_projector|vision_projection|connector)\..*"
"""`Dropped.pattern` of the tensors that see images."""
TOWERS = (
    r"(thinker\.|model\.)*(visual|vision_tower|vision_model|audio_tower|multi_modal_projector|mm_projector|projector"
    r"|mlp1|mlp_AR|connector|siglip2|merger|aligner|vit_large_projector|vqmodel|generation_\w+"
    r"|talker|token2wav|code2wav)\..*|(model\.)?image_newline"
)
"""The same, with the tensors that hear audio, speak or draw."""
TOWERS_LEFT_OUT = (
    "they see images or hear audio; this GGUF holds the text model only, and --mmproj writes another for them"
)
VISION_LEFT_OUT = "they see images; this GGUF holds the text model only, and --mmproj writes another for them"

# Words in the names of towers' tensors, of models without a family too (vpm and apm: MiniCPM-o).
_TOWER_WORDS = re.compile(
    r"(^|[._])(vision|visual|vit|images?|img|audio|speech|siglip2?|clip|sam|vqmodel|vpm|apm|resampler|conformer|projector"
    r"|connector|mlp1)[._\d]"
)
# Of the whole checkpoint, so they hold for the text model too.
_SHARED = ("torch_dtype", "dtype", "transformers_version", "tie_word_embeddings", "vision_config")


@dataclass(frozen=True)
class Wrapper:
    """A class that wraps a text model of any family. `text_type`: its model_type where the nested config has none.

    `defaults`: by model_type of the text model, what a nested config may leave out. `outside`: prefixes of
    tensors that are not the text model's, although their names look so.
    """

    architecture: str
    models: str
    text_type: str
    defaults: Mapping[str, Mapping[str, Any]]
    outside: tuple[str, ...] = ()

    def text_config(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """The nested config, complete.

        Raises:
            CheckpointError: config.json has none, or it is not an object.
        """
        nested = nested_text_config(config)
        if nested is None:
            raise CheckpointError(
                f"config.json of {self.architecture} has no {TEXT_KEYS[0]}; add the config of its text model"
            )
        kind = str(nested.get("model_type") or self.text_type)
        return {**self.defaults.get(kind, {}), **nested, "model_type": kind}


def has_tower(tensors: Iterable[str]) -> bool:
    """Whether a checkpoint with these tensors sees images or hears audio."""
    return any(_TOWER_WORDS.search(name) or re.fullmatch(TOWERS, name) for name in tensors)


def nested_text_config(config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The text model's config within config.json, or None.

    Raises:
        CheckpointError: it is not an object.
    """
    if isinstance(thinker := config.get("thinker_config"), Mapping):
        config = thinker
    for key in TEXT_KEYS:
        nested = config.get(key)
        if nested is None:
            continue
        if not isinstance(nested, Mapping):
            raise CheckpointError(f"config.json: {key} must be an object, not {nested!r}")
        return nested
    return None


def as_text_model(
    config: Mapping[str, Any], architecture: str, model_type: str | None, defaults: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """config.json of the text model alone, of class `architecture`; a config without a nested one stays as it is.

    `defaults`: what the nested config may leave out.

    Raises:
        CheckpointError: the nested config is not an object.
    """
    nested = nested_text_config(config)
    if nested is None:
        return dict(config)
    shared = {key: config[key] for key in _SHARED if key in config}
    text = {**shared, **(defaults or {}), **nested, "architectures": [architecture]}
    return text if model_type is None else {**text, "model_type": model_type}


def without_images(config: Mapping[str, Any], *, keep_sections: bool) -> dict[str, Any]:
    """config.json of a text model for its own class: no vision_config and, unless kept, no sections of multimodal rope.

    The sections divide a head among time, height and width; the three are equal for text. Only classes that know
    images read them.
    """
    plain = {key: value for key, value in config.items() if key != "vision_config"}
    for key in ("rope_parameters", "rope_scaling"):
        if not keep_sections and isinstance(rope := plain.get(key), Mapping):
            plain[key] = {name: value for name, value in rope.items() if not name.startswith("mrope_")}
    return plain

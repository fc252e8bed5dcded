"""What families of text encoders share: keys without a cache, classifier labels, and cautions about pooling."""

from collections.abc import Mapping
from typing import Any

from quantkit.errors import CheckpointError
from quantkit.families.base.family import Dropped, Key
from quantkit.families.base.hyperparameters import Hyperparameters, optional_size
from quantkit.families.base.keys import base_keys
from quantkit.families.base.pooling import LENGTH, RANK, SETTING, pooling_keys
from quantkit.tokenizer.roles import TokenRoles

HEAD = "encoder_head"
"""The name under which the config says that the checkpoint has a classifier; it gives scores of one or two texts."""

_CLASSIFIER = "classifier"

ENCODER_ROLES = TokenRoles(token_types=True)

POOLER_UNUSED = "embeddings are pooled from the last hidden states, before this head"

# What config classes of transformers write for a model without labels.
_DUMMY = ("LABEL_0", "LABEL_1")


def as_encoder(config: dict[str, Any], architecture: str) -> None:
    """Give a config the architecture of the encoder alone; what a classifier gives is its scores."""
    name = str(config["architectures"][0])
    if name.endswith("ForSequenceClassification"):
        config |= {HEAD: _CLASSIFIER, SETTING: RANK}
    config["architectures"] = [architecture]


def has_classifier(sizes: Hyperparameters) -> bool:
    """Whether the checkpoint has a classifier head."""
    return sizes.config.get(HEAD) == _CLASSIFIER


def labels_of(config: Mapping[str, Any]) -> list[str]:
    """The labels of a classifier in the order of its rows; [] for a model without a classifier.

    Raises:
        CheckpointError: id2label is not an object whose keys are the numbers from 0 on.
    """
    stated, classifies = config.get("id2label"), config.get(HEAD) == _CLASSIFIER
    if not stated:
        count = optional_size(config, "num_labels") or 2
        return [f"LABEL_{number}" for number in range(count)] if classifies else []
    try:
        labels = [str(label) for _, label in sorted((int(number), label) for number, label in stated.items())]
        numbers = sorted(map(int, stated))
    except (AttributeError, TypeError, ValueError) as error:
        raise CheckpointError(f"config.json: id2label is not an object of numbers ({error}); correct it") from error
    if numbers != list(range(len(labels))):
        raise CheckpointError(f"config.json: id2label has the numbers {numbers[:4]}, not 0, 1, ...; correct it")
    return labels if classifies or tuple(labels) != _DUMMY else []


def encoder_keys(arch: str, sizes: Hyperparameters) -> list[Key]:
    """The common keys without key-value heads, full attention, pooling, and the labels of a classifier."""
    shared = [key for key in base_keys(arch, sizes) if not key.name.endswith(".head_count_kv")]
    labels = labels_of(sizes.config)
    return [
        *shared,
        Key(f"{arch}.attention.causal", "bool", False),
        *pooling_keys(arch, sizes),
        *([Key(f"{arch}.classifier.output_labels", "strs", labels)] if labels else []),
    ]


def encoder_dimensions(sizes: Hyperparameters) -> dict[str, int]:
    """Token types, and labels of a classifier."""
    return {
        "types": optional_size(sizes.config, "type_vocab_size") or 1,
        "labels": len(labels_of(sizes.config)) or 1,
    }


def encoder_cautions(sizes: Hyperparameters) -> list[str]:
    """Sentences about a pooling that the checkpoint does not state, and about texts that are cut."""
    cautions = []
    if sizes.config.get(SETTING) is None:
        cautions.append(
            "the checkpoint does not state how token vectors become one embedding (modules.json); llama.cpp gives a"
            " vector for each token unless it is run with --pooling mean or --pooling cls"
        )
    length = sizes.config.get(LENGTH)
    if isinstance(length, int) and sizes.context is not None and 0 < length < sizes.context:
        cautions.append(
            f"the checkpoint cuts texts to {length} tokens (sentence_bert_config.json), and llama.cpp takes"
            f" {sizes.context}; embeddings of longer texts differ"
        )
    return cautions


def pooler_left_out(pattern: str) -> Dropped:
    """The pooler of a model that is used for embeddings; a classifier keeps it."""
    return Dropped(pattern, when=lambda sizes: not has_classifier(sizes))

"""Checkpoints of remote code as the native architecture: config and weights exactly as transformers would have them."""

from pathlib import Path

import numpy as np
import pytest

from quantkit.checkpoint import open_checkpoint
from quantkit.errors import UnsupportedError
from quantkit.families import canonical_checkpoint, find_family, read_mapped
from tests.families.expected import expected, write_checkpoint
from tests.families.models import all_cases, weight

# Of families that need remote code; others are published in more than one layout too. transformers has a text model
# within another one under that one's names: the published checkpoint's logits cover it.
PUBLISHED = sorted(
    name
    for name, (_, case) in all_cases().items()
    if not case.multimodal and find_family(expected(name).config).canonical is not None
)


# What the native config classes take where config.json is silent.
SILENT = {"attention_bias": False, "attention_dropout": 0.0, "mlp_bias": False, "pretraining_tp": 1}
SILENT |= {"max_window_layers": 28, "layer_types": ["full_attention"] * 3}


@pytest.mark.parametrize("name", [name for name in PUBLISHED if not all_cases()[name][1].patch])
def test_the_native_checkpoint_comes_back_out_of_the_published_one(name: str, tmp_path: Path) -> None:
    case, native = all_cases()[name][1], expected(name).native
    tensors = {entry: weight(case.seed, entry, tuple(shape)) for entry, shape in native["layout"].items()}
    if case.publish:
        case.publish(native["config"], tensors)
    with open_checkpoint(str(write_checkpoint(name, tmp_path / name))) as checkpoint:
        family = find_family(checkpoint.config)
        config, mapped = canonical_checkpoint(family, family.sizes(checkpoint.config), checkpoint.tensors)
        actual = {
            entry.name: read_mapped(checkpoint.read_rows, entry, 0, entry.part_rows).reshape(entry.shape)
            for entry in mapped
        }
    assert actual.keys() == tensors.keys()
    for entry, value in tensors.items():
        # a normalised head is computed, by other sums than numpy's float64 here
        close = 0 if not next(tensor.adjust for tensor in mapped if tensor.name == entry) else 1e-6
        assert np.allclose(actual[entry], value, rtol=close, atol=0), entry
    stated = {key: value for key, value in native["config"].items() if key not in ("transformers_version", "head_dim")}
    assert {key: {**SILENT, **config}.get(key) for key in stated} == stated


@pytest.mark.parametrize("name", [name for name in PUBLISHED if all_cases()[name][1].patch])
def test_what_transformers_cannot_run_has_no_native_checkpoint(name: str, tmp_path: Path) -> None:
    with open_checkpoint(str(write_checkpoint(name, tmp_path / name))) as checkpoint:
        family = find_family(checkpoint.config)
        with pytest.raises(UnsupportedError, match="transformers has no architecture for this"):
            canonical_checkpoint(family, family.sizes(checkpoint.config), checkpoint.tensors)

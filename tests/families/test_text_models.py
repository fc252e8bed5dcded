"""The text model of a checkpoint that sees images, as a checkpoint of its own class."""

from pathlib import Path

import pytest

from quantkit.checkpoint import open_checkpoint
from quantkit.families import canonical_checkpoint, find_family
from tests.families.expected import write_checkpoint


@pytest.mark.parametrize(("name", "architecture"), [("qwen3-vl", "Qwen3ForCausalLM"), ("gemma3-images", None)])
def test_the_config_of_a_text_model_has_nothing_of_images(name: str, architecture: str | None, tmp_path: Path) -> None:
    """vLLM takes a model whose rope has sections for one that sees images."""
    with open_checkpoint(str(write_checkpoint(name, tmp_path / name))) as checkpoint:
        family = find_family(checkpoint.config)
        config, tensors = canonical_checkpoint(family, family.sizes(checkpoint.config), checkpoint.tensors)
    assert "vision_config" not in config and "text_config" not in config
    assert "mrope_section" not in (config.get("rope_scaling") or {})
    assert config["architectures"] == [architecture or "Gemma3ForCausalLM"]
    assert not [tensor.name for tensor in tensors if "visual" in tensor.name or "vision" in tensor.name]

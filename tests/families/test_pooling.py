"""Embedding models: the pooling that modules.json states becomes llama.cpp's key, or is refused."""

import json
from pathlib import Path
from typing import Any

import gguf
import pytest

from quantkit.errors import CheckpointError, UnsupportedError
from quantkit.families import check_config
from quantkit.families.base.pooling import pooling_of
from tests.families.expected import read_gguf, write_checkpoint
from tests.families.models.free_names import QWEN2_EMBEDDING
from tests.helpers.command import quantkit
from tests.helpers.conversions import to_gguf


def with_pooling(folder: Path, settings: dict[str, Any]) -> Path:
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
        {"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"},
    ]
    (folder / "1_Pooling").mkdir(parents=True, exist_ok=True)
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 64, **settings}))
    return folder


@pytest.mark.parametrize("name", ["qwen3-embedding", "qwen2-model"])
@pytest.mark.parametrize(
    ("settings", "kind"),
    [
        ({"pooling_mode_lasttoken": True, "pooling_mode_mean_tokens": False}, gguf.PoolingType.LAST),
        ({"pooling_mode_mean_tokens": True}, gguf.PoolingType.MEAN),
        ({"pooling_mode": "cls"}, gguf.PoolingType.CLS),
    ],
)
def test_the_pooling_of_the_checkpoint_is_llama_cpps_key(
    name: str, settings: dict[str, Any], kind: gguf.PoolingType, tmp_path: Path
) -> None:
    folder = with_pooling(write_checkpoint(name, tmp_path / "model"), settings)
    done = quantkit("gguf", folder, "-t", "f32", "-o", tmp_path / "gguf")
    assert done.code == 0, done.stderr
    keys, _ = read_gguf(next((tmp_path / "gguf").rglob("*.gguf")))
    assert keys[f"{keys['general.architecture']}.pooling_type"] == kind


def test_a_model_without_modules_has_no_pooling(tmp_path: Path) -> None:
    keys, _ = read_gguf(to_gguf(write_checkpoint("qwen3-embedding", tmp_path / "model"), "f32", tmp_path))
    assert not any(key.endswith("pooling_type") for key in keys)


def test_another_pooling_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="another pooling than mean, cls or lasttoken"):
        pooling_of(with_pooling(tmp_path, {"pooling_mode_max_tokens": True}))
    (tmp_path / "1_Pooling" / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"modules\.json names it"):
        pooling_of(tmp_path)


def test_attention_to_later_tokens_is_refused() -> None:
    config = {**QWEN2_EMBEDDING, "architectures": ["Qwen2Model"]}
    assert check_config(config)
    with pytest.raises(UnsupportedError, match="is_causal is false"):
        check_config({**config, "is_causal": False})

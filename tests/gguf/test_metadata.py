"""The `general.*` keys of a model card, against the bytes that the gguf package writes."""

from pathlib import Path

import gguf
import pytest

from quantkit.errors import CheckpointError
from quantkit.gguf.metadata import general_keys

CARD = """---
license: apache-2.0
language: [en, zh]
tags:
- llama
- text-generation
base_model: ORG/Base-1B
datasets: [ORG/one, ORG/two]
---
# A card
"""


def test_a_card_with_lists_has_the_bytes_of_ggufs_own_writer(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(CARD)
    keys = general_keys(tmp_path, "Tiny", "llama", [])
    writer = gguf.GGUFWriter(path=tmp_path / "theirs.gguf", arch="llama")
    metadata = gguf.Metadata.load(model_path=tmp_path)
    metadata.name = "Tiny"
    writer.add_type(gguf.GGUFType.MODEL)
    metadata.set_gguf_meta_model(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    theirs = (tmp_path / "theirs.gguf").read_bytes()
    packed = {key.key: key.pack() for key in keys}
    assert {"general.tags", "general.languages"} <= packed.keys()
    for key, data in packed.items():
        if key not in ("general.name", "general.basename", "general.size_label", "general.finetune"):
            assert data in theirs, key


def test_a_list_of_texts_and_numbers_is_refused(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("---\ntags:\n- llama\n- 7\n---\n")
    with pytest.raises(CheckpointError, match="a list mixes texts and numbers"):
        general_keys(tmp_path, "Tiny", "llama", [])

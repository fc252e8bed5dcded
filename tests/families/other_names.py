"""Names of architectures that llama.cpp's converter takes for the class of a tiny model with another name.

The figures are sha256 of whole GGUF files out of llama.cpp's own two steps, given the checkpoint under the other name;
`python -m tests.families.other_names` makes them anew.
"""

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from safetensors.numpy import load_file

from demo.safetensors_file import write_safetensors
from tests.families.expected import DTYPES, GOLDEN, write_checkpoint
from tests.families.models import all_cases
from tests.families.whole_files import OLDER, convert_with, digest
from tests.helpers.peer import newest_converter, peer_converter

FILE = GOLDEN / "other_names.json"


@dataclass(frozen=True)
class Other:
    """`case`: the tiny model with the same class. `prefixes`: beginnings of tensor names under this name.

    `config`: what config.json states otherwise. `nested`: it has the text model's settings in text_config.
    """

    case: str
    prefixes: Mapping[str, str] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    nested: bool = False


OTHER_NAMES: Mapping[str, Other] = {
    "UnlimitedOCRForCausalLM": Other("deepseek-ocr"),
    "BloomModel": Other("bloom", {"transformer.": ""}),
    "Dots3NoteForConditionalGeneration": Other("dots3"),
    "Ernie4_5_ForCausalLM": Other("ernie4.5"),
    "Gemma3nForConditionalGeneration": Other(
        "gemma3n", {"model.": "model.language_model."}, {"model_type": "gemma3n"}, nested=True
    ),
    "JinaBertForMaskedLM": Other("jina-bert"),
    "KimiLinearModel": Other("kimi-linear"),
    "LFM2ForCausalLM": Other("lfm2"),
    "LLaMAForCausalLM": Other("llama"),
    "Lfm2BidirectionalForMaskedLM": Other("lfm2-encoder", {"": "lfm2."}),
    "MT5ForConditionalGeneration": Other("flan-t5", config={"model_type": "mt5"}),
    "MambaLMHeadModel": Other("mamba"),
    "OLMoForCausalLM": Other("olmo"),
    "PLaMo3ForCausalLM": Other("plamo3"),
    "T5WithLMHeadModel": Other("t5"),
    "UMT5Model": Other("umt5"),
}

REFUSED = {"DistilBertForSequenceClassification": "has a ReLU in its classifier"}
"""Names that have a family only for the sentence that says what llama.cpp lacks."""


def write_other(name: str, folder: Path) -> Path:
    """The tiny model under another name of its class, in a folder of the same name as the model's own."""
    other = OTHER_NAMES[name]
    path = write_checkpoint(other.case, folder / other.case)
    config = json.loads((path / "config.json").read_text())
    if other.nested:
        config = {"text_config": config, "tie_word_embeddings": config.get("tie_word_embeddings", True)}
    (path / "config.json").write_text(json.dumps({**config, **other.config, "architectures": [name]}))
    if other.prefixes:
        tensors = load_file(path / "model.safetensors")
        renamed = {}
        for tensor, values in tensors.items():
            old = next((prefix for prefix in other.prefixes if tensor.startswith(prefix)), "")
            renamed[other.prefixes.get(old, "") + tensor.removeprefix(old)] = (DTYPES[values.dtype.name], values)
        write_safetensors(path / "model.safetensors", dict(sorted(renamed.items())))
    return path


@cache
def other_files() -> dict[str, str]:
    """Name -> digest of llama.cpp's own file."""
    digests: dict[str, str] = json.loads(FILE.read_text())
    return digests


def main() -> None:
    digests = {}
    for name, other in OTHER_NAMES.items():
        with tempfile.TemporaryDirectory() as folder:
            write_other(name, Path(folder))
            peer = peer_converter() if other.case in OLDER else newest_converter()
            convert_with([other.case], Path(folder), peer)
            converted, theirs = (Path(folder) / f"{other.case}{end}" for end in (".gguf", ".f32.gguf"))
            peer_converter().quantize(converted, theirs, 0)
            digests[name] = digest(theirs, all_cases()[other.case][1])
    FILE.write_text(json.dumps(digests, indent=0) + "\n")


if __name__ == "__main__":
    main()

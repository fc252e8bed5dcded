"""What transformers' config classes take for every setting: sizes of a published model, by architecture.

    <python of the newest peer> -m tests.families.class_defaults ARCHITECTURE ...

prints config.json of each as JSON. `python -m tests.families.class_defaults` asks for all families and stores the
answer in golden/class_defaults.json.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

GOLDEN = Path(__file__).with_name("golden") / "class_defaults.json"
# Settings of generation and of the hub, which say nothing about the model.
_LEFT_OUT = ("_name_or_path", "id2label", "label2id", "transformers_version")
NO_CLASS: dict[str, tuple[str, ...]] = {
    "refused with the defaults of its class": (
        "DistilBertForSequenceClassification",
        "Dots3NoteForCausalLM",
        "Dots3NoteForConditionalGeneration",
        "Gemma3TextModel",
        "MiniMaxM3SparseForConditionalGeneration",
        "Step3p7ForConditionalGeneration",
    ),
    "two levels deep, which these tests do not look into": (
        "Qwen2_5OmniModel",
        "Qwen3OmniMoeForConditionalGeneration",
    ),
    "another name of an architecture that has a class": (
        "ExaoneMoEForCausalLM",
        "IQuestCoderForCausalLM",
        "JinaEmbeddingsV5Model",
        "LFM2ForCausalLM",
        "LLaMAForCausalLM",
        "MPTForCausalLM",
        "MambaLMHeadModel",
        "NomicBertForPreTraining",
        "OLMoForCausalLM",
        "PhiMoEForCausalLM",
        "RWForCausalLM",
        "StableLMEpochForCausalLM",
        "T5WithLMHeadModel",
        "VLlama3ForCausalLM",
        "YoutuVLForConditionalGeneration",
        "Ernie4_5_ForCausalLM",
        "Phi4ForCausalLMV",
    ),
    "code beside the checkpoint": (
        "BaiChuanForCausalLM",
        "BaichuanForCausalLM",
        "BailingMoeForCausalLM",
        "BailingMoeV2ForCausalLM",
        "BailingMoeV3ForCausalLM",
        "ChatGLMForConditionalGeneration",
        "ChatGLMModel",
        "CodeShellForCausalLM",
        "DeciLMForCausalLM",
        "DeepseekForCausalLM",
        "DeepseekOCRForCausalLM",
        "Dots3NoteTextForCausalLM",
        "DotsOCRForCausalLM",
        "ExaoneForCausalLM",
        "InternLM2ForCausalLM",
        "InternLM3ForCausalLM",
        "InternLMForCausalLM",
        "JAISLMHeadModel",
        "JinaBertForMaskedLM",
        "JinaBertModel",
        "KORMoForCausalLM",
        "KimiK3ForConditionalGeneration",
        "Lfm2BidirectionalForMaskedLM",
        "Lfm2BidirectionalModel",
        "LlamaBidirectionalModel",
        "MaincoderForCausalLM",
        "MapleForCausalLM",
        "MiniMaxM3SparseForCausalLM",
        "MiniCPMForCausalLM",
        "NanbeigeForCausalLM",
        "OpenELMForCausalLM",
        "OrionForCausalLM",
        "PLaMo3ForCausalLM",
        "PanguEmbeddedForCausalLM",
        "Plamo3ForCausalLM",
        "QWenLMHeadModel",
        "RWKV7ForCausalLM",
        "SmallThinkerForCausalLM",
        "UnlimitedOCRForCausalLM",
        "Spark2_5ForCausalLM",
        "Rwkv6ForCausalLM",
        "Rwkv7ForCausalLM",
        "SarvamMoEForCausalLM",
        "Step3p5ForCausalLM",
        "XverseForCausalLM",
        "modeling_sarvam_moe.SarvamMoEForCausalLM",
    ),
}
"""Architectures without an entry, by why."""


def defaults_of(architecture: str) -> dict[str, Any] | None:
    """config.json of the class `architecture` with nothing but defaults; None if transformers has no such class."""
    import transformers

    model = getattr(transformers, architecture, None)
    if model is None:
        return None
    config = model.config_class().to_dict()
    if "thinker_config" in config:
        # two levels deep, which these tests do not look into
        return None
    kept = {key: value for key, value in config.items() if key not in _LEFT_OUT}
    return {**kept, "architectures": [architecture]}


def all_architectures() -> list[str]:
    """The names that config.json may give, of all families."""
    from quantkit.families import all_families

    return sorted({name for family in all_families() for name in family.architectures})


def classes_say() -> dict[str, dict[str, Any]]:
    """The configs of all architectures that have a class, by the newest peer."""
    from tests.helpers.peer import REPOSITORY, newest_converter

    refused = NO_CLASS["refused with the defaults of its class"]
    names = [name for name in all_architectures() if name not in refused]
    peer = newest_converter()
    environment = {**peer.environment(), "PYTHONPATH": str(REPOSITORY)}
    command = [str(peer.python), "-m", "tests.families.class_defaults", *names]
    answer = subprocess.run(command, env=environment, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    return {name: config for name, config in json.loads(answer.stdout).items() if config is not None}


def main() -> None:
    if sys.argv[1:]:
        print(json.dumps({name: defaults_of(name) for name in sys.argv[1:]}))
        return
    known = classes_say()
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(config, sort_keys=True)}" for name, config in known.items())
    GOLDEN.write_text("{\n" + lines + "\n}\n")
    print(f"{len(known)} of {len(all_architectures())} architectures")


if __name__ == "__main__":
    main()

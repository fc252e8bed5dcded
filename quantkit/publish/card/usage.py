"""The section of a card on running the model: llama.cpp, Ollama, vLLM, transformers, quantkit."""

import shlex
from collections.abc import Mapping
from urllib.parse import quote

from quantkit.publish.card.escaping import block, plain
from quantkit.publish.card.facts import KINDS, CardFacts
from quantkit.publish.card.metadata import is_hub_id
from quantkit.publish.ollama.tags import PREFERRED
from quantkit.units import listed

# Loaders whose logits tests/peers compares with quantkit's own forward over the dequantized weights, with the
# architectures that were compared.
_DENSE, _MIXTURES = ("LlamaForCausalLM", "Qwen2ForCausalLM"), ("Qwen2MoeForCausalLM", "Qwen3MoeForCausalLM")
LOADERS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "GPTQModel 7.6": {"awq": (*_DENSE, *_MIXTURES), "gptq": (*_DENSE, *_MIXTURES)},
    "AutoAWQ 0.2.9 with transformers 4.51.3": {"awq": ("LlamaForCausalLM", "MixtralForCausalLM"), "gptq": ()},
    "transformers 5.23": {"awq": _DENSE, "gptq": _DENSE},
}
_PACKAGES = {"awq": "`gptqmodel` and `optimum`", "gptq": "`gptqmodel` and `optimum`", "fp8-block": "`accelerate`"}
"""The packages that transformers needs; `compressed-tensors` for other formats."""
PROMPT = "Why is the sky blue?"
IMAGE_PROMPT = "What is in this picture?"
PHONE = 8_000_000_000
"""Bytes of the largest file for a phone."""


def running(facts: CardFacts) -> str:
    """The commands, each in a code block under its purpose."""
    return "\n\n".join(_gguf(facts) if facts.kind == "gguf" else _folder(facts))


def gguf_commands(facts: CardFacts) -> Mapping[str, list[str]]:
    """The commands of each runtime; those that download from the hub need a known repository."""
    weights = next((output for kind in PREFERRED for output in facts.weights if output.type == kind), facts.weights[0])
    repo, tag, path = _repo(facts), weights.type.upper(), _path(weights.path)
    commands: dict[str, list[str]] = {
        "llama.cpp": [*([f"llama-cli -hf {repo}:{tag}"] if repo else []), f"llama-cli -m {path}"],
        "Ollama": [],
        "quantkit": [f"quantkit run {path} -p {shlex.quote(PROMPT)}"],
    }
    if facts.projector is not None:
        about = f"--image photo.jpg -p {shlex.quote(IMAGE_PROMPT)}"
        commands["images"] = [
            f"llama-mtmd-cli -m {path} --mmproj {_path(facts.projector)} {about}",
            f"quantkit run {path} {about}",
        ]
    if facts.model.ollama_name:
        commands["Ollama"].append(f"ollama run {shlex.quote(facts.model.ollama_name)}")
    if weights.bytes <= PHONE and len(weights.files) == 1:
        url = f"https://huggingface.co/{repo}/resolve/main/{quote(weights.path)}" if repo else path
        # termux refuses a file without a template unless it is told that there is none
        completes = "" if facts.description.template is not None else " --chat-template none"
        commands["a phone"] = [f"quantkit termux --gguf {shlex.quote(url) if repo else url}{completes} -o termux.sh"]
    if repo:
        commands["llama.cpp"].append(f"llama-server -hf {repo}:{tag}")
        if len(weights.files) == 1:  # Ollama does not download split files from the hub
            commands["Ollama"].append(f"ollama run hf.co/{repo}:{tag}")
    return {name: lines for name, lines in commands.items() if lines}


def _gguf(facts: CardFacts) -> list[str]:
    words = {
        "llama.cpp": "[llama.cpp](https://github.com/ggml-org/llama.cpp): a conversation in the terminal"
        + (", or a server with a web page:" if _repo(facts) else ":"),
        "Ollama": "[Ollama](https://ollama.com):",
        "quantkit": "quantkit, for a quick test of a local file:",
        "images": f"The model sees images with the projector `{facts.projector}`:",
        "a phone": "An Android phone: write a script that installs llama.cpp and the model; run it in Termux:",
    }
    parts = []
    for name, lines in gguf_commands(facts).items():
        parts += [words[name], block("\n".join(lines), "sh")]
    return parts


def _folder(facts: CardFacts) -> list[str]:
    source = _repo(facts) or facts.weights[0].name
    if facts.kind.startswith("mlx"):
        run = f"mlx_lm.generate --model {shlex.quote(source)} --prompt {shlex.quote(PROMPT)}"
        return ["[mlx-lm](https://github.com/ml-explore/mlx-lm), on a Mac with Apple silicon:", block(run, "sh")]
    packages = _PACKAGES.get(facts.kind, "`compressed-tensors`")
    return [
        f"[vLLM](https://docs.vllm.ai) recognises {KINDS[facts.kind]} by config.json (not tested for this card):",
        block(f"vllm serve {shlex.quote(source)}", "sh"),
        f"transformers, with the package{'s' if ' and ' in packages else ''} {packages}:",
        block(_python(source, chat=facts.description.template is not None), "python"),
        tested(facts.kind, facts.description.architecture),
    ]


def tested(kind: str, architecture: str | None) -> str:
    """Sentences on the loaders that were tested with this architecture, and on the one with a known fault."""
    loaders = [loader for loader, reads in LOADERS.items() if architecture in reads.get(kind, ())]
    name = plain(architecture or "this architecture")
    if loaders:
        text = (
            f"quantkit's {KINDS[kind]} folders of {name} were loaded and their logits compared with {listed(loaders)}."
        )
    else:
        text = f"No loader was tested with {KINDS[kind]} folders of {name}; quantkit's own forward checked this one."
    if architecture is not None and ("Moe" in architecture or "Mixtral" in architecture):
        text += " transformers 5.23 loads quantized mixtures without an error but computes wrong logits; avoid it."
    return text


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
    """A local file as a shell word that is never an option."""
    return shlex.quote(f"./{name}" if name.startswith("-") else name)


def _repo(facts: CardFacts) -> str | None:
    repo = facts.model.hub_repo
    return repo if repo and is_hub_id(repo) else None

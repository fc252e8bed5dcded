"""Built-in chat templates for published models that ship without one. The texts are in templates/NAME.jinja."""

import difflib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from quantkit.errors import UsageError

_FOLDER = Path(__file__).with_name("templates")


@dataclass(frozen=True)
class BuiltIn:
    """A built-in template.

    `models`: the checkpoints it is for. `source`: where their authors published the format. `marks`: the tokens that it
    writes; the vocabulary must contain them. `end_of_turn`: the token that ends a turn, None for the tokenizer's EOS.
    `architecture`: the GGUF architecture whose published chat models all have this format and no template.
    """

    name: str
    models: str
    source: str
    marks: tuple[str, ...] = ()
    end_of_turn: str | None = None
    architecture: str | None = None

    @cached_property
    def text(self) -> str:
        """The jinja text, without the newline that ends the file."""
        return (_FOLDER / f"{self.name}.jinja").read_text("utf-8").removesuffix("\n")


BUILT_IN: dict[str, BuiltIn] = {
    template.name: template
    for template in (
        BuiltIn(
            "huozi",
            "HIT-SCIR's Huozi 1, 2 and 3 (活字)",
            "README of github.com/HIT-SCIR/huozi, section Quick Start; roles are the Chinese words",
            marks=("<|beginofutterance|>", "<|endofutterance|>"),
            end_of_turn="<|endofutterance|>",
        ),
        BuiltIn(
            "blossom",
            "Azure99's Blossom up to v5",
            "README and inference/transformers/web_demo.py of github.com/Azure99/BlossomLM",
        ),
        BuiltIn(
            "baichuan2",
            "Baichuan2-7B-Chat and 13B-Chat",
            "build_chat_input in generation_utils.py of baichuan-inc/Baichuan2-7B-Chat: no EOS between turns",
            marks=("<reserved_106>", "<reserved_107>"),
        ),
        BuiltIn(
            "baichuan",
            "Baichuan-13B-Chat",
            "_build_chat_input in modeling_baichuan.py of baichuan-inc/Baichuan-13B-Chat: no system message",
            marks=("<reserved_102>", "<reserved_103>"),
        ),
        BuiltIn(
            "chatml",
            "Qwen-1 Chat (Qwen-7B-Chat and its sizes), and other models of that format",
            "make_context in qwen_generation_utils.py of Qwen/Qwen-7B-Chat, with its default system message",
            marks=("<|im_start|>", "<|im_end|>"),
            end_of_turn="<|im_end|>",
        ),
        BuiltIn(
            "deepseek-v4",
            "DeepSeek V4, without tools",
            "encoding/encoding_dsv4.py of deepseek-ai/DeepSeek-V4-Pro",
            marks=("<｜User｜>", "<｜Assistant｜>", "<think>", "</think>"),
            architecture="deepseek4",
        ),
        BuiltIn(
            "kimi-k3",
            "Kimi K3, without tools and images",
            "encoding_k3.py of moonshotai/Kimi-K3",
            marks=("<|open|>", "<|close|>", "<|sep|>", "<|end_of_msg|>"),
            end_of_turn="<|end_of_msg|>",
            architecture="kimi-k3",
        ),
    )
}


def built_in(name: str) -> BuiltIn:
    """The built-in template `name`. Raises UsageError for an unknown name."""
    if name not in BUILT_IN:
        close = difflib.get_close_matches(name.lower(), BUILT_IN, n=1)
        hint = f" (did you mean {close[0]}?)" if close else ""
        raise UsageError(
            f"--chat-template {name!r} is neither a file nor a built-in template{hint}; choose from "
            f"{', '.join(BUILT_IN)}, or pass 'none' to write no template"
        )
    return BUILT_IN[name]

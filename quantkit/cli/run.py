"""`quantkit run`: chat with a GGUF file in the terminal."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

import typer

from quantkit.cli.loading_options import LoadingOptions, SamplingOptions
from quantkit.cli.option_groups import grouped, option
from quantkit.cli.options import Format
from quantkit.cli.output import Out
from quantkit.errors import UsageError

if TYPE_CHECKING:
    from quantkit.llamacpp.conversation import Conversation


@dataclass(frozen=True)
class MediaOptions:
    """What the model sees and hears."""

    # ruff: noqa: RUF009 (option returns a dataclass field)

    heading: ClassVar[str] = "Images and sounds"
    image: list[Path] | None = option(None, "An image that comes before the prompt; repeat.", metavar="FILE")
    audio: list[Path] | None = option(None, "A sound that comes before the prompt; repeat.", metavar="FILE")
    mmproj: Path | None = option(
        None, "The projector that sees or hears the files.", metavar="FILE", show_default="the one beside it"
    )


@grouped
def run(
    out: Out,
    model: Annotated[
        Path, typer.Argument(metavar="MODEL.gguf", help="A GGUF file, or a folder with one.", show_default=False)
    ],
    *,
    prompt: Annotated[
        str | None,
        typer.Option(
            "--prompt", "-p", metavar="TEXT", help="Answer this prompt and exit.", show_default="a conversation"
        ),
    ] = None,
    system: Annotated[
        str | None, typer.Option("--system", "-s", metavar="TEXT", help="The system prompt.", show_default="none")
    ] = None,
    max_tokens: Annotated[
        int, typer.Option("--max-tokens", "-n", metavar="N", min=1, help="Maximum length of the answer, in tokens.")
    ] = 1024,
    raw: Annotated[bool, typer.Option("--raw", help="Use no chat template: the model continues the text.")] = False,
    prompt_cache: Annotated[
        Path | None,
        typer.Option(
            "--prompt-cache",
            metavar="FILE",
            help="Keep the first prompt's KV cache in this file for later starts.",
            show_default="none",
        ),
    ] = None,
    loading: LoadingOptions,
    sampling: SamplingOptions,
    media: MediaOptions,
) -> None:
    """Chat with a GGUF file, by llama.cpp.

    Use it to check a converted file; `serve` is the server. Without -p a conversation begins. The command answers
    text from a pipe as it answers -p. Only the answer goes to stdout.

    Example: quantkit run NAME-Q4_0.gguf -p "Why is the sky blue?"
    """
    from quantkit.cli.conversation import answer_once, talk
    from quantkit.cli.placement import placed_loading
    from quantkit.gguf.model_file import model_file
    from quantkit.llamacpp.conversation import converse
    from quantkit.llamacpp.draft_choice import choose_draft
    from quantkit.llamacpp.prompt_cache import require_prompt_cache
    from quantkit.measurement.memory import gpu_devices

    model = model_file(model)
    if prompt is not None:
        _require_text(prompt)
    _refuse_combinations(
        {"--draft": loading.draft, "--prompt-cache": prompt_cache}, {"--image": media.image, "--audio": media.audio}
    )
    loading.fixed_placement()  # refuses wrong values before the file is read
    with converse(model, n_ctx=loading.ctx, system=system, raw=raw, sampling=sampling.values) as conversation:
        prompt = _single_prompt(prompt, out)
        _show_media(conversation, model, media, out)
        if prompt_cache is not None:
            require_prompt_cache(prompt_cache)
            conversation.prompt_cache, conversation.warn = prompt_cache, out.warn
        draft = choose_draft(model, loading.draft, loading.draft_tokens) if loading.draft else None
        if draft and draft.mtp and prompt_cache:
            raise UsageError("--prompt-cache does not keep what an MTP layer needs; remove it or --draft")
        if conversation.template is None and not raw:
            out.warn(f"{model.name} has no chat template; the model continues the text as it is")
        context = loading.context(conversation.n_ctx)
        how, _ = placed_loading(model, loading, context, draft, lambda: gpu_devices(model, rpc=loading.rpc or []), out)
        out.note(f"loading {model.name} ...")
        conversation.open(how)
        if prompt is None:
            talk(conversation, out, max_tokens)
        else:
            answer_once(conversation, out, prompt, max_tokens)


def _require_text(prompt: str) -> None:
    """Raises UsageError for an empty prompt."""
    if not prompt.strip():
        raise UsageError("the prompt is empty; pass a text with -p TEXT")


def _single_prompt(prompt: str | None, out: Out) -> str | None:
    """The prompt of -p or of a pipe; None for a conversation. Raises UsageError for an empty prompt."""
    if prompt is None and not sys.stdin.isatty():
        try:
            prompt = sys.stdin.read().removesuffix("\n")
            prompt.encode()  # raises UnicodeError for bytes that Python kept
        except UnicodeError:
            raise UsageError("standard input is not UTF-8 text; pass the prompt as UTF-8") from None
        _require_text(prompt)
    if prompt is None and out.format != Format.human:
        raise UsageError(f"--format {out.format.value} needs a single prompt; pass one with -p TEXT")
    return prompt


def _show_media(conversation: "Conversation", model: Path, media: MediaOptions, out: Out) -> None:
    """Put the images and sounds before the prompt. Raises UsageError for a projector without them."""
    from quantkit.gguf.projector_file import choose_projector, doubt_of

    if media.image or media.audio:
        projector = choose_projector(model, media.mmproj)
        conversation.show(media.image or (), projector, sounds=media.audio or ())
        if doubt := doubt_of(model, projector):
            out.warn(doubt)
    elif media.mmproj is not None:
        raise UsageError("--mmproj has no effect without --image or --audio FILE; leave it out")


def _refuse_combinations(text_only: Mapping[str, object], files: Mapping[str, object]) -> None:
    """Raise UsageError if an option that works with text only is given beside a file to see or hear."""
    conflict = [next((option for option, value in options.items() if value), None) for options in (text_only, files)]
    if None not in conflict:
        raise UsageError(f"{conflict[0]} works with prompts of text only; remove it or {conflict[1]}")

"""The vocabulary of a checkpoint, as llama.cpp reads it from a GGUF file.

`load_vocabulary` turns tokenizer files into the tokenizer.* keys of llama.cpp's converter. If those would give wrong
token ids, it writes keys that give the checkpoint's own ids. `hf_token_ids` is the ground truth.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from quantkit.errors import TokenizerError, UsageError
from quantkit.gguf.keyvalues import KeyValue
from quantkit.gguf.vocabulary import MAX_TOKENS
from quantkit.machine import release_freed_memory

from . import (
    bytelevel,
    chat_templates,
    plamo,
    raw_bpe,
    rwkv_world,
    special,
    spm,
    spm_json,
    t5_model,
    unigram_json,
    wordpiece,
)
from .differences import Difference, differences
from .ends import add_ends
from .files import TokenizerFiles, read
from .huggingface import failures_refused, hf_token_ids
from .pretokenizers import check_name, known_since, pretokenizer_names
from .probe import PROBE
from .roles import NO_ROLES, SpacePrefix, TokenRoles, add_family_roles, add_named_ends
from .tokens import Tokens, refuse_duplicates
from .written import special_texts, unlike_texts

__all__ = [
    "PROBE",
    "Difference",
    "SpacePrefix",
    "TokenRoles",
    "Vocabulary",
    "differences",
    "hf_token_ids",
    "known_since",
    "load_vocabulary",
    "pretokenizer_names",
    "special_texts",
    "unlike_texts",
]


@dataclass(frozen=True)
class Vocabulary:
    """A vocabulary ready for a GGUF header.

    `model` and `pre` are tokenizer.ggml.model and tokenizer.ggml.pre ("" where `model` implies the split); `tokens` the
    texts as stored, one per embedding row; `keys` every tokenizer.* key in the order llama.cpp's converter writes them;
    `warnings` what a user should know, including each intended difference from that converter; `chat_template` the
    default template, if any; `probe_ids` the ids of PROBE by the checkpoint's own tokenizer, where it was loaded.
    """

    model: str
    pre: str
    tokens: list[bytes]
    keys: list[KeyValue]
    warnings: list[str]
    chat_template: str | None
    probe_ids: list[list[int]] | None = None


def load_vocabulary(
    folder: Path,
    config: Mapping[str, Any],
    *,
    roles: TokenRoles = NO_ROLES,
    pre: str | None = None,
    chat_template: str | None = None,
) -> Vocabulary:
    """Read the vocabulary of the checkpoint in `folder`; `config` is its parsed config.json.

    `roles` are the special tokens that the family fixes in code (`families.token_roles`).
    `pre` (the user's --pre) names the pre-tokenizer instead of recognising it; `chat_template` replaces the file's.

    Raises:
        TokenizerError: files are missing, malformed, or larger than the embedding.
        UnsupportedError: llama.cpp does not know the tokenizer or the pre-tokenizer.
        UsageError: llama.cpp does not know the name `pre`, or it does not apply.
    """
    if pre is not None:
        check_name(pre)
    if chat_template is not None:
        special.refuse_template(chat_template)
    files = read(folder)
    config = _with_vocab_size(config)
    try:
        with failures_refused(folder):
            vocabulary = _vocabulary(files, config, roles, pre, chat_template)
    except (KeyError, TypeError, AttributeError, ValueError, IndexError) as error:
        raise TokenizerError(
            f"the tokenizer files in {folder} are not shaped as expected ({type(error).__name__}: {error}); "
            "download them again"
        ) from error
    del files
    release_freed_memory()
    return vocabulary


def _with_vocab_size(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """config.json with vocab_size, the rows of the embedding, where it can be read (as conversion/base.py reads it).

    Raises TokenizerError for more rows than MAX_TOKENS.
    """
    nested = config.get("text_config")
    for source in (config, nested if isinstance(nested, Mapping) else {}):
        for name in ("vocab_size", "padded_vocab_size"):
            if (rows := source.get(name)) is not None:
                if isinstance(rows, int | float) and rows > MAX_TOKENS:
                    raise TokenizerError(
                        f"config.json: {name} is {rows:.6g}, but at most {MAX_TOKENS} is supported; use the config.json"
                        " that belongs to these weights"
                    )
                return {**config, "vocab_size": rows}
    return config


def _vocabulary(
    files: TokenizerFiles, config: Mapping[str, Any], roles: TokenRoles, pre: str | None, chat_template: str | None
) -> Vocabulary:
    if files.pieces is not None:
        return _of_pieces(files, files.pieces, config, roles, pre, chat_template)
    tokens = _tokens(files, config, roles, pre)
    if roles.token_types:
        tokens.add_type_count(int(config.get("type_vocab_size") or 1))
    refuse_duplicates(tokens)
    specials = special.read(files, config, len(tokens.texts))
    specials.ids = tokens.ids | specials.ids
    if tokens.model == "bert":
        # llama.cpp's default is lower case
        specials.normalizers.setdefault("lowercase", False)
    # the text model of a checkpoint with towers states its tokens in its own config
    text = config.get("text_config")
    settings = {**config, **text} if isinstance(text, Mapping) else config
    stated = {role: settings.get(key) for role, key in roles.stated.items()}
    specials.ids |= {role: number for role, number in stated.items() if _is_token(number, len(tokens.texts))}
    if files.world is not None:
        rwkv_world.set_ends(specials.ids)
    add_family_roles(specials.ids, roles, tokens.texts, specials.warnings)
    add_named_ends(specials.ids, files.config, tokens.texts, specials.warnings)
    specials.warnings += add_ends(specials.ids, files, config, tokens.texts)
    specials.adds = tokens.adds | specials.adds
    if roles.adds_first:
        tokens.first += special.added_first(specials, roles.adds)
    else:
        tokens.end += special.force_added(specials, roles.adds)
    if chat_template is not None:
        specials.template = chat_template
    else:
        specials.warnings += chat_templates.warnings(files.templates)
    by_size = roles.space_prefix is SpacePrefix.STATED
    return Vocabulary(
        model=tokens.model,
        pre=tokens.pre or "",
        tokens=tokens.texts,
        keys=[*tokens.keys(), *special.keys(specials, config, by_size=by_size), *tokens.end],
        warnings=tokens.warnings + specials.warnings,
        chat_template=special.default_template(specials.template),
        probe_ids=tokens.probe_ids,
    )


def _of_pieces(
    files: TokenizerFiles,
    path: Path,
    config: Mapping[str, Any],
    roles: TokenRoles,
    pre: str | None,
    chat_template: str | None,
) -> Vocabulary:
    if pre is not None:
        raise UsageError(f"--pre {pre} does not apply: {files.folder} has PLaMo's tokenizer; leave --pre out")
    tokens = plamo.load(plamo.read_pieces(path, files.config), config, files.config, roles.also.get("eot"))
    refuse_duplicates(tokens)
    template = files.template if chat_template is None else chat_template
    return Vocabulary(
        model=tokens.model,
        pre="",
        tokens=tokens.texts,
        keys=[*tokens.keys(), *special.template_keys(template)],
        warnings=tokens.warnings + chat_templates.warnings(files.templates),
        chat_template=special.default_template(template),
    )


def _is_token(number: Any, count: int) -> TypeGuard[int]:
    return isinstance(number, int) and not isinstance(number, bool) and 0 <= number < count


def _tokens(files: TokenizerFiles, config: Mapping[str, Any], roles: TokenRoles, pre: str | None) -> Tokens:
    """tokenizer.model first, then a SentencePiece-style tokenizer.json, then byte-level BPE (conversion/llama.py).

    A family with `raw_bpe` takes its tokenizer.json first.
    """
    space_prefix = roles.space_prefix
    if files.world is not None:
        if pre is not None:
            raise UsageError(f"--pre {pre} does not apply: {files.folder} has RWKV's tokenizer; leave --pre out")
        return rwkv_world.load(rwkv_world.read_words(files.world), config)
    if files.tokenizer is not None and wordpiece.is_wordpiece(files.tokenizer):
        if pre is not None:
            raise UsageError(f"--pre {pre} does not apply: {files.folder} has a WordPiece tokenizer; leave --pre out")
        return wordpiece.load(files, config)
    if roles.t5 and files.model is not None:
        return t5_model.load(files, config)
    by_json = roles.token_types or roles.t5
    if by_json and files.tokenizer is not None and unigram_json.is_unigram(files.tokenizer):
        return unigram_json.load(files, config)
    style = files.tokenizer is not None and spm_json.is_sentencepiece_style(files.tokenizer)
    from_model = files.model is not None and (files.tokenizer is None or spm.is_sentencepiece(files))
    if not (from_model or style):
        tokens = bytelevel.load(files, config, pre)
        spm.add_stated_prefix(tokens, space_prefix, spm.stated_prefix(files))
        return tokens
    if pre not in (None, "default"):
        raise UsageError(
            f"--pre {pre} does not apply: {files.folder} has a SentencePiece tokenizer, which is not split"
        )
    if style and roles.raw_bpe:
        return raw_bpe.load(files, config, roles.raw_bpe)
    if from_model:
        return spm.load(files, config, space_prefix)
    tokens, prefix = spm_json.load(files, config)
    spm.add_space_prefix(tokens, space_prefix, spm.stated_prefix(files), prefix)
    return tokens

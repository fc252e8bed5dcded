"""The checkpoint's own tokenizer: the ground truth that every vocabulary written to GGUF must agree with.

tokenizer.json is loaded as it stands. The tokens that tokenizer_config.json adds to it are added as transformers'
PreTrainedTokenizerFast does; a class named there never rebuilds the pipeline.
"""

import errno
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sentencepiece import SentencePieceProcessor
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

from quantkit.errors import TokenizerError, UnsupportedError
from quantkit.machine import release_freed_memory

from . import plamo, ranks, rwkv_world
from .files import TokenizerFiles, read, token_text

SPECIAL_ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
# transformers' slow classes that are kept without a tokenizer.json, and the split each applies
_GPT2_CLASSES = ("GPT2Tokenizer", "CodeGenTokenizer", "PreTrainedTokenizer", "")
# what Rust says where the system gives no thread (EAGAIN, in rayon's pool) or no memory (ENOMEM)
_NO_RESOURCES = ("ThreadPoolBuildError", "Resource temporarily unavailable", "Cannot allocate memory")


def hf_token_ids(folder: Path, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of each text by the checkpoint's own tokenizer, without a leading BOS or trailing EOS.

    Special tokens written in the text become their ids. `tokenizers` reads tokenizer.json, or vocab.json with
    merges.txt. `sentencepiece` reads a tokenizer.model alone. tiktoken's algorithm runs on Qwen-1's table of ranks,
    PLaMo's on its pieces, RWKV's on its words.

    Raises:
        TokenizerError, UnsupportedError: the tokenizer cannot be built.
    """
    # a calibration before this leaves memory that the C library keeps
    release_freed_memory()
    files = read(folder).without_vocabulary()
    release_freed_memory()
    if files.ranks is not None:
        return ranks.token_ids(files.ranks, texts)
    if files.pieces is not None:
        return plamo.encoder(plamo.read_pieces(files.pieces, files.config))(texts)
    if files.world is not None:
        return rwkv_world.encoder(rwkv_world.read_words(files.world))(texts)
    if files.tokenizer is None and files.model is not None:
        return sentencepiece_ids(files, texts)
    tokenizer = build_tokenizer(files)
    with failures_refused(folder):
        ids = encoded(tokenizer, texts)
    del tokenizer
    release_freed_memory()
    return ids


def encoded(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of each text, without a leading BOS or trailing EOS."""
    return [encoding.ids for encoding in tokenizer.encode_batch(list(texts), add_special_tokens=False)]


@contextmanager
def failures_refused(folder: Path) -> Iterator[None]:
    """Raise an error of Python for an error or a panic of the Rust library.

    Raises:
        TokenizerError: the library fails on the files; a tokenizer.json can contradict itself.
        OSError: the system gives the library no memory or no thread.
    """
    try:
        yield
    except BaseException as error:
        # the library raises bare Exception; pyo3's class of panics derives from BaseException and cannot be imported
        if type(error) is not Exception and type(error).__name__ != "PanicException":
            raise
        if any(words in str(error) for words in _NO_RESOURCES):
            reason = "the tokenizers library got no memory or no thread; raise the limits with ulimit -v or ulimit -u"
            raise OSError(errno.EAGAIN, reason, str(folder)) from error
        raise TokenizerError(
            f"the tokenizers library fails on the tokenizer files in {folder} ({error}); download them again"
        ) from error


def build_tokenizer(files: TokenizerFiles) -> Tokenizer:
    """The `tokenizers` pipeline of the checkpoint, with every added token of tokenizer_config.json in it.

    Raises TokenizerError when `tokenizers` cannot load it, UnsupportedError for an unknown slow tokenizer class.
    """
    try:
        base = _from_vocab_and_merges(files) if files.tokenizer_data is None else load_pipeline(files.tokenizer_data)
    except UnsupportedError:
        raise
    except Exception as error:  # the Rust library raises bare Exception
        name = "tokenizer.json" if files.tokenizer_data is not None else "vocab.json"
        raise TokenizerError(
            f"{files.folder / name} is not a loadable tokenizer ({error}); download it again"
        ) from error
    base.add_tokens([_added_token(entry) for _, entry in added_token_entries(files)])
    base.add_special_tokens(_role_tokens(files))
    return base


def load_pipeline(data: bytes) -> Tokenizer:
    """The pipeline that the bytes of a tokenizer.json describe, without its padding and truncation.

    Both only shape batches. Left on, they add pad tokens to every encoded text, or cut it.
    """
    tokenizer = Tokenizer.from_buffer(data)
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def added_token_entries(files: TokenizerFiles) -> list[tuple[int, dict[str, Any]]]:
    """(id, entry) of tokenizer_config.json's added_tokens_decoder, in id order."""
    decoder = files.config.get("added_tokens_decoder") or {}
    return sorted(((int(number), entry) for number, entry in decoder.items()), key=lambda item: item[0])


def _added_token(entry: dict[str, Any]) -> AddedToken:
    flags = {
        name: bool(entry[name])
        for name in ("single_word", "lstrip", "rstrip", "normalized", "special")
        if name in entry
    }
    return AddedToken(entry["content"], **flags)


def _role_tokens(files: TokenizerFiles) -> list[AddedToken]:
    """The tokens with a role (BOS, EOS...), each of which transformers makes an added special token."""
    entries = [files.config.get(role) or files.special.get(role) for role in SPECIAL_ROLES]
    for source in (files.config, files.special):
        more = source.get("additional_special_tokens")
        if isinstance(more, list):
            entries += more
    known = {token["content"] for token in (files.tokenizer or {}).get("added_tokens", [])}
    known |= {entry["content"] for _, entry in added_token_entries(files)}
    result = []
    for entry in entries:
        text = token_text(entry)
        if text and text not in known:
            known.add(text)
            flags = (
                {"normalized": False} | (entry if isinstance(entry, dict) else {}) | {"special": True, "content": text}
            )
            result.append(_added_token(flags))
    return result


def _from_vocab_and_merges(files: TokenizerFiles) -> Tokenizer:
    kind = str(files.config.get("tokenizer_class") or "").removesuffix("Fast")
    tokenizer = Tokenizer(models.BPE.from_file(str(files.vocab), str(files.merges)))
    bytes_only = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    if kind in _GPT2_CLASSES:
        spaced = bool(files.config.get("add_prefix_space", False))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=spaced)
    elif kind == "Qwen2Tokenizer":
        split = pre_tokenizers.Split(Regex(ranks.SPLIT), "isolated")
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, bytes_only])
    else:
        raise UnsupportedError(
            f"{files.folder} holds vocab.json and merges.txt of a {kind}, whose split is only in its Python class; "
            "save the tokenizer once as tokenizer.json (tokenizer.save_pretrained in transformers)"
        )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def sentencepiece_ids(files: TokenizerFiles, texts: Sequence[str]) -> list[list[int]]:
    """SentencePiece with special and added tokens cut out first, each remaining stretch encoded on its own."""
    processor = load_sentencepiece(files)
    specials: dict[str, int] = {
        processor.IdToPiece(number): number
        for number in range(processor.vocab_size())
        if processor.IsControl(number) or processor.IsUnknown(number)
    }
    specials |= files.added | {entry["content"]: number for number, entry in added_token_entries(files)}
    longest_first = sorted((text for text in specials if text), key=len, reverse=True)
    cut = re.compile("(" + "|".join(re.escape(text) for text in longest_first) + ")")
    result = []
    for text in texts:
        ids: list[int] = []
        for position, part in enumerate(cut.split(text)):
            ids += [specials[part]] if position % 2 else processor.EncodeAsIds(part) if part else []
        result.append(ids)
    return result


def load_sentencepiece(files: TokenizerFiles) -> SentencePieceProcessor:
    """The SentencePiece library's processor for tokenizer.model; raises TokenizerError when it cannot load it."""
    processor = SentencePieceProcessor()
    try:
        processor.LoadFromFile(str(files.model))
    except (RuntimeError, OSError, ValueError) as error:
        raise TokenizerError(f"{files.model} is not a SentencePiece model; download it again") from error
    return processor

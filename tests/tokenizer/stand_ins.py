"""Tokenizers that no registry has, rebuilt as nearly as the published facts allow.

What is real and what is not is said with each, and again in families.py. A SentencePiece model is written in its wire
format here (google/sentencepiece, sentencepiece_model.proto), independently of the package's reader.
"""

import io
import json
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import sentencepiece
from gguf import GGUFReader
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from quantkit.tokenizer import ranks

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6
BLOOM_SPLIT = r" ?[^(\s|[.,!?…。，、।۔،])]+"
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
HUOZI_MARKS = ["<|beginofutterance|>", "<|endofutterance|>"]


def _varint(number: int) -> bytes:
    out = b""
    while number > 127:
        out, number = out + bytes([number & 127 | 128]), number >> 7
    return out + bytes([number])


def _field(number: int, data: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def _flag(number: int, value: int) -> bytes:
    return _varint(number << 3) + _varint(value)


def sentencepiece_piece(text: str, score: float, kind: int) -> bytes:
    """One piece of a ModelProto; pieces appended to a model's bytes follow its own."""
    body = _field(1, text.encode()) + _varint(2 << 3 | 5) + struct.pack("<f", score) + _flag(3, kind)
    return _field(1, body)


def sentencepiece_bpe(pieces: Iterable[tuple[str, float, int]], *, add_dummy_prefix: bool) -> bytes:
    """A BPE tokenizer.model with byte fallback, without normalization, that keeps its spaces."""
    trainer = _flag(3, 2) + _flag(35, 1)
    normalizer = _field(1, b"identity") + _flag(3, int(add_dummy_prefix)) + _flag(4, 0) + _flag(5, 1)
    return b"".join(sentencepiece_piece(*piece) for piece in pieces) + _field(2, trainer) + _field(3, normalizer)


def write_huozi(folder: Path, mistral: Path, chinese: Iterable[str], size: int, *, score: float | None) -> list[str]:
    """Huozi-3's kind: a real Mistral tokenizer.model with Chinese pieces behind its own, and the marks of a turn.

    The pieces are trained on `chinese`; `score` is what each gets (0 is the habit of extended Llama vocabularies),
    None lets them follow the last of Mistral's. The marks are added tokens, special, at the end. Returns the pieces.
    """
    trained = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(chinese),
        model_writer=trained,
        model_type="bpe",
        vocab_size=size,
        character_coverage=0.9995,
        normalization_rule_name="identity",
        hard_vocab_limit=False,
        max_sentence_length=100_000,
        num_threads=1,
        minloglevel=2,
    )
    new = sentencepiece.SentencePieceProcessor(model_proto=trained.getvalue())
    data = mistral.read_bytes()
    old = sentencepiece.SentencePieceProcessor(model_proto=data)
    known = {old.IdToPiece(number) for number in range(old.GetPieceSize())}
    pieces = [new.IdToPiece(n) for n in range(3, new.GetPieceSize()) if new.IdToPiece(n) not in known]
    last = min(old.GetScore(number) for number in range(old.GetPieceSize()))
    scores = [last - 1 - position if score is None else score for position in range(len(pieces))]
    extended = (sentencepiece_piece(text, value, NORMAL) for text, value in zip(pieces, scores, strict=True))
    (folder / "tokenizer.model").write_bytes(data + b"".join(extended))
    first = old.GetPieceSize() + len(pieces)
    flags = {"lstrip": False, "rstrip": False, "normalized": False, "single_word": False, "special": True}
    marks = {str(first + n): {"content": mark, **flags} for n, mark in enumerate(HUOZI_MARKS)}
    config = {"added_tokens_decoder": marks, "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    config |= {"add_bos_token": True, "add_eos_token": False, "tokenizer_class": "LlamaTokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return pieces


def write_bloom(folder: Path, texts: Iterable[str], size: int) -> None:
    """BLOOM's pipeline (its split, bytes, special tokens) with merges trained on `texts` instead of its own."""
    special = [AddedToken(text, special=True, normalized=False) for text in ("<unk>", "<s>", "</s>", "<pad>")]
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(BLOOM_SPLIT), behavior="isolated", invert=False)
    in_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=True, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, in_bytes])
    tokenizer.decoder = decoders.ByteLevel(add_prefix_space=True, trim_offsets=True, use_regex=False)
    tokenizer.post_processor = processors.ByteLevel(add_prefix_space=True, trim_offsets=False, use_regex=False)
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        show_progress=False,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    roles = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    config = roles | {"tokenizer_class": "BloomTokenizerFast", "add_prefix_space": False}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def write_from_gguf(folder: Path, vocab: Path, pre_tokenizer: list[dict[str, Any]]) -> None:
    """A tokenizer.json of the real tokens and merges in a GGUF vocabulary, with the published pre-tokenizer.

    Tokens past the last ordinary one become added tokens, as there; rows of padding are left out.
    """
    tokens, types, _ = gguf_tokens(vocab)
    last = max(number for number, kind in enumerate(types) if kind == NORMAL)
    added = [
        {
            "id": number,
            "content": tokens[number],
            "special": kind == CONTROL,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": kind != CONTROL,
        }
        for number, kind in enumerate(types)
        if kind in (CONTROL, USER_DEFINED) and not tokens[number].startswith("[PAD")
    ]
    tokenizer = {
        "version": "1.0",
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": pre_tokenizer},
        "post_processor": None,
        "decoder": BYTES,
        "model": {
            "type": "BPE",
            "vocab": {text: number for number, text in enumerate(tokens[: last + 1])},
            "merges": gguf_strings(vocab, "merges"),
        },
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False), encoding="utf-8")


def write_from_ranks(
    folder: Path, table: ranks.Ranks, split: str, special: list[str], *, first: int, begins: str | None
) -> None:
    """A tokenizer.json of a table of ranks, as published: the table's ids begin at `first`, special ones fill the rest.

    `begins` is the special token that the tokenizer puts in front.
    """
    order = sorted(table, key=table.__getitem__)
    spelled = {token: spelled_part(token) for token in order}
    parts = [ranks.join(table, token, table[token]) for token in order if len(token) > 1]
    ids = [*range(first), *range(first + len(table), first + len(table) + len(special))][: len(special)]
    flags = {"lstrip": False, "rstrip": False, "normalized": False, "single_word": False, "special": True}
    marks = dict(zip(special, ids, strict=True))
    template = None
    if begins:
        start, text = {"SpecialToken": {"id": begins, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}
        template = {
            "type": "TemplateProcessing",
            "single": [start, text],
            "pair": [start, text, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {begins: {"id": begins, "ids": [marks[begins]], "tokens": [begins]}},
        }
    pattern = {"type": "Split", "pattern": {"Regex": split}, "behavior": "Isolated", "invert": False}
    tokenizer = {
        "version": "1.0",
        "added_tokens": [{"id": number, "content": text, **flags} for text, number in marks.items()],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [pattern, BYTES]},
        "post_processor": template,
        "decoder": BYTES,
        "model": {
            "type": "BPE",
            "ignore_merges": False,
            "vocab": {text: n for text, n in marks.items() if n < first}
            | {spelled[token]: first + table[token] for token in order},
            "merges": [[spelled_part(part) for part in pair] for pair in parts if len(pair) == 2],
        },
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False), encoding="utf-8")


def spelled_part(part: bytes) -> str:
    """The byte-level spelling of some bytes."""
    return part.decode("latin-1").translate(ranks.alphabet())


def write_embedded(folder: Path, library: Path) -> None:
    """The tokenizer.json that a program has in its binary: the JSON object around "added_tokens"."""
    data = library.read_bytes()
    begins = data.rindex(b"{", 0, data.index(b'"added_tokens"'))
    text = data[begins : begins + 16_000_000].decode(errors="surrogateescape")
    _, size = json.JSONDecoder().raw_decode(text)
    (folder / "tokenizer.json").write_text(text[:size], encoding="utf-8")


def write_raw_bpe(folder: Path, vocab: Path) -> None:
    """Gemma 4's tokenizer.json from the real tokens and merges in a GGUF vocabulary, with its published pipeline."""
    tokens, types, _ = gguf_tokens(vocab)
    flags = {"lstrip": False, "rstrip": False, "normalized": False, "single_word": False, "special": True}
    marks = [(number, tokens[number]) for number, kind in enumerate(types) if kind in (CONTROL, USER_DEFINED)]
    replaced = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    back = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
    tokenizer = {
        "version": "1.0",
        "added_tokens": [{"id": number, "content": text, **flags} for number, text in marks],
        "normalizer": replaced,
        "pre_tokenizer": {
            "type": "Split",
            "pattern": {"String": " "},
            "behavior": "MergedWithPrevious",
            "invert": False,
        },
        "post_processor": None,
        "decoder": {"type": "Sequence", "decoders": [back, {"type": "ByteFallback"}, {"type": "Fuse"}]},
        "model": {
            "type": "BPE",
            "unk_token": "<unk>",
            "fuse_unk": True,
            "byte_fallback": True,
            "vocab": {text: number for number, text in enumerate(tokens)},
            "merges": gguf_strings(vocab, "merges"),
        },
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False), encoding="utf-8")
    roles = {f"{name}_token": f"<{name}>" for name in ("bos", "eos", "unk", "pad", "mask")}
    (folder / "tokenizer_config.json").write_text(json.dumps(roles | {"tokenizer_class": "GemmaTokenizer"}))


def write_baichuan(folder: Path, vocab: Path, *, add_dummy_prefix: bool) -> None:
    """Baichuan-7B's tokenizer.model from the real pieces and scores in a GGUF vocabulary.

    The pieces before the bytes (marks, digits, punctuation, <reserved_N>) are user-defined, which a GGUF vocabulary
    made by llama.cpp's converter does not tell. Baichuan puts no space in front; `add_dummy_prefix` tries the other.
    """
    tokens, types, scores = gguf_tokens(vocab)
    first_byte = types.index(BYTE)
    kinds = [USER_DEFINED if kind == NORMAL and n < first_byte else kind for n, kind in enumerate(types)]
    pieces = zip(tokens, scores, kinds, strict=True)
    (folder / "tokenizer.model").write_bytes(sentencepiece_bpe(pieces, add_dummy_prefix=add_dummy_prefix))


def write_phi3(folder: Path, vocab: Path) -> None:
    """Phi-3's tokenizer.model and added tokens from the real ones in a GGUF vocabulary."""
    tokens, types, scores = gguf_tokens(vocab)
    plain = [CONTROL if token == "</s>" else kind for token, kind in zip(tokens[:32000], types[:32000], strict=True)]
    pieces = zip(tokens[:32000], scores[:32000], plain, strict=True)
    (folder / "tokenizer.model").write_bytes(sentencepiece_bpe(pieces, add_dummy_prefix=True))
    flags = {"lstrip": False, "rstrip": False, "normalized": False, "single_word": False, "special": True}
    added = {n: tokens[n] for n in range(32000, len(tokens)) if types[n] in (CONTROL, USER_DEFINED)}
    decoder = {str(number): {"content": text, **flags} for number, text in added.items()}
    roles = {"bos_token": "<s>", "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>", "unk_token": "<unk>"}
    config = roles | {"added_tokens_decoder": decoder, "tokenizer_class": "LlamaTokenizer", "add_bos_token": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def gguf_strings(vocab: Path, name: str) -> list[str]:
    """A tokenizer.ggml array of texts."""
    field = GGUFReader(vocab).fields[f"tokenizer.ggml.{name}"]
    return [bytes(field.parts[index]).decode() for index in field.data]


def gguf_tokens(vocab: Path) -> tuple[list[str], list[int], list[float]]:
    """Texts, types and scores of a GGUF vocabulary; scores are empty for byte-level BPE."""
    fields = GGUFReader(vocab).fields

    def numbers(name: str) -> list[Any]:
        field = fields.get(f"tokenizer.ggml.{name}")
        return [] if field is None else [field.parts[index][0].item() for index in field.data]

    return gguf_strings(vocab, "tokens"), numbers("token_type"), numbers("scores")


def gguf_truth(vocab: Path) -> tuple[list[str], list[list[int]]]:
    """The texts beside a vocabulary of llama.cpp's, and the ids that the original tokenizer gives them."""
    texts = vocab.with_name(vocab.name + ".inp").read_text(encoding="utf-8").split("\n__ggml_vocab_test__\n")
    lines = vocab.with_name(vocab.name + ".out").read_text(encoding="utf-8").split("\n")
    ids = [[int(number) for number in line.split()] for line in lines]
    return texts, ids[: len(texts)]

"""Small real tokenizers, trained on the spot with the real trainers, in the form each Llama family publishes.

Byte-level BPE (Llama 3, SmolLM) is a tokenizer.json; SentencePiece (Llama 1 and 2, Mistral, Yi, TinyLlama) is a
tokenizer.model, and beside it the tokenizer.json with the same merges. Training is deterministic.
"""

import base64
import importlib.util
import io
import json
import sys
from functools import cache
from pathlib import Path
from typing import Any

import sentencepiece
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

CORPUS = """The quick brown fox jumps over the lazy dog. Language models read text as a row of small pieces.
Each piece has a number, and the model only understands the cut that it was trained with. Don't change it! It's fragile.
def total(prices):\n    return sum(price * 1.19 for price in prices)  # 19% tax\n\n\nfor i in range(10):\n\tprint(i)
In 1969 two people walked on the Moon; 12 people had walked there by 1972. The way is 384400 km, 21000 km more or less.
Der schnelle braune Fuchs springt über den faulen Hund. Äpfel, Öl und Übermut: größer, schöner, süßer.
Le cœur a ses raisons que la raison ne connaît point; où êtes-vous allés cet été, à la forêt ou à la plage ?
El niño comió piñas y corrió más rápido que el pingüino. ¿Quién sabe por qué? ¡Nadie!
Быстрая лиса прыгает через ленивую собаку, а собака всё спит и спит под старым дубом.
人工智能模型把句子切成小块，每一块都有一个编号。今天天气很好，我们去公园散步吧。
日本語の文章も同じように小さな単位に分けられます。カタカナとひらがなと漢字があります。
한국어 문장도 작은 조각으로 나뉩니다. 오늘은 날씨가 참 좋습니다.
اللغة العربية تكتب من اليمين إلى اليسار، وهذا نص قصير للتجربة.
हर वाक्य छोटे टुकड़ों में बाँटा जाता है। Γρήγορη αλεπού πηδά πάνω από το σκυλί.
Emoji count too: 🙂 🚀 🦙🦙 and so do   runs  of    spaces, <tags>, "quotes", 'single ones' and me@example.org/path?q=1.
"""

# For vocabularies that have hardly more room than the 256 bytes.
FEW_LETTERS = """the other teeth are here at rest
three rats heard the earth
art has a heart
"""

LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3_SPECIAL = [
    "<|begin_of_text|>",
    "<|end_of_text|>",
    *(f"<|reserved_special_token_{i}|>" for i in range(2)),
    "<|finetune_right_pad_id|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eom_id|>",
    "<|eot_id|>",
    "<|python_tag|>",
]
SMOLLM_SPECIAL = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<repo_name>",
    "<reponame>",
    "<file_sep>",
    "<filename>",
    "<gh_stars>",
    "<issue_start>",
    "<issue_comment>",
    "<issue_closed>",
    "<jupyter_start>",
    "<jupyter_text>",
    "<jupyter_code>",
    "<jupyter_output>",
    "<jupyter_script>",
    "<empty_output>",
]

_SPECIAL = {"llama3": LLAMA3_SPECIAL, "smollm": SMOLLM_SPECIAL, "glm": [*SMOLLM_SPECIAL, "<|user|>"]}
_SPECIAL["glm-4.5"] = [*SMOLLM_SPECIAL, "[gMASK]", "<|user|>", "<|observation|>"]
_SPECIAL["dots3"] = [*SMOLLM_SPECIAL, "<|endofassistant|>"]
_SPECIAL["solar"] = [*SMOLLM_SPECIAL, "<|startoftext|>", "<unk>"]

_CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_LLAMA3_CHAT = (
    "{{ bos_token }}{% for message in messages %}{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'"
    " + message['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
_LLAMA_CHAT = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ '[INST] ' + message['content'] + ' [/INST]' }}{% else %}"
    "{{ message['content'] + eos_token }}{% endif %}{% endfor %}"
)


def write_byte_level_bpe(folder: Path, style: str, size: int) -> dict[str, Any]:
    """Write tokenizer.json, tokenizer_config.json, special_tokens_map.json; return the bos and eos ids and the size."""
    special = _SPECIAL[style]
    (folder / "tokenizer.json").write_text(_byte_level_bpe(style, size), encoding="utf-8")
    first = size - len(special) if style == "llama3" else 0
    bos, eos = ("<|begin_of_text|>", "<|eot_id|>") if style == "llama3" else ("<|im_start|>", "<|im_end|>")
    config: dict[str, Any] = {
        "added_tokens_decoder": {str(first + i): _added(text) for i, text in enumerate(special)},
        "bos_token": bos,
        "chat_template": _LLAMA3_CHAT if style == "llama3" else _CHATML,
        "clean_up_tokenization_spaces": style == "llama3",
        "eos_token": eos,
        "model_max_length": 131072 if style == "llama3" else 8192,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    special_map: dict[str, Any] = {"bos_token": bos, "eos_token": eos}
    if style != "llama3":
        config |= {
            "add_prefix_space": False,
            "pad_token": "<|im_end|>",
            "unk_token": "<|endoftext|>",
            "vocab_size": size,
        }
        special_map |= {"pad_token": "<|im_end|>", "unk_token": "<|endoftext|>"}
    _write_tokenizer_config(folder, config, special_map)
    if style != "llama3":
        return {"bos": 1, "eos": 2, "size": size}
    ids = {text: first + i for i, text in enumerate(special)}
    return {
        "bos": ids["<|begin_of_text|>"],
        "eos": [ids["<|end_of_text|>"], ids["<|eom_id|>"], ids["<|eot_id|>"]],
        "size": size,
    }


@cache
def _byte_level_bpe(style: str, size: int) -> str:
    special = _SPECIAL[style]
    tokenizer = Tokenizer(models.BPE(ignore_merges=style == "llama3"))
    if style == "llama3":
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(LLAMA3_SPLIT), behavior="isolated", invert=False),
                pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=True, use_regex=False),
            ]
        )
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=True, use_regex=True),
            ]
        )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size - len(special) if style == "llama3" else size,
        show_progress=False,
        special_tokens=[]
        if style == "llama3"
        else [AddedToken(text, special=True, normalized=False) for text in special],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(CORPUS.split("\n\n"), trainer)
    if style == "llama3":
        tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in special])
        bos = LLAMA3_SPECIAL[0]
        start = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, tokenizer.token_to_id(bos))]
        )
        tokenizer.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), start])
    if tokenizer.get_vocab_size() != size:
        raise ValueError(f"the training text gives {tokenizer.get_vocab_size()} tokens, {size} were asked")
    return str(tokenizer.to_str(pretty=True))


def write_sentencepiece(
    folder: Path, style: str, size: int, *, model: bool, json_too: bool, unigram: bool
) -> dict[str, Any]:
    """Write tokenizer.model, tokenizer.json and the configs beside them; return the bos and eos ids and the size."""
    if model:
        (folder / "tokenizer.model").write_bytes(_sentencepiece(style, size, unigram))
    if json_too:
        text = json.dumps(_sentencepiece_json(style, size), indent=2, ensure_ascii=False)
        (folder / "tokenizer.json").write_text(text, encoding="utf-8")
    bos, eos = _marks(style)
    config: dict[str, Any] = {
        "add_bos_token": style != "yi",
        "add_eos_token": False,
        "added_tokens_decoder": {str(i): _added(text) for i, text in enumerate(("<unk>", bos, eos))},
        "bos_token": bos,
        "chat_template": _LLAMA_CHAT,
        "clean_up_tokenization_spaces": False,
        "eos_token": eos,
        "legacy": style == "yi",
        "model_max_length": 4096,
        "sp_model_kwargs": {},
        "tokenizer_class": "LlamaTokenizer",
        "unk_token": "<unk>",
    }
    if style == "yi":
        config["pad_token"] = "<unk>"
    _write_tokenizer_config(folder, config, {"bos_token": bos, "eos_token": eos, "unk_token": "<unk>"})
    processor = sentencepiece.SentencePieceProcessor(model_proto=_sentencepiece(style, size, unigram))
    return {"bos": 1, "eos": 2, "size": processor.GetPieceSize()}


RAW_BPE_SPECIAL = ("<pad>", "<bos>", "<eos>", "<unk>", "<mask>", "<|tool_call>", "<tool_call|>", "<|turn>", "<turn|>")


def write_raw_bpe(folder: Path, size: int) -> None:
    """Write tokenizer.json and its configs: BPE over raw text with byte fallback, as Gemma 4 publishes it."""
    flags = {name: value for name, value in _added("").items() if name != "content"}
    marks = [AddedToken(text, **flags) for text in RAW_BPE_SPECIAL]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    decoding = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence(decoding)
    text = FEW_LETTERS if size < 600 else CORPUS
    trainer = trainers.BpeTrainer(vocab_size=size - 256, show_progress=False, special_tokens=marks)
    # whole lines, for words and the spaces between them merge too; newlines merge with each other only
    tokenizer.train_from_iterator([*text.splitlines(), *("\n" * count for count in range(1, 5))], trainer)
    source = json.loads(tokenizer.to_str())
    model, first = source["model"], len(RAW_BPE_SPECIAL)
    model["byte_fallback"] = True
    model["vocab"] = {text: number if number < first else number + 256 for text, number in model["vocab"].items()}
    model["vocab"] |= {f"<0x{byte:02X}>": first + byte for byte in range(256)}
    (folder / "tokenizer.json").write_text(json.dumps(source, ensure_ascii=False), encoding="utf-8")
    names = dict(zip(("pad_token", "bos_token", "eos_token", "unk_token", "mask_token"), RAW_BPE_SPECIAL, strict=False))
    config = {**names, "extra_special_tokens": list(RAW_BPE_SPECIAL[5:]), "tokenizer_class": "GemmaTokenizer"}
    _write_tokenizer_config(folder, {**config, "chat_template": _CHATML}, names)


def _marks(style: str) -> tuple[str, str]:
    return ("<|startoftext|>", "<|endoftext|>") if style == "yi" else ("<s>", "</s>")


def _has_prefix(style: str) -> bool:
    """Whether the tokenizer puts a space in front of a text."""
    return style not in ("yi", "gemma")


@cache
def _sentencepiece(style: str, size: int, unigram: bool) -> bytes:
    """Llama's training options: identity normalization, byte fallback, digits split, spaces kept."""
    bos, eos = _marks(style)
    trained = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter((FEW_LETTERS if style in ("few-letters", "gemma") else CORPUS).splitlines()),
        model_writer=trained,
        model_type="unigram" if unigram else "bpe",
        vocab_size=size,
        hard_vocab_limit=not unigram,
        byte_fallback=True,
        character_coverage=0.98,
        split_digits=True,
        allow_whitespace_only_pieces=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=_has_prefix(style),
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        bos_piece=bos,
        eos_piece=eos,
        num_threads=1,
        minloglevel=2,
    )
    return trained.getvalue()


def _sentencepiece_json(style: str, size: int) -> dict[str, Any]:
    """The fast form of the same tokenizer: its merges are every split of a piece into two pieces, best score first."""
    processor = sentencepiece.SentencePieceProcessor(model_proto=_sentencepiece(style, size, False))
    vocab = {processor.IdToPiece(i): i for i in range(processor.GetPieceSize())}
    merges = [
        (processor.GetScore(vocab[piece]), vocab[piece[:cut]], vocab[piece[cut:]], [piece[:cut], piece[cut:]])
        for piece, token in vocab.items()
        if not (processor.IsByte(token) or processor.IsControl(token) or processor.IsUnknown(token))
        for cut in range(1, len(piece))
        if piece[:cut] in vocab and piece[cut:] in vocab
    ]
    merges.sort(key=lambda merge: (-merge[0], merge[1], merge[2]))
    bos, eos = _marks(style)
    spaces: list[dict[str, Any]] = [{"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]
    decoding: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    template = None
    if _has_prefix(style):
        spaces.insert(0, {"type": "Prepend", "prepend": "▁"})
        decoding.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
        start = {"SpecialToken": {"id": bos, "type_id": 0}}
        text = {"Sequence": {"id": "A", "type_id": 0}}
        second = [{"SpecialToken": {"id": bos, "type_id": 1}}, {"Sequence": {"id": "B", "type_id": 1}}]
        template = {
            "type": "TemplateProcessing",
            "single": [start, text],
            "pair": [start, text, *second],
            "special_tokens": {bos: {"id": bos, "ids": [1], "tokens": [bos]}},
        }
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": i, **_added(mark)} for i, mark in enumerate(("<unk>", bos, eos))],
        "normalizer": {"type": "Sequence", "normalizers": spaces},
        "pre_tokenizer": None,
        "post_processor": template,
        "decoder": {"type": "Sequence", "decoders": decoding},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>",
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": vocab,
            "merges": [pair for *_, pair in merges],
        },
    }


def _added(text: str) -> dict[str, Any]:
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    return {"content": text, **flags}


def _write_tokenizer_config(folder: Path, config: dict[str, Any], special_map: dict[str, Any]) -> None:
    for name, value in (("tokenizer_config.json", config), ("special_tokens_map.json", special_map)):
        (folder / name).write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_wordpiece(folder: Path, size: int, *, lowercase: bool = True) -> None:
    """Write BERT's kind of tokenizer: special tokens, every letter of the corpus in both places, then its words."""
    text = CORPUS.lower() if lowercase else CORPUS
    letters = sorted({letter for letter in text if letter.isascii() and not letter.isspace()})
    words = [word for word in dict.fromkeys(text.split()) if word.isalpha() and len(word) > 1]
    pieces = [*letters, *(f"##{letter}" for letter in letters if letter.isalnum()), *words]
    pieces += [f"##{word[1:]}" for word in words]
    vocabulary = list(dict.fromkeys(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *pieces]))[:size]
    vocabulary += [f"[unused{number}]" for number in range(size - len(vocabulary))]
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
    tokenizer = Tokenizer(
        models.WordPiece({token: number for number, token in enumerate(vocabulary)}, unk_token="[UNK]")
    )
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    roles = {"unk": "[UNK]", "sep": "[SEP]", "pad": "[PAD]", "cls": "[CLS]", "mask": "[MASK]"}
    config = {f"{role}_token": token for role, token in roles.items()}
    config |= {"do_lower_case": lowercase, "model_max_length": 512, "tokenizer_class": "BertTokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def _parsed(model: bytes) -> Any:
    """A tokenizer.model in parts; the package itself cannot be imported where transformers runs."""
    package = importlib.util.find_spec("quantkit")
    root = Path(__file__).resolve().parents[2] / "quantkit"
    folder = Path(package.origin).parent if package is not None and package.origin else root
    path = folder / "tokenizer" / "sentencepiece_model.py"
    spec = importlib.util.spec_from_file_location("sentencepiece_model", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module.parse(model)


def write_unigram_json(folder: Path, size: int) -> None:
    """Write XLM-RoBERTa's kind of tokenizer: a unigram model whose special tokens are numbered in its own way."""
    trained = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(line for line in CORPUS.splitlines() if line.isascii()),
        model_writer=trained,
        model_type="unigram",
        vocab_size=size,
        character_coverage=1.0,
        hard_vocab_limit=False,
        num_threads=1,
        minloglevel=2,
    )
    model = _parsed(trained.getvalue())
    pieces = [[piece.decode(), score] for piece, score in zip(model.pieces, model.scores, strict=True)][3:]
    vocabulary = [[text, 0.0] for text in ("<s>", "<pad>", "</s>", "<unk>")] + pieces[: size - 5] + [["<mask>", 0.0]]
    special = [(number, text) for number, (text, _) in enumerate(vocabulary) if text.startswith("<") and len(text) > 2]
    flags = {"single_word": False, "rstrip": False, "normalized": False, "special": True}
    parts = {text: {"SpecialToken": {"id": text, "type_id": 0}} for text in ("<s>", "</s>")}
    one, two = ({"Sequence": {"id": name, "type_id": 0}} for name in ("A", "B"))
    whole = {
        "version": "1.0",
        "added_tokens": [
            {"id": number, "content": text, "lstrip": text == "<mask>", **flags} for number, text in special
        ],
        "normalizer": {
            "type": "Precompiled",
            "precompiled_charsmap": base64.b64encode(model.precompiled_charsmap).decode(),
        },
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "WhitespaceSplit"},
                {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True},
            ],
        },
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [parts["<s>"], one, parts["</s>"]],
            "pair": [parts["<s>"], one, parts["</s>"], parts["</s>"], two, parts["</s>"]],
            "special_tokens": {text: {"id": text, "ids": [number], "tokens": [text]} for number, text in special},
        },
        "decoder": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True},
        "model": {"type": "Unigram", "unk_id": 3, "vocab": vocabulary, "byte_fallback": False},
    }
    (folder / "tokenizer.json").write_text(json.dumps(whole), encoding="utf-8")
    roles = {"bos": "<s>", "eos": "</s>", "unk": "<unk>", "sep": "</s>", "pad": "<pad>", "cls": "<s>", "mask": "<mask>"}
    config: dict[str, Any] = {f"{role}_token": token for role, token in roles.items()}
    config |= {"clean_up_tokenization_spaces": True, "tokenizer_class": "XLMRobertaTokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def write_t5(folder: Path, size: int) -> None:
    """Write T5's spiece.model, and tokenizer.json with the same ids: a unigram model whose texts end with </s>."""
    trained = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(line for line in CORPUS.splitlines() if line.isascii()),
        model_writer=trained,
        model_type="unigram",
        vocab_size=size - 8,
        character_coverage=1.0,
        hard_vocab_limit=False,
        num_threads=1,
        minloglevel=2,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
    )
    (folder / "spiece.model").write_bytes(trained.getvalue())
    model = _parsed(trained.getvalue())
    vocabulary = [[piece.decode(), score] for piece, score in zip(model.pieces, model.scores, strict=True)]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    end = {"SpecialToken": {"id": "</s>", "type_id": 0}}
    one, two = ({"Sequence": {"id": name, "type_id": 0}} for name in ("A", "B"))
    metaspace = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
    charsmap = base64.b64encode(model.precompiled_charsmap).decode()
    whole = {
        "version": "1.0",
        "added_tokens": [
            {"id": number, "content": text, **flags} for number, text in enumerate(("<pad>", "</s>", "<unk>"))
        ],
        "normalizer": {"type": "Precompiled", "precompiled_charsmap": charsmap},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, metaspace]},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [one, end],
            "pair": [one, end, two, end],
            "special_tokens": {"</s>": {"id": "</s>", "ids": [1], "tokens": ["</s>"]}},
        },
        "decoder": metaspace,
        "model": {"type": "Unigram", "unk_id": 2, "vocab": vocabulary, "byte_fallback": False},
    }
    (folder / "tokenizer.json").write_text(json.dumps(whole), encoding="utf-8")
    config = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>", "tokenizer_class": "T5Tokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def write_world(folder: Path, size: int) -> None:
    """Write RWKV's list of words: bytes, words of the corpus, and an empty line as the token 261."""
    words = [bytes([byte]) for byte in range(256)]
    words += [b" the", b" a", b"th", b"in", b"\n\n", "日本".encode(), "本".encode(), b" \xe6", b"the ", b"ion"]
    words += [bytes([first, second]) for first in b"aeiou" for second in b"rstz"]
    lines = []
    for number, word in enumerate(words[: size - 2], 1):
        try:
            shown = repr(word.decode())
        except UnicodeDecodeError:
            shown = repr(word)
        lines.append(f"{number} {shown} {len(word)}\n")
    (folder / "rwkv_vocab_v20230424.txt").write_text("".join(lines), encoding="utf-8")
    _write_tokenizer_config(folder, {"tokenizer_class": "RwkvTokenizer"}, {})


def write_plamo(folder: Path, size: int, kind: str = "Plamo3Tokenizer") -> None:
    """Write PLaMo's tokenizer.jsonl: special tokens, bytes, and pieces of the corpus with scores."""
    special = [f"<|plamo:{name}|>" for name in ("unk", "bos", "eos", "pad", "op", "tag", "msg")]
    pieces: list[list[Any]] = [[text, 0.0, "UNKNOWN" if text == special[0] else "CONTROL"] for text in special]
    pieces += [[f"<0x{byte:02X}>", 0.0, "BYTE"] for byte in range(256)]
    words = [
        " ",
        "e",
        "t",
        "a",
        "o",
        "n",
        "i",
        "th",
        "the",
        " the",
        "in",
        "an",
        " a",
        "er",
        "on",
        "re",
        "    ",
        "本",
        "日本",
    ]
    more = [chr(letter) for letter in range(ord("a"), ord("z") + 1)] + [str(digit) for digit in range(10)]
    for number, text in enumerate(dict.fromkeys(words + more)):
        if len(pieces) < size - 1:
            pieces.append([text, -4.0 - number / 8 + len(text), "NORMAL"])
    pieces.append(["<|plamo:begin_", -3.5, "CONTROL"])
    lines = "".join(json.dumps(piece, ensure_ascii=False) + "\n" for piece in pieces)
    (folder / "tokenizer.jsonl").write_text(lines, encoding="utf-8")
    config = {
        **{f"{role}_token": f"<|plamo:{role}|>" for role in ("bos", "eos", "pad", "unk")},
        "add_bos_token": True,
        "add_eos_token": False,
        "chat_template": _CHATML,
        "tokenizer_class": kind,
    }
    _write_tokenizer_config(folder, config, {})

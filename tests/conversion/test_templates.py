"""The chat template a GGUF comes with: kept, replaced, dropped, or the built-in that the checkpoint's files ask for."""

import json
import shutil
from pathlib import Path

import pytest
from gguf import GGUFReader

from quantkit.chat import BUILT_IN
from tests.families.expected import write_checkpoint
from tests.helpers.command import Answer, quantkit
from tests.helpers.tiny import tiny_llama

KEY, EOT = "tokenizer.chat_template", "tokenizer.ggml.eot_token_id"


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose tokenizer has no template."""
    folder = tiny_llama(tmp_path_factory.mktemp("source") / "model", variant="smollm2")
    without_template(folder)
    return folder


@pytest.fixture
def huozi(plain: Path, tmp_path: Path) -> Path:
    """The same with Huozi's two tokens, added after pretraining as there, so that EOS is another."""
    folder = Path(shutil.copytree(plain, tmp_path / "huozi"))
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        text = (folder / name).read_text("utf-8")
        text = text.replace("<gh_stars>", "<|beginofutterance|>").replace("<issue_start>", "<|endofutterance|>")
        (folder / name).write_text(text, "utf-8")
    return folder


def without_template(folder: Path) -> None:
    file = folder / "tokenizer_config.json"
    config = json.loads(file.read_text("utf-8"))
    del config["chat_template"]
    file.write_text(json.dumps(config), "utf-8")


def convert(source: Path, out: Path, *words: str) -> tuple[Answer, dict[str, object]]:
    answer = quantkit("gguf", source, "-t", "q8_0", "--no-logits", "-o", out, *words)
    assert answer.code == 0, answer.stderr
    (file,) = out.glob("*-GGUF/*.gguf")
    fields = GGUFReader(file).fields
    return answer, {name: field.contents() for name, field in fields.items() if name.startswith("tokenizer.")}


def test_a_built_in_that_fits_is_written_and_said(huozi: Path, tmp_path: Path) -> None:
    answer, keys = convert(huozi, tmp_path / "out")
    assert keys[KEY] == BUILT_IN["huozi"].text
    words = "the checkpoint has no chat template; wrote the built-in 'huozi' (its vocabulary has <|beginofutterance|>)"
    assert words in answer.stderr.splitlines()


def test_the_end_of_a_turn_comes_with_the_built_in(huozi: Path, tmp_path: Path) -> None:
    _, keys = convert(huozi, tmp_path / "out")
    tokens = keys["tokenizer.ggml.tokens"]
    assert isinstance(tokens, list) and isinstance(keys[EOT], int)
    assert tokens[keys[EOT]] == "<|endofutterance|>" != tokens[int(str(keys["tokenizer.ggml.eos_token_id"]))]


def test_llama_cpp_stops_at_the_end_of_a_turn(huozi: Path, tmp_path: Path) -> None:
    import llama_cpp

    convert(huozi, tmp_path / "out")
    (file,) = (tmp_path / "out").glob("*-GGUF/*.gguf")
    model = llama_cpp.Llama(str(file), vocab_only=True, verbose=False)
    (end,) = model.tokenize(b"<|endofutterance|>", add_bos=False, special=True)
    vocab = llama_cpp.llama_model_get_vocab(model._model.model)
    assert llama_cpp.llama_vocab_is_eog(vocab, end)
    assert model.metadata[KEY] == BUILT_IN["huozi"].text


@pytest.mark.parametrize(("template", "architecture"), [("deepseek-v4", "deepseek4"), ("kimi-k3", "kimi-k3")])
def test_a_model_published_with_a_python_encoder_gets_its_built_in(
    template: str, architecture: str, tmp_path: Path
) -> None:
    folder = write_checkpoint(template, tmp_path / "model")
    without_template(folder)
    unused = ("<gh_stars>", "<issue_start>", "<issue_comment>", "<issue_closed>")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        text = (folder / name).read_text("utf-8")
        for token, mark in zip(unused, BUILT_IN[template].marks, strict=True):
            text = text.replace(token, mark)
        (folder / name).write_text(text, "utf-8")
    answer, keys = convert(folder, tmp_path / "out", "--allow-requantize")
    assert keys[KEY] == BUILT_IN[template].text
    words = f"the checkpoint has no chat template; wrote the built-in '{template}' (its architecture is {architecture})"
    assert words in answer.stderr.splitlines()
    tokens, end = keys["tokenizer.ggml.tokens"], BUILT_IN[template].end_of_turn
    assert isinstance(tokens, list)
    assert keys.get(EOT) == (tokens.index(end) if end else None)


def test_none_leaves_the_template_out(huozi: Path, tmp_path: Path) -> None:
    answer, keys = convert(huozi, tmp_path / "a", "--chat-template", "none")
    assert KEY not in keys and EOT not in keys
    assert "built-in" not in answer.stderr
    tiny_llama(tmp_path / "with", variant="smollm2")
    assert KEY in convert(tmp_path / "with", tmp_path / "b")[1]
    assert KEY not in convert(tmp_path / "with", tmp_path / "c", "--chat-template", "none")[1]


def test_a_checkpoint_that_nothing_is_known_of_stays_without(plain: Path, tmp_path: Path) -> None:
    answer, keys = convert(plain, tmp_path / "out")
    assert KEY not in keys
    assert "template" not in answer.stderr


def test_a_file_and_a_name_are_taken(plain: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.jinja"
    file.write_text("{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}", "utf-8")
    assert convert(plain, tmp_path / "a", "--chat-template", str(file))[1][KEY] == file.read_text("utf-8")
    assert convert(plain, tmp_path / "b", "--chat-template", "chatml")[1][KEY] == BUILT_IN["chatml"].text


def test_a_name_wins_over_a_file_so_called(plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("blossom").write_text("mine", "utf-8")
    assert convert(plain, tmp_path / "a", "--chat-template", "blossom")[1][KEY] == BUILT_IN["blossom"].text
    assert convert(plain, tmp_path / "b", "--chat-template", "./blossom")[1][KEY] == "mine"


def test_a_built_in_that_does_not_fit_is_said(plain: Path, tmp_path: Path) -> None:
    answer, keys = convert(plain, tmp_path / "out", "--chat-template", "baichuan2")
    assert "the vocabulary has no token <reserved_106>" in answer.stderr
    assert keys[KEY] == BUILT_IN["baichuan2"].text


@pytest.mark.parametrize(
    ("text", "code", "words"),
    [
        (None, 2, "neither a file nor a built-in"),
        (" \n", 2, "is empty"),
        ("\n{% for %}", 1, "malformed at line 2"),
        ("{{ messages + 1 }}", 1, "fails at line 1"),
        ("{{ raise_exception('nobody') }}", 1, "refuses the conversation: nobody"),
    ],
)
def test_a_bad_template_is_refused_before_the_source_is_opened(
    tmp_path: Path, text: str | None, code: int, words: str
) -> None:
    if text is not None:
        (tmp_path / "bad.jinja").write_text(text, "utf-8")
    answer = quantkit("gguf", "no/such-source", "--offline", "--chat-template", tmp_path / "bad.jinja")
    assert answer.code == code
    assert words in answer.sentence and "bad.jinja" in answer.sentence


def test_an_unknown_name_is_answered_with_the_known_ones() -> None:
    answer = quantkit("gguf", "no/such-source", "--chat-template", "huozy")
    assert answer.code == 2
    assert "did you mean huozi?" in answer.sentence
    assert all(name in answer.sentence for name in (*BUILT_IN, "none"))


def test_the_help_names_the_built_in_templates() -> None:
    text = " ".join(quantkit("gguf", "--help").stdout.split())
    assert f"{', '.join(BUILT_IN)}, or none" in text


@pytest.mark.parametrize(
    ("words", "origin"),
    [
        ((), "built-in 'huozi', its vocabulary has <|beginofutterance|>"),
        (("--chat-template", "none"), "none, requested"),
        (("--chat-template", "chatml"), "built-in 'chatml', requested"),
    ],
)
def test_the_origin_tells_where_the_template_is_from(
    huozi: Path, tmp_path: Path, words: tuple[str, ...], origin: str
) -> None:
    convert(huozi, tmp_path / "out", *words)
    (record,) = (tmp_path / "out").glob("*-GGUF/quantkit.json")
    (entry,) = json.loads(record.read_text("utf-8"))["outputs"].values()
    assert entry["origin"]["chat_template"] == origin

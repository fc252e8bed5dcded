"""`quantkit termux` as a publisher meets it, and the preset of `quantkit gguf` that makes a phone's files."""

import contextlib
import hashlib
import io
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import gguf as gguf_package
import numpy as np
import pytest

from quantkit.cli import main
from quantkit.planning.phones import PHONES
from quantkit.publish.ollama.modelfile import parse_modelfile
from tests.helpers.command import Answer, working_folder
from tests.helpers.hub_server import Hub, Repo, closed_port, running_hub
from tests.helpers.tiny import tiny_llama
from tests.measurement.tiny_gguf import write_tiny_gguf
from tests.publish.gguf_files import CHATML, write_gguf
from tests.publish.phone import Phone
from tests.publish.test_termux import bash_reads


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole small model, Tiny-F32.gguf."""
    folder = tmp_path_factory.mktemp("termux")
    tiny_llama(folder / "tiny", variant="llama2", dtype="f32")
    return write_tiny_gguf(folder / "tiny", folder / "Tiny-F32.gguf")


@pytest.fixture
def hub(model: Path) -> Iterator[Hub]:
    with running_hub() as hub:
        hub.repos["me/model"] = Repo({model.name: model.read_bytes()})
        yield hub


def quantkit(*words: str | Path | int, cwd: Path) -> Answer:
    stdout, stderr = io.StringIO(), io.StringIO()
    code = 0
    with (
        patch.object(sys, "argv", ["quantkit", *map(str, words)]),
        patch.dict(os.environ, {"COLUMNS": "80"}),
        working_folder(cwd),
        contextlib.redirect_stdout(stdout),
        contextlib.redirect_stderr(stderr),
    ):
        try:
            main()
        except SystemExit as left:
            code = left.code if isinstance(left.code, int) else 0
    return Answer(code, stdout.getvalue(), stderr.getvalue())


def test_of_a_file_everything_is_filled_in(model: Path, tmp_path: Path) -> None:
    answer = quantkit(
        *(
            "termux",
            "--gguf",
            model,
            "--chat-template",
            "chatml",
            "--parameter",
            "temperature=0.5",
            "--system",
            "It's `you`.",
        ),
        cwd=tmp_path,
    )
    assert answer.code == 0, answer.stderr
    settings = bash_reads((tmp_path / "termux.sh").read_text())
    assert (settings["NAME"], settings["GGUF"]) == ("tiny-f32", "Tiny-F32.gguf")
    assert settings["MODEL_BYTES"] == str(model.stat().st_size)
    assert settings["MODEL_SHA256"] == hashlib.sha256(model.read_bytes()).hexdigest()
    made = parse_modelfile("FROM x\n" + settings["MODELFILE"])
    assert made.system == "It's `you`."
    assert made.template is not None
    assert dict(made.parameters)["temperature"] == 0.5
    assert "num_ctx" not in dict(made.parameters)
    assert settings["LLAMA_FLAGS"] == "--temp 0.5"
    assert os.access(tmp_path / "termux.sh", os.X_OK)
    assert "copy Tiny-F32.gguf to the phone too" in answer.stderr


def test_what_it_wrote_runs_on_a_phone(model: Path, hub: Hub, tmp_path: Path) -> None:
    url = f"{hub.endpoint}/me/model/resolve/main/{model.name}"
    answer = quantkit("termux", "--gguf", url, "--model", "me/tiny", "--chat-template", "chatml", cwd=tmp_path)
    assert answer.code == 0, answer.stderr
    phone = Phone(tmp_path / "phone")
    try:
        ended = phone.run(script=tmp_path / "termux.sh", piped=True)
        assert ended.code == 0, ended.stderr
    finally:
        phone.put_out()
    assert phone.models()["me/tiny"]["sha256"] == hashlib.sha256(model.read_bytes()).hexdigest()
    assert phone.parameters("me/tiny")["num_thread"] == "4"


def test_of_a_name_the_figures_may_come_from_a_file_or_be_given(model: Path, tmp_path: Path) -> None:
    words = ("termux", "--model", "me/model:4b", "--force")
    assert quantkit(*words, "--figures", model, "--chat-template", "chatml", cwd=tmp_path).code == 2
    assert quantkit(*words, "--size", "2.3G", "--ram", "3G", "--ctx", 512, cwd=tmp_path).code == 0
    settings = bash_reads((tmp_path / "termux.sh").read_text())
    assert (settings["NAME"], settings["GGUF"], settings["MODEL_BYTES"], settings["CTX"]) == (
        "me/model:4b",
        "",
        "2300000000",
        "512",
    )
    assert {entry.split(":")[2] for entry in settings["MEMORY"].split()} == {"3000000000"}
    assert quantkit(*words, cwd=tmp_path).code == 0
    settings = bash_reads((tmp_path / "termux.sh").read_text())
    assert {key: value for key, value in settings.items() if value} == {"NAME": "me/model:4b"}


def test_only_the_sizes_of_the_figures_are_taken(tmp_path: Path, model: Path) -> None:
    answer = quantkit("termux", "--model", "me/model", "--figures", model, "-o", "out/phone.sh", cwd=tmp_path)
    assert answer.code == 0, answer.stderr
    settings = bash_reads((tmp_path / "out" / "phone.sh").read_text())
    assert settings["MODEL_BYTES"] == str(model.stat().st_size)
    assert settings["MODELFILE"] == settings["MODEL_SHA256"] == ""
    assert len(settings["MEMORY"].split()) >= 3


def test_json_is_one_document(model: Path, tmp_path: Path) -> None:
    answer = quantkit(
        "termux", "--gguf", model, "--chat-template", "none", "--dry-run", "--format", "json", cwd=tmp_path
    )
    document = json.loads(answer.stdout)
    assert document["bytes"] == model.stat().st_size
    assert [phone["gigabytes"] for phone in document["phones"]] == [phone.gigabytes for phone in PHONES]
    assert all(phone["fits"] for phone in document["phones"])
    assert document["script"] is None
    assert list(tmp_path.iterdir()) == []


def test_a_phone_that_is_too_small_is_marked(model: Path, tmp_path: Path) -> None:
    answer = quantkit("termux", "--model", "me/model", "--ram", "4G", "--dry-run", "--format", "json", cwd=tmp_path)
    assert [phone["fits"] for phone in json.loads(answer.stdout)["phones"]] == [False, False, True, True]


def test_an_existing_file_is_kept(tmp_path: Path) -> None:
    (tmp_path / "termux.sh").write_text("mine")
    answer = quantkit("termux", "--model", "me/model", cwd=tmp_path)
    assert answer.code == 1
    assert "already exists with other content; add --force" in answer.sentence
    assert (tmp_path / "termux.sh").read_text() == "mine"
    assert quantkit("termux", "--model", "me/model", "--force", cwd=tmp_path).code == 0
    assert quantkit("termux", "--model", "me/model", cwd=tmp_path).code == 0


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        ((), 2, "no model is given"),
        (("--model", "Me/Model"), 2, "capital letters"),
        (("--model", "me/mo del"), 2, "has a space"),
        (("--model", "$(touch)"), 2, "the name"),
        (("--gguf", "nowhere.gguf"), 1, "file nowhere.gguf not found"),
        (("--gguf", "words.txt"), 1, "words.txt is not a .gguf file; pass a GGUF"),
        (("--gguf", "ftp://h/m.gguf"), 2, "not http"),
        (("--gguf", "m.gguf", "--figures", "m.gguf"), 2, "--figures is for a model that is pulled"),
        (("--model", "m", "--parameter", "num_thread=4"), 2, "num_thread is chosen on the phone"),
        (("--model", "m", "--parameter", "temprature=4"), 2, "did you mean temperature"),
        (("--model", "m", "--size", "big"), 2, "--size 'big' is not a size"),
        (("--model", "m", "--chat-template", "chatml"), 2, "--chat-template is for --gguf"),
        (("--model", "m", "-o", "/proc/x/termux.sh"), 1, "cannot create /proc/x"),
        (("--model", "m", "--system", "bell\x07"), 1, "SYSTEM"),
        (("--gguf", "https://h/m.gguf", "--offline", "--chat-template", "chatml"), 2, "remove --offline"),
    ],
)
def test_what_is_wrong_is_one_sentence(words: tuple[str, ...], code: int, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("words")
    answer = quantkit("termux", *words, cwd=tmp_path)
    assert (answer.code, sentence in answer.sentence) == (code, True), answer.stderr
    assert not (tmp_path / "termux.sh").exists()


def test_an_address_that_cannot_be_reached_names_the_way_without(tmp_path: Path) -> None:
    url = f"{closed_port()}/m.gguf"
    assert "--offline with --size and --ram" in quantkit("termux", "--gguf", url, cwd=tmp_path).sentence
    answer = quantkit("termux", "--gguf", url, "--offline", "--size", "2G", "--ram", "3G", cwd=tmp_path)
    assert answer.code == 0, answer.stderr
    settings = bash_reads((tmp_path / "termux.sh").read_text())
    assert (settings["NAME"], settings["GGUF"], settings["MODEL_BYTES"]) == ("m", url, "2000000000")


def test_a_header_without_a_models_shape_is_a_sentence(tmp_path: Path) -> None:
    write_gguf(tmp_path / "small.gguf", template=CHATML)
    assert "block_count" in quantkit("termux", "--gguf", "small.gguf", cwd=tmp_path).sentence


def test_shards_are_refused(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m-00001-of-00001.gguf")
    assert "one of several shards" in quantkit("termux", "--gguf", "m-00001-of-00001.gguf", cwd=tmp_path).sentence


def test_the_phone_preset_is_q4_0_and_q4_k_m_with_an_importance_matrix(tmp_path: Path) -> None:
    tiny_llama(tmp_path / "FOLDER", variant="llama3")
    words = ("gguf", "FOLDER", "--preset", "phone", "--samples", 4, "--seq-len", 64, "--no-logits")
    answer = quantkit(*words, cwd=tmp_path)
    assert answer.code == 0, answer.stderr
    made = sorted(tmp_path.glob("FOLDER-GGUF/*.gguf"))
    assert [path.name for path in made] == ["FOLDER-Q4_0.gguf", "FOLDER-Q4_K_M.gguf"]
    for path in made:
        assert "quantize.imatrix.file" in gguf_package.GGUFReader(path).fields
    assert "the only preset is phone" in quantkit("gguf", "FOLDER", "--preset", "tablet", cwd=tmp_path).sentence
    source = quantkit("gguf", made[0], "--preset", "phone", "--allow-requantize", cwd=tmp_path)
    assert "pass --imatrix FILE" in source.sentence


def test_of_an_architecture_that_cannot_be_planned_the_size_is_known(tmp_path: Path) -> None:
    writer = gguf_package.GGUFWriter(tmp_path / "m.gguf", "arwkv7")
    writer.add_block_count(1)
    writer.add_tensor("token_embd.weight", np.zeros((8, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    answer = quantkit("termux", "--gguf", "m.gguf", "--chat-template", "none", cwd=tmp_path)
    assert answer.code == 0, answer.stderr
    assert "assumes the file's size" in answer.stderr
    settings = bash_reads((tmp_path / "termux.sh").read_text())
    assert (settings["MODEL_BYTES"], settings["MEMORY"]) == (str((tmp_path / "m.gguf").stat().st_size), "")

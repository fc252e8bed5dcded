"""What fills the phone script in: its settings, the figures of phones, and a GGUF looked at from afar."""

import hashlib
import random
import shlex
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tests.helpers.hub_server as hub_server
from quantkit.errors import CheckpointError, HubError, UsageError
from quantkit.planning.context import Context
from quantkit.planning.memory import plan_memory
from quantkit.planning.phones import PHONES, RUNGS, SMALLER, phone, phone_memory, room
from quantkit.planning.sources import open_source, tensors_as_they_are
from quantkit.publish.ollama.modelfile import Modelfile, parse_modelfile
from quantkit.publish.remote_gguf import check_url, fetch_header, file_name
from quantkit.publish.termux import Settings, check_parameters, fill_in, llama_flags, script, without_phone_parameters
from tests.helpers.hub_server import Drop, Hub, Repo, closed_port, running_hub
from tests.helpers.tiny import tiny_llama
from tests.measurement.tiny_gguf import write_tiny_gguf
from tests.publish.phone import SCRIPT, Phone, wait_until
from tests.publish.test_termux_script import GGUF, SHA256, tool

NAMES = ("NAME", "GGUF", "MODEL_BYTES", "MODEL_SHA256", "MEMORY", "CTX", "MODELFILE", "LLAMA_FLAGS")
HOSTILE = """it's "$HOME" `touch x` $(touch x) ${x} \\ '\\'' ; & | > x !! 你好\n\ttab"""


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole small model."""
    folder = tmp_path_factory.mktemp("gguf")
    tiny_llama(folder / "tiny", variant="llama2", dtype="f32")
    return write_tiny_gguf(folder / "tiny", folder / "tiny.gguf")


def bash_reads(text: str) -> dict[str, str]:
    """The settings of a script as bash itself has them."""
    block = text[text.index("# >>> settings") : text.index("# <<< settings")]
    shown = "".join(f'printf "%s\\0" "${name}"\n' for name in NAMES)
    done = subprocess.run(["bash", "-eu"], input=(block + "\n" + shown).encode(), capture_output=True, check=True)
    return dict(zip(NAMES, done.stdout.decode().split("\0")[:-1], strict=True))


def test_the_package_carries_the_script_of_termux() -> None:
    assert script() == SCRIPT.read_text("utf-8")
    assert fill_in(script(), Settings()) == script()


def test_bash_reads_every_setting_as_it_was_given() -> None:
    settings = Settings(
        "ns/m:4b", "https://h/a'b.gguf", 12, "ab" * 32, ((1024, 128, 7), (2048, 128, 9)), 512, HOSTILE, "--temp 1"
    )
    assert bash_reads(fill_in(script(), settings)) == {
        "NAME": "ns/m:4b",
        "GGUF": "https://h/a'b.gguf",
        "MODEL_BYTES": "12",
        "MODEL_SHA256": "ab" * 32,
        "MEMORY": "1024:128:7 2048:128:9",
        "CTX": "512",
        "MODELFILE": HOSTILE,
        "LLAMA_FLAGS": "--temp 1",
    }


@settings(max_examples=60, deadline=None)
@given(st.text(st.one_of(st.sampled_from("'\"\\$`!#\n;&|<>(){}[]*?~ \t"), st.characters(codec="utf-8"))))
def test_any_text_is_read_back_or_refused(value: str) -> None:
    for field in ("gguf", "modelfile"):
        try:
            text = fill_in(script(), Settings(**{field: value}))
        except UsageError:
            assert not value.isprintable()
        else:
            assert bash_reads(text)[field.upper()] == value


@pytest.mark.parametrize("value", ["a\nb", "a\x00b", "a\x1b[2Jb", "a\u202eb", "a\x7fb"])
def test_a_control_character_is_refused(value: str) -> None:
    with pytest.raises(UsageError, match="a script cannot contain"):
        fill_in(script(), Settings(name=value))


def test_a_script_with_hostile_settings_is_clean_and_does_what_it_should(tmp_path: Path) -> None:
    phone = Phone(tmp_path / "phone")
    file = phone.home / """a'b"$(touch x)`touch x`;&.gguf"""
    file.write_bytes(GGUF)
    modelfile = without_phone_parameters(
        Modelfile(("m",), (("temperature", 0.5), ("stop", "'$(touch x)'")), system=HOSTILE)
    )
    text = fill_in(
        script(),
        Settings("model", file.name, len(GGUF), SHA256, ((1024, 128, 1_000_000),), modelfile=modelfile),
    )
    for command in (["shellcheck"], ["shfmt", "-i", "2", "-ci", "-d"]):
        done = subprocess.run(
            [tool(command[0]), *command[1:], "-"], input=text, capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stdout) == (0, "")
    try:
        ended = phone.run(script=text)
        assert ended.code == 0, ended.stderr
        made = parse_modelfile(phone.models()["model"]["modelfile"])
    finally:
        phone.put_out()
    assert phone.models()["model"]["sha256"] == SHA256
    assert made.system == HOSTILE
    assert dict(made.parameters)["stop"] == "'$(touch x)'"
    assert not [path for path in phone.root.rglob("x") if path.is_file()]


def test_the_script_has_the_phones_of_the_package() -> None:
    settings = dict(
        line.split("=", 1)
        for line in script().splitlines()
        if line.startswith(("PHONES=", "SMALLER_PHONE=", "CONTEXTS="))
    )
    assert shlex.split(settings["PHONES"]) == [
        " ".join(f"{phone.gigabytes}:{phone.n_ctx}:{phone.n_batch}" for phone in PHONES)
    ]
    assert shlex.split(settings["SMALLER_PHONE"]) == [f"{SMALLER[0]}:{SMALLER[1]}"]
    assert shlex.split(settings["CONTEXTS"]) == [" ".join(f"{ctx}:{batch}:0" for ctx, batch in RUNGS)]


@pytest.mark.parametrize("mebibytes", [3_700, 5_600, 7_500, 11_200])
def test_the_script_sees_the_room_that_the_package_sees(tmp_path: Path, mebibytes: int) -> None:
    stands = Phone(tmp_path / "phone", memory=mebibytes, available=100)
    assert f"room for a model {room(mebibytes << 20) / 1e9:.2f} GB" in stands.run("--dry-run").stdout


def test_a_phone_is_named_by_its_memory() -> None:
    assert [phone(text).gigabytes for text in ("8G", "8", "8GB", " 12 g", "8GiB")] == [8, 8, 8, 12, 8]
    assert (phone("10G").n_ctx, phone("10G").n_batch) == (4096, 512)
    assert (phone("3G").n_ctx, phone("3G").n_batch) == SMALLER
    assert phone("16G").context == Context(n_ctx=8192, n_batch=512, n_ubatch=512)
    assert [round(phone.room / 1e9, 2) for phone in PHONES] == [1.45, 3.24, 5.04, 8.64]
    for text in ("", "8M", "0G", "500G", "eight", "-8G", "8.5G"):
        with pytest.raises(UsageError, match="not a memory size that phones have"):
            phone(text)


def test_the_memory_filled_in_is_that_of_the_plan(gguf: Path) -> None:
    source = open_source(str(gguf))
    memory = phone_memory(source)
    assert [entry[:2] for entry in memory] == [rung for rung in RUNGS if rung[0] <= source.shape.context]
    for n_ctx, batch, need in memory:
        context = Context(n_ctx=n_ctx, n_batch=batch, n_ubatch=batch)
        assert plan_memory(source.shape, tensors_as_they_are(source.model), context).total == need
    assert [entry[:2] for entry in phone_memory(source, 777)] == [(777, 128), (777, 256), (777, 512)]
    source.model.close()


def test_parameters_become_llama_cpps_flags() -> None:
    parameters = (("temperature", 0.5), ("top_k", 20), ("stop", "x; rm -rf /"), ("num_ctx", 4096), ("use_mmap", True))
    assert llama_flags(parameters) == "--temp 0.5 --top-k 20"


@pytest.mark.parametrize("name", ["num_thread", "num_batch"])
def test_what_the_phone_decides_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match=f"{name} is chosen on the phone"):
        check_parameters(((name, 4),))


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("ftp://h/m.gguf", "not http"),
        ("https:///m.gguf", "not http"),
        ("https://me:secret@h/m.gguf", "password"),
        ("https://h/a b.gguf", "write them as %"),
        ("https://h/\u4f60.gguf", "write them as %"),
        ("https://h:port/m.gguf", "malformed"),
        ("https://[h/m.gguf", "malformed"),
    ],
)
def test_an_address_that_is_none_is_refused(url: str, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        check_url(url)


def test_a_file_is_named_by_the_addresss_last_part() -> None:
    assert file_name("https://h/a/My%20Model.gguf?download=true#x") == "My_Model.gguf"
    assert file_name("https://h/") == "model.gguf"
    assert file_name("https://h/..%2F..%2Fetc") == "etc"


@pytest.fixture
def hub() -> Hub:
    with running_hub() as hub:
        yield hub  # type: ignore[misc]


def serve(hub: Hub, data: bytes) -> str:
    hub.repos["me/model"] = Repo({"m-Q4_0.gguf": data})
    return f"{hub.endpoint}/me/model/resolve/main/m-Q4_0.gguf"


def test_of_a_gguf_afar_only_the_header_is_fetched(
    hub: Hub, gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = gguf.read_bytes() + bytes(20 << 20)
    url = serve(hub, data)
    remote = fetch_header(url, tmp_path)
    assert (remote.size, remote.sha256) == (len(data), None)
    assert wait_until(lambda: hub.sent(".gguf") == 1 << 20)
    near, far = open_source(str(gguf)), open_source(str(remote.path))
    assert (far.shape, tensors_as_they_are(far.model)) == (near.shape, tensors_as_they_are(near.model))
    # As the hub does: a redirect that tells the sha256.
    monkeypatch.setattr(hub_server, "WEIGHTS", (".gguf",))
    assert fetch_header(url, tmp_path).sha256 == hashlib.sha256(data).hexdigest()


def test_a_server_without_ranges_is_not_listened_to_the_end(hub: Hub, gguf: Path, tmp_path: Path) -> None:
    hub.ignore_ranges = True
    data = gguf.read_bytes()
    remote = fetch_header(serve(hub, data), tmp_path)
    assert remote.size == len(data)


def test_what_is_no_gguf_afar_is_a_sentence(hub: Hub, gguf: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"m-Q4_0\.gguf is not a sound GGUF"):
        fetch_header(serve(hub, random.Random(1).randbytes(5000)), tmp_path)
    with pytest.raises(CheckpointError, match=r"m-Q4_0\.gguf is not a sound GGUF"):
        fetch_header(serve(hub, gguf.read_bytes()[:3000]), tmp_path)


def test_an_address_that_gives_nothing_is_a_sentence(hub: Hub, gguf: Path, tmp_path: Path) -> None:
    url = serve(hub, gguf.read_bytes())
    with pytest.raises(HubError, match="answers 404"):
        fetch_header(url + "x", tmp_path)
    with pytest.raises(HubError, match=r"cannot be reached.*--offline"):
        fetch_header(f"{closed_port()}/m.gguf", tmp_path)
    hub.drops["m-Q4_0.gguf"] = Drop(after=1000, times=9)
    with pytest.raises((HubError, CheckpointError)):
        fetch_header(url, tmp_path)

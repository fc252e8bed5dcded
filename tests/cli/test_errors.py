"""Bad input, as a user meets it: one sentence that says what, where and what to do, and nothing under a final name."""

import importlib.util
import json
import os
import re
import shutil
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from quantkit.cli import load_command, main
from quantkit.cli.errors import explain
from quantkit.packed.registry import FORMATS
from tests.helpers.command import Answer, command, quantkit
from tests.helpers.tiny import tiny_llama


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("sound") / "model", variant="llama3", shards=2)


@pytest.fixture
def checkpoint(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "model"))


def first_shard(folder: Path) -> Path:
    return sorted(folder.glob("*.safetensors"))[0]


def split(file: Path) -> tuple[dict[str, dict[str, object]], bytes]:
    data = file.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def join(file: Path, header: dict[str, dict[str, object]], body: bytes) -> None:
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    file.write_bytes(struct.pack("<Q", len(text)) + text + body)


def edit_json(file: Path, **changes: object) -> None:
    value = json.loads(file.read_text())
    value.update(changes)
    file.write_text(json.dumps({key: item for key, item in value.items() if item is not None}))


def remove_a_shard(folder: Path) -> None:
    first_shard(folder).unlink()


def truncate_a_shard(folder: Path) -> None:
    file = first_shard(folder)
    file.write_bytes(file.read_bytes()[:-100])


def point_the_index_outside(folder: Path) -> None:
    index = folder / "model.safetensors.index.json"
    value = json.loads(index.read_text())
    value["weight_map"][next(iter(value["weight_map"]))] = "../elsewhere/model.safetensors"
    index.write_text(json.dumps(value))


def claim_an_absurd_header(folder: Path) -> None:
    file = first_shard(folder)
    file.write_bytes(struct.pack("<Q", 2**60) + file.read_bytes()[8:])


def overlap_two_tensors(folder: Path) -> None:
    header, body = split(first_shard(folder))
    names = [name for name in header if name != "__metadata__"]
    same = [n for n in names if header[n]["shape"] == header[names[0]]["shape"]]
    a, b = same[:2] if len(same) > 1 else names[:2]
    header[b]["data_offsets"] = header[a]["data_offsets"]
    join(first_shard(folder), header, body)


def put_nan_into_a_tensor(folder: Path) -> None:
    file = next(f for f in sorted(folder.glob("*.safetensors")) if "model.layers.1.mlp.up_proj.weight" in split(f)[0])
    header, body = split(file)
    start, _ = header["model.layers.1.mlp.up_proj.weight"]["data_offsets"]  # type: ignore[misc]
    poison = np.array([np.nan], dtype=ml_dtypes.bfloat16).tobytes()
    join(file, header, body[: start + 40] + poison + body[start + 42 :])


def drop_a_tensor(folder: Path) -> None:
    index = folder / "model.safetensors.index.json"
    value = json.loads(index.read_text())
    name = "model.layers.1.self_attn.k_proj.weight"
    file = folder / value["weight_map"].pop(name)
    header, body = split(file)
    # The bytes stay, under a name that every reader skips: a hole would be another error.
    header["model.layers.1.self_attn.rotary_emb.inv_freq"] = header.pop(name)
    value["weight_map"]["model.layers.1.self_attn.rotary_emb.inv_freq"] = file.name
    join(file, header, body)
    index.write_text(json.dumps(value))


def widen_the_config(folder: Path) -> None:
    edit_json(folder / "config.json", intermediate_size=640)


def name_an_unknown_architecture(folder: Path) -> None:
    edit_json(folder / "config.json", architectures=["LlamoForCausalLM"])


def make_the_pre_tokenizer_unknown(folder: Path) -> None:
    file = folder / "tokenizer.json"
    value = json.loads(file.read_text())
    value["pre_tokenizer"] = {
        "type": "Sequence",
        "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": "[a-z]{1,3}|[^a-z]+"}, "behavior": "Isolated", "invert": False},
            {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
        ],
    }
    file.write_text(json.dumps(value))


def shrink_the_embedding(folder: Path) -> None:
    vocab = json.loads((folder / "config.json").read_text())["vocab_size"]
    edit_json(folder / "config.json", vocab_size=vocab - 8)


def break_the_config(folder: Path) -> None:
    (folder / "config.json").write_text('{"architectures": [')


def remove_the_tokenizer(folder: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        (folder / name).unlink()


def add_a_foreign_tensor(folder: Path) -> None:
    edit_json(folder / "config.json", num_hidden_layers=1)


BAD: dict[Callable[[Path], None], tuple[str, ...]] = {
    remove_a_shard: ("model-00001-of-00002.safetensors",),
    truncate_a_shard: ("model-00001-of-00002.safetensors",),
    point_the_index_outside: ("../elsewhere/model.safetensors",),
    claim_an_absurd_header: ("model-00001-of-00002.safetensors", "1152921504606846976"),
    overlap_two_tensors: ("model-00001-of-00002.safetensors", "overlap"),
    put_nan_into_a_tensor: ("model.layers.1.mlp.up_proj.weight", "NaN"),
    drop_a_tensor: ("model.layers.1.self_attn.k_proj.weight", "missing"),
    widen_the_config: ("config.json", "640", "512"),
    name_an_unknown_architecture: ("LlamoForCausalLM", "nearest by name are LlamaForCausalLM"),
    make_the_pre_tokenizer_unknown: ("--pre",),
    shrink_the_embedding: ("vocab", "768"),
    break_the_config: ("config.json",),
    remove_the_tokenizer: ("tokenizer",),
    add_a_foreign_tensor: ("model.layers.1.", "config.json"),
}


def nothing_final(out: Path) -> None:
    assert not [path for path in out.rglob("*") if path.suffix == ".gguf"]
    assert not list(out.rglob("*.partial"))


@pytest.mark.parametrize("damage", BAD, ids=lambda damage: damage.__name__)
def test_a_bad_checkpoint_gets_one_sentence_naming_what_is_wrong(
    checkpoint: Path, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    damage(checkpoint)
    out = tmp_path / "out"
    answer = quantkit("gguf", checkpoint, "-t", "q4_0", "-t", "q8_0", "-o", out, "--no-logits")
    assert answer.code in (1, 2), answer.stderr
    for words in BAD[damage]:
        assert words in answer.sentence
    assert answer.stdout == ""
    nothing_final(out)


def test_an_adapter_folder_is_named_with_its_base_model(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "ORG/BASE"}))
    answer = quantkit("gguf", tmp_path, "-t", "q8_0", "-o", tmp_path / "out")
    assert answer.code == 1 and "an adapter (LoRA) for 'ORG/BASE'" in answer.sentence


def test_wrong_words_are_wrong_usage(sound: Path, tmp_path: Path) -> None:
    for words, expected in (
        (("-t", "q4_9"), "q4_0"),
        (("--tensor-type", "ffn_down"), "REGEX=TYPE"),
        (("--tensor-type", "ffn_down=q9"), "q9"),
        (("--split-max-size", "much"), "500M"),
        (("--split-max-size", "1k"), "tensor"),
        (("--max-ram", "1M"), "--max-ram"),
        (("--pre", "no-such"), "no-such"),
        (("--name", "../elsewhere"), "--name"),
        (("--name", ""), "--name '' is not a plain name"),
        (("--mirror", ""), "--mirror '' is not a web address"),
    ):
        answer = quantkit("gguf", sound, "-o", tmp_path / "out", *words)
        assert answer.code == 2, (words, answer.stderr)
        assert expected in answer.sentence
    nothing_final(tmp_path)
    choice = quantkit("gguf", sound, "--mtp", "none")
    assert choice.code == 2 and "Invalid value for '--mtp': 'none' is not one of 'keep'" in choice.stderr
    assert quantkit("gguf").code == 2
    assert quantkit("nonsense").code == 2


def test_a_type_asked_for_a_tensor_that_is_not_there_is_told(sound: Path, tmp_path: Path) -> None:
    words = ("gguf", sound, "-t", "q4_0", "-o", tmp_path, "--dry-run")
    answer = quantkit(*words, "--tensor-type", "ffn_dwon=q8_0", "--tensor-type", "attn_v=q8_0")
    assert answer.code == 0
    assert "ffn_dwon" in answer.stderr and "attn_v=" not in answer.stderr
    # norms are never quantized, so asking for a type of theirs does nothing either
    assert "attn_norm" in quantkit(*words, "--tensor-type", "attn_norm=q8_0").stderr
    assert "--tensor-type" not in quantkit(*words, "--tensor-type", "attn_v=q8_0").stderr
    answer = quantkit(*words, "-t", "bf16", "--tensor-type", "attn_v=q8_0")
    assert "--tensor-type has no effect on BF16, as in llama.cpp" in answer.stderr


def test_a_type_that_needs_an_imatrix_says_so(sound: Path, tmp_path: Path) -> None:
    answer = quantkit("gguf", sound, "-t", "iq2_xxs", "-o", tmp_path)
    assert answer.code == 1
    assert "--imatrix" in answer.sentence
    assert "IQ2_XXS" in answer.sentence
    nothing_final(tmp_path)


def test_an_output_that_exists_is_kept_without_force(sound: Path, tmp_path: Path) -> None:
    words = ("gguf", sound, "-t", "q8_0", "-o", tmp_path, "--no-logits")
    assert quantkit(*words).code == 0
    file = tmp_path / "model-GGUF" / "model-Q8_0.gguf"
    stamp = file.stat().st_mtime_ns
    answer = quantkit(*words)
    assert answer.code == 1
    assert "--force" in answer.sentence
    assert file.stat().st_mtime_ns == stamp
    assert not list(tmp_path.rglob("*.partial"))
    assert quantkit(*words, "--force").code == 0


def test_a_name_that_is_too_long_is_shown_in_part(sound: Path, tmp_path: Path) -> None:
    answer = quantkit("gguf", sound, "-t", "q4_0", "-o", ".", "--name", "x" * 300, cwd=tmp_path)
    assert answer.code == 1
    assert answer.sentence.endswith("xxx...: File name too long; use a shorter name") and len(answer.sentence) < 120
    nothing_final(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_named(sound: Path, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        answer = quantkit("gguf", sound, "-o", tmp_path)
    finally:
        tmp_path.chmod(0o700)
    assert answer.code == 1
    assert "-o" in answer.sentence


def in_a_small_tmpfs(sound: Path, mount: Path, size: str, *words: str) -> Answer:
    """Run with a tmpfs of `size` at `mount`, in a mount namespace of its own."""
    script = f'mount -t tmpfs -o size={size} none "{mount}" && exec "$@"'
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", script, "sh", *command("gguf", sound, "-o", mount, "--no-logits", *words)],
        capture_output=True,
        text=True,
        check=False,
    )
    return Answer(done.returncode, done.stdout, done.stderr)


def test_a_full_disk_is_known_before_work_starts(sound: Path, tmp_path: Path) -> None:
    probe = subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False)
    if probe.returncode:
        pytest.skip("this system gives no mount namespaces")
    answer = in_a_small_tmpfs(sound, tmp_path, "1m", "-t", "q8_0")
    assert answer.code == 1
    assert "free" in answer.sentence
    assert in_a_small_tmpfs(sound, tmp_path, "4m", "-t", "q8_0").code == 0


def test_a_source_that_is_nothing_known_is_one_sentence(tmp_path: Path) -> None:
    assert quantkit("gguf", tmp_path / "absent.gguf").code == 1
    (tmp_path / "broken.gguf").write_bytes(b"GGUF" + b"\xff" * 64)
    answer = quantkit("gguf", tmp_path / "broken.gguf")
    assert answer.code == 1
    assert "broken.gguf" in answer.sentence
    answer = quantkit("gguf", tmp_path)
    assert answer.code == 1
    assert "holds GGUF files, not a checkpoint; pass one of those files" in answer.sentence


def test_no_network_and_no_cache_are_one_sentence(tmp_path: Path) -> None:
    here = {"HF_HOME": str(tmp_path), "HF_ENDPOINT": "http://127.0.0.1:9"}
    answer = quantkit("gguf", "org/name", "-o", tmp_path, env=here)
    assert answer.code == 1
    assert "org/name" in answer.sentence
    offline = quantkit("gguf", "org/name", "-o", tmp_path, "--offline", env=here)
    assert offline.code == 1
    assert "org/name" in offline.sentence


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    answer = quantkit("gguf", tmp_path, "--debug")
    assert answer.code == 1
    assert "Traceback" in answer.stderr


def test_what_a_template_says_does_not_reach_the_terminal_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "loud.jinja").write_text("{{ raise_exception('\x1b[2J\x07gone') }}")
    answer = quantkit("gguf", "no/such-source", "--offline", "--chat-template", tmp_path / "loud.jinja")
    assert answer.code == 1
    assert "gone" in answer.stderr
    assert "\x1b" not in answer.stderr and "\x07" not in answer.stderr


def test_an_interrupt_is_one_sentence_too(
    sound: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("sys.argv", ["quantkit", "inspect", str(sound)])
    monkeypatch.setattr("quantkit.inspection.inspect_source", interrupted)
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 130
    sentence = capsys.readouterr().err
    assert sentence.startswith("quantkit: interrupted; ") and sentence.count("\n") == 1


@pytest.mark.parametrize("megabytes", [60, 250, 410, 480])
def test_a_small_address_space_is_one_sentence(sound: Path, tmp_path: Path, megabytes: int) -> None:
    """OpenBLAS ended the process while it was loaded, or hung."""
    limited = ["sh", "-c", f'ulimit -v {megabytes * 1000}; exec "$@"', "sh", *command("gguf", sound, "-o", tmp_path)]
    done = subprocess.run(limited, capture_output=True, text=True, timeout=60, check=False)
    answer = Answer(done.returncode, done.stdout, done.stderr)
    assert answer.code == 2 and "ulimit -v" in answer.sentence


def test_a_thread_that_cannot_start_is_one_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr("quantkit.cli.app", refuse)
    answer = quantkit("inspect", tmp_path)
    assert answer.code == 1 and "use fewer --threads" in answer.sentence


@pytest.mark.parametrize("rust_threads", ["1", "2000"])
def test_too_little_address_space_sets_nothing_aside(sound: Path, tmp_path: Path, rust_threads: str) -> None:
    """The stacks of 2000 threads take 4 GB: the pool of the tokenizers library panics."""
    limited = ["sh", "-c", 'ulimit -v 600000; exec "$@"', "sh", *command("gguf", sound, "-o", tmp_path)]
    environment = {**os.environ, "RAYON_NUM_THREADS": rust_threads}
    done = subprocess.run(limited, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert not list(tmp_path.rglob("*.failed")), done.stderr
    if rust_threads == "2000":
        assert done.returncode == 1
        assert "the tokenizers library got no memory or no thread; raise the limits" in done.stderr
    else:
        assert done.returncode in (0, 1) and "unexpected" not in done.stderr, done.stderr


FULL = {
    "CUDA out of memory. Tried to allocate 2.00 GiB.": "OutOfMemoryError",
    "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`": "RuntimeError",
    "Triton Error [CUDA]: out of memory": "RuntimeError",
}


@pytest.mark.parametrize("text", FULL)
def test_a_full_gpu_is_one_sentence(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    """By the name of torch's class, because torch is not imported where it is not used; libraries of CUDA use words."""
    full = type(FULL[text], (RuntimeError,), {"__module__": "torch"})
    with pytest.raises(SystemExit) as ended, explain():
        raise full(text)
    assert ended.value.code == 1
    assert capsys.readouterr().err == (
        "quantkit: the GPU's memory is full; end other programs on it, or add --device cpu\n"
    )


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("gguf", "model", "-t", "AWQ"), "'AWQ' is not a GGUF type; write it with quantkit convert -t awq"),
        (("gguf", "model", "-t", "imatrix"), "'imatrix' is not a GGUF type; write it with quantkit convert -t imatrix"),
        (("convert", "model", "-t", "nf5"), "lists the types of GGUF; others are awq, gptq, w4a16"),
        (("ggfu", "model"), "No such command 'ggfu'; the nearest is gguf."),
        (("quantise", "model"), "No such command 'quantise'."),
        (("chat", "model.gguf"), "No such command 'chat'; the nearest is run."),
    ],
)
def test_a_mistyped_command_or_a_type_of_another_command_is_told_what_to_write(
    words: tuple[str, ...], reason: str
) -> None:
    answer = quantkit(*words)
    assert answer.code == 2
    assert reason in " ".join(answer.stderr.split())


def test_a_required_package_that_is_missing_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit), explain():
        raise ModuleNotFoundError("No module named 'jinja2.sandbox'", name="jinja2.sandbox")
    assert capsys.readouterr().err == (
        "quantkit: the Python package jinja2 is not installed, which quantkit requires; run: pip install quantkit\n"
    )


def test_logits_that_are_requested_need_llama_cpp(sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    absent = ("llama_cpp", "xllamacpp")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name in absent else find(name, *more))
    answer = quantkit("gguf", sound, "-t", "q8_0", "--logits", "-o", tmp_path)
    assert "needs llama.cpp; run: pip install 'quantkit[run]'" in answer.sentence
    assert not list(tmp_path.iterdir())


def test_the_help_of_convert_names_every_folder() -> None:
    (option,) = (option for option in load_command("convert").params if "-t" in option.opts)
    assert set(FORMATS) <= set(re.findall(r"[\w-]+", getattr(option, "help", "")))

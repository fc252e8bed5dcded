"""`--adapter` on the commands that convert: the outputs are those of a merged checkpoint, and the record says so."""

import json
import shutil
from pathlib import Path

import pytest

from demo.safetensors_file import write_safetensors
from quantkit.adapters import AdapterRequest
from quantkit.checkpoint import open_checkpoint
from quantkit.errors import PassingError
from quantkit.families import open_model
from quantkit.outputs.opening import merge_adapters
from tests.helpers.adapters import AdapterCase, adapter_settings, write_adapter
from tests.helpers.command import quantkit
from tests.helpers.hub_server import Repo, running_hub
from tests.helpers.tiny import tiny_llama

TYPES = ("-t", "f16", "-t", "q4_0", "-t", "q4_k_m", "-t", "awq", "-t", "gptq", "-t", "imatrix")
QUICK = ("--samples", "2", "--seq-len", "32", "--group-size", "32")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("base") / "base", variant="llama3", hidden=256, intermediate=256)


@pytest.fixture(scope="module")
def adapter(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    case = AdapterCase(saved=("lm_head.weight",), settings={"use_dora": True})
    return write_adapter(tmp_path_factory.mktemp("adapter") / "chat", base, case)


def merged_checkpoint(base: Path, adapter: Path, folder: Path, scale: float = 1.0) -> Path:
    """The checkpoint that a merge into files would be: the base's files, with the merged weights in its types."""
    shutil.copytree(base, folder)
    with open_checkpoint(str(base)) as plain:
        dtypes = {name: tensor.dtype for name, tensor in plain.tensors.items()}
    with open_model(str(base)) as opened:
        merge_adapters(opened, [AdapterRequest(str(adapter), scale)])
        arrays = {
            name: (dtypes[name], opened.read_rows(name, 0, tensor.n_rows).reshape(tensor.shape))
            for name, tensor in opened.tensors.items()
        }
    write_safetensors(folder / "model.safetensors", arrays)
    return folder


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "quantkit.json"
    }


def test_every_type_has_the_bytes_of_a_merged_checkpoint(base: Path, adapter: Path, tmp_path: Path) -> None:
    merged = merged_checkpoint(base, adapter, tmp_path / "base-chat", scale=0.5)
    one = quantkit(
        "convert", base, "--adapter", adapter, "--adapter-scale", "0.5", *TYPES, *QUICK, "-o", tmp_path / "a"
    )
    assert one.code == 0, one.stderr
    other = quantkit("convert", merged, *TYPES, *QUICK, "-o", tmp_path / "b")
    assert other.code == 0, other.stderr
    assert files(tmp_path / "a") == files(tmp_path / "b")
    # the weights of the base are left as they were, and no other file was written
    assert {path.name for path in (tmp_path / "a").iterdir()} == {
        "base-chat-GGUF",
        "base-chat-AWQ",
        "base-chat-GPTQ",
        "base-chat-imatrix.gguf",
        "quantkit.json",
    } - (set() if (tmp_path / "a" / "quantkit.json").exists() else {"quantkit.json"})


def test_the_record_inspect_and_the_card_name_the_adapter(base: Path, adapter: Path, tmp_path: Path) -> None:
    words = ("--adapter", adapter, "--adapter-scale", "0.5", "-t", "q8_0", "-o", tmp_path)
    answer = quantkit("gguf", base, *words, "--format", "json")
    assert answer.code == 0, answer.stderr
    folder = tmp_path / "base-chat-GGUF"
    (entry,) = json.loads((folder / "quantkit.json").read_text())["outputs"].values()
    (record,) = entry["origin"]["adapters"]
    assert record == json.loads(answer.stdout)["origin"]["adapters"][0]
    assert (record["source"], record["kind"], record["rank"], record["scale"]) == ("chat", "DoRA", 4, 0.5)
    shown = quantkit("inspect", folder / "base-chat-Q8_0.gguf")
    assert "merged with chat (DoRA of rank 4, times 0.5)" in " ".join(shown.stdout.split())
    assert quantkit("card", folder).code == 0
    assert "adapter merged into it: chat (DoRA of rank 4, times 0.5)" in (folder / "README.md").read_text()


def test_a_resumed_run_refuses_a_changed_adapter_or_scale(base: Path, tmp_path: Path) -> None:
    from quantkit.conversion import run as run_module

    adapter = write_adapter(tmp_path / "chat", base, AdapterCase(("q_proj",)))
    words = ("gguf", base, "--adapter", adapter, "-t", "q4_0", "--no-logits", "-o", tmp_path / "out")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_module, "write_records", _stop)
        assert quantkit(*words).code != 0
    assert (tmp_path / "out" / "base-chat-conversion.partial").exists()
    assert "unfinished run with --adapter-scale 1 (now 2);" in quantkit(*words, "--adapter-scale", "2").sentence
    settings = (adapter / "adapter_config.json").read_text()
    adapter_settings(adapter, lora_alpha=7)
    assert "unfinished run with another adapter;" in quantkit(*words).sentence
    (adapter / "adapter_config.json").write_text(settings)
    (adapter / "adapter_model.safetensors").rename(tmp_path / "kept")
    write_adapter(adapter, base, AdapterCase(("q_proj",), seed=1))
    assert "unfinished run with another adapter;" in quantkit(*words).sentence
    (tmp_path / "kept").replace(adapter / "adapter_model.safetensors")
    resumed = quantkit(*words, "--format", "json")
    assert resumed.code == 0, resumed.stderr
    assert json.loads(resumed.stdout)["resumed_tensors"] > 0


def _stop(*_: object, **__: object) -> None:
    raise PassingError("stopped")


@pytest.mark.parametrize("command", ["awq", "gptq", "imatrix"])
def test_the_presets_take_adapters(command: str, base: Path, adapter: Path, tmp_path: Path) -> None:
    words = ["--dry-run", "--format", "json", "--samples", "2", "--seq-len", "32"]
    group = [] if command == "imatrix" else ["--group-size", "32", "-o", str(tmp_path)]
    answer = quantkit(command, base, "--adapter", adapter, *words, *group)
    assert answer.code == 0, answer.stderr
    assert json.loads(answer.stdout)["origin"]["adapters"][0]["source"] == "chat"


def test_an_adapter_of_the_hub_is_fetched_and_recorded_with_its_commit(
    base: Path, adapter: Path, tmp_path: Path
) -> None:
    contents = {path.name: path.read_bytes() for path in adapter.iterdir()}
    with running_hub() as hub:
        hub.repos["ORG/chat"] = Repo({**contents, "adapter_model.bin": b"x" * 5000, "training_args.bin": b"x" * 5000})
        env = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "home")}
        words = ("gguf", base, "--adapter", "ORG/chat", "-t", "q8_0", "--no-logits", "-o", tmp_path, "--format", "json")
        answer = quantkit(*words, env=env)
        assert answer.code == 0, answer.stderr
        (record,) = json.loads(answer.stdout)["origin"]["adapters"]
        assert (record["source"], record["revision"]) == ("ORG/chat", hub.repos["ORG/chat"].commit)
        assert not hub.sent("adapter_model.bin") and not hub.sent("training_args.bin")
    offline = quantkit(*words, "--offline", "--force", env=env)
    assert offline.code == 0, offline.stderr
    missing = quantkit(*words, "--offline", env={**env, "HF_HOME": str(tmp_path / "empty")})
    assert missing.code == 1 and "ORG/chat" in missing.sentence

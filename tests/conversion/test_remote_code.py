"""Folders of models whose code comes with the checkpoint (auto_map): it is copied with its imports, and never run."""

import hashlib
import json
from pathlib import Path

import pytest

from quantkit.checkpoint.remote_code import LARGEST, references, with_imports
from tests.families.expected import write_checkpoint
from tests.helpers.command import quantkit
from tests.helpers.hub_server import Repo, running_hub
from tests.helpers.modelscope_server import modelscope_handler

RUN = "raise SystemExit('the code of the source was executed')\n"
_BODIES = {
    "configuration_decilm.py": "from transformers import PretrainedConfig\n",
    "modeling_decilm.py": "from .configuration_decilm import DeciLMConfig\nfrom .parts.blocks import Block\n",
    "parts/__init__.py": "",
    "parts/blocks.py": "from . import rope, UNKNOWN\nfrom ..configuration_decilm import DeciLMConfig\n",
    "parts/rope.py": "try:\n    from . import (\n        cache,  # of keys\n        o as p,\n    )\nexcept E: ...\n",
    "parts/cache.py": "",
    "tokenization_decilm.py": "",
}
# no two are equal, because the hub's cache has equal files once
CODE = {name: f"# {name}\n{RUN}{body}" for name, body in _BODIES.items()}
NOT_NAMED = {"setup.py": RUN, "parts/unused.py": RUN, "secret.py": "KEY = 1\n"}
AUTO_MAP = {
    "AutoConfig": "configuration_decilm.DeciLMConfig",
    "AutoModelForCausalLM": "modeling_decilm.DeciLMForCausalLM",
    "AutoModel": "other-org/code--modeling_decilm.DeciLMModel",
}
REPO = "some-org/Deci"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = write_checkpoint("nemotron-nas", tmp_path / "Deci")
    for name, text in (CODE | NOT_NAMED).items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    for name, auto_map in (
        ("config.json", AUTO_MAP),
        ("tokenizer_config.json", {"AutoTokenizer": ["tokenization_decilm.DeciTokenizer", None]}),
    ):
        document = json.loads((folder / name).read_text()) | {"auto_map": auto_map}
        (folder / name).write_text(json.dumps(document))
    return folder


def code_of(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*.py")}


def test_a_folder_has_the_named_code_with_its_imports_and_says_so(source: Path, tmp_path: Path) -> None:
    answer = quantkit("convert", source, "-t", "fp8", "-o", tmp_path / "out")
    assert answer.code == 0, answer.stderr
    written = tmp_path / "out" / "Deci-FP8"
    assert code_of(written) == CODE
    assert json.loads((written / "config.json").read_text())["auto_map"] == AUTO_MAP
    sentences = " ".join(answer.stderr.split())
    assert (
        "the folder gets 7 Python files of the source (configuration_decilm.py, modeling_decilm.py, parts/__init__.py"
        " and 4 more) and names code of other-org/code, which quantkit does not run; a loader without its own class of"
        " DeciLMForCausalLM or of its tokenizer runs it, and needs trust_remote_code"
    ) in sentences
    assert "the source has no" not in sentences
    (entry,) = json.loads((written / "quantkit.json").read_text())["outputs"].values()
    hashes = {name: hashlib.sha256(text.encode()).hexdigest() for name, text in CODE.items()}
    assert entry["remote_code"] == {"files": hashes, "repositories": ["other-org/code"]}

    assert quantkit("card", written).code == 0
    card = (written / "README.md").read_text()
    assert "`modeling_decilm.py`" in card and "needs `trust_remote_code`" in card


def test_calibrated_and_repacked_folders_have_it_too(source: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("The quick brown fox jumps over the lazy dog. " * 100)
    words = ("--group-size", "32", "--calibration", text, "--samples", "2", "--seq-len", "48", "--no-logits")
    answer = quantkit("gptq", source, *words, "-o", tmp_path)
    assert answer.code == 0, answer.stderr
    assert code_of(tmp_path / "Deci-GPTQ") == CODE
    answer = quantkit("convert", tmp_path / "Deci-GPTQ", "-t", "w4a16", "-o", tmp_path)
    assert answer.code == 0, answer.stderr
    assert code_of(tmp_path / "Deci-W4A16") == CODE
    (entry,) = json.loads((tmp_path / "Deci-W4A16" / "quantkit.json").read_text())["outputs"].values()
    assert entry["remote_code"]["files"].keys() == CODE.keys()


def test_the_account_of_the_disk_includes_the_code(source: Path, tmp_path: Path) -> None:
    def disk() -> int:
        answer = quantkit("convert", source, "-t", "fp8", "--dry-run", "--format", "json", "-o", tmp_path / "out")
        size: int = json.loads(answer.stdout)["disk_bytes"]
        return size

    before = disk()
    (source / "parts" / "cache.py").write_text(CODE["parts/cache.py"] + "#" * 100_000)
    assert disk() == before + 100_000


def test_links_out_of_the_folder_and_what_is_too_large_are_named_and_not_copied(source: Path, tmp_path: Path) -> None:
    secret = tmp_path / "elsewhere.py"
    secret.write_text("KEY = 'secret'\n")
    (source / "configuration_decilm.py").unlink()
    (source / "configuration_decilm.py").symlink_to(secret)
    (source / "parts" / "blocks.py").write_text("from ...outside import x\nfrom .large import y\nfrom .gone import z\n")
    (source / "parts" / "large.py").write_text("#" * (LARGEST + 1))
    (source / "link.py").write_text("# inside the folder\n")
    (source / "tokenization_decilm.py").unlink()
    (source / "tokenization_decilm.py").symlink_to("link.py")
    answer = quantkit("convert", source, "-t", "fp8", "--format", "json", "-o", tmp_path / "out")
    assert answer.code == 0, answer.stderr
    written = tmp_path / "out" / "Deci-FP8"
    assert code_of(written).keys() == {
        "modeling_decilm.py",
        "parts/__init__.py",
        "parts/blocks.py",
        "tokenization_decilm.py",
    }
    assert not any(path.is_symlink() for path in written.rglob("*"))
    warning = (
        "the source has no ../outside.py, configuration_decilm.py, parts/gone.py and 1 more, which its code or auto_map"
        " names; copy what is missing into the folder if a loader needs it"
    )
    assert warning in json.loads(answer.stdout)["warnings"]


def test_the_snapshot_of_a_hub_has_links_into_its_cache(source: Path, tmp_path: Path) -> None:
    snapshot = tmp_path / "models--some-org--Deci" / "snapshots" / ("a" * 40)
    blobs = snapshot.parents[1] / "blobs"
    blobs.mkdir(parents=True)
    for path in sorted(source.rglob("*")):
        target = snapshot / path.relative_to(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.is_file():
            blob = blobs / hashlib.sha256(path.read_bytes() + path.name.encode()).hexdigest()
            path.rename(blob)
            target.symlink_to(blob)
    answer = quantkit("convert", snapshot, "-t", "fp8", "-o", tmp_path / "out")
    assert answer.code == 0, answer.stderr
    assert code_of(tmp_path / "out" / "Deci-FP8") == CODE


@pytest.mark.parametrize("words", [(), ("--stream",), ("--stream", "modelscope")])
def test_a_hub_gives_the_named_code_only(source: Path, tmp_path: Path, words: tuple[str, ...]) -> None:
    modelscope = "modelscope" in words
    files = {path.relative_to(source).as_posix(): path.read_bytes() for path in source.rglob("*") if path.is_file()}
    del files["parts/cache.py"]
    with running_hub(*([modelscope_handler] if modelscope else [])) as hub:
        hub.repos[REPO] = Repo(files, revisions=("master",) if modelscope else ("main",))
        env = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0"}
        env |= {"MODELSCOPE_ENDPOINT": hub.endpoint, "MODELSCOPE_CACHE": str(tmp_path / "cache")}
        name = f"modelscope:{REPO}" if modelscope else REPO
        stream = ("--stream", "--no-logits") if words else ()
        answer = quantkit("convert", name, *stream, "-t", "fp8", "-o", tmp_path / "out", env=env)
        assert answer.code == 0, answer.stderr
    (snapshot,) = tmp_path.glob("cache/models/*/snapshots/*" if modelscope else "home/hub/*/snapshots/*")
    fetched = {path.relative_to(snapshot).as_posix() for path in snapshot.rglob("*.py")}
    # a name that an import may only mean as a value is not asked for if it is not in the list
    assert fetched == CODE.keys() - {"parts/cache.py"}
    assert code_of(tmp_path / "out" / "Deci-FP8") == {n: text for n, text in CODE.items() if n != "parts/cache.py"}


def test_a_gguf_does_not_fetch_code(source: Path, tmp_path: Path) -> None:
    files = {path.relative_to(source).as_posix(): path.read_bytes() for path in source.rglob("*") if path.is_file()}
    with running_hub() as hub:
        hub.repos[REPO] = Repo(files)
        env = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0"}
        answer = quantkit("convert", REPO, "-t", "q8_0", "--no-imatrix", "--no-logits", "-o", tmp_path, env=env)
        assert answer.code == 0, answer.stderr
        assert not any(hub.sent(path) for path in files if path.endswith(".py"))


def test_a_model_that_gets_the_class_of_transformers_keeps_the_code_of_its_tokenizer_only(tmp_path: Path) -> None:
    folder = write_checkpoint("internlm3", tmp_path / "Intern")
    config = json.loads((folder / "config.json").read_text())
    assert "auto_map" in config
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
    tokenizer["auto_map"] = {"AutoTokenizer": ["tokenization_intern.Tokenizer", None]}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    (folder / "tokenization_intern.py").write_text(RUN)
    (folder / "modeling_internlm3.py").write_text(RUN)
    answer = quantkit("convert", folder, "-t", "fp8", "-o", tmp_path / "out")
    assert answer.code == 0, answer.stderr
    written = tmp_path / "out" / "Intern-FP8"
    assert code_of(written).keys() == {"tokenization_intern.py"}
    assert "auto_map" not in json.loads((written / "config.json").read_text())


def test_references_that_lead_elsewhere_or_are_no_names_are_left_out() -> None:
    wrong = ["../x.C", "/etc/x.C", "a.b.C", "x", "x y.C", "org/name--../x.C", 3, None, ["ok/inner.C", ["deeper.C"]]]
    auto_map = {str(number): reference for number, reference in enumerate(wrong)}
    assert references([{"auto_map": auto_map}, {"auto_map": ["x.C"]}, {}]) == (("ok/inner.py",), ())


def test_code_that_names_thousands_of_files_ends_soon() -> None:
    asked: list[str] = []

    def read(name: str) -> bytes | None:
        asked.append(name)
        return b"".join(b"from .%s%d import x\n" % (name[:-3].encode(), number) for number in range(200))

    found, _ = with_imports(["a.py"], read)
    assert len(found) == 64 and len(asked) < 20_000
    _, missing = with_imports(["a.py"], lambda name: b"from .b import x\n" * 10_000 if name == "a.py" else None)
    assert missing == ("b.py",)

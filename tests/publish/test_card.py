"""Model cards: what is in them and from where, that hostile names stay names, that the hub takes them.

huggingface_hub's ModelCard.validate() asks the hub itself, whose rules are on its side: beyond what is checked here
(tests/helpers/upload_hub.py has the rules of its documentation) it knows whether base_model exists, and warns of a
pipeline_tag or library_name that it has no page for. Pushing a folder asks it before anything is sent (test_hub.py).
"""

import copy
import json
import re
import shlex
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard
from huggingface_hub.repocard import metadata_load
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from quantkit.errors import CheckpointError, OutputError, PublishError, UsageError
from quantkit.publish.card.card import CardModel, write_card
from quantkit.publish.card.escaping import block, code, plain
from quantkit.publish.card.metadata import LICENSES, Metadata, front_matter
from quantkit.publish.card.usage import LOADERS
from quantkit.publish.card.usage import tested as loaders_tested
from tests.helpers.command import quantkit
from tests.helpers.examples import examples
from tests.helpers.tiny import tiny_llama
from tests.helpers.upload_hub import check_metadata

FULL = CardModel(
    name="Tiny",
    base_model="some-org/Tiny",
    license="Apache-2.0",
    languages=("en", "zh"),
    ollama_name="me/tiny",
    hub_repo="me/Tiny-GGUF",
)


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model as GGUF (an importance matrix and two types), AWQ and GPTQ, by the command line."""
    root = tmp_path_factory.mktemp("card")
    tiny_llama(root / "Tiny", variant="llama3", hidden=128, intermediate=256)
    text = root / "text.txt"
    text.write_text("The quick brown fox jumps over the lazy dog. " * 400)
    small = ("--calibration", text, "--samples", "8", "--seq-len", "64", "--group-size", "64")
    made = quantkit(
        *("convert", "Tiny", "-t", "q4_0", "-t", "q8_0", "-t", "awq", "-t", "gptq", "-o", "out", *small), cwd=root
    )
    assert made.code == 0, made.stderr
    return root / "out"


@pytest.fixture
def gguf(outputs: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(outputs / "Tiny-GGUF", tmp_path / "Tiny-GGUF"))


def report_of(folder: Path) -> dict[str, Any]:
    """A report with figures of the folder's two files and the reference."""
    models: list[dict[str, Any]] = [
        {"name": "Tiny", "label": "bf16", "role": "reference", "kind": "hf", "path": "Tiny", "bytes": 2_000_000}
        | {"bits_per_weight": 16.0, "quality": [{"text": "wiki", "perplexity": {"value": 20.0, "error": 1.5}}]}
    ]
    for number, path in enumerate(sorted(folder.glob("*.gguf"))):
        kl = {"mean": 0.25 / 8**number, "error": 0.004 / 8**number, "p99": 1.0}
        quality = {
            "text": "wiki",
            "perplexity": {"value": 23.0 - number, "error": 1.7},
            "perplexity_ratio": {"value": 1.15 - number * 0.1, "error": 0.012},
            "kl": kl,
            "top1": {"value": 0.8 + number * 0.1, "error": 0.006},
        }
        memory = {
            "gpu_layers": 0,
            "n_ctx": 4096,
            "devices": [{"name": "CPU", "weights": 4e9 * (number + 1), "kv": 1e8}],
        }
        models.append(
            {"name": path.stem, "label": path.stem.partition("-")[2].lower(), "role": "candidate", "kind": "gguf"}
            | {"path": path.name, "bytes": path.stat().st_size, "bits_per_weight": 4.6 + 4 * number}
            | {"quality": [quality], "memory": [memory]}
        )
    return {
        "quantkit": "0.1.0",
        "machine": {"cpu": "A CPU", "cores": 2, "memory_bytes": 24e9, "gpus": []},
        "settings": {"ctx": 512},
        "texts": [{"name": "wiki", "chunks": 20, "scored_tokens": 5100}],
        "models": models,
    }


def card_of(folder: Path, kind: str = "gguf", model: CardModel = FULL, **more: Any) -> str:
    return write_card(folder, kind=kind, model=model, **more).read_text("utf-8")


def section(text: str, heading: str) -> str:
    return re.split(r"^## ", text.partition(f"## {heading}\n")[2], flags=re.MULTILINE)[0]


def rows(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in text.splitlines() if line[:1] == "|"]


def test_the_hubs_metadata_says_what_is_known_and_is_read_back_by_its_client(gguf: Path) -> None:
    text = card_of(gguf)
    assert (
        metadata_load(gguf / "README.md")
        == ModelCard(text).data.to_dict()
        == {
            "base_model": "some-org/Tiny",
            "base_model_relation": "quantized",
            "language": ["en", "zh"],
            "license": "apache-2.0",
            "pipeline_tag": "text-generation",
            "quantized_by": "me",
            "inference": False,
            "tags": ["gguf", "llama.cpp", "ollama", "imatrix", "conversational", "quantkit"],
        }
    )
    check_metadata(text)
    card = ModelCard.load(gguf / "README.md")
    assert ModelCard(str(card)).data.to_dict() == card.data.to_dict()


@pytest.mark.parametrize("kind", ["awq", "gptq"])
def test_a_folder_for_gpus_says_its_library_and_bits(outputs: Path, tmp_path: Path, kind: str) -> None:
    folder = Path(shutil.copytree(outputs / f"Tiny-{kind.upper()}", tmp_path / "Folder"))
    text = card_of(folder, kind, CardModel("Tiny", "some-org/Tiny", hub_repo=f"me/Tiny-{kind.upper()}"))
    fields = metadata_load(folder / "README.md")
    assert fields["library_name"] == "transformers" and fields["tags"][:2] == [kind, "4-bit"]
    check_metadata(text)
    assert f"vllm serve me/Tiny-{kind.upper()}\n" in text and f'name = "me/Tiny-{kind.upper()}"' in text
    python = re.search(r"```python\n(.*?)```", text, re.DOTALL)
    assert python is not None
    compile(python[1], "card", "exec")
    assert "folders of LlamaForCausalLM were loaded" in text and "llama-cli" not in text
    made = section(text, "How it was made")
    assert "group size 64" in made and "14 linears quantized" in made and "text.txt, 8 samples of 64 tokens" in made


def test_what_is_absent_is_left_out(gguf: Path) -> None:
    (gguf / "quantkit.json").unlink()
    text = card_of(gguf, model=CardModel("Tiny"))
    assert metadata_load(gguf / "README.md") == {
        "pipeline_tag": "text-generation",
        "inference": False,
        "tags": ["gguf", "llama.cpp", "ollama", "conversational", "quantkit"],
    }
    assert "None" not in text and "-hf" not in text and "ollama run" not in text and "licence" not in text
    assert "was not measured" in text and "no record of how" in text and "checked" not in text
    assert "(not measured)" in section(text, "Which file to choose")
    check_metadata(text)


def test_the_table_has_a_row_a_file_with_its_own_figures_and_their_errors(gguf: Path) -> None:
    table = rows(section(card_of(gguf, report=report_of(gguf)), "Files"))
    sizes = {path.name: path.stat().st_size for path in gguf.glob("*.gguf")}
    assert [row[:2] for row in table[2:]] == [
        ["bf16", "(reference)"],
        ["[Tiny-Q4_0.gguf](Tiny-Q4_0.gguf)", "Q4_0"],
        ["[Tiny-Q8_0.gguf](Tiny-Q8_0.gguf)", "Q8_0"],
    ]
    assert [row[4:] for row in table[2:]] == [
        ["20.00 ± 1.50", "–", "–", "–"],
        ["23.00 ± 1.70", "+15.0% ± 1.2%", "0.2500 ± 0.0040", "80.00% ± 0.60%"],
        ["22.00 ± 1.70", "+5.0% ± 1.2%", "0.03125 ± 0.00050", "90.00% ± 0.60%"],
    ]
    for row, size in zip(table[3:], sorted(sizes.values()), strict=True):
        assert float(row[2].split()[0]) * {"kB": 1e3, "MB": 1e6}[row[2].split()[1]] == pytest.approx(size, rel=0.006)


def test_a_table_of_each_text_where_there_are_several(gguf: Path) -> None:
    report = report_of(gguf)
    report["texts"].append({"name": "红楼梦.txt", "chunks": 2, "scored_tokens": 510})
    for model in report["models"]:
        other = copy.deepcopy(model["quality"][0]) | {"text": "红楼梦.txt"}
        other["perplexity"]["value"] += 10
        model["quality"].append(other)
    files = section(card_of(gguf, report=report), "Files")
    assert "On 红楼梦.txt:" in files and "33.00 ± 1.70" in files.partition("On 红")[2]
    assert "23.00 ± 1.70" in files.partition("On 红")[0]


def test_which_to_take_goes_by_the_memory_that_was_measured(gguf: Path) -> None:
    text = section(card_of(gguf, report=report_of(gguf)), "Which file to choose")
    # 4.1 GB and 8.1 GB with a quarter of the memory to spare: 5.47 and 10.8 GB
    assert re.findall(r"With (\d+) GB of memory or more: \*\*(\w+)\*\*, ([\d.]+) GB", text) == [
        ("6", "Q4_0", "4.10"),
        ("12", "Q8_0", "8.10"),
    ]
    assert text.count("with a context of 4,096 tokens (measured)") == 2


def test_figures_of_other_files_are_refused(gguf: Path) -> None:
    report = report_of(gguf)
    report["models"][1]["bytes"] += 1
    with pytest.raises(PublishError, match=r"measured Tiny-Q4_0\.gguf with \d+ bytes.*measure it again"):
        write_card(gguf, kind="gguf", model=FULL, report=report)
    assert not (gguf / "README.md").exists()


def test_a_file_that_is_not_the_recorded_one_or_is_damaged_is_refused(gguf: Path) -> None:
    path = gguf / "Tiny-Q8_0.gguf"
    whole = path.read_bytes()
    path.write_bytes(whole + b"\0")
    with pytest.raises(PublishError, match="another file"):
        write_card(gguf, kind="gguf", model=FULL)
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="Q8_0"):
        write_card(gguf, kind="gguf", model=FULL)


def test_how_it_was_made_is_what_quantkit_json_records(gguf: Path) -> None:
    record = json.loads((gguf / "quantkit.json").read_text())
    entry = next(iter(record["outputs"].values()))
    made = section(card_of(gguf), "How it was made")
    calibration = entry["calibration"]
    assert f"calibration text: text.txt, 8 samples of 64 tokens, sha256 `{calibration['sha256']}`" in made
    assert f"sha256 `{entry['options']['imatrix']['sha256']}`" in made
    assert entry["origin"]["header_sha256"]["model.safetensors"] in made
    assert f"quantkit {entry['tool']['version']}, {entry['written'][:10]}" in made
    assert re.search(r"Q4_0: \d+ Q4_0, ", made)


def test_every_calibration_text_is_named(gguf: Path) -> None:
    path = gguf / "quantkit.json"
    record = json.loads(path.read_text())
    for entry in record["outputs"].values():
        entry["calibration"] |= {
            "text": ["the default text", "own.txt"],
            "sha256": ["a1", "b2"],
            "samples_per_text": [4, 4],
        }
    path.write_text(json.dumps(record))
    made = section(card_of(gguf), "How it was made")
    assert "calibration texts: the default text and own.txt, 8 samples of 64 tokens, sha256 `a1` and `b2`" in made


def test_the_revision_of_a_source_on_the_hub_and_its_id_come_from_the_record(gguf: Path) -> None:
    record = json.loads((gguf / "quantkit.json").read_text())
    for entry in record["outputs"].values():
        entry["origin"] |= {"source": "their-org/Base@main", "revision": "0123456789abcdef" * 2}
    (gguf / "quantkit.json").write_text(json.dumps(record))
    text = card_of(gguf, model=CardModel("Tiny"))
    assert metadata_load(gguf / "README.md")["base_model"] == "their-org/Base"
    assert f"revision `{'0123456789abcdef' * 2}`" in text
    assert "[their-org/Base](https://huggingface.co/their-org/Base)" in text


def test_plots_are_copied_beside_and_linked(gguf: Path, tmp_path: Path) -> None:
    plots = tmp_path / "report" / "plots"
    plots.mkdir(parents=True)
    for name in ("tensor-errors-10", "tensor-errors-2", "tensor-errors", "memory", "perplexity-size"):
        (plots / f"{name}.png").write_bytes(b"\x89PNG " + name.encode())
        (plots / f"{name}.svg").write_text("<svg/>")
    for where in (plots, plots.parent):
        links = re.findall(r"!\[([^\]]+)\]\(([^)]+)\)", card_of(gguf, plots=where))
        assert [path for _, path in links] == [
            f"plots/{name}.png"
            for name in ("perplexity-size", "memory", "tensor-errors", "tensor-errors-2", "tensor-errors-10")
        ]
        assert links[3][0] == "Error of the weights by layer (2)"
    assert all((gguf / path).read_bytes() == (plots.parent / path).read_bytes() for _, path in links)
    assert not list(gguf.rglob("*.svg")) and not list(gguf.rglob("*.partial"))


def test_a_folder_in_the_place_of_the_card_stays(gguf: Path) -> None:
    (gguf / "README.md").mkdir()
    with pytest.raises(OutputError, match=r"README\.md is a folder; choose another file for the card"):
        card_of(gguf)
    assert (gguf / "README.md").is_dir() and not (gguf / "README.md.bak").exists()
    (gguf / "README.md").rmdir()


def test_a_card_written_by_hand_or_changed_is_kept_and_our_own_replaced(gguf: Path) -> None:
    (gguf / "README.md").write_text("my own words")
    text = card_of(gguf)
    assert (gguf / "README.md.bak").read_text() == "my own words"
    assert card_of(gguf) == text and not (gguf / "README.md.bak2").exists()
    (gguf / "README.md").write_text(text.replace("## Files", "## My files"))
    card_of(gguf)
    assert "## My files" in (gguf / "README.md.bak2").read_text()


@pytest.mark.parametrize(
    ("kind", "folder", "words"),
    [
        ("awq", "Tiny-GGUF", "not a folder of AWQ"),
        ("gguf", "Tiny-AWQ", "not a folder of GGUF"),
        ("awq", "Tiny-GPTQ", "not a folder of AWQ"),
    ],
)
def test_a_folder_of_another_kind_is_told(outputs: Path, kind: str, folder: str, words: str) -> None:
    with pytest.raises((UsageError, CheckpointError), match=words):
        write_card(outputs / folder, kind=kind, model=FULL)


def test_the_cards_commands_run_as_they_stand(gguf: Path) -> None:
    """`quantkit run` for real; llama.cpp's and Ollama's are checked as words of a shell, for neither is built here."""
    text = card_of(gguf)
    commands = [line for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL) for line in block.splitlines()]
    assert [shlex.split(line)[:3] for line in commands] == [
        ["llama-cli", "-hf", "me/Tiny-GGUF:Q4_0"],
        ["llama-cli", "-m", "Tiny-Q4_0.gguf"],
        ["llama-server", "-hf", "me/Tiny-GGUF:Q4_0"],
        ["ollama", "run", "me/tiny"],
        ["ollama", "run", "hf.co/me/Tiny-GGUF:Q4_0"],
        ["quantkit", "run", "Tiny-Q4_0.gguf"],
        ["quantkit", "termux", "--gguf"],
    ]
    words = shlex.split(commands[-2])
    answer = quantkit(*words[1:], "-n", "4", "--ctx", "64", cwd=gguf)
    assert answer.code == 0, answer.stderr
    words = shlex.split(commands[-1])
    assert words[3] == "https://huggingface.co/me/Tiny-GGUF/resolve/main/Tiny-Q4_0.gguf"
    answer = quantkit(*words[1:], "--offline", "--size", "1G", "--ram", "2G", cwd=gguf)
    assert answer.code == 0 and words[3] in (gguf / "termux.sh").read_text(), answer.stderr
    local = card_of(gguf, model=CardModel("Tiny"))
    assert "quantkit termux --gguf Tiny-Q4_0.gguf -o termux.sh" in local


def test_the_phone_command_of_a_model_without_a_chat_template_runs(outputs: Path, tmp_path: Path) -> None:
    made = quantkit("gguf", outputs.parent / "Tiny", "-t", "q4_0", "--chat-template", "none", cwd=tmp_path)
    assert made.code == 0, made.stderr
    folder = tmp_path / "Tiny-GGUF"
    (line,) = re.findall(r"^quantkit termux .*", card_of(folder, model=CardModel("Tiny")), re.MULTILINE)
    answer = quantkit(*shlex.split(line)[1:], cwd=folder)
    assert answer.code == 0 and (folder / "termux.sh").exists(), answer.stderr


def test_a_split_model_is_one_row_and_no_command_that_cannot_take_it(outputs: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out" / "Tiny-GGUF"
    made = quantkit(
        *("gguf", outputs.parent / "Tiny", "-t", "q8_0", "--split-max-size", "300K", "-o", folder), cwd=tmp_path
    )
    assert made.code == 0, made.stderr
    folder = next(path.parent for path in (tmp_path / "out").rglob("*.gguf"))
    shards = sorted(folder.glob("*.gguf"))
    assert len(shards) > 1
    report = report_of(folder)
    whole = sum(path.stat().st_size for path in shards)
    report["models"] = [report["models"][0], report["models"][1] | {"path": shards[0].name, "bytes": whole}]
    text = card_of(folder, report=report)
    table = rows(section(text, "Files"))
    assert [row[0] for row in table[3:]] == [f"[{shards[0].name}]({shards[0].name}) ({len(shards)} files)"]
    assert table[3][5] == "+15.0% ± 1.2%"
    assert "hf.co/" not in text and "termux" not in text
    assert f"llama-cli -m {shards[0].name}\n" in text and "llama-cli -hf me/Tiny-GGUF:Q8_0\n" in text


def test_the_loaders_are_those_of_the_guide() -> None:
    guide = (Path(__file__).parents[2] / "docs" / "guides" / "awq-gptq.md").read_text("utf-8")
    families = {
        "LlamaForCausalLM": "Llama",
        "Qwen2ForCausalLM": "Qwen2",
        "Qwen2MoeForCausalLM": "Qwen2-MoE",
        "Qwen3MoeForCausalLM": "Qwen3-MoE",
        "MixtralForCausalLM": "Mixtral",
    }
    for loader, reads in LOADERS.items():
        columns = [", ".join(families[name] for name in reads[kind]) for kind in ("awq", "gptq")]
        assert f"| {loader.replace(' with ', ', ')} | {columns[0]} | {columns[1]} |".replace("|  |", "| |") in guide


def test_a_mixture_is_warned_of_and_an_untested_architecture_said_to_be_one() -> None:
    assert "computes wrong logits" in loaders_tested("awq", "MixtralForCausalLM")
    assert "No loader was tested with GPTQ folders of Glm4ForCausalLM" in loaders_tested("gptq", "Glm4ForCausalLM")
    assert "something else" not in loaders_tested("gptq", "LlamaForCausalLM")


def test_a_licence_of_no_identifier_becomes_other_with_its_name() -> None:
    fields = read(license="Huozi License v1.0 (see LICENSE)")
    assert (fields["license"], fields["license_name"]) == ("other", "huozi-license-v1.0-see-license")
    assert read(license="APACHE-2.0")["license"] == "apache-2.0"
    assert "license" not in read(license="  ") and read(license="许可")["license"] == "other"
    assert {"mit", "other", "llama3.1"} < LICENSES


def test_a_language_that_is_no_code_is_refused() -> None:
    with pytest.raises(UsageError, match="'Chinese' is not an ISO 639 code; pass en, zh"):
        read(languages=("zh", "Chinese"))


def read(**fields: Any) -> Mapping[str, Any]:
    """The metadata as the hub's client reads it back."""
    text = front_matter(Metadata(kind="gguf", **fields).fields())
    check_metadata(text)
    return dict(ModelCard(text).data.to_dict())


hostile = st.text(max_size=60) | st.sampled_from(
    [
        "---\nlicense: mit\n---",
        "a: b\n- c",
        "!!python/object/apply:os.system ['id']",
        "*alias &anchor {x: [",
        "null",
        "1e5",
        "'\"\\",
        "# no comment",
        "\u2028---\u2028",
    ]
)


@given(text=hostile)
@settings(max_examples=examples(300), deadline=None)
def test_no_text_breaks_out_of_the_metadata(text: str) -> None:
    fields = read(base_model=text, license=text, hub_repo=text)
    assert set(fields) <= {
        *("base_model", "base_model_relation", "license", "license_name", "pipeline_tag", "quantized_by", "inference"),
        "tags",
    }
    assert fields["tags"] == ["gguf", "llama.cpp", "ollama", "quantkit"]


HOSTILE = [
    "<script>alert(1)</script>",
    "![x](http://evil/p.png)",
    "[click](javascript:alert(1))",
    "`; rm -rf ~ #`",
    "a | b | c",
    "</details><h1>",
    "**bold** __under__ ~~gone~~ $x$ &lt;b&gt;",
    "line\n# heading\n\n---\n",
    "- item",
    "1. item",
    "https://evil.example www.evil.example a@evil.example",
    "\u202egnp.exe\x1b[31m",
]


@pytest.mark.parametrize("name", HOSTILE)
def test_no_name_marks_anything_up(gguf: Path, name: str) -> None:
    honest = tokens_of(card_of(gguf, model=CardModel("Name", license="Licence")))
    text = card_of(gguf, model=CardModel(name, license=name))
    assert tokens_of(text) == honest
    assert not re.search(r"(https?://|www\.)evil|a@evil|[\u202e\x1b]", text.partition("\n---\n")[2])


def tokens_of(card: str) -> list[list[str]]:
    """The kinds of blocks and of what is inside each, without plain text."""
    parser = MarkdownIt("commonmark").enable(["table", "strikethrough"])
    plainly = ("text", "text_special", "html_inline_comment")
    tokens = []
    for token in parser.parse(card.partition("\n---\n")[2]):
        inside = [child.type for child in token.children or () if child.content != "<!-- -->"]
        tokens.append([token.type, *(kind for kind in inside if kind not in plainly)])
    return tokens


@given(text=st.text(alphabet=st.sampled_from("`~|\\ a<>\n"), max_size=30))
@settings(max_examples=examples(200), deadline=None)
def test_spans_and_blocks_are_not_ended_by_what_is_in_them(text: str) -> None:
    span = code(text)
    fence = re.match("`+", span)
    assert fence is not None
    inside = span[len(fence[0]) : -len(fence[0])]
    assert fence[0] not in re.findall("`+", inside) and "|" not in span and "\n" not in span
    first, *lines, last = block(text, "sh").split("\n")
    assert last == first.removesuffix("sh") and not any(line.startswith(last) for line in lines)
    assert "<" not in re.sub(r"\\<|<!-- -->", "", plain(text))


def test_a_file_with_a_name_for_the_shell_stays_one_word(gguf: Path) -> None:
    (gguf / "quantkit.json").unlink()
    (gguf / "Tiny-Q8_0.gguf").unlink()
    name = "-x; touch 'pwned` $(id)-Q4_0.gguf"
    (gguf / "Tiny-Q4_0.gguf").rename(gguf / name)
    text = card_of(gguf, model=CardModel("Tiny"))
    commands = [line for block in re.findall(r"```+sh\n(.*?)```", text, re.DOTALL) for line in block.splitlines()]
    words = [shlex.split(line) for line in commands]
    assert [words[0][2], words[1][2], words[2][3]] == [f"./{name}"] * 3
    assert shlex.split(commands[0])[:2] == ["llama-cli", "-m"]
    yaml.safe_load(text.split("---\n")[1])

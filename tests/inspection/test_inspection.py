"""What `inspect_source` says of checkpoints and GGUF files, against the files' own libraries and by hand."""

import json
import shutil
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFReader, GGUFValueType
from safetensors import safe_open

from demo.safetensors_file import write_safetensors
from quantkit.cli.inspect_shape import context_words
from quantkit.errors import CheckpointError
from quantkit.families import find_family
from quantkit.gguf.keyvalues import KeyValue
from quantkit.gguf.metadata import plain_key
from quantkit.inspection import inspect_source
from quantkit.inspection.config import shape_of_config
from quantkit.inspection.description import SpecialToken
from quantkit.inspection.keys import shape_of_keys
from quantkit.inspection.weights import Stored, count_weights
from tests.conversion.test_bytes import a_random_imatrix
from tests.families.test_large_shapes import V2_LITE
from tests.helpers.checkpoints import copy_tensors
from tests.helpers.command import quantkit
from tests.helpers.hub_server import Repo, running_hub
from tests.helpers.real import smollm2_or_skip
from tests.helpers.tiny import tiny_llama


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Mixtral, a Llama 3 in two shards, and the Mixtral's GGUFs, one of them split."""
    folder = tmp_path_factory.mktemp("inspected")
    tiny_llama(folder / "moe", variant="mixtral")
    tiny_llama(folder / "llama3", variant="llama3", shards=2)
    words = ("--no-logits", "-o", folder, "--format", "quiet")
    assert quantkit("gguf", folder / "moe", "-t", "q2_k", "-t", "bf16", *words).code == 0
    assert quantkit("gguf", folder / "moe", "-t", "q8_0", "--split-max-size", "2M", *words).code == 0
    return folder


def stored_elements(folder: Path) -> dict[str, int]:
    """Every tensor of a checkpoint by the safetensors library."""
    counts = {}
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "np") as tensors:
            counts.update({name: prod(tensors.get_slice(name).get_shape()) for name in tensors.keys()})  # noqa: SIM118
    return counts


def change(folder: Path, file: str = "config.json", **changes: object) -> Path:
    path = folder / file
    config = json.loads(path.read_text("utf-8")) | changes
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}), "utf-8")
    return folder


def test_a_checkpoint_of_experts(place: Path) -> None:
    description = inspect_source(str(place / "moe"))
    elements = stored_elements(place / "moe")
    experts = sum(count for name, count in elements.items() if ".experts." in name)
    assert description.kind == "checkpoint" and description.type == "bf16"
    assert "Mixtral" in str(description.family) and description.architecture == "MixtralForCausalLM"
    assert description.convertible is True
    assert description.weights is not None
    assert description.weights.parameters == sum(elements.values())
    assert description.weights.active_parameters == sum(elements.values()) - experts // 2
    assert description.weights.bytes == 2 * sum(elements.values())
    assert description.weights.bits_per_weight == 16
    assert (description.shape.layers, description.shape.hidden, description.shape.ffn) == (2, 256, 512)
    assert (description.shape.heads, description.shape.kv_heads, description.shape.head_dim) == (4, 2, 64)
    assert (description.shape.experts, description.shape.experts_used, description.shape.context) == (4, 2, 32768)
    assert (description.shape.positions, description.shape.rope_base, description.shape.rope_scaling) == (
        "rope",
        1e6,
        None,
    )
    assert description.size == (place / "moe" / "model.safetensors").stat().st_size
    assert description.vocabulary is not None and description.vocabulary.size == 768
    assert description.vocabulary.special[:2] == (SpecialToken("bos", 1, "<s>"), SpecialToken("eos", 2, "</s>"))
    assert description.template is not None and description.template.name == "mistral"
    assert "[INST] Hello! [/INST]Hi, how can I help?</s>" in str(description.template.sample)


@pytest.mark.parametrize("file", ["moe-Q2_K.gguf", "moe-BF16.gguf", "moe-Q8_0-00001-of-00003.gguf"])
def test_a_gguf_says_the_same_as_its_checkpoint(place: Path, file: str) -> None:
    source, described = inspect_source(str(place / "moe")), inspect_source(str(place / "moe-GGUF" / file))
    assert described.weights is not None and source.weights is not None
    assert described.weights.parameters == source.weights.parameters
    assert described.weights.active_parameters == source.weights.active_parameters
    assert (described.shape, described.family, described.vocabulary) == (source.shape, source.family, source.vocabulary)
    assert described.template == source.template
    assert described.convertible is None


def test_a_gguf_file_by_type(place: Path) -> None:
    file = place / "moe-GGUF" / "moe-Q2_K.gguf"
    description = inspect_source(str(file))
    truth: dict[str, list[int]] = {}
    for tensor in GGUFReader(file).tensors:
        group = truth.setdefault(tensor.tensor_type.name, [0, 0, 0])
        for i, number in enumerate((1, int(tensor.n_elements), int(tensor.n_bytes))):
            group[i] += number
    assert description.weights is not None
    assert {g.type: [g.tensors, g.elements, g.bytes] for g in description.weights.groups} == truth
    parameters = sum(group[1] for group in truth.values())
    assert description.weights.bits_per_weight == pytest.approx(8 * sum(g[2] for g in truth.values()) / parameters)
    assert (description.type, description.size) == ("q2_k", file.stat().st_size)


def test_any_shard_stands_for_the_whole_split_model(place: Path) -> None:
    shards = sorted((place / "moe-GGUF").glob("moe-Q8_0-*.gguf"))
    assert len(shards) == 3
    descriptions = [inspect_source(str(shard)) for shard in shards]
    assert descriptions[0].size == sum(shard.stat().st_size for shard in shards)
    assert descriptions[0].name == "moe-Q8_0" and descriptions[0].type == "q8_0"
    assert [description.weights for description in descriptions] == [descriptions[0].weights] * 3
    assert [file.name for file in descriptions[2].files] == [shard.name for shard in shards]


def test_a_gguf_tells_where_it_came_from(place: Path) -> None:
    description = inspect_source(str(place / "moe-GGUF" / "moe-Q8_0-00002-of-00003.gguf"))
    assert description.origin is not None
    assert description.origin["origin"]["source"] == "moe"
    assert description.origin["options"]["split_max_size"] == 2_000_000
    assert {check["status"] for check in description.origin["checks"]} <= {"passed", "skipped"}
    assert 0 < description.origin["worst_relative_error"]["value"] < 0.1
    assert description.notes == ()


def test_a_gguf_made_from_a_gguf_has_the_family_of_that_one(place: Path, tmp_path: Path) -> None:
    file = place / "moe-GGUF" / "moe-Q2_K.gguf"
    done = quantkit("gguf", file, "-t", "q8_0", "--allow-requantize", "--name", "M", "-o", tmp_path)
    assert done.code == 0, done.stderr
    assert "is quantized already (" in done.stderr and "its own come on top" in " ".join(done.stderr.split())
    assert inspect_source(str(tmp_path / "M-GGUF")).family == inspect_source(str(file)).family
    # the record has the warning too, so that a card shows it
    record = json.loads((tmp_path / "M-GGUF" / "quantkit.json").read_text())
    assert any("is quantized already" in warning for warning in record["outputs"]["M-Q8_0"]["warnings"])


def test_a_file_that_is_not_the_recorded_one_is_said(place: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(place / "moe-GGUF", tmp_path / "moe-GGUF"))
    shutil.copy(folder / "moe-BF16.gguf", folder / "moe-Q2_K.gguf")
    description = inspect_source(str(folder / "moe-Q2_K.gguf"))
    assert any("moe-Q2_K.gguf has" in note and "another file" in note for note in description.notes)
    assert description.type == "bf16"


def test_a_folder_of_outputs(place: Path) -> None:
    description = inspect_source(str(place / "moe-GGUF"))
    assert description.kind == "folder of GGUF files"
    assert [(output.type, len(output.files)) for output in description.outputs] == [
        ("bf16", 1),
        ("q2_k", 1),
        ("q8_0", 3),
    ]
    assert description.size == sum(file.stat().st_size for file in (place / "moe-GGUF").glob("*.gguf"))
    assert description.origin is not None and set(description.origin) == {"moe-BF16", "moe-Q2_K", "moe-Q8_0"}


def test_a_broken_file_of_a_folder_is_said_and_the_others_told(place: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(place / "moe-GGUF", tmp_path / "moe-GGUF"))
    (folder / "moe-Q2_K.gguf").write_bytes((folder / "moe-Q2_K.gguf").read_bytes()[:10_000])
    description = inspect_source(str(folder))
    assert [output.type for output in description.outputs] == ["bf16", "q8_0"]
    assert any("moe-Q2_K.gguf is not a sound GGUF file" in note for note in description.notes)


def test_a_tied_embedding_counts_once_even_when_its_head_is_stored(tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path / "untied", variant="llama2")
    copy_tensors(folder, {"lm_head.weight": "model.embed_tokens.weight"})
    untied = inspect_source(str(folder)).weights
    tied = inspect_source(str(change(folder, tie_word_embeddings=True))).weights
    assert untied is not None and tied is not None
    assert untied.parameters - tied.parameters == 768 * 256
    assert untied.bytes == tied.bytes


def test_a_head_is_tied_by_the_class_too_where_config_json_is_silent(tmp_path: Path) -> None:
    tokens, hidden = 768, 64
    (tmp_path / "config.json").write_text(
        json.dumps(
            {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "n_embd": hidden, "n_head": 2, "n_layer": 1}
        )
    )
    matrix = ("F32", np.zeros((tokens, hidden), np.float32))
    write_safetensors(tmp_path / "model.safetensors", {"transformer.wte.weight": matrix, "lm_head.weight": matrix})
    weights = inspect_source(str(tmp_path)).weights
    assert weights is not None and weights.parameters == tokens * hidden


def test_smollm2_as_everybody_knows_it() -> None:
    description = inspect_source(str(smollm2_or_skip()))
    assert description.weights is not None and description.vocabulary is not None and description.template is not None
    assert description.weights.parameters == description.weights.active_parameters == 134_515_008
    assert (
        description.shape.layers,
        description.shape.heads,
        description.shape.kv_heads,
        description.shape.context,
    ) == (30, 9, 3, 8192)
    assert (description.vocabulary.size, description.vocabulary.model, description.vocabulary.pre) == (
        49152,
        "gpt2",
        "smollm",
    )
    assert description.template.name == "chatml"
    assert str(description.template.sample).startswith(
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHello!"
    )


def test_rope_scaling_is_named(place: Path) -> None:
    assert inspect_source(str(place / "llama3")).shape.rope_scaling == "llama3 x32 from 8192"


def test_the_rope_base_of_a_transformers_5_config_is_told_not_the_familys_default(tmp_path: Path) -> None:
    rope = {"rope_type": "default", "rope_theta": 123456.0}
    tiny_llama(tmp_path / "m", config={"rope_parameters": rope})
    change(tmp_path / "m", rope_theta=None)
    shape = inspect_source(str(tmp_path / "m")).shape
    assert (shape.rope_base, shape.rope_scaling) == (123456.0, None)


def test_latent_attention_is_told_by_the_heads_its_makers_state() -> None:
    family = find_family(V2_LITE)
    stated = family.keys(family.gguf_arch, family.sizes(V2_LITE))
    keys = [KeyValue("general.architecture", GGUFValueType.STRING, family.gguf_arch)]
    keys += [plain_key(key.name, key.kind, key.value) for key in stated]
    for shape in (shape_of_config(family.complete(V2_LITE)), shape_of_keys(keys, [])):
        assert (shape.heads, shape.kv_heads, shape.head_dim, shape.rope_dimensions) == (16, 16, 128 + 64, 64)


def test_a_shared_expert_is_told_of_a_gguf_too() -> None:
    arch, width = "qwen2moe", "expert_shared_feed_forward_length"
    keys = [KeyValue("general.architecture", GGUFValueType.STRING, arch), plain_key(f"{arch}.{width}", "u32", 5632)]
    assert shape_of_keys(keys, []).experts_shared == 1


def test_an_architecture_not_supported_is_told_as_far_as_it_goes(place: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(place / "llama3", tmp_path / "model"))
    known = inspect_source(str(folder))
    description = inspect_source(str(change(folder, architectures=["GrokForCausalLM"], model_type="grok")))
    assert description.convertible is False
    assert description.why_not == "architecture GrokForCausalLM is not supported yet"
    assert description.family is None
    assert (description.weights, description.shape, description.vocabulary) == (
        known.weights,
        known.shape,
        known.vocabulary,
    )


def test_a_model_that_its_family_refuses_is_told_all_the_same(place: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(place / "moe", tmp_path / "model"))
    known = inspect_source(str(folder))
    description = inspect_source(str(change(folder, hidden_act="relu")))
    assert description.convertible is False and "hidden_act is 'relu'" in str(description.why_not)
    assert (description.family, description.weights, description.shape) == (known.family, known.weights, known.shape)


def test_a_config_that_names_no_architecture_is_not_taken_for_one_unsupported(place: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(place / "llama3", tmp_path / "model"))
    description = inspect_source(str(change(folder, architectures=None, model_type="novel")))
    assert description.why_not == "config.json names no architecture"


def test_a_checkpoint_without_a_tokenizer_still_has_sizes(place: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(place / "llama3", tmp_path / "model"))
    (folder / "tokenizer.json").unlink()
    description = inspect_source(str(folder))
    assert description.weights is not None and description.vocabulary is not None
    assert description.vocabulary.size == 768
    assert description.convertible is False and "no tokenizer" in str(description.why_not)


def test_a_broken_template_is_said(place: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(place / "llama3", tmp_path / "model"))
    description = inspect_source(str(change(folder, "tokenizer_config.json", chat_template="{% for %}")))
    assert description.template is not None and description.template.sample is None
    assert (
        description.template.error
        == "the chat template is malformed at line 1: Expected an expression, got 'end of statement block'"
    )


def test_a_template_that_fits_is_suggested(place: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(place / "llama3", tmp_path / "blossom-v9"))
    description = inspect_source(str(change(folder, "tokenizer_config.json", chat_template=None)))
    assert description.template is None
    assert description.suggested_template == "the built-in 'blossom' fits (its name is Blossom's)"


def packed_checkpoint(folder: Path, method: str) -> Path:
    """One layer of 256 x 512 weights as AutoAWQ or AutoGPTQ pack it (int32, eight to one), beside a plain embedding."""
    tiny_llama(folder, variant="llama2", layers=1)
    shape = {"awq": (512, 256 // 8), "gptq": (512 // 8, 256)}[method]
    tensors = {
        "model.embed_tokens.weight": ("F16", np.zeros((768, 512), np.float16)),
        "model.layers.0.mlp.up_proj.qweight": ("I32", np.zeros(shape, np.int32)),
        "model.layers.0.mlp.up_proj.qzeros": ("I32", np.zeros((4, 256 // 8), np.int32)),
        "model.layers.0.mlp.up_proj.scales": ("F16", np.zeros((4, 256), np.float16)),
    }
    if method == "gptq":
        tensors["model.layers.0.mlp.up_proj.g_idx"] = ("I32", np.zeros(512, np.int32))
    write_safetensors(folder / "model.safetensors", tensors)
    return change(folder, quantization_config={"quant_method": method, "bits": 4, "group_size": 128})


@pytest.mark.parametrize("method", ["awq", "gptq"])
def test_a_packed_checkpoint_counts_weights_not_integers(tmp_path: Path, method: str) -> None:
    description = inspect_source(str(packed_checkpoint(tmp_path / "model", method)))
    assert description.kind == "quantized checkpoint"
    assert description.type == f"{method} 4 bit, group 128"
    assert description.weights is not None
    assert description.weights.parameters == 768 * 512 + 256 * 512
    assert description.convertible is False and "already quantized" not in str(description.why_not)


@pytest.mark.parametrize(
    ("name", "kind", "elements", "weights"),
    [
        ("model.layers.0.mlp.experts.gate_up_proj_blocks", "U8", 160, 320),
        ("model.layers.0.mlp.experts.gate_up_proj_scales", "U8", 10, 0),
        ("model.layers.0.self_attn.q_proj.weight_packed", "I32", 100, 800),
        ("model.layers.0.self_attn.q_proj.weight_scale_inv", "F32", 4, 0),
        ("model.layers.0.self_attn.rotary_emb.inv_freq", "F32", 32, 0),
        ("rope_freqs.weight", "F32", 32, 0),
        ("model.layers.0.mlp.gate_up_proj.bias", "F16", 32, 32),
    ],
)
def test_what_counts_as_a_weight(name: str, kind: str, elements: int, weights: int) -> None:
    counted = count_weights([Stored(name, kind, elements, elements)], packed_bits=4)
    assert counted is not None and counted.parameters == weights


@pytest.mark.parametrize(
    ("name", "active"),
    [
        ("model.layers.3.block_sparse_moe.experts.7.w1.weight", 200),
        ("model.layers.3.mlp.experts.gate_up_proj", 200),
        ("model.layers.3.block_sparse_moe.input_linear.weight", 200),
        ("model.layers.3.block_sparse_moe.output_linear.weight", 200),
        ("model.layers.3.block_sparse_moe.router.layer.weight", 800),
        ("model.layers.3.shared_mlp.input_linear.weight", 800),
        ("blk.3.ffn_gate_exps.weight", 200),
        ("blk.3.ffn_gate_shexp.weight", 800),
        ("model.layers.3.mlp.shared_experts.gate_proj.weight", 800),
        ("model.layers.3.mlp.shared_expert.gate_proj.weight", 800),
        ("model.layers.3.mlp.gate.weight", 800),
    ],
)
def test_only_routed_experts_rest(name: str, active: int) -> None:
    weights = count_weights([Stored(name, "BF16", 800, 1600)], experts=8, experts_used=2)
    assert weights is not None and weights.active_parameters == active


def test_mixtral_8x7b_has_the_parameters_its_makers_state() -> None:
    hidden, inner, kv, vocab = 4096, 14336, 1024, 32000
    sizes = {"model.embed_tokens.weight": vocab * hidden, "lm_head.weight": vocab * hidden, "model.norm.weight": hidden}
    for layer in range(32):
        at = f"model.layers.{layer}"
        sizes |= {f"{at}.self_attn.{name}_proj.weight": hidden * (kv if name in "kv" else hidden) for name in "qkvo"}
        sizes |= {f"{at}.{name}.weight": hidden for name in ("input_layernorm", "post_attention_layernorm")}
        sizes[f"{at}.block_sparse_moe.gate.weight"] = 8 * hidden
        for expert in range(8):
            sizes |= {f"{at}.block_sparse_moe.experts.{expert}.w{i}.weight": hidden * inner for i in (1, 2, 3)}
    tensors = [Stored(name, "BF16", count, 2 * count) for name, count in sizes.items()]
    weights = count_weights(tensors, experts=8, experts_used=2)
    assert weights is not None
    # Mixtral of Experts (arXiv 2401.04088): 47B in all, 13B for a token; the hub's count is 46,702,792,704.
    assert weights.parameters == 46_702_792_704
    assert round(weights.active_parameters / 1e9, 1) == 12.9


def test_an_importance_matrix_is_no_model(place: Path, tmp_path: Path) -> None:
    a_random_imatrix(tmp_path / "imatrix.gguf", place / "moe-GGUF" / "moe-BF16.gguf")
    description = inspect_source(str(tmp_path / "imatrix.gguf"))
    assert description.kind == "importance matrix (GGUF)"
    assert description.weights is None
    assert "1 chunks of 64 tokens of random" in description.notes[0]


def of_hub(repo: Repo, tmp_path: Path) -> tuple[dict[str, Any], int]:
    """The JSON of a hub repository's description, and the bytes of weight files it cost."""
    with running_hub() as hub:
        hub.repos["ORG/NAME"] = repo
        env = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "hub")}
        answer = quantkit("inspect", "ORG/NAME", "--format", "json", env=env)
        assert answer.code == 0, answer.stderr
        return json.loads(answer.stdout), hub.sent(".safetensors")


def test_of_a_hub_repository_only_headers_are_fetched(
    place: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    files = {path.name: path.read_bytes() for path in (place / "llama3").iterdir()}
    description, sent = of_hub(Repo(files), tmp_path)
    local = inspect_source(str(place / "llama3"))
    assert local.weights is not None
    assert description["weights"]["parameters"] == local.weights.parameters
    assert description["revision"] == Repo(files).commit
    assert 0 < sent < 0.01 * local.size


def test_of_an_unsupported_hub_model_too(place: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(place / "llama3", tmp_path / "model"))
    change(folder, architectures=["GrokForCausalLM"], model_type="grok")
    description, sent = of_hub(Repo({path.name: path.read_bytes() for path in folder.iterdir()}), tmp_path)
    assert description["convertible"] is False and "not supported yet" in description["why_not"]
    assert description["weights"]["parameters"] > 0 and sent < 10_000


@pytest.mark.parametrize("name", ["gone.gguf", "gone/and.gguf", "nothing", "a/b/c"])
def test_what_does_not_exist_is_said(name: str) -> None:
    with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
        inspect_source(name, offline=True)


def test_other_files_and_folders_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text.gguf").write_text("not a model")
    with pytest.raises(CheckpointError, match=r"text\.gguf is not a GGUF file"):
        inspect_source(str(tmp_path / "text.gguf"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"empty has no config\.json"):
        inspect_source(str(tmp_path / "empty"))


@pytest.mark.parametrize(
    ("model_type", "positions"), [("kimi_linear", "none"), ("jamba", "none"), ("nemotron_h", "none"), ("llama", "rope")]
)
def test_a_base_of_rotary_positions_counts_only_where_something_rotates(model_type: str, positions: str) -> None:
    config = {"model_type": model_type, "rope_theta": 10000.0, "head_dim": 24, "qk_rope_head_dim": 8}
    shape = shape_of_config(config)
    assert shape.positions == positions
    assert (shape.rope_base, shape.rope_dimensions) == ((10000.0, 8) if positions == "rope" else (None, None))
    assert ("no positions in attention" in context_words(shape)) == (positions == "none")

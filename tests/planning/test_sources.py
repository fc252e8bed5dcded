"""Where a plan's figures come from: every kind of source, and what each form of a model weighs."""

import json
import shutil
from pathlib import Path

import pytest
from gguf import GGMLQuantizationType

from quantkit.errors import CheckpointError, UnsupportedError, UsageError
from quantkit.gguf.file_types import FILE_TYPES
from quantkit.planning.context import Context
from quantkit.planning.memory import plan_memory
from quantkit.planning.sizes import known_types, offers
from quantkit.planning.sources import open_source
from tests.families.published import MISSION, write_sparse
from tests.helpers import oracle
from tests.helpers.conversions import to_gguf
from tests.helpers.tiny import tiny_llama
from tests.planning.models import LARGE, write_model

HUOZI = next(model for model in MISSION if model.name == "Huozi-3")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(
        tmp_path_factory.mktemp("source") / "tiny",
        variant="smollm2",
        hidden=512,
        intermediate=1024,
        heads=8,
        kv_heads=4,
    )


def test_files_are_as_large_as_llama_quantize_makes_them(checkpoint: Path, tmp_path: Path) -> None:
    whole = to_gguf(checkpoint, "bf16", tmp_path)
    types = ("q8_0", "q6_k", "q5_k_m", "q4_k_m", "q4_0", "q3_k_m", "q2_k")
    by_label = {offer.label: offer for offer in offers(open_source(str(checkpoint)), types)}
    again = {offer.label: offer for offer in offers(open_source(str(whole)), types)}
    for name in types:
        made = tmp_path / f"{name}.gguf"
        oracle.llama_quantize(whole, made, FILE_TYPES[name].ftype)
        assert by_label[name].size == again[name].size == made.stat().st_size, name
    assert open_source(str(checkpoint)).exact


def test_a_folder_without_weights_is_planned_from_its_config(tmp_path: Path) -> None:
    whole = write_sparse(HUOZI, tmp_path / "whole")
    alone = tmp_path / "alone"
    alone.mkdir()
    shutil.copy(whole / "config.json", alone)
    shutil.copy(whole / "config.json", tmp_path / "huozi-3.json")
    expected = {tensor.name: tensor.shape for tensor in open_source(str(whole)).model.tensors}
    for place in (alone, alone / "config.json", tmp_path / "huozi-3.json"):
        source = open_source(str(place))
        assert {tensor.name: tensor.shape for tensor in source.model.tensors} == expected
        assert not source.exact and "from config.json alone" in source.notes[0]
    assert open_source(str(tmp_path / "huozi-3.json")).model.name == "huozi-3"


# Published for a context of 2048, in GB. "16 layers" were counted without the output, which llama.cpp counts today.
@pytest.mark.parametrize(
    ("type_", "layers", "published"), [("bf16", 33, 95.0), ("q4_0", 33, 28.0), ("q2_k", 33, 18.0), ("q2_k", 17, 9.6)]
)
def test_huozi_3_takes_what_was_published(type_: str, layers: int, published: float, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**HUOZI.config, "torch_dtype": "bfloat16"}))
    source = open_source(str(tmp_path))
    (offer,) = offers(source, [type_])
    gpu = plan_memory(source.shape, offer.tensors, Context(n_ctx=2048, gpu_layers=layers), has_gpu=True).gpu
    assert gpu is not None
    assert gpu.total / 1e9 == pytest.approx(published, rel=0.04)


def test_huozi_3_as_awq_is_the_sum_of_its_parts(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**HUOZI.config, "torch_dtype": "bfloat16"}))
    (offer,) = offers(open_source(str(tmp_path)), ["awq"])
    linears = 32 * (2 * 4096 * 4096 + 2 * 4096 * 1024 + 8 * 3 * 4096 * 14336)
    groups = linears // 128
    kept = 2 * 57000 * 4096 + 32 * (8 * 4096 + 2 * 4096) + 4096
    # four bits a weight, a float16 scale and four bits of zero point a group, the rest in float16
    assert offer.size == pytest.approx(linears // 2 + groups * 2 + groups // 2 + kept * 2, rel=1e-4)


def test_a_large_vocabulary_is_weighed_to_a_thousandth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny_llama(tmp_path / "model", variant="llama3", vocab=1000)
    (exact,) = offers(open_source(str(folder)), ["bf16"])
    monkeypatch.setattr("quantkit.planning.sources._LARGE_TOKENIZER", 0)
    source = open_source(str(folder))
    (weighed,) = offers(source, ["bf16"])
    assert not source.exact
    assert weighed.size == pytest.approx(exact.size, abs=4096)


def test_a_quantized_gguf_is_planned_as_it_is(tmp_path: Path) -> None:
    path = write_model(tmp_path / "model.gguf", LARGE["8B"], GGMLQuantizationType.Q4_0)
    source = open_source(str(path))
    (offer,) = offers(source, None)
    assert (offer.label, offer.size) == ("as it is", path.stat().st_size)
    with pytest.raises(UsageError, match="is quantized already, so -t q2_k does not apply"):
        offers(source, ["q2_k"])


def test_types_that_need_an_importance_matrix_are_weighed_too(tmp_path: Path) -> None:
    path = write_model(tmp_path / "model.gguf", LARGE["8B"])
    (offer,) = offers(open_source(str(path)), ["IQ2_XS"])
    assert offer.needs_imatrix and 2.3 < offer.bits < 2.7
    log = oracle.run_jobs([oracle.Job(str(path), "unused", FILE_TYPES["iq2_xs"].ftype, dry_run=True)])[0].log
    mix = oracle.mix_from_log(log)
    assert {tensor.name: tensor.type for tensor in offer.tensors} == mix


def test_awq_and_gptq_of_a_gguf_cannot_be_had(tmp_path: Path) -> None:
    path = write_model(tmp_path / "model.gguf", LARGE["8B"])
    (offer,) = offers(open_source(str(path)), ["awq"])
    assert offer.why_not == "AWQ needs a checkpoint, not a GGUF"


def test_an_unknown_type_is_refused_with_what_there_is() -> None:
    assert known_types(["Q4_0", "awq", "q4_0"]) == ("q4_0", "awq")
    with pytest.raises(
        UsageError,
        match=r"unknown quantization type 'q4_9'; the nearest are q4_.*; others are awq, gptq, w4a16, .*fp8-block",
    ):
        known_types(["q4_9"])


def test_what_is_no_source_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not found; check the name"):
        open_source(str(tmp_path / "none.gguf"))
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"], "model_type": "llama"}))
    with pytest.raises(CheckpointError, match=r"config\.json"):
        open_source(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["GrokForCausalLM"]}))
    with pytest.raises(UnsupportedError, match="GrokForCausalLM"):
        open_source(str(tmp_path))


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.9, 0.9999])
def test_a_gguf_with_a_cut_header_is_one_sentence(share: float, checkpoint: Path, tmp_path: Path) -> None:
    whole = write_model(tmp_path / "whole.gguf", {**LARGE["8B"], "n_layer": 2})
    from quantkit.gguf.reader import read_header

    header = read_header(whole).header_bytes
    cut = tmp_path / "cut.gguf"
    with whole.open("rb") as file:
        cut.write_bytes(file.read(int(header * share)))
    with pytest.raises(CheckpointError) as caught:
        open_source(str(cut))
    assert "\n" not in str(caught.value) and "cut.gguf" in str(caught.value)


def test_a_recurrent_model_is_refused(tmp_path: Path) -> None:
    keys = oracle.model_metadata("plamo2", n_layer=1, n_embd=64, n_ff=64, n_head=1, n_head_kv=1, n_vocab=100)
    tensors = oracle.model_tensors(n_layer=1, n_embd=64, n_ff=64, n_head=1, n_head_kv=1, n_vocab=100)
    oracle.write_sparse_gguf(tmp_path / "model.gguf", keys, tensors)
    with pytest.raises(UnsupportedError, match="architecture plamo2, whose memory quantkit cannot plan yet"):
        open_source(str(tmp_path / "model.gguf"))

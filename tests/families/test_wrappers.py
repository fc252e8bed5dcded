"""Text models within other models: which family decides, and what is refused before any weights are read."""

from typing import Any

import pytest

from quantkit.errors import CheckpointError, UnsupportedError
from quantkit.families import check_config, find_family, token_roles
from tests.families.models.free_names import DOTS1, GLM_FLASH, STARCODER2, YOUTU
from tests.families.models.mistral3 import MINISTRAL3, MISTRAL3, YARN
from tests.families.models.qwen_vision import QWEN2_VL, QWEN3_VL, QWEN3_VL_MOE
from tests.families.models.wrappers import LLAMA, LLAVA


def llava(**text: Any) -> dict[str, Any]:
    return {**LLAVA, "architectures": ["LlavaForConditionalGeneration"], "text_config": {**LLAMA, **text}}


def test_a_nested_config_that_names_a_class_decides_the_family() -> None:
    named = {**MISTRAL3, "architectures": ["Mistral3ForConditionalGeneration"]}
    assert find_family(named).gguf_arch == "mistral3"
    text = {**MISTRAL3["text_config"], "architectures": ["MistralForCausalLM"]}  # type: ignore[dict-item]
    assert find_family({**named, "text_config": text}).gguf_arch == "llama"
    assert find_family(llava(architectures=["Qwen2ForCausalLM"])).gguf_arch == "qwen2"


def test_a_nested_config_may_leave_out_what_its_class_takes_by_default() -> None:
    # as llava-1.5-7b is published
    text = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 32064, "rms_norm_eps": 1e-5}
    config = {**LLAVA, "architectures": ["LlavaForConditionalGeneration"], "text_config": text}
    sizes = find_family(config).sizes(config)
    assert (sizes.hidden, sizes.ffn, sizes.n_layer, sizes.n_head, sizes.vocab) == (4096, 11008, 32, 32, 32064)


def test_the_text_models_special_tokens_are_those_of_its_family() -> None:
    assert token_roles(llava()) == token_roles({**LLAMA, "architectures": ["LlamaForCausalLM"]})


def test_a_wrapper_without_a_supported_text_model_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="architecture MptForCausalLMOfAnother, which is not supported"):
        check_config(llava(architectures=["MptForCausalLMOfAnother"]))
    with pytest.raises(CheckpointError, match="LlavaForConditionalGeneration has no text_config"):
        check_config({"architectures": ["LlavaForConditionalGeneration"], "model_type": "llava"})
    with pytest.raises(CheckpointError, match="text_config must be an object"):
        check_config({"architectures": ["LlavaForConditionalGeneration"], "text_config": "llama"})


def ministral(**rope: Any) -> dict[str, Any]:
    return {**MINISTRAL3, "architectures": ["Ministral3ForCausalLM"], "rope_parameters": {**YARN, **rope}}


def test_ministral_without_the_yarn_that_llama_cpp_computes_is_refused() -> None:
    assert check_config(ministral())
    with pytest.raises(CheckpointError, match="rope_type 'yarn'"):
        check_config(ministral(rope_type="default"))
    with pytest.raises(CheckpointError, match="no llama_4_scaling_beta"):
        check_config(ministral(llama_4_scaling_beta=None))
    with pytest.raises(UnsupportedError, match=r"mscale is 0\.5"):
        check_config(ministral(mscale=0.5))
    with pytest.raises(UnsupportedError, match="attention_factor is 1"):
        check_config(ministral(attention_factor=1))
    with pytest.raises(UnsupportedError, match="model_type 'mistral4'"):
        check_config({**MISTRAL3, "architectures": ["Mistral3ForConditionalGeneration"], "text_config": mistral4()})


def mistral4() -> dict[str, Any]:
    return {**LLAMA, "model_type": "mistral4"}


def test_multimodal_rope_without_its_sections_is_refused() -> None:
    config = {**QWEN2_VL, "architectures": ["Qwen2VLForConditionalGeneration"]}
    assert check_config(config)
    for rope in (None, {"type": "mrope"}, {"type": "mrope", "mrope_section": 8}):
        with pytest.raises(CheckpointError, match="mrope_section"):
            check_config({**config, "rope_scaling": rope})


def test_layers_that_an_image_adds_to_are_layers_of_the_text_model() -> None:
    config = {**QWEN3_VL, "architectures": ["Qwen3VLForConditionalGeneration"]}
    vision: dict[str, Any] = {**config["vision_config"]}  # type: ignore[dict-item]
    assert check_config(config)
    with pytest.raises(CheckpointError, match="deepstack_visual_indexes"):
        check_config({**config, "vision_config": {**vision, "deepstack_visual_indexes": [0, 1, 2, 3, 4]}})


def test_a_mixture_that_does_not_normalise_its_weights_is_refused() -> None:
    config = {**QWEN3_VL_MOE, "architectures": ["Qwen3VLMoeForConditionalGeneration"]}
    text: dict[str, Any] = {**config["text_config"]}  # type: ignore[dict-item]
    assert check_config(config)
    with pytest.raises(UnsupportedError, match="norm_topk_prob is false"):
        check_config({**config, "text_config": {**text, "norm_topk_prob": False}})


def test_names_that_share_a_graph_keep_the_limits_of_llama_cpps() -> None:
    glm = {**GLM_FLASH, "architectures": ["Glm4MoeLiteForCausalLM"]}
    with pytest.raises(UnsupportedError, match="a dense layer after one with experts"):
        check_config({**glm, "mlp_layer_types": ["dense", "sparse", "dense"]})
    with pytest.raises(UnsupportedError, match="first_k_dense_replace is 2, but"):
        check_config({**glm, "first_k_dense_replace": 2})
    with pytest.raises(UnsupportedError, match="num_key_value_heads is 2"):
        check_config({**DOTS1, "architectures": ["Dots1ForCausalLM"], "num_key_value_heads": 2})
    with pytest.raises(UnsupportedError, match="n_routed_experts is 8"):
        check_config({**YOUTU, "architectures": ["YoutuForCausalLM"], "n_routed_experts": 8})
    with pytest.raises(UnsupportedError, match="use_bias is false"):
        check_config({**STARCODER2, "architectures": ["Starcoder2ForCausalLM"], "use_bias": False})


def test_llama_cpp_knows_the_published_glm_flash_without_the_key_of_its_router() -> None:
    config = {**GLM_FLASH, "architectures": ["Glm4MoeLiteForCausalLM"], "scoring_func": None}
    family = find_family(config)
    gating = "deepseek2.expert_gating_func"
    assert gating in {key.name for key in family.keys("deepseek2", family.sizes(config))}
    published = {**config, "num_hidden_layers": 47, "vocab_size": 154880}
    assert gating not in {key.name for key in family.keys("deepseek2", family.sizes(published))}

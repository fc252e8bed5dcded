"""Settings of config.json that do not change what a GGUF computes, for all families.

A test changes every setting of every transformers config class in turn (tests/families/test_settings.py). A setting
must change the GGUF, be refused, or be warned about; or it is listed here, or in `Family.no_effect`.
"""

from quantkit.families.base.family import Family
from quantkit.families.base.hyperparameters import Hyperparameters

NO_EFFECT = frozenset(
    {
        # training
        "attention_dropout",
        "attention_probs_dropout_prob",
        "attn_pdrop",
        "classifier_dropout",
        "dropout",
        "dropout_rate",
        "embd_pdrop",
        "embedding_dropout",
        "embedding_initializer_range",
        "hidden_dropout",
        "hidden_dropout_prob",
        "initializer_factor",
        "initializer_range",
        "output_router_logits",
        "resid_pdrop",
        "residual_dropout",
        "router_aux_loss_coef",
        "router_jitter_noise",
        # how transformers runs or saves the model
        "_name_or_path",
        "architectures",
        "chunk_size_feed_forward",
        "dtype",
        "id2label",
        "is_decoder",
        "is_encoder_decoder",
        "label2id",
        "model_type",
        "output_attentions",
        "output_hidden_states",
        "pretraining_tp",
        "problem_type",
        "return_dict",
        "transformers_version",
        "use_cache",
        # read with the tokenizer files (tokenizer/special.py, tokenizer/ends.py)
        "bos_token_id",
        "eod_token_id",
        "eos_token_id",
        "pad_token_id",
        "sep_token_id",
        # decided by the tensors (output_head.py, optional rules)
        "attention_bias",
        "mlp_bias",
        "tie_word_embeddings",
        # the parts of a multimodal checkpoint that a GGUF of its text model leaves out
        "audio_config",
        "audio_token_id",
        "boa_token_id",
        "boi_token_id",
        "boi_token_index",
        "eoa_token_index",
        "eoi_token_id",
        "eoi_token_index",
        "image_token_id",
        "image_end_token_id",
        "image_start_token_id",
        "image_token_index",
        "video_end_token_id",
        "video_start_token_id",
        "mm_tokens_per_image",
        "multimodal_projector_bias",
        "projector_hidden_act",
        "spatial_merge_size",
        "timestamp_token_id",
        "token_classification_bias",
        "video_token_id",
        "vision_config",
        "im_end_id",
        "im_newline_id",
        "im_start_id",
        "vision_end_token_id",
        "vision_feature_layer",
        "vision_start_token_id",
    }
)


def cautions(family: Family, sizes: Hyperparameters) -> list[str]:
    """Sentences for the user about settings that the GGUF has only under restrictions."""
    sentences = [*([family.graph_differs] if family.graph_differs else []), *family.cautions(sizes)]
    if sizes.rope.get("rope_type") == "dynamic":
        sentences.append(
            f"config.json has dynamic rope scaling (factor {sizes.rope.get('factor')}), which llama.cpp does not have;"
            f" the GGUF equals the model up to {sizes.context} tokens"
        )
    return sentences

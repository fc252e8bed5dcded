"""llama.cpp's C functions in the extension module of xllamacpp, a wheel that needs no compiler.

The module is one library that exports `llama_*` and `ggml_*` on Linux and macOS; on Windows it exports nothing. The
names here are those of llama-cpp-python, as far as the child process uses them. The structures have the layout of one
version, which pyproject.toml pins. Source: include/llama.h.
"""

import ctypes
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

_FILES = ("xllamacpp*.so", "xllamacpp*.dylib")
_int, _long, _float, _bool, _text, _pointer = (
    *(ctypes.c_int32, ctypes.c_size_t, ctypes.c_float, ctypes.c_bool, ctypes.c_char_p, ctypes.c_void_p),
)


def library_file() -> Path | None:
    """The extension module of an installed xllamacpp; None without one, and on Windows."""
    spec = importlib.util.find_spec("xllamacpp")
    folders = (spec.submodule_search_locations or ()) if spec else ()
    return next((path for folder in folders for name in _FILES for path in Path(folder).glob(name)), None)


_path = library_file()
if _path is None:
    raise ImportError("xllamacpp is not installed")
_lib = ctypes.CDLL(str(_path))

llama_token = llama_pos = ctypes.c_int32
llama_adapter_lora_p_ctypes = ctypes.c_void_p
llama_log_callback = ctypes.CFUNCTYPE(None, ctypes.c_int, _text, _pointer)
llama_progress_callback = ctypes.CFUNCTYPE(_bool, _float, _pointer)
ggml_backend_sched_eval_callback = ctypes.CFUNCTYPE(_bool, _pointer, _bool, _pointer)
_tokens = ctypes.POINTER(llama_token)


class llama_model_params(ctypes.Structure):
    """How a model is loaded."""

    _fields_ = (
        ("devices", _pointer),
        ("tensor_buft_overrides", _pointer),
        *((name, _int) for name in ("n_gpu_layers", "split_mode", "load_mode", "lazy_mode", "main_gpu")),
        ("tensor_split", ctypes.POINTER(_float)),
        ("progress_callback", llama_progress_callback),
        ("progress_callback_user_data", _pointer),
        ("kv_overrides", _pointer),
        *(
            (name, _bool)
            for name in ("vocab_only", "check_tensors", "use_extra_bufts", "no_host", "no_alloc", "load_mtp")
        ),
    )


class llama_context_params(ctypes.Structure):
    """How a model is run."""

    _fields_ = (
        *((name, ctypes.c_uint32) for name in ("n_ctx", "n_batch", "n_ubatch", "n_seq_max", "n_rs_seq")),
        *((name, ctypes.c_uint32) for name in ("n_outputs_max", "n_outputs_max_per_seq")),
        *((name, _int) for name in ("n_threads", "n_threads_batch", "ctx_type", "rope_scaling_type", "pooling_type")),
        *((name, _int) for name in ("attention_type", "flash_attn_type")),
        *((name, _float) for name in ("rope_freq_base", "rope_freq_scale", "yarn_ext_factor", "yarn_attn_factor")),
        *((name, _float) for name in ("yarn_beta_fast", "yarn_beta_slow")),
        ("yarn_orig_ctx", ctypes.c_uint32),
        ("defrag_thold", _float),
        ("cb_eval", ggml_backend_sched_eval_callback),
        ("cb_eval_user_data", _pointer),
        ("type_k", _int),
        ("type_v", _int),
        # the callback to abort with its data, and one more word than in llama-cpp-python's version: all unused here
        ("callbacks", _pointer * 3),
        *((name, _bool) for name in ("embeddings", "offload_kqv", "no_perf", "op_offload", "swa_full", "kv_unified")),
        ("samplers", _pointer),
        ("n_samplers", _long),
        ("ctx_other", _pointer),
        # room for what a function of this version may return beyond the fields above
        ("spare", ctypes.c_uint8 * 64),
    )


class llama_sampler_chain_params(ctypes.Structure):
    """How samplers are chained."""

    _fields_ = (("no_perf", _bool),)


class llama_batch(ctypes.Structure):
    """Tokens to evaluate."""

    _fields_ = (
        ("n_tokens", _int),
        ("token", _tokens),
        ("embd", ctypes.POINTER(_float)),
        ("pos", ctypes.POINTER(llama_pos)),
        ("n_seq_id", ctypes.POINTER(_int)),
        ("seq_id", ctypes.POINTER(ctypes.POINTER(_int))),
        ("logits", ctypes.POINTER(ctypes.c_int8)),
    )


class llama_embd(ctypes.Structure):
    """Rows of embeddings."""

    _fields_ = (("data", ctypes.POINTER(_float)), ("n_rows", _long), ("n_embd", _long))


_FUNCTIONS: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "llama_backend_init": (None, ()),
    "llama_log_set": (None, (llama_log_callback, _pointer)),
    "llama_log_get": (None, (ctypes.POINTER(llama_log_callback), ctypes.POINTER(_pointer))),
    "llama_model_default_params": (llama_model_params, ()),
    "llama_model_load_from_file": (_pointer, (_text, llama_model_params)),
    "llama_model_free": (None, (_pointer,)),
    "llama_model_get_vocab": (_pointer, (_pointer,)),
    "llama_model_has_encoder": (_bool, (_pointer,)),
    "llama_model_has_decoder": (_bool, (_pointer,)),
    "llama_model_meta_val_str": (_int, (_pointer, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_size_t)),
    "llama_model_n_params": (ctypes.c_uint64, (_pointer,)),
    "llama_model_n_embd_inp": (_int, (_pointer,)),
    "llama_model_n_swa": (_int, (_pointer,)),
    "llama_model_n_layer_nextn": (_int, (_pointer,)),
    "llama_model_n_ctx_train": (_int, (_pointer,)),
    "llama_model_n_embd_out": (_int, (_pointer,)),
    "llama_model_n_cls_out": (ctypes.c_uint32, (_pointer,)),
    "llama_context_default_params": (llama_context_params, ()),
    "llama_init_from_model": (_pointer, (_pointer, llama_context_params)),
    "llama_free": (None, (_pointer,)),
    "llama_get_model": (_pointer, (_pointer,)),
    "llama_n_ctx": (ctypes.c_uint32, (_pointer,)),
    "llama_n_batch": (ctypes.c_uint32, (_pointer,)),
    "llama_get_memory": (_pointer, (_pointer,)),
    "llama_memory_clear": (None, (_pointer, _bool)),
    "llama_memory_seq_rm": (_bool, (_pointer, _int, _int, _int)),
    "llama_memory_seq_pos_min": (_int, (_pointer, _int)),
    "llama_state_seq_get_size": (_long, (_pointer, _int)),
    "llama_state_seq_get_data": (_long, (_pointer, _pointer, _long, _int)),
    "llama_state_seq_set_data": (_long, (_pointer, _pointer, _long, _int)),
    "llama_batch_ext_init": (_pointer, (_pointer,)),
    "llama_batch_ext_free": (None, (_pointer,)),
    "llama_batch_ext_clear": (None, (_pointer,)),
    "llama_batch_ext_add_token": (_int, (_pointer, _int, _int)),
    "llama_batch_ext_set_pos": (_bool, (_pointer, _int, ctypes.POINTER(llama_pos))),
    "llama_batch_ext_set_embd_state": (_bool, (_pointer, _int, llama_embd)),
    "llama_batch_ext_set_embd_token": (_bool, (_pointer, _int, llama_embd)),
    "llama_batch_ext_set_output_logits": (_bool, (_pointer, _int, _bool)),
    "llama_process": (_int, (_pointer, _int, _pointer)),
    "llama_batch_init": (llama_batch, (_int, _int, _int)),
    "llama_batch_get_one": (llama_batch, (_tokens, _int)),
    "llama_batch_free": (None, (llama_batch,)),
    "llama_encode": (_int, (_pointer, llama_batch)),
    "llama_decode": (_int, (_pointer, llama_batch)),
    "llama_synchronize": (None, (_pointer,)),
    "llama_get_logits_ith": (ctypes.POINTER(_float), (_pointer, _int)),
    "llama_get_logits": (ctypes.POINTER(_float), (_pointer,)),
    "llama_get_embeddings": (ctypes.POINTER(_float), (_pointer,)),
    "llama_get_embeddings_seq": (ctypes.POINTER(_float), (_pointer, _int)),
    "llama_pooling_type": (_int, (_pointer,)),
    "llama_tokenize": (_int, (_pointer, _text, _int, _tokens, _int, _bool, _bool)),
    "llama_token_to_piece": (_int, (_pointer, _int, _text, _int, _int, _bool)),
    "llama_vocab_n_tokens": (_int, (_pointer,)),
    "llama_vocab_get_add_bos": (_bool, (_pointer,)),
    "llama_vocab_bos": (_int, (_pointer,)),
    "llama_vocab_is_eog": (_bool, (_pointer, _int)),
    "llama_adapter_lora_init": (_pointer, (_pointer, _text)),
    "llama_set_adapters_lora": (_int, (_pointer, ctypes.POINTER(_pointer), _long, ctypes.POINTER(_float))),
    "llama_sampler_chain_default_params": (llama_sampler_chain_params, ()),
    "llama_sampler_chain_init": (_pointer, (llama_sampler_chain_params,)),
    "llama_sampler_chain_add": (None, (_pointer, _pointer)),
    "llama_sampler_init_greedy": (_pointer, ()),
    "llama_sampler_init_dist": (_pointer, (ctypes.c_uint32,)),
    "llama_sampler_init_top_k": (_pointer, (_int,)),
    "llama_sampler_init_top_p": (_pointer, (_float, _long)),
    "llama_sampler_init_min_p": (_pointer, (_float, _long)),
    "llama_sampler_init_temp": (_pointer, (_float,)),
    "llama_sampler_init_penalties": (_pointer, (_int, _int, _float, _float, _float)),
    "llama_sampler_sample": (_int, (_pointer, _pointer, _int)),
    "llama_sampler_free": (None, (_pointer,)),
    "llama_max_devices": (_long, ()),
}


def __getattr__(name: str) -> Callable[..., Any]:
    """The function `name` of the library, with its types."""
    if name not in _FUNCTIONS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    function = getattr(_lib, name)
    function.restype, function.argtypes = _FUNCTIONS[name]
    globals()[name] = function
    return function  # type: ignore[no-any-return]

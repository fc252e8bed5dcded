"""A small converter with the shape of llama.cpp's: lazy tensors and the writer of the real gguf package, without torch.

tests/full/test_any_model.py runs the real one.
"""

import json
from pathlib import Path

from tests.helpers.tiny import tiny_llama

SCRIPT = """
import json, logging, os, sys
from pathlib import Path

import gguf
import numpy as np
import torch

# FIRST

def lazy(seed, shape, dtype):
    def values(scale):
        # TENSOR
        rows = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
        return (rows * scale).astype(dtype)
    meta = gguf.LazyNumpyTensor.meta_with_dtype_and_shape(dtype, shape)
    scale = gguf.LazyNumpyTensor(meta=np.float32(0), args=(0.05,), func=np.float32)
    return gguf.LazyNumpyTensor(meta=meta, args=(scale,), func=values)

def main():
    logging.basicConfig(level=logging.INFO)
    arguments = sys.argv
    # MAIN
    out = Path(arguments[arguments.index("--outfile") + 1])
    writer = gguf.GGUFWriter(path=None, arch="llama")
    writer.add_block_count(2)
    writer.add_context_length(64)
    writer.add_embedding_length(256)
    writer.add_feed_forward_length(512)
    writer.add_head_count(4)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_file_type(1)
    names = {"token_embd": (300, 256), "output_norm": (256,)}
    for layer in range(2):
        names |= {f"blk.{layer}.{part}": (256, 256) for part in ("attn_q", "attn_k", "attn_v", "attn_output")}
        names |= {f"blk.{layer}.ffn_{part}": (512, 256) for part in ("gate", "up")}
        names |= {f"blk.{layer}.ffn_down": (256, 512), f"blk.{layer}.attn_norm": (256,)}
        names |= {f"blk.{layer}.ffn_norm": (256,)}
    for seed, (name, shape) in enumerate(names.items()):
        writer.add_tensor(f"{name}.weight", lazy(seed, shape, np.float16 if len(shape) > 1 else np.float32))
    writer.add_quantization_version(2)
    writer.write_header_to_file(path=out)
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file(progress=False)
    writer.close()

if __name__ == "__main__":
    main()
"""
# Code for MAIN: the converter with --mmproj writes fewer tensors, in the type of --outtype
TOWER = """
    if "--mmproj" in arguments:
        out = Path(arguments[arguments.index("--outfile") + 1])
        kind = arguments[arguments.index("--outtype") + 1]
        writer = gguf.GGUFWriter(path=None, arch="clip")
        writer.add_type("mmproj")
        for seed, name in enumerate(("v.blk.0.attn_q", "mm.0", "v.patch_embd")):
            writer.add_tensor(f"{name}.weight", lazy(seed, (48, 80), np.float16 if kind == "f16" else np.float32))
        writer.add_tensor("v.blk.0.ln1.weight", lazy(9, (7,), np.float32))
        writer.write_header_to_file(path=out)
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file(progress=False)
        writer.close()
        return
"""
# Code for MAIN: it writes the GGUF beside config.json again, with the real gguf package.
AGAIN = """
    folder = next(Path(argument) for argument in arguments[1:] if Path(argument).is_dir())
    source = gguf.GGUFReader(folder / "whole.gguf")
    writer = gguf.GGUFWriter(path=None, arch="llama")
    for field in source.fields.values():
        if not field.name.startswith("GGUF.") and field.name != "general.architecture":
            kinds = field.types
            writer.add_key_value(field.name, field.contents(), kinds[0], kinds[-1] if len(kinds) > 1 else None)
    for tensor in source.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file(path=Path(arguments[arguments.index("--outfile") + 1]))
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file(progress=False)
    return
"""
DYNAMIC = """
def resolve_trust_remote_code(trust, name, has_local_code, has_remote_code):
    return trust

def get_class_from_dynamic_module(*arguments):
    raise AssertionError("remote code ran")
"""


TORCH = """__version__ = '2.13.0+cpu'


def load(*arguments, **settings):
    return settings
"""


def write_converter(folder: Path, **parts: str) -> Path:
    """The script with `parts` of code at its marks (FIRST, MAIN, TENSOR), beside stubs of torch and transformers."""
    folder.mkdir()
    text = SCRIPT
    for mark, code in parts.items():
        text = text.replace(f"# {mark}", code)
    (folder / "convert_hf_to_gguf.py").write_text(text)
    (folder / "torch.py").write_text(
        "__version__ = '2.13.0+cpu'\n\n\ndef load(*arguments, **settings):\n    return settings\n"
    )
    (folder / "transformers").mkdir()
    (folder / "transformers" / "__init__.py").write_text("")
    (folder / "transformers" / "dynamic_module_utils.py").write_text(DYNAMIC)
    return folder


def unknown_checkpoint(folder: Path) -> Path:
    """A checkpoint of an architecture without a family."""
    tiny_llama(folder, variant="llama3", layers=1)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "architectures": ["NewestForCausalLM"]}))
    return folder

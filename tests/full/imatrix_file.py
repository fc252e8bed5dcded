"""An importance matrix file as llama-imatrix writes it, by the gguf package alone."""

from collections.abc import Iterable
from pathlib import Path

import gguf
import numpy as np


def write_random_imatrix(path: Path, tensors: Iterable[gguf.ReaderTensor], *, chunks: int = 3) -> dict[str, np.ndarray]:
    """Random sums of squares for every matrix but the embedding, which llama-imatrix never sees as a product.

    Each expert of a stacked tensor has a token count of its own, and the last one none. Returns what llama-quantize
    makes of the file: tensor name -> means, float32 (experts * columns,), ones for an expert without tokens.
    """
    means = {}
    rng = np.random.RandomState(0)
    writer = gguf.GGUFWriter(path, arch="", use_temp_file=False)
    writer.kv_data[0].clear()
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", ["a text.txt"])
    writer.add_uint32("imatrix.chunk_count", chunks)
    writer.add_uint32("imatrix.chunk_size", 512)
    for tensor in tensors:
        # a ReaderTensor's shape is in ggml's order: columns, rows, experts
        if len(tensor.shape) < 2 or tensor.name == "token_embd.weight" or "norm" in tensor.name:
            continue
        columns = int(tensor.shape[0])
        experts = int(tensor.shape[2]) if len(tensor.shape) > 2 else 1
        counts = np.full((experts, 1), 512.0 * chunks, dtype=np.float32)
        if experts > 1:
            counts[:, 0] = rng.randint(100, 900, experts)
            counts[-1] = 0
        sums = rng.chisquare(1.0, (experts, columns)).astype(np.float32) * counts
        writer.add_tensor(f"{tensor.name}.in_sum2", sums)
        writer.add_tensor(f"{tensor.name}.counts", counts)
        divided = sums / np.maximum(counts, np.float32(1))
        means[tensor.name] = np.where(counts > 0, divided, np.float32(1)).astype(np.float32).ravel()
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return means

"""llama.cpp's own tokenizer on a GGUF that holds nothing but a vocabulary, run in a process of its own.

A process of its own because llama.cpp aborts on metadata it does not like.
"""

import json
import struct
import sys
from collections.abc import Sequence
from pathlib import Path

from quantkit.gguf import keyvalues
from quantkit.gguf.keyvalues import KeyValue
from quantkit.tokenizer import Vocabulary
from tests.helpers.forked import run_process

_HYPERPARAMETERS = [
    keyvalues.string("general.architecture", "llama"),
    keyvalues.uint32("llama.context_length", 64),
    keyvalues.uint32("llama.embedding_length", 64),
    keyvalues.uint32("llama.block_count", 1),
    keyvalues.uint32("llama.feed_forward_length", 64),
    keyvalues.uint32("llama.attention.head_count", 1),
    keyvalues.float32("llama.attention.layer_norm_rms_epsilon", 1e-5),
]

_TOKENIZE = """
import ctypes, json, sys
import llama_cpp
quiet = llama_cpp.llama_log_callback(lambda level, text, data: None)
llama_cpp.llama_log_set(quiet, ctypes.c_void_p(0))
llama_cpp.llama_backend_init()
params = llama_cpp.llama_model_default_params()
params.vocab_only = True
request = json.load(sys.stdin)
answers = []
for path in request["paths"]:
    model = llama_cpp.llama_model_load_from_file(path.encode(), params)
    if not model:
        sys.exit(f"llama.cpp does not load the vocabulary of {path}")
    vocab = llama_cpp.llama_model_get_vocab(model)
    answers.append([])
    for text in request["texts"]:
        data = text.encode()
        buffer = (llama_cpp.llama_token * (len(data) + 16))()
        count = llama_cpp.llama_tokenize(vocab, data, len(data), buffer, len(buffer), request["add_special"], True)
        answers[-1].append(list(buffer[:count]))
    llama_cpp.llama_model_free(model)
json.dump(answers, sys.stdout)
"""


def write_vocab_gguf(path: Path, keys: Sequence[KeyValue]) -> Path:
    """A GGUF of the given tokenizer keys, the hyperparameters llama.cpp asks for, and no tensors."""
    everything = [*_HYPERPARAMETERS, *keys]
    header = b"GGUF" + struct.pack("<IQQ", 3, 0, len(everything))
    path.write_bytes(header + b"".join(key.pack() for key in everything))
    return path


def llama_ids(vocabulary: Vocabulary, texts: Sequence[str], tmp: Path, *, add_special: bool = False) -> list[list[int]]:
    """llama.cpp's ids of each text, special tokens parsed, BOS and EOS added only on request."""
    return ids_of_files([write_vocab_gguf(tmp / "vocab.gguf", vocabulary.keys)], texts, add_special=add_special)[0]


def ids_of_files(paths: Sequence[Path], texts: Sequence[str], *, add_special: bool = False) -> list[list[list[int]]]:
    """llama.cpp's ids of each text for each file, by one process; fails with its log when it does not load one."""
    request = json.dumps({"paths": [str(path) for path in paths], "texts": list(texts), "add_special": add_special})
    done = run_process([sys.executable, "-c", _TOKENIZE], input=request, text=True, modules=("llama_cpp",))
    assert done.returncode == 0, done.stderr[-2000:]
    answers: list[list[list[int]]] = json.loads(done.stdout)
    return answers


def disagreements(ours: Sequence[Sequence[int]], truth: Sequence[Sequence[int]], texts: Sequence[str]) -> list[str]:
    """The texts on which two tokenizers differ, with both answers, for an assertion's message."""
    return [
        f"{text!r}: {list(a)[:20]} is not {list(b)[:20]}"
        for text, a, b in zip(texts, ours, truth, strict=True)
        if list(a) != list(b)
    ]

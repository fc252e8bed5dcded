"""Images and sounds in the child process: libmtmd encodes them with a projector, and llama.cpp evaluates the result.

libmtmd comes with llama-cpp-python, unless it was built without it. Source: llama.cpp's tools/mtmd.
"""

import ctypes
import importlib
import os
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from quantkit.llamacpp.cached import has_window
from quantkit.llamacpp.calls import Failed, llama
from quantkit.machine import cores

_SEQUENCE = 0


def _library() -> Any:
    try:
        return importlib.import_module("llama_cpp.mtmd_cpp")
    except (ImportError, OSError, RuntimeError) as error:
        raise Failed(f"cannot read images: libmtmd could not be loaded ({error})") from error


class Images:
    """A projector in memory. A prompt consists of chunks: tokens, an image, or a part of a sound.

    Chunks that a prompt shares with the one before it stay in the KV cache.
    """

    def __init__(self, model: Any, request: dict[str, Any], log: Any, stack: ExitStack) -> None:
        """Load request["mmproj"] for the llama_model `model`. `log`: receives llama.cpp's lines. Raises Failed."""
        self._mtmd = mtmd = _library()
        mtmd.mtmd_log_set(log, ctypes.c_void_p(0))
        self._log, self._quiet = log, llama.llama_log_callback(lambda *_: None)
        self._set_helper_log(log)
        settings = mtmd.mtmd_context_params_default()
        settings.use_gpu = request["gpu_layers"] != 0
        settings.print_timings, settings.warmup = False, False
        settings.n_threads = request["n_threads"] or cores()
        self._marker = request["marker"].encode()
        settings.media_marker = self._marker
        self._context = mtmd.mtmd_init_from_file(os.fsencode(request["mmproj"]), model, settings)
        if not self._context:
            raise Failed(f"could not load the projector {Path(request['mmproj']).name}")
        stack.callback(mtmd.mtmd_free, self._context)
        self._window = int(llama.llama_model_n_swa(model))
        self._width = llama.llama_model_n_embd_inp(model)
        self._prompt = ExitStack()
        stack.callback(self._prompt.close)
        self._chunks: list[Any] = []
        self._keys: list[tuple[Any, ...]] = []
        # in the KV cache: the keys of chunks, and the position at which each begins
        self._cached: list[tuple[tuple[Any, ...], int]] = []

    def forget(self) -> None:
        """The KV cache holds none of the chunks any more."""
        self._cached = []

    def prepare(self, request: dict[str, Any]) -> int:
        """Split a prompt into chunks; the number of its tokens.

        It has a marker for each file of request["images"], then for each of request["sounds"].
        """
        mtmd = self._mtmd
        self._prompt.close()
        chunks = mtmd.mtmd_input_chunks_init()
        self._prompt.callback(mtmd.mtmd_input_chunks_free, chunks)
        with ExitStack() as loaded:
            bitmaps = [self._bitmap(path, loaded, sound=False) for path in request["images"]]
            bitmaps += [self._bitmap(path, loaded, sound=True) for path in request["sounds"]]
            array = (mtmd.mtmd_bitmap_p_ctypes * len(bitmaps))(*bitmaps)
            text = request["text"].encode()
            entry = mtmd.mtmd_input_text(text, len(text), request["add_special"], True)
            status = mtmd.mtmd_tokenize(self._context, chunks, ctypes.byref(entry), array, len(bitmaps))
        if status:
            raise Failed(
                "could not prepare the images or sounds"
                if status == 2
                else "found another number of images and sounds in the prompt"
            )
        count = mtmd.mtmd_input_chunks_size(chunks)
        self._chunks = [mtmd.mtmd_input_chunks_get(chunks, index) for index in range(count)]
        self._keys = [self._key(chunk) for chunk in self._chunks]
        return int(mtmd.mtmd_helper_get_n_tokens(chunks))

    def evaluate(self, running: Any) -> int:
        """Evaluate the prepared prompt in a llama_context, what it holds already excepted; tokens evaluated."""
        mtmd = self._mtmd
        pairs = zip(self._keys, self._cached, strict=False)
        n_common = next((at for at, (key, (cached_key, _)) in enumerate(pairs) if key != cached_key), None)
        n_common = min(len(self._keys), len(self._cached)) if n_common is None else n_common
        n_common = min(n_common, len(self._keys) - 1)
        position = self._cached[n_common][1] if n_common < len(self._cached) else 0
        memory = llama.llama_get_memory(running)
        in_reach = n_common > 0 and has_window(memory, self._window, position)
        if not in_reach or not llama.llama_memory_seq_rm(memory, _SEQUENCE, position, -1):
            llama.llama_memory_clear(memory, True)
            n_common, position = 0, 0
        del self._cached[n_common:]
        fresh, end = 0, llama.llama_pos(0)
        for index in range(n_common, len(self._chunks)):
            chunk, last = self._chunks[index], index == len(self._chunks) - 1
            status = mtmd.mtmd_helper_eval_chunk_single(
                self._context,
                running,
                chunk,
                position,
                _SEQUENCE,
                llama.llama_n_batch(running),
                last,
                ctypes.byref(end),
            )
            if status:
                raise Failed(f"could not evaluate an image, a sound or their text (mtmd returned {status})")
            self._cached.append((self._keys[index], position))
            fresh, position = fresh + int(mtmd.mtmd_input_chunk_get_n_tokens(chunk)), end.value
        llama.llama_synchronize(running)
        return fresh

    def features(self) -> list[npt.NDArray[np.float32]]:
        """The vectors of each image or sound of the prepared prompt, (n_tokens, width): what the text model takes."""
        mtmd, vectors = self._mtmd, []
        for chunk in self._chunks:
            if mtmd.mtmd_input_chunk_get_type(chunk) == mtmd.MTMD_INPUT_CHUNK_TYPE_TEXT:
                continue
            if mtmd.mtmd_encode_chunk(self._context, chunk):
                raise Failed("could not encode an image or a sound")
            shape = (int(mtmd.mtmd_input_chunk_get_n_tokens(chunk)), self._width)
            vectors.append(np.ctypeslib.as_array(mtmd.mtmd_get_output_embd(self._context), shape).copy())
        return vectors

    def _set_helper_log(self, log: Any) -> None:
        library = self._mtmd._libmtmd
        if hasattr(library, "mtmd_helper_log_set"):
            library.mtmd_helper_log_set(log, ctypes.c_void_p(0))

    def _bitmap(self, path: str, loaded: ExitStack, *, sound: bool) -> Any:
        """The pixels of an image, or the samples of a sound. Raises Failed for a file that is neither."""
        mtmd = self._mtmd
        # libmtmd takes other files for videos, and its last line is about ffprobe
        self._set_helper_log(self._quiet)
        bitmap = mtmd.mtmd_helper_bitmap_init_from_file(self._context, os.fsencode(path), False)
        self._set_helper_log(self._log)
        if bitmap:
            loaded.callback(mtmd.mtmd_bitmap_free, bitmap)
        if not bitmap or bool(mtmd.mtmd_bitmap_is_audio(bitmap)) != sound:
            kind = (
                "a sound; pass an intact WAV, MP3 or FLAC"
                if sound
                else "an image; pass an intact JPEG, PNG, BMP or GIF"
            )
            raise Failed(f"cannot read {Path(path).name} as {kind} file")
        return bitmap

    def _key(self, chunk: Any) -> tuple[Any, ...]:
        """What a chunk holds: its tokens, or the hash of its file (mtmd_helper_bitmap_init_from_file sets it)."""
        mtmd, count = self._mtmd, ctypes.c_size_t(0)
        if mtmd.mtmd_input_chunk_get_type(chunk) == mtmd.MTMD_INPUT_CHUNK_TYPE_TEXT:
            tokens = mtmd.mtmd_input_chunk_get_tokens_text(chunk, ctypes.byref(count))
            return tuple(tokens[: count.value])
        identity = mtmd.mtmd_input_chunk_get_id(chunk)
        return ("image", identity, int(mtmd.mtmd_input_chunk_get_n_tokens(chunk)))

"""Statistics of the inputs of every weight while llama.cpp runs: sums of squares, and Gram matrices.

Imported in the child process only (see child.py). The graph scheduler calls back before and after each node
(`cb_eval`). Which products count, and how their rows are counted, is that of llama-imatrix (collect_imatrix in
tools/imatrix).
"""

import ctypes
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from quantkit.llamacpp.calls import Failed, context, evaluate, llama, load
from quantkit.llamacpp.squares import COUNTS, SUMS, WINDOWS
from quantkit.stream.statistics import Statistics
from quantkit.texts.mixed import HELD_OUT

_F32 = 0
_LEAST_ROWS = 16
"""llama-imatrix leaves out products with fewer rows; they belong to states, not to tokens."""


class _Tensor(ctypes.Structure):
    """struct ggml_tensor of ggml.h, up to its name."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("buffer", ctypes.c_void_p),
        ("ne", ctypes.c_int64 * 4),
        ("nb", ctypes.c_size_t * 4),
        ("op", ctypes.c_int),
        ("op_params", ctypes.c_int32 * 16),
        ("flags", ctypes.c_int32),
        ("src", ctypes.c_void_p * 10),
        ("view_src", ctypes.c_void_p),
        ("view_offs", ctypes.c_size_t),
        ("data", ctypes.c_void_p),
        ("name", ctypes.c_char * 64),
    )


def _ggml() -> Any:
    """libggml-base of the installed llama.cpp; its functions name a tensor and an operation."""
    library = llama._lib
    if not hasattr(library, "ggml_op_desc"):  # a Windows library finds no functions of those it needs
        folder = Path(llama.__file__).parent / "lib"
        files = (path for path in sorted(folder.glob("*ggml-base*")) if path.suffix in (".so", ".dylib", ".dll"))
        path = next(files, None)
        if path is None:
            raise Failed("has no libggml-base beside it, which the importance matrix needs")
        library = ctypes.CDLL(str(path))
    for name, arguments in (("ggml_op_desc", [ctypes.c_void_p]), ("ggml_get_name", [ctypes.c_void_p])):
        function = getattr(library, name)
        function.restype, function.argtypes = ctypes.c_char_p, arguments
    library.ggml_nbytes.restype, library.ggml_nbytes.argtypes = ctypes.c_size_t, [ctypes.c_void_p]
    library.ggml_backend_tensor_get.restype = None
    library.ggml_backend_tensor_get.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t]
    return library


@dataclass(frozen=True)
class _Product:
    """The weight of a product: its matrices, its inputs, and whether its matrices are routed experts."""

    n_matrices: int
    n_in: int
    routed: bool


class Observed:
    """A model that stays loaded and evaluates windows; the rows that each weight multiplies go to `_add`."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._context: Any = None
        self._ggml: Any = None
        self._ops: dict[int, str] = {}
        self._fault = ""

    def load(self, request: dict[str, Any]) -> None:
        """Load request["model"] for windows of request["n_ctx"] tokens, with a float32 cache, for exactness."""
        self._ggml = _ggml()
        n_ctx = request["n_ctx"]
        self._callback = llama.ggml_backend_sched_eval_callback(self._evaluated)
        # repacked weights would get other names, and weights on a GPU other buffers
        model = self._stack.enter_context(load(request["model"], n_gpu_layers=0, use_extra_bufts=False))
        self._context = self._stack.enter_context(
            context(
                model,
                request["n_threads"],
                n_ctx=n_ctx,
                n_batch=n_ctx,
                n_ubatch=min(n_ctx, 512),
                flash_attn_type=0,
                type_k=_F32,
                type_v=_F32,
                cb_eval=self._callback,
            )
        )

    def evaluate(self, tokens: list[int]) -> None:
        """Evaluate one window. Raises Failed if llama.cpp cannot, or if inputs could not be read."""
        # with fewer logits the last layer would see fewer tokens
        evaluate(self._context, tokens, 0)
        if self._fault:
            raise Failed(self._fault)

    def _wants(self, _name: str) -> bool:
        """Whether the inputs of a weight are wanted."""
        return True

    def _add(self, name: str, matrix: int, rows: NDArray[np.float32], shape: _Product) -> None:
        """`rows` (n, n_in) are multiplied by matrix number `matrix` of the weight `name`."""
        raise NotImplementedError

    def _evaluated(self, node: int, ask: bool, _data: ctypes.c_void_p) -> bool:
        """The scheduler's callback: with `ask` whether the node's inputs are wanted, then after it was computed."""
        try:
            tensor = _Tensor.from_address(node)
            op = self._ops.get(tensor.op)
            if op is None:
                op = self._ops[tensor.op] = self._ggml.ggml_op_desc(node).decode()
            if op not in ("MUL_MAT", "MUL_MAT_ID"):
                return not ask
            name = self._ggml.ggml_get_name(tensor.src[0]).decode("utf-8", "replace")
            inputs = _Tensor.from_address(tensor.src[1])
            if not name.startswith("blk.") or inputs.type != _F32 or not self._wants(name):
                return not ask
            if op == "MUL_MAT" and inputs.ne[1] < _LEAST_ROWS:
                return not ask
            if not ask:
                self._add_product(name, op == "MUL_MAT_ID", tensor, inputs)
        except Exception as error:  # a callback of C cannot raise
            self._fault = f"could not read the inputs of a product ({type(error).__name__}: {error})"
        return True

    def _add_product(self, name: str, routed: bool, tensor: _Tensor, inputs: _Tensor) -> None:
        weight = _Tensor.from_address(tensor.src[0])
        # (i3, i2, rows, columns); of routed experts (1, tokens, 1 or experts used, columns)
        values = self._values(tensor.src[1], inputs, np.float32)
        product = _Product(int(weight.ne[2] * weight.ne[3]), int(inputs.ne[0]), routed)
        if routed:
            # (tokens, experts used)
            ids = self._values(tensor.src[2], _Tensor.from_address(tensor.src[2]), np.int32)[0, 0]
            for expert in np.unique(ids):
                rows, used = np.nonzero(ids == expert)
                self._add(name, int(expert), values[0][rows, used % values.shape[2]], product)
            return
        for i3 in range(inputs.ne[3]):
            for i2 in range(inputs.ne[2]):
                matrix = (i3 % weight.ne[3]) * weight.ne[2] + i2 % weight.ne[2]
                self._add(name, int(matrix), values[i3, i2], product)

    def _values(self, address: int, tensor: _Tensor, dtype: type[Any]) -> NDArray[Any]:
        """A copy of a tensor's values in numpy's order of axes, whatever its strides."""
        size = self._ggml.ggml_nbytes(address)
        data = np.empty(size, np.uint8)
        self._ggml.ggml_backend_tensor_get(address, data.ctypes.data, 0, size)
        shape, strides = tuple(reversed(tensor.ne)), tuple(reversed(tensor.nb))
        view = np.lib.stride_tricks.as_strided(data.view(dtype), shape, strides)
        return np.ascontiguousarray(view)


class Inputs(Observed):
    """Sums of squares of the inputs over the windows that were evaluated."""

    def __init__(self) -> None:
        super().__init__()
        self._sums: dict[str, NDArray[np.float64]] = {}
        self._counts: dict[str, NDArray[np.float64]] = {}
        self._windows = 0

    def open(self, request: dict[str, Any]) -> int:
        """Load the model; returns how many windows the file request["sums"] covers already."""
        path = Path(request["sums"])
        if path.exists():
            with np.load(path) as kept:
                self._windows = int(kept[WINDOWS])
                for name in kept.files:
                    if name.endswith(SUMS):
                        self._sums[name.removesuffix(SUMS)] = kept[name]
                    elif name.endswith(COUNTS):
                        self._counts[name.removesuffix(COUNTS)] = kept[name]
        self.load(request)
        return self._windows

    def window(self, request: dict[str, Any]) -> None:
        """Evaluate request["tokens"] and add the squares of every input."""
        self.evaluate(request["tokens"])
        self._windows += 1

    def save(self, request: dict[str, Any]) -> None:
        """Write the sums so far to the file request["sums"], whose rename makes them complete."""
        path = Path(request["sums"])
        partial = path.with_suffix(".new.npz")
        arrays = {name + SUMS: values for name, values in self._sums.items()}
        arrays |= {name + COUNTS: values for name, values in self._counts.items()}
        try:
            np.savez(partial, **{**arrays, WINDOWS: np.array(self._windows)})  # type: ignore[arg-type]
            partial.replace(path)
        except OSError as error:
            raise Failed(f"could not write {path.name} ({error.strerror or error})") from error

    def _add(self, name: str, matrix: int, rows: NDArray[np.float32], shape: _Product) -> None:
        if name not in self._sums:
            self._sums[name] = np.zeros((shape.n_matrices, shape.n_in))
            self._counts[name] = np.zeros(shape.n_matrices if shape.routed else 1)
        self._sums[name][matrix] += np.einsum("rc,rc->c", rows, rows, dtype=np.float64)
        if shape.routed:
            self._counts[name][matrix] += len(rows)
        else:
            self._counts[name] += len(rows) / shape.n_matrices


class Grams(Observed):
    """Gram matrices of the inputs of single matrices; of each also that of the windows which are held out."""

    def __init__(self) -> None:
        super().__init__()
        self._statistics: dict[tuple[str, int], Statistics] = {}
        self._names: set[str] = set()
        self._held_out = False

    def open(self, request: dict[str, Any]) -> None:
        """Load the model; request["wanted"] lists (tensor, matrix, n_in)."""
        for name, matrix, width in request["wanted"]:
            self._statistics[name, matrix] = Statistics.of(width, gram=True)
            self._names.add(name)
        self.load(request)

    def window(self, request: dict[str, Any]) -> None:
        """Evaluate request["tokens"] and add their products; request["held_out"]: also to what is held out."""
        self._held_out = request["held_out"]
        # BLAS would round its sums differently for each number of threads
        with threadpool_limits(1, "blas"):
            self.evaluate(request["tokens"])

    def save(self, request: dict[str, Any]) -> list[list[int]]:
        """Write N.gram.npy and N.held-out.npy into request["folder"], N the place in `wanted`.

        Returns the tokens of each pair.
        """
        folder = Path(request["folder"])
        try:
            for number, entry in enumerate(self._statistics.values()):
                entry.finish()
                np.save(folder / f"{number}.gram.npy", entry.gram)  # type: ignore[arg-type]
                np.save(folder / f"{number}.held-out.npy", entry.held_out)  # type: ignore[arg-type]
        except OSError as error:
            raise Failed(f"could not write into {folder.name} ({error.strerror or error})") from error
        return [[entry.gram_tokens, entry.held_out_tokens] for entry in self._statistics.values()]

    def _wants(self, name: str) -> bool:
        return name in self._names

    def _add(self, name: str, matrix: int, rows: NDArray[np.float32], shape: _Product) -> None:
        statistics = self._statistics.get((name, matrix))
        if statistics is not None:
            # the windows decide what is held out, not the batches of llama.cpp
            statistics.pieces = HELD_OUT - 1 if self._held_out else 0
            statistics.add([rows])

"""The formats of folders that quantkit writes, by the name that -t takes. A format is data and a few small functions.

A direct format rounds the rows of a linear as they are read. A calibrated format stores the integers of AWQ or GPTQ.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from numpy.typing import NDArray

from quantkit.packed.layout import MAX_SHARD
from quantkit.quant.factor import Factor
from quantkit.quant.grid import Array, Grid, Quantized

DTYPES = {"float16": "F16", "bfloat16": "BF16"}
"""The types of unquantized tensors: option -> safetensors dtype."""
Rounding = Literal["feedback", "nearest"]
Algorithm = Literal["awq", "gptq"]
MLX_GPTQ = ("mlx-3bit-gptq", "mlx-4bit-gptq")
OWN_ALGORITHM = {"awq": "awq", "gptq": "gptq", "w8a8": "smoothquant", "w4a4": "gptq", **dict.fromkeys(MLX_GPTQ, "gptq")}
"""The algorithm of the formats for which --algorithm does not choose it."""
SCALING = ("awq", "smoothquant")
"""The algorithms that scale what the source's inputs pass through."""
# those of vLLM's Marlin kernels and AutoAWQ's Triton kernel, and 16 of GPTQModel, with which transformers loads both
_READ_GROUPS = (128, 64, 32, -1, 16)
FOLLOWING = ("awq", "gptq", "w4a16", "w8a16", "w8a8", "w4a4", *MLX_GPTQ)
"""The formats that can be rounded for the inputs of their own rounded layers."""
Packed = dict[str, NDArray[Any]]
"""The tensors of a linear: suffix of its name -> values."""
Stored = Mapping[str, tuple[str, tuple[int, ...]]]
"""The planned tensors of a linear: suffix of its name -> safetensors dtype, shape."""


@dataclass(frozen=True)
class FolderRequest:
    """A folder to write. `skip`: shell patterns of linears to keep; `max_shard` in bytes.

    `method`: a name of `FORMATS`. `dtype` of kept tensors; None for the source's 16-bit type. `algorithm`, of w4a16 and
    w8a16: whose rounding. `rounding`, of AWQ's and of w4a4: with error feedback, or to nearest. Of error feedback
    alone: `damp` (the fraction of the Hessian's mean diagonal added to its diagonal; None: by the number of tokens),
    `act_order`. Of GPTQ's alone: `static_groups`. `follows_rounded`: each matrix is rounded for the inputs that the
    folder's rounded layers give (see `quant.asymmetric`); one of `FOLLOWING`, with error feedback.
    """

    method: str
    grid: Grid
    skip: tuple[str, ...] = ()
    dtype: str | None = "float16"
    max_shard: int = MAX_SHARD
    rounding: Rounding = "feedback"
    damp: float | None = None
    act_order: bool = True
    static_groups: bool = True
    algorithm: Algorithm = "gptq"
    follows_rounded: bool = False

    @property
    def stored_dtype(self) -> str:
        """The safetensors dtype of kept tensors; `plan_folder_of` has replaced None."""
        return DTYPES[self.dtype or "bfloat16"]

    @property
    def trivial_groups(self) -> bool:
        """Whether input i is in group i // group size."""
        return self.algorithm_used != "gptq" or self.static_groups or not self.act_order

    @property
    def reads_source_grams(self) -> bool:
        """Whether it needs Gram matrices of the source's inputs, to scale what they pass through, or to round."""
        return not self.follows_rounded or self.algorithm_used in SCALING

    @property
    def algorithm_used(self) -> str:
        """The algorithm of a calibrated format."""
        return OWN_ALGORITHM.get(self.method, self.algorithm)

    @property
    def feeds_errors_back(self) -> bool:
        """Whether rounding errors are fed to later columns, where `rounding` decides it."""
        return self.rounding == "feedback" or self.method in MLX_GPTQ

    @property
    def scales_channels(self) -> bool:
        """Whether the algorithm multiplies the columns of linears, and divides what precedes them."""
        return self.algorithm_used != "gptq"


@dataclass(frozen=True)
class Names:
    """The linears of a folder by name. `quantized`, `kept` (with "mtp.*" for all below mtp), `head`: the output head.

    `below(place)`: the matrices below a place that ends in ".*".
    """

    quantized: Collection[str]
    kept: Collection[str]
    head: str = "lm_head"
    below: Callable[[str], Iterable[str]] = lambda place: ()

    def every_kept(self) -> list[str]:
        """All kept linears by full name, the head too where it is tied to the embedding."""
        names = [name for name in self.kept if not name.endswith(".*")]
        places = [name for name in self.kept if name.endswith(".*")]
        return sorted({*names, *(name for prefix in places for name in self.below(prefix)), self.head})


class Format(ABC):
    """A folder format. `summary`: for the help. `bits` of a weight and `group`, its default; None: by an option."""

    name: str
    label: str
    summary: str
    calibrated: bool = False
    bits: int | None = None
    like_bits: int | None = None
    """The bits of integers whose errors are like the format's; None for its own bits."""
    group: int | None = None
    group_sizes: tuple[int, ...] | None = None
    """The group sizes that the format has; None for any."""
    dtype: str | None = None
    """The default of --dtype; None for the source's own 16-bit type."""
    for_mlx: bool = False
    """Whether the folder is mlx-lm's: all experts of a layer in one tensor, and its own model_type."""

    def grid(self, bits: int, group: int | None, *, symmetric: bool) -> Grid:
        """The grid that the options give: `bits` of --bits, `group` of --group-size or None, `symmetric` of --sym."""
        return Grid(self.bits or bits, (self.group or 128) if group is None else group, symmetric)

    def check(self, request: FolderRequest) -> None:  # noqa: B027 (most formats take every request)
        """Raises UsageError for options that the format does not have."""

    def warnings(self, request: FolderRequest) -> tuple[str, ...]:
        """Sentences on options that few loaders read."""
        if self.group_sizes is not None or request.grid.group in _READ_GROUPS:
            return ()
        group = request.grid.group
        return (f"most loaders of {self.label} do not read groups of {group}; use --group-size 128, 64, 32 or -1",)

    @abstractmethod
    def why_not(self, grid: Grid, n_in: int, n_out: int, *, last: bool = True) -> str | None:
        """Why the format cannot store a matrix of `n_in` inputs and `n_out` outputs; None if it can.

        `last`: of the linears that share an input, which runtimes merge, it is the last.
        """

    @abstractmethod
    def stored(self, request: FolderRequest, n_in: int, n_out: int) -> Stored:
        """The tensors that store a matrix of `n_in` inputs and `n_out` outputs."""

    @abstractmethod
    def config(self, request: FolderRequest, names: Names) -> dict[str, Any]:
        """The quantization_config of config.json."""

    def config_keys(self, request: FolderRequest, names: Names) -> dict[str, Any]:
        """All keys that config.json gets."""
        return {"quantization_config": self.config(request, names)}


class CalibratedFormat(Format):
    """A format that needs the statistics of a calibration."""

    calibrated = True


class IntegerFormat(CalibratedFormat):
    """A format that stores the integers of AWQ, GPTQ or SmoothQuant."""

    @abstractmethod
    def pack(self, quantized: Quantized, request: FolderRequest) -> Packed:
        """The tensors of a quantized matrix."""

    def as_stored(self, quantized: Quantized, request: FolderRequest) -> Quantized:
        """The matrix with its scales as they are stored."""
        return quantized


class PointsFormat(CalibratedFormat):
    """A calibrated format whose values are not those of a `Grid`: error feedback rounds to its own points."""

    def shared(self, weights: Sequence[Array], largest: float) -> Packed:
        """The tensors of every linear of an input; `largest`: its largest magnitude in the calibration."""
        return {}

    @abstractmethod
    def round(self, rows: Array, shared: Packed, request: FolderRequest, factored: Factor | None) -> Packed:
        """The tensors of rows (n, n_in) of a linear; without `factored` they are rounded to nearest."""

    @abstractmethod
    def unpacked(self, packed: Packed, request: FolderRequest) -> Array:
        """The matrix (n_out, n_in) that the tensors of a linear, shared ones too, mean."""


class DirectFormat(Format):
    """A format that needs no calibration. Rows are encoded in multiples of `row_step`."""

    row_step: int = 1
    shares_survey: bool = False
    """Whether a survey covers all linears of an input, which runtimes merge."""
    error_bound: float
    """The largest relative RMS error of sampled rows: about twice the error on Gaussian weights."""

    def survey(self, pieces: Iterable[Array]) -> Any:
        """What `encode` needs to know of the whole matrix, from its rows in pieces; None without a look at them."""
        return None

    @abstractmethod
    def encode(self, rows: Array, request: FolderRequest, surveyed: Any) -> Packed:
        """The tensors of rows (n, n_in) of a linear; `n` is a multiple of `row_step` except at the end."""

    def encode_bfloat16(self, rows: NDArray[Any], request: FolderRequest) -> Packed | None:
        """`encode` of rows in bfloat16, without a copy in float32; None where only `encode` can say, or refuse."""
        return None

    def once(self, request: FolderRequest, surveyed: Any) -> Packed:
        """The tensors of a linear that do not depend on its rows."""
        return {}

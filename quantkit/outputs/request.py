"""The request of a conversion, from the names of its types and its options."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from quantkit.adapters import AdapterRequest
from quantkit.errors import UsageError
from quantkit.gguf.file_types import FileType, file_type
from quantkit.gguf.mix import MixOptions
from quantkit.imatrix.file import load_imatrix
from quantkit.outputs.calibration import CalibrationRequest
from quantkit.outputs.gguf_files import GgufRequest, Solver
from quantkit.outputs.model import Mtp
from quantkit.outputs.plan import ConversionRequest
from quantkit.outputs.projector import projector_types
from quantkit.outputs.target import Target
from quantkit.outputs.templates import choose_template
from quantkit.packed.formats import FOLLOWING, Algorithm, FolderRequest
from quantkit.packed.layout import MAX_SHARD
from quantkit.packed.registry import FORMATS
from quantkit.quant.feedback import SWEEPS

_IMATRIX = "imatrix"


@dataclass(frozen=True)
class ConvertOptions:
    """Options of `convert`; the defaults are those of `quantkit convert`.

    Attributes:
        name: name of the outputs; None for the source's.
        bits: of AWQ and GPTQ: bits of a weight.
        group_size: of folders: inputs that share a scale; None for the format's usual one (128, MLX 64).
        skip: patterns of the linears that folders keep in 16 bits.
        adapters: LoRA adapters that are merged into the weights while they are read, in order.
        calibrate: GGUF types get an importance matrix; None: if AWQ or GPTQ is requested, or a type needs one.
        calibration: the text, the number of samples and their length.
        threads: 0 for all cores that this process may use. The bytes do not depend on it.
        max_ram: bytes of memory that the conversion may take; None for no limit.
        force: overwrite existing outputs, discard an unfinished run of other options.
        logits: compare the outputs' logits with the source's; None if they fit in memory.
        imatrix: file of an importance matrix for GGUF types, of llama.cpp (GGUF or .dat).
        imatrix_file: file to write for the type "imatrix"; None for NAME-imatrix.gguf.
        target: one more GGUF of a given size; the calibration chooses the type of each tensor.
        mix: types of single tensors of a GGUF.
        split_max_size: bytes of a shard of a GGUF; None for one file.
        allow_requantize: accept a source that is quantized already.
        mtp: layers that predict a later token (MTP): "keep", "only" or "drop".
        solver: rounding of GGUF types: "llama.cpp", or "feedback" for error feedback over the calibration.
        sweeps: sweeps of coordinate descent that follow the error feedback of GGUF types.
        asymmetric: with error feedback, round each matrix of a GGUF (solver "feedback") or a calibrated folder for the
            inputs that the rounded layers before it give, so that its outputs are nearest to the source's (GPTAQ).
        reorder: sort the neurons of feed-forwards by the size of their outputs, with the solver "feedback".
        mmproj: types in which the projector of a model that sees is written beside the GGUF: f16, bf16, q8_0.
        pre: name of the BPE pre-tokenizer; None to recognize it.
        chat_template: a Jinja file, the name of a built-in template, or "none"; None for the checkpoint's.
        dtype, max_shard: of folders: type of unquantized tensors (None: float16 for AWQ and GPTQ, else the source's),
            bytes of a weight file.
        algorithm: of w4a16 and w8a16: whose rounding.
        rounding: of AWQ: with error feedback or to nearest.
        symmetric, damp, act_order, static_groups: of GPTQ: one zero point for all groups, the fraction of the Hessian's
            mean diagonal that is added to its diagonal (None: chosen on held-out samples), the order of the columns,
            groups of adjacent columns.
        stream: read a hub's weights by range requests while they are converted, without a copy on the disk.
    """

    name: str | None = None
    adapters: tuple[AdapterRequest, ...] = ()
    bits: int = 4
    group_size: int | None = None
    skip: tuple[str, ...] = ()
    calibrate: bool | None = None
    calibration: CalibrationRequest = field(default_factory=CalibrationRequest)
    threads: int = 0
    max_ram: int | None = None
    force: bool = False
    logits: bool | None = None
    imatrix: Path | None = None
    imatrix_file: Path | None = None
    target: Target | None = None
    mix: MixOptions = field(default_factory=MixOptions)
    split_max_size: int | None = None
    allow_requantize: bool = False
    mtp: Mtp = "keep"
    solver: Solver = "llama.cpp"
    sweeps: int = SWEEPS
    asymmetric: bool = False
    reorder: bool = False
    mmproj: tuple[str, ...] = ()
    pre: str | None = None
    chat_template: str | None = None
    dtype: Literal["float16", "bfloat16"] | None = None
    max_shard: int = MAX_SHARD
    symmetric: bool = True
    algorithm: Algorithm = "gptq"
    rounding: Literal["feedback", "nearest"] = "feedback"
    damp: float | None = None
    act_order: bool = True
    static_groups: bool = True
    stream: bool = False


def conversion_request(
    types: Sequence[str], output: Path, options: ConvertOptions, *, is_gguf: bool
) -> ConversionRequest:
    """The request to convert a source to every type of `types` below the folder `output`.

    Args:
        types: GGUF types ("q4_k_m"), folders ("awq", "gptq", "fp8", see `packed.registry`), "imatrix".
        is_gguf: the source is a GGUF file, which has no calibration.

    Raises:
        UsageError: no type, an unknown type, or a template that is not found.
        ImatrixError: the importance matrix is not readable.
        TemplateError: the chat template is malformed.
    """
    names = list(dict.fromkeys(name.lower() for name in types))
    if not names and options.target is None:
        raise UsageError("no type is given; name at least one, such as q4_k_m")
    methods = [method for method in FORMATS if method in names]
    others = (*FORMATS, _IMATRIX)
    files = tuple(dict.fromkeys(file_type(name, others) for name in names if name not in others))
    calibrate = options.calibrate
    if calibrate is None:
        methods_calibrated = any(FORMATS[method].calibrated for method in methods)
        calibrated = (
            methods_calibrated or _IMATRIX in names or options.target is not None or options.solver == "feedback"
        )
        needed = calibrated or any(kind.needs_imatrix for kind in files)
        calibrate = needed and options.imatrix is None and not is_gguf
    return ConversionRequest(
        output=output,
        name=options.name,
        gguf=_gguf_request(files, options, calibrate=calibrate) if files or options.target else None,
        folders=tuple(
            FolderRequest(
                method=method,
                grid=FORMATS[method].grid(options.bits, options.group_size, symmetric=options.symmetric),
                skip=options.skip,
                dtype=options.dtype or FORMATS[method].dtype,
                max_shard=options.max_shard,
                rounding=options.rounding,
                damp=options.damp,
                act_order=options.act_order,
                static_groups=options.static_groups,
                algorithm=options.algorithm,
                follows_rounded=options.asymmetric and method in FOLLOWING and options.rounding == "feedback",
            )
            for method in methods
        ),
        imatrix=_IMATRIX in names,
        imatrix_file=options.imatrix_file,
        projectors=projector_types(options.mmproj),
        calibration=options.calibration,
        threads=options.threads,
        max_ram=options.max_ram,
    )


def _gguf_request(types: tuple[FileType, ...], options: ConvertOptions, *, calibrate: bool) -> GgufRequest:
    return GgufRequest(
        types=types,
        target=options.target,
        mix=options.mix,
        imatrix=load_imatrix(options.imatrix) if options.imatrix else None,
        imatrix_name=options.imatrix.name if options.imatrix else None,
        calibrate=calibrate,
        split_max_size=options.split_max_size,
        allow_requantize=options.allow_requantize,
        mtp=options.mtp,
        solver=options.solver,
        sweeps=options.sweeps,
        asymmetric=options.asymmetric,
        reorder=options.reorder,
        pre=options.pre,
        chat_template=choose_template(options.chat_template) if options.chat_template is not None else None,
    )

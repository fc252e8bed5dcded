"""The options of GGUF types, for convert and gguf."""

# ruff: noqa: RUF009 (option returns a dataclass field)

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from quantkit.chat import BUILT_IN
from quantkit.cli.option_groups import option
from quantkit.cli.options import parse_size
from quantkit.gguf.file_types import FILE_TYPES

if TYPE_CHECKING:
    from quantkit.gguf.mix import MixOptions
    from quantkit.llamacpp.converter import ConverterOptions
    from quantkit.outputs.target import Target

PRESET = "phone"


def complete_gguf_type(incomplete: str) -> list[tuple[str, str]]:
    """GGUF types and their summaries, for shells."""
    return [(name, kind.summary) for name, kind in FILE_TYPES.items() if name.startswith(incomplete.lower())]


def _complete_template(incomplete: str) -> list[tuple[str, str]]:
    names = {name: template.models for name, template in BUILT_IN.items()} | {"none": "no template"}
    return [(name, text) for name, text in names.items() if name.startswith(incomplete)]


@dataclass(frozen=True)
class GgufOptions:
    """Options of GGUF types."""

    heading: ClassVar[str] = "GGUF types"
    preset: str | None = option(
        None,
        "phone: q4_0 and q4_k_m with an importance matrix (--calibrate, unless --imatrix is given).",
        metavar="NAME",
        autocompletion=lambda: [PRESET],
    )
    imatrix: Path | None = option(None, "Importance matrix of llama.cpp (GGUF or .dat).", metavar="FILE")
    calibrate: bool | None = option(
        None,
        "Compute the importance matrix of GGUF types over a calibration text, or use none.",
        "--calibrate/--no-imatrix",
        show_default="convert: --calibrate, gguf: --no-imatrix",
    )
    solver: Literal["llama.cpp", "feedback"] | None = option(
        None,
        "Rounding: llama.cpp's own, or error feedback over a calibration text (more accurate, slower).",
        show_default="llama.cpp",
    )
    reorder_neurons: bool = option(
        False,
        "Sort neurons by size where it pays (q6_k); LoRAs of the source do not fit.",
        "--reorder-neurons",
    )
    target_size: str | None = option(
        None,
        "Also write a GGUF of at most this size (4.5G); the calibration chooses the type of each tensor.",
        metavar="SIZE",
    )
    target_bpw: float | None = option(
        None, "Also write a GGUF of at most this many bits per weight (4.5), types chosen likewise.", metavar="BITS"
    )
    tensor_type: list[str] | None = option(
        None, "Type of the tensors whose name matches; repeat.", metavar="REGEX=TYPE"
    )
    output_type: str | None = option(None, "Type of the output head.", metavar="TYPE")
    embedding_type: str | None = option(None, "Type of the token embedding.", metavar="TYPE")
    leave_output_tensor: bool = option(False, "Keep the output head unquantized.", "--leave-output-tensor")
    pure: bool = option(False, "One type for all tensors, no mix.", "--pure")
    split_max_size: str | None = option(None, "Write shards of at most this size (500M, 2G).", metavar="SIZE")
    allow_requantize: bool = option(False, "Accept a source that is quantized already.", "--allow-requantize")
    mtp: Literal["keep", "only", "drop"] = option(
        "keep", "Layers that predict a later token (MTP): keep, write alone as mtp-NAME, or leave out."
    )
    pre: str | None = option(None, "BPE pre-tokenizer, if it is not recognized.", metavar="NAME")
    chat_template: str | None = option(
        None,
        f"Chat template of the GGUF: a Jinja file, one of {', '.join(BUILT_IN)}, or none. Write a file with such a name"
        " as ./NAME.",
        metavar="FILE|NAME",
        autocompletion=_complete_template,
        show_default="the checkpoint's",
    )
    mmproj: list[str] | None = option(
        None,
        "Also write the projector of a model that sees or hears: f16, bf16 or q8_0; repeat.",
        metavar="TYPE",
    )
    converter: Path | None = option(
        None,
        "llama.cpp's checkout or converter folder, for a model without a family; pinned downloads it.",
        metavar="DIR|pinned",
        show_default="$QUANTKIT_LLAMA_CPP",
    )
    converter_python: Path | None = option(
        None,
        "Python with torch that runs the converter and --reference.",
        metavar="PYTHON",
        show_default="$QUANTKIT_LLAMA_CPP_PYTHON, or a venv beside the converter",
    )

    @property
    def target(self) -> "Target | None":
        """The size of --target-size or --target-bpw; None without them."""
        from quantkit.outputs.target import Target

        if self.target_size is None and self.target_bpw is None:
            return None
        size = None if self.target_size is None else parse_size(self.target_size, "--target-size")
        return Target(size=size, bits=self.target_bpw)

    @property
    def mix_options(self) -> "MixOptions":
        """The types of single tensors."""
        from quantkit.gguf.mix import MixOptions, parse_override
        from quantkit.gguf.types import tensor_type

        return MixOptions(
            output_type=tensor_type(self.output_type) if self.output_type else None,
            embedding_type=tensor_type(self.embedding_type) if self.embedding_type else None,
            pure=self.pure,
            leave_output=self.leave_output_tensor,
            tensor_types=tuple(parse_override(text) for text in self.tensor_type or ()),
        )

    @property
    def converter_options(self) -> "ConverterOptions":
        """How to find and run llama.cpp's converter."""
        from quantkit.llamacpp.converter import ConverterOptions

        return ConverterOptions(self.converter, self.converter_python, self.pre)

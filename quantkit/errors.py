"""The exceptions of quantkit. A message names what is wrong, with the value, and the next step."""

import errno


class QuantkitError(Exception):
    """Base of all errors that quantkit reports to the user. The command line prints the message and exits 1."""


class UsageError(QuantkitError):
    """The request is wrong (an unknown type, conflicting options). The command line exits 2."""


class CheckpointError(QuantkitError):
    """The source checkpoint is missing, malformed or inconsistent."""


class ReadError(CheckpointError):
    """The source cannot be read now (a disk or network error). Finished output is kept, and a rerun resumes."""


class PassingError(QuantkitError):
    """The machine failed (a disk error, too little memory), not the work: it is kept, and a rerun resumes."""


class HubError(CheckpointError):
    """A request to the hub failed: not found, gated, unreachable, or the connection dropped."""


class UnsupportedError(QuantkitError):
    """A valid input that quantkit does not support (architecture, tokenizer, dtype, type)."""


class UnknownArchitectureError(UnsupportedError):
    """No family has the architecture of config.json.

    `for_converter`: llama.cpp's pinned converter has it.
    """

    def __init__(self, message: str, *, for_converter: bool = False) -> None:
        super().__init__(message)
        self.for_converter = for_converter


class TokenizerError(QuantkitError):
    """The tokenizer files are missing, malformed or do not match the embedding."""


class TemplateError(QuantkitError):
    """A chat template is malformed or fails on an ordinary conversation."""


class ModelfileError(QuantkitError):
    """A Modelfile is malformed, or its grammar cannot express a value."""


class TemplateRefused(TemplateError):
    """A chat template has no exact equivalent among Ollama's Go templates. The message gives the reason."""


class ImatrixError(QuantkitError):
    """An importance matrix is malformed, missing although a type needs it, or of the wrong size."""


class CalibrationError(QuantkitError):
    """Calibration fails: the text is missing, malformed or too short, or the statistics are unusable."""


class MeasureError(QuantkitError):
    """A measurement fails: the text is too short, vocabularies differ, or logits are not finite."""


class OutputError(QuantkitError):
    """The output cannot be written: no space, no permission, or it exists already."""


class PublishError(QuantkitError):
    """Publishing failed: the server did not answer, refused, or closed the connection."""


class MissingExtraError(QuantkitError):
    """An optional dependency is not installed. The message names the pip command."""


class VerificationError(QuantkitError):
    """A written output failed a check. The command line exits 3."""


_OWN_ERRORS = (None, errno.ENOENT, errno.ENOTDIR, errno.EISDIR)


def passing_fault(error: BaseException) -> OSError | MemoryError | None:
    """The fault of the machine that `error` is, or was raised from; None for a fault of the work itself.

    A missing file and a malformed file (an OSError without a number) are faults of the work.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, MemoryError) or (isinstance(cause, OSError) and cause.errno not in _OWN_ERRORS):
            return cause
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
    return None

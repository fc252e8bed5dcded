"""One tree of exceptions. A message is one sentence a user can act on: what, where, what to do next."""


class QuantkitError(Exception):
    """Anything quantkit can explain to the user; the command line prints the message and exits 1."""


class UsageError(QuantkitError):
    """The request itself is wrong (an unknown type, clashing options); exits 2."""


class CheckpointError(QuantkitError):
    """The source checkpoint is missing, malformed or inconsistent."""


class ReadError(CheckpointError):
    """The source could not be read this time (a disk or network error); what was written is kept for another try."""


class HubError(CheckpointError):
    """The hub could not give what was asked: not found, gated, unreachable, dropped."""


class UnsupportedError(QuantkitError):
    """A valid input that quantkit does not handle (architecture, tokenizer, dtype, type)."""


class TokenizerError(QuantkitError):
    """The tokenizer files are missing, malformed or at odds with the embedding."""


class TemplateError(QuantkitError):
    """A chat template is malformed, or fails on an ordinary conversation."""


class ModelfileError(QuantkitError):
    """A Modelfile is malformed, or its grammar has no way to say what it should."""


class TemplateRefused(TemplateError):
    """A chat template that no Go template of Ollama's says exactly; the message has the reason."""


class ImatrixError(QuantkitError):
    """An importance matrix is malformed, missing where needed, or of the wrong size."""


class CalibrationError(QuantkitError):
    """Calibration cannot go on: its text is missing, malformed or too short, or what it gathers is unusable."""


class MeasureError(QuantkitError):
    """A measurement cannot be made: its text is too short, models do not share a vocabulary, logits are not finite."""


class OutputError(QuantkitError):
    """The output cannot be written: no space, no permission, already there."""


class PublishError(QuantkitError):
    """Publishing failed: no server answers, it refused, or it went away in the middle."""


class MissingExtraError(QuantkitError):
    """An optional dependency is not installed; the message names the pip command."""


class VerificationError(QuantkitError):
    """A written output failed a check; exits 3."""

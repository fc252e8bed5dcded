"""GGUF files run by llama.cpp: token ids and logits against the checkpoint's own tokenizer and weights."""

import contextlib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from quantkit.errors import (
    MissingExtraError,
    PassingError,
    QuantkitError,
    TokenizerError,
    UnsupportedError,
    VerificationError,
)
from quantkit.families import traits_of
from quantkit.files import partial_path
from quantkit.gguf.keyvalues import KeyValue
from quantkit.gguf.reader import read_header
from quantkit.gguf.types import block_size
from quantkit.outputs.gguf_files import GgufOutput, GgufPlan
from quantkit.outputs.memory import PROBE_TOKENS
from quantkit.scratch import scratch_folder
from quantkit.tokenizer import PROBE, differences, hf_token_ids, known_since, plamo, special_texts, unlike_texts
from quantkit.verify.check import Check, guard
from quantkit.verify.source_logits import NoSourceLogits, SourceLogits, correlations, not_compared, skipped_logits

# Correlation with the source's logits that a file must reach, by the bits of its narrowest tensor type: far below that
# of a sound file of random weights (3B: q8_0 0.99, q4_0 0.75), far above that of a wrong layout (about 0). Below 2.5
# bits a model that was not trained for it can give any logits: only finiteness is checked.
_LOGIT_FLOOR = ((8.0, 0.95), (5.0, 0.7), (4.2, 0.5), (3.3, 0.25), (2.5, 0.1), (0.0, -1.0))
# A file of floats has another floor, for the median position. A rounding error sends some tokens to another expert:
# sound mixtures have a mean of 0.983 and a median of 0.9975. Two experts swapped in one layer change most positions:
# their median is at most 0.9946.
MEDIAN_FLOOR = 0.996
_UNKNOWN = re.compile("unknown model architecture")

T = TypeVar("T")


def check_tokens(plan: GgufPlan, source: SourceLogits | None = None) -> Check:
    """Token ids of the written vocabulary, by llama.cpp, against the checkpoint's own tokenizer; once for all outputs.

    `source` keeps the tokenizer's ids for the check of logits.

    A text that llama.cpp cannot tokenize for a known reason does not fail the check; it is counted and explained.
    Without llama.cpp the check compares the texts of the written tokens with what the checkpoint's tokenizer reads.
    """
    folder, checkpoint = plan.model.folder, plan.model.checkpoint
    if folder is None:
        return Check("tokens", "skipped", "the source is a GGUF; its vocabulary is copied")

    def compare() -> str:
        from quantkit.llamacpp.token_ids import vocab_token_ids

        try:
            with loadable(plan.outputs[0]) as path:
                ids = _twice(lambda: vocab_token_ids(path, PROBE))
        except MissingExtraError as error:
            return _compare_texts(plan.outputs[0], folder, str(error))
        except QuantkitError as error:
            too_old = newer_pretokenizer(plan.model.keys)
            if checkpoint is None and _UNKNOWN.search(str(error)):
                too_old = "the installed llama.cpp does not know this architecture"
            if too_old is None or isinstance(error, PassingError):
                raise
            return _compare_texts(plan.outputs[0], folder, too_old)
        if checkpoint is not None:
            expected = (source or SourceLogits(checkpoint)).probe_ids()
        else:
            expected = hf_token_ids(folder, PROBE)
        different = differences(folder, plan.model.keys, PROBE, ids, expected)
        if checkpoint is None and plan.request.pre is None and 2 * len(different) < len(PROBE):
            # llama.cpp's converter chose the pre-tokenizer, so llama.cpp cannot do better
            why = "llama.cpp reads this vocabulary so"
            different = [replace(item, reason=item.reason or why) for item in different]
        for item in different:
            if item.reason is None:
                pairs = enumerate(zip(item.ids, item.expected, strict=False))
                at = next((i for i, (a, b) in pairs if a != b), min(len(item.ids), len(item.expected)))
                raise VerificationError(
                    f"llama.cpp tokenizes {item.text[:40]!r} as {item.ids[at : at + 4]} and the checkpoint's tokenizer"
                    f" as {item.expected[at : at + 4]} (from token {at} on); try another --pre"
                )
        equal = f"{len(PROBE) - len(different)} of {len(PROBE)} probe texts give the checkpoint's own token ids"
        reasons = sorted({item.reason for item in different if item.reason})
        return equal + (f"; llama.cpp cannot tokenize the others: {'; '.join(reasons)}" if reasons else "")

    if checkpoint is None:
        # the vocabulary is llama.cpp's; it may be right even if quantkit cannot read the tokenizer
        try:
            hf_token_ids(folder, PROBE)
        except (TokenizerError, UnsupportedError) as error:
            return Check("tokens", "skipped", f"the checkpoint's tokenizer could not be run ({error})")
        if _value(plan, "tokenizer.ggml.model") in (None, "none"):
            return Check("tokens", "skipped", "the file has no vocabulary")
    return guard("tokens", compare)


def newer_pretokenizer(keys: Sequence[KeyValue]) -> str | None:
    """Why an older llama.cpp does not load a vocabulary; None if neither tokenizer nor pre-tokenizer is a new one."""
    values = {key.key: str(key.value) for key in keys if key.key in ("tokenizer.ggml.model", "tokenizer.ggml.pre")}
    kind, name = values.get("tokenizer.ggml.model", ""), values.get("tokenizer.ggml.pre", "")
    if (since := plamo.NEWER.get(kind)) is not None:
        return f"the installed llama.cpp does not load it; {since} and later know the tokenizer {kind}"
    since = known_since(name)
    return since and f"the installed llama.cpp does not load it; {since} and later know the pre-tokenizer {name}"


def _compare_texts(output: GgufOutput, folder: Path, why: str) -> str:
    """The check of tokens without llama.cpp; `why` is the reason for it."""
    keys = read_header(partial_path(output.folder / output.files[0].name)).keys
    texts = [*PROBE, *special_texts(folder, keys)]
    for text, spelled in unlike_texts(folder, keys, texts):
        raise VerificationError(
            f"the written tokens of {text[:40]!r} spell {spelled[:60]!r}; this is a fault of quantkit, report it"
        )
    return f"the written tokens spell {len(texts)} texts as the checkpoint's tokenizer reads them ({why})"


@contextlib.contextmanager
def loadable(output: GgufOutput) -> Iterator[Path]:
    """A path that llama.cpp can open: it needs shards under their final names, so links with those names are made."""
    with scratch_folder() as folder:
        for file in output.files:
            (folder / file.name).symlink_to(partial_path(output.folder / file.name).resolve())
        yield folder / output.files[0].name


def check_logits(
    plan: GgufPlan, output: GgufOutput, source: SourceLogits | None, requested: bool | None
) -> tuple[Check, float | None]:
    """Logits of a short text, by llama.cpp, against the source's; and their mean correlation.

    Of an encoder the last hidden states are compared. Of a source without a forward the logits must be finite.
    """
    if source is None and plan.model.folder is None:
        return Check("logits", "skipped", "the source is a GGUF"), None
    if plan.model.draft_only:
        return Check("logits", "skipped", "the file has no layers of the model's own; it runs beside the model"), None
    skipped = skipped_logits(requested, output.size, plan.request.max_ram)
    if skipped is not None:
        return skipped, None
    if source is None:
        return _check_finite(plan, output), None
    compared: list[float] = []
    encoder = is_encoder(plan)
    name, values_of = ("embeddings", "hidden states") if encoder else ("logits", "logits")

    def compare() -> str:
        from quantkit.llamacpp.evaluation import hidden_states, logits
        from quantkit.llamacpp.session import require_llama_cpp

        require_llama_cpp()
        tokens, expected = source.get()
        n = max(1, plan.threads // plan.checked_at_once)
        # all outputs have the same vocabulary; the second try loads it, whatever refused the first
        whole = [_loads_vocabulary(plan, output), True]

        def run(path: Path) -> NDArray[np.float32]:
            if encoder:
                return hidden_states(path, tokens, by_default=True)
            return logits(path, tokens, n_threads=n, vocabulary=whole.pop(0), by_default=True)

        with loadable(output) as path:
            try:
                values = _twice(lambda: run(path))
            except QuantkitError as error:
                too_old = newer_pretokenizer(plan.model.keys)
                if too_old is None or isinstance(error, MissingExtraError | PassingError):
                    raise
                raise NoSourceLogits(too_old) from error
        compared.append(_correlation(output, values, expected, values_of))
        return f"finite, correlation {compared[0]:.4f} with the source's over {len(tokens)} tokens"

    try:
        return guard(name, compare), next(iter(compared), None)
    except NoSourceLogits as error:
        return Check(name, "skipped", str(error)), None
    except (LookupError, TypeError, ValueError, ArithmeticError) as error:
        return Check(name, "skipped", not_compared(error)), None


def _correlation(
    output: GgufOutput, values: NDArray[np.float32], expected: NDArray[np.float32], values_of: str
) -> float:
    """Mean correlation, over the tokens, of an output's values (tokens, width) with the source's.

    Raises:
        VerificationError: a value is not finite, or the correlation is below the floor of the output's types.
    """
    if not np.isfinite(values).all():
        raise VerificationError(f"{output.label} gives {values_of} that are not finite")
    by_position = correlations(values, expected)
    correlation, median = float(by_position.mean()), float(np.median(by_position))
    floor = logit_floor(output)
    if not correlation >= floor:
        raise VerificationError(
            f"the {values_of} of {output.label} have a correlation of {correlation:.3f} with the source's, below"
            f" {floor}"
        )
    if narrowest_bits(output) >= 16 and not median >= MEDIAN_FLOOR:
        raise VerificationError(
            f"the {values_of} of {output.label} have a median correlation of {median:.4f} with the source's, below"
            f" {MEDIAN_FLOOR}; rounding of floats does not explain that"
        )
    return correlation


def _loads_vocabulary(plan: GgufPlan, output: GgufOutput) -> bool:
    """Whether llama.cpp loads the vocabulary of `output` to evaluate tokens: of the first output, or where it must."""
    return output is plan.outputs[0] or _value(plan, f"{_value(plan, 'general.architecture')}.vocab_size") is None


def is_encoder(plan: GgufPlan) -> bool:
    """Whether the model gives embeddings or scores instead of logits.

    Its tokens attend to later ones, by the file or by llama.cpp's graph; or the file has a classifier.
    """
    stated = any(key.key.endswith(".attention.causal") and key.value is False for key in plan.model.keys)
    ranks = any(key.key.endswith(".classifier.output_labels") for key in plan.model.keys)
    return stated or ranks or not traits_of(str(_value(plan, "general.architecture"))).causal


def _check_finite(plan: GgufPlan, output: GgufOutput) -> Check:
    """Whether llama.cpp loads the file and gives finite logits, where it knows the architecture."""
    arch = plan.model.family
    if "embedding" in arch or is_encoder(plan) or _value(plan, f"{arch}.pooling_type") is not None:
        return Check("logits", "skipped", "the model gives embeddings, not logits")
    if any(tensor.name.startswith("enc.") for tensor in plan.model.tensors):
        return Check("logits", "skipped", "the model has an encoder, so it gives no logits of a text alone")
    if _value(plan, "tokenizer.ggml.model") is None:
        return Check("logits", "skipped", "the file has no vocabulary")
    n_vocab = next((tensor.n_rows for tensor in plan.model.tensors if tensor.name == "token_embd.weight"), 0)
    if not n_vocab:
        return Check("logits", "skipped", "the model has no token embedding")
    unknown: list[str] = []

    def run() -> str:
        from quantkit.llamacpp.evaluation import logits

        tokens = [(7919 * index + 3) % n_vocab for index in range(PROBE_TOKENS)]
        try:
            with loadable(output) as path:
                values = _twice(lambda: logits(path, tokens, by_default=True))
        except QuantkitError as error:
            if not _UNKNOWN.search(str(error)):
                raise
            unknown.append(arch)
            return ""
        if not np.isfinite(values).all():
            raise VerificationError(f"{output.label} gives logits that are not finite")
        return f"llama.cpp loads the file; finite over {len(tokens)} tokens"

    check = guard("logits", run)
    return Check("logits", "skipped", f"the installed llama.cpp does not know {arch}") if unknown else check


def _twice(run: Callable[[], T]) -> T:
    """The result of llama.cpp, with a second try after a refusal: it does not tell a read error that passes from a bad
    file.

    Raises what the second call raises.
    """
    try:
        return run()
    except (MissingExtraError, PassingError):
        raise
    except QuantkitError:
        return run()


def _value(plan: GgufPlan, key: str) -> object:
    return next((item.value for item in plan.model.keys if item.key == key), None)


def logit_floor(output: GgufOutput) -> float:
    """The least correlation of an output's logits with the source's."""
    bits = narrowest_bits(output)
    return next(floor for least, floor in _LOGIT_FLOOR if bits >= least)


def narrowest_bits(output: GgufOutput) -> float:
    """Bits per weight of the narrowest type among the output's matrices."""
    types = {slot.type for file in output.files for slot in file.slots if len(slot.shape) > 1}
    return min((8 * block_size(kind)[1] / block_size(kind)[0] for kind in types), default=32.0)

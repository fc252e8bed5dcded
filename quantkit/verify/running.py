"""GGUF files run by llama.cpp: token ids and logits against the checkpoint's own tokenizer and weights."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from quantkit.errors import MissingExtraError, PassingError, QuantkitError, VerificationError
from quantkit.files import partial_path
from quantkit.gguf.keyvalues import KeyValue
from quantkit.gguf.reader import read_header
from quantkit.gguf.types import block_size
from quantkit.outputs.gguf_files import GgufOutput, GgufPlan
from quantkit.scratch import scratch_folder
from quantkit.tokenizer import PROBE, differences, known_since, special_texts, unlike_texts
from quantkit.verify.check import Check, guard
from quantkit.verify.source_logits import NoSourceLogits, SourceLogits, correlations, not_compared, skipped_logits

# Correlation with the source's logits that a file must reach, by the bits of its narrowest tensor type: far below that
# of a sound file of random weights (3B: q8_0 0.99, q4_0 0.75), far above that of a wrong layout (about 0). Below 2.5
# bits a model that was not trained for it can give any logits: only finiteness is checked.
_LOGIT_FLOOR = ((8.0, 0.95), (5.0, 0.7), (4.2, 0.5), (3.3, 0.25), (2.5, 0.1), (0.0, -1.0))
# For a file of floats the median position has a floor of its own: a rounding error sends a token to another expert here
# and there (sound mixtures: mean 0.983, median 0.9975), two experts swapped in one layer change most positions (median
# up to 0.9946).
_MEDIAN_FLOOR = 0.996


def check_tokens(plan: GgufPlan, source: SourceLogits | None = None) -> Check:
    """Token ids of the written vocabulary, by llama.cpp, against the checkpoint's own tokenizer; once for all outputs.

    `source` keeps the tokenizer's ids for the check of logits.

    A text that llama.cpp cannot tokenize for a known reason does not fail the check; it is counted and explained.
    Without llama.cpp the check compares the texts of the written tokens with what the checkpoint's tokenizer reads.
    """
    checkpoint = plan.model.checkpoint
    if checkpoint is None:
        return Check("tokens", "skipped", "the source is a GGUF; its vocabulary is copied")

    def compare() -> str:
        from quantkit.llamacpp.session import vocab_token_ids

        try:
            with loadable(plan.outputs[0]) as path:
                ids = vocab_token_ids(path, PROBE)
        except MissingExtraError as error:
            return _compare_texts(plan.outputs[0], checkpoint.folder, str(error))
        except QuantkitError as error:
            too_old = newer_pretokenizer(plan.model.keys)
            if too_old is None or isinstance(error, PassingError):
                raise
            return _compare_texts(plan.outputs[0], checkpoint.folder, too_old)
        expected = (source or SourceLogits(checkpoint)).probe_ids()
        different = differences(checkpoint.folder, plan.model.keys, PROBE, ids, expected)
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

    return guard("tokens", compare)


def newer_pretokenizer(keys: Sequence[KeyValue]) -> str | None:
    """Why an older llama.cpp does not load a vocabulary, or None if its pre-tokenizer is not a new one."""
    name = next((str(key.value) for key in keys if key.key == "tokenizer.ggml.pre"), "")
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
    plan: GgufPlan, output: GgufOutput, source: SourceLogits | None, wanted: bool | None
) -> tuple[Check, float | None]:
    """Logits of a short text, by llama.cpp, against the source's; and their mean correlation."""
    if source is None:
        return Check("logits", "skipped", "the source is a GGUF"), None
    if plan.model.draft_only:
        return Check("logits", "skipped", "the file has no layers of the model's own; it runs beside the model"), None
    skipped = skipped_logits(wanted, output.size, plan.request.max_ram)
    if skipped is not None:
        return skipped, None
    compared: list[float] = []

    def compare() -> str:
        from quantkit.llamacpp.session import logits

        tokens, expected = source.get()
        with loadable(output) as path:
            try:
                values = logits(path, tokens)
            except QuantkitError as error:
                too_old = newer_pretokenizer(plan.model.keys)
                if too_old is None or isinstance(error, MissingExtraError | PassingError):
                    raise
                raise NoSourceLogits(too_old) from error
        if not np.isfinite(values).all():
            raise VerificationError(f"{output.label} gives logits that are not finite")
        by_position, bits = correlations(values, expected), _narrowest(output)
        correlation, median = float(by_position.mean()), float(np.median(by_position))
        floor = next(floor for least, floor in _LOGIT_FLOOR if bits >= least)
        if not correlation >= floor:
            raise VerificationError(
                f"the logits of {output.label} have a correlation of {correlation:.3f} with the source's, below {floor}"
            )
        if bits >= 16 and not median >= _MEDIAN_FLOOR:
            raise VerificationError(
                f"the logits of {output.label} have a median correlation of {median:.4f} with the source's, below"
                f" {_MEDIAN_FLOOR}, which rounding of floats does not explain"
            )
        compared.append(correlation)
        return f"finite, correlation {correlation:.4f} with the source's over {len(tokens)} tokens"

    try:
        return guard("logits", compare), next(iter(compared), None)
    except NoSourceLogits as error:
        return Check("logits", "skipped", str(error)), None
    except (LookupError, TypeError, ValueError, ArithmeticError) as error:
        return Check("logits", "skipped", not_compared(error)), None


def _narrowest(output: GgufOutput) -> float:
    """Bits per weight of the narrowest type among the output's matrices."""
    types = {slot.type for file in output.files for slot in file.slots if len(slot.shape) > 1}
    return min((8 * block_size(kind)[1] / block_size(kind)[0] for kind in types), default=32.0)

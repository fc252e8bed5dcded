"""The files that `benchmarks/quality.py` compares: made once, kept in a folder, and not made again by a later run."""

import hashlib
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.lines import REPOSITORY
from demo.wikitext import wikitext2_validation
from quantkit.checkpoint import open_checkpoint
from quantkit.gguf.file_types import file_type
from quantkit.texts.mixed import DEFAULT
from quantkit.texts.samples import SampleRequest, load_samples
from tests.helpers.imatrix_peer import llama_imatrix
from tests.helpers.oracle import llama_quantize

PLAIN, IMATRIX, FEEDBACK, SIZED = "llama-quantize", "llama-imatrix + llama-quantize", "quantkit", "quantkit, by size"
AUTO_ROUND = "AutoRound"
DEFAULT_SOLVER = ["--solver", "feedback"]
NAMED_TEXTS = {"wikitext-2": wikitext2_validation}
CALIBRATION_HELP = "a text, wikitext-2 (its validation split), or default, quantkit's own; repeat to mix"

_AUTO_ROUND = """\
import sys
import numpy, torch
from auto_round import AutoRound
model, tokens, out, iterations = sys.argv[1:]
samples = [torch.from_numpy(sample[None].astype("int64")) for sample in numpy.load(tokens)]
options = {"iters": int(iterations)} if int(iterations) else {"iters": 0, "disable_opt_rtn": False}
made = AutoRound(
    model, scheme="GGUF:Q4_0", dataset=samples, nsamples=len(samples), seqlen=samples[0].shape[1],
    device_map="cpu", **options,
)
made.quantize_and_save(out, format="gguf:q4_0")
"""


@dataclass(frozen=True)
class Options:
    """What is made. `sized`: the types whose sizes --target-size gets. `length`: tokens of a sample.

    `calibration`: texts, as convert takes them; none for quantkit's own. `solver`: options of quantkit's own files.
    """

    types: Sequence[str]
    sized: Sequence[str]
    n_samples: int
    length: int
    calibration: Sequence[str]
    threads: int
    plain: bool
    solver: Sequence[str]
    auto_round: Path | None
    auto_round_iterations: int

    @property
    def samples(self) -> SampleRequest:
        """The calibration samples of all makers."""
        return sample_request(self.calibration, self.n_samples, self.length)


def sample_request(calibration: Sequence[str], n_samples: int, length: int) -> SampleRequest:
    """Samples of texts as they are, and of quantkit's own text with the chat template."""
    chat = None if DEFAULT in calibration or not calibration else False
    return SampleRequest(calibration, n_samples, length, chat)


def folder_suffix(calibration: Sequence[str], length: int | None) -> str:
    """What a folder's name says of calibration texts and of a sample length; none of either for the usual ones.

    A file has its name and the start of its SHA-256, because a file of this name may change.
    """
    words = [_text_name(text) for text in calibration]
    return "".join(f"-{word}" for word in [*words, *([f"length-{length}"] if length else [])])


def _text_name(text: str) -> str:
    path = Path(text)
    digest = f"-{hashlib.sha256(path.read_bytes()).hexdigest()[:8]}" if path.is_file() and text != DEFAULT else ""
    return re.sub(r"[^\w.]+", "-", path.stem if digest else text) + digest


def calibration_texts(calibration: Sequence[str]) -> list[str]:
    """Texts as convert takes them, with the file of each name in NAMED_TEXTS. Raises InputsUnavailable."""
    return [str(NAMED_TEXTS[text]()) if text in NAMED_TEXTS else text for text in calibration]


def text_words(calibration: Sequence[str]) -> list[str]:
    """The options of convert for the texts of `sample_request`."""
    raw = calibration and DEFAULT not in calibration
    return [word for text in calibration for word in ("--calibration", text)] + (["--raw"] if raw else [])


@dataclass
class Files:
    """The files of one model in `folder`. `seconds`: what those took that this run made, by maker."""

    model: Path
    options: Options
    folder: Path
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def ours(self) -> Path:
        """The folder of quantkit's own files; options other than those of DEFAULT_SOLVER have one of their own."""
        words = [word.strip("-") for word in self.options.solver]
        folder = self.folder if list(self.options.solver) == DEFAULT_SOLVER else self.folder / "-".join(words)
        folder.mkdir(exist_ok=True)
        return folder

    def make(self) -> dict[str, list[Path]]:
        """All files, by maker; a file that exists already is used as it is."""
        options = self.options
        files = {FEEDBACK: self._feedback(), IMATRIX: self._llama(IMATRIX)}
        if options.plain:
            files[PLAIN] = self._llama(PLAIN)
        files[SIZED] = [self._sized(kind, files[IMATRIX]) for kind in options.sized]
        if options.auto_round is not None:
            files[AUTO_ROUND] = self._auto_round(options.auto_round)
        return {maker: paths for maker, paths in files.items() if paths}

    def _feedback(self) -> list[Path]:
        # one run for every type that is missing: they share its calibration
        wanted = {kind: self.ours / f"quantkit-{kind}.gguf" for kind in self.options.types}
        missing = [kind for kind, path in wanted.items() if not path.exists()]
        if missing:
            made = self.ours / f"ours-{'-'.join(missing)}"
            words = [word for kind in missing for word in ("-t", kind)]
            self._timed(FEEDBACK, lambda: self._convert(made, *words, *self.options.solver))
            for kind in missing:
                next(made.rglob(f"*-{kind.upper()}.gguf")).rename(wanted[kind])
            shutil.rmtree(made)
        return list(wanted.values())

    def _sized(self, kind: str, others: Sequence[Path]) -> Path:
        path = self.ours / f"sized-{kind}.gguf"
        if not path.exists():
            size = next(other for other in others if other.stem.endswith(f"-{kind}")).stat().st_size
            made = self.ours / f"of-size-{kind}"
            words = ["--target-size", str(size), *self.options.solver]
            self._timed(SIZED, lambda: self._convert(made, *words))
            next(made.rglob("*.gguf")).rename(path)
            shutil.rmtree(made)
        return path

    def _llama(self, maker: str) -> list[Path]:
        prefix, paths = "imatrix" if maker == IMATRIX else "plain", []
        matrix: dict[str, NDArray[np.float32]] | None = None
        for kind in self.options.types:
            path = self.folder / f"{prefix}-{kind}.gguf"
            paths.append(path)
            if path.exists():
                continue
            if maker == IMATRIX and matrix is None:
                matrix = self._matrix()
            partial, used = path.with_suffix(".partial"), matrix
            self._timed(
                maker,
                lambda kind=kind, partial=partial, used=used: llama_quantize(  # type: ignore[misc]
                    self.source(), partial, file_type(kind).ftype, imatrix=used, n_threads=self.options.threads
                ),
            )
            partial.rename(path)
        return paths

    def _matrix(self) -> dict[str, NDArray[np.float32]]:
        """llama-imatrix's importance matrix over the samples that quantkit has."""
        kept = self.folder / "imatrix.npz"
        if not kept.exists():
            tokens, model, scratch = self._tokens(), self.source(), self.folder / "imatrix-run"
            scratch.mkdir(exist_ok=True)
            start = time.monotonic()
            entries = llama_imatrix(model, tokens, scratch)
            self._spent(IMATRIX, start)
            means = {
                name: (entry.sums.reshape(len(entry.counts), -1) / np.maximum(entry.counts, 1)[:, None]).ravel()
                for name, entry in entries.items()
            }
            shutil.rmtree(scratch)
            partial = kept.with_suffix(".new.npz")
            np.savez(partial, **means)  # type: ignore[arg-type]
            partial.rename(kept)
        with np.load(kept) as arrays:
            return {name: np.asarray(arrays[name], np.float32) for name in arrays.files}

    def _tokens(self) -> NDArray[np.int32]:
        """The calibration samples, as quantkit makes them."""
        with open_checkpoint(str(self.model)) as checkpoint:
            return load_samples(checkpoint, self.options.samples).tokens

    def source(self) -> Path:
        """The model as a bf16 GGUF, for llama.cpp's tools."""
        path = self.folder / "source-bf16.gguf"
        if not path.exists():
            made = self.folder / "source"
            self._quantkit("gguf", self.model, "-t", "bf16", "-o", made, *self._threads())
            next(made.rglob("*.gguf")).rename(path)
            shutil.rmtree(made)
        return path

    def _auto_round(self, python: Path) -> list[Path]:
        """AutoRound's export of Q4_0 from the same samples; 0 iterations: opt-RTN."""
        path = self.folder / f"autoround-{self.options.auto_round_iterations}-q4_0.gguf"
        if not path.exists():
            out, tokens = self.folder / "auto-round", self.folder / "tokens.npy"
            np.save(tokens, self._tokens())
            start = time.monotonic()
            command = [python, "-c", _AUTO_ROUND, self.model, tokens, out, str(self.options.auto_round_iterations)]
            done = subprocess.run(list(map(str, command)), stdout=sys.stderr, check=False)
            self._spent(AUTO_ROUND, start)
            made = sorted(out.rglob("*.gguf"))
            if done.returncode or not made:
                print("AutoRound failed; its lines are left out", file=sys.stderr)
                return []
            made[0].rename(path)
            shutil.rmtree(out)
        return [path]

    def _convert(self, out: Path, *words: str) -> None:
        samples = ["--samples", str(self.options.n_samples), "--seq-len", str(self.options.length)]
        samples += text_words(self.options.calibration)
        self._quantkit("convert", self.model, *words, *samples, "-o", out, *self._threads())

    def _threads(self) -> list[str]:
        return ["--threads", str(self.options.threads), "--no-logits", "--format", "quiet"]

    def _quantkit(self, *words: str | Path) -> None:
        subprocess.run([sys.executable, "-m", "quantkit", *map(str, words)], check=True, cwd=REPOSITORY)

    def _timed(self, maker: str, make: Callable[[], object]) -> None:
        start = time.monotonic()
        make()
        self._spent(maker, start)

    def _spent(self, maker: str, start: float) -> None:
        self.seconds[maker] = self.seconds.get(maker, 0.0) + time.monotonic() - start

"""sha256 of whole GGUF files of the tiny models, out of llama.cpp's own two steps; stored in golden/whole_files.json.

The steps are llama.cpp's newest converter (f32), then its llama-quantize (f32; a copy if experts are in MXFP4), which
puts keys and tensors into their final order. `python -m tests.families.whole_files [CASE ...]` makes the figures anew.
"""

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import gguf

from tests.families.expected import GOLDEN, write_checkpoint
from tests.families.models import Case, all_cases
from tests.helpers.peer import REPOSITORY, Peer, newest_converter, peer_converter

OLDER = {
    "gptneox": "transformers 4 leaves rotary_pct out, which the newest converter reads",
    "gptneox-serial": "transformers 4 leaves rotary_pct out, which the newest converter reads",
    "gpt-oss-unscaled": "transformers 5 takes YaRN for the absent rope_scaling that transformers 4 wrote",
    "olmo3": "the newest converter also states the base of rotation of sliding layers, which is that of the others",
}
"""Cases for the converter of the extra `run`, and why."""
_F32 = 0
FILE = GOLDEN / "whole_files.json"


@cache
def whole_files() -> dict[str, str]:
    """Case -> digest, of every case that llama.cpp's converter gets right."""
    digests: dict[str, str] = json.loads(FILE.read_text())
    return digests


def compared_whole(case: Case) -> bool:
    """Whether `digest` covers every byte of the case's file."""
    return case.vocabulary and not case.differs and not case.rounded


def digest(path: Path, case: Case) -> str:
    """sha256 of a GGUF file.

    Where a case names keys that differ on purpose, or tensors whose values the converter rounds otherwise, it is that
    of all other keys, of all tensors' names, types, shapes and offsets, and of the data with zeros in their place.
    """
    if compared_whole(case):
        return hashlib.sha256(path.read_bytes()).hexdigest()
    reader = gguf.GGUFReader(path)
    result = hashlib.sha256()
    for name, field in reader.fields.items():
        left_out = name in case.differs or not (case.vocabulary or not name.startswith("tokenizer."))
        if not name.startswith("GGUF.") and not left_out:
            for part in field.parts:
                result.update(part.tobytes())
    data = bytearray(path.read_bytes()[reader.data_offset :])
    for tensor in reader.tensors:
        for part in tensor.field.parts:
            result.update(part.tobytes())
        if tensor.name.endswith(case.rounded):
            start = tensor.data_offset - reader.data_offset
            data[start : start + tensor.n_bytes] = bytes(tensor.n_bytes)
    result.update(data)
    return result.hexdigest()


def compute(names: Sequence[str], folder: Path) -> dict[str, str]:
    """The digests of those of `names` that the converter makes, made now."""
    for name in names:
        write_checkpoint(name, folder / name)
    if newest := [name for name in names if name not in OLDER]:
        convert_with(newest, folder, newest_converter())
    if older := [name for name in names if name in OLDER]:
        convert_with(older, folder, peer_converter())
    digests = {}
    for name in names:
        theirs = folder / f"{name}.f32.gguf"
        if not _converted(name, folder).exists():
            continue
        try:
            peer_converter().quantize(_converted(name, folder), theirs, _F32 if _is_f32(name, folder) else "COPY")
        except AssertionError as error:
            print(f"{name}: {str(error).strip().splitlines()[-1]}")
            continue
        digests[name] = digest(theirs, all_cases()[name][1])
    return digests


def _is_f32(name: str, folder: Path) -> bool:
    """Whether the converter's file has no experts in MXFP4, which llama-quantize does not write in f32."""
    tensors = gguf.GGUFReader(_converted(name, folder)).tensors
    return all(tensor.tensor_type != gguf.GGMLQuantizationType.MXFP4 for tensor in tensors)


def _converted(name: str, folder: Path) -> Path:
    return folder / f"{name}.gguf"


def convert_with(names: Sequence[str], folder: Path, peer: Peer) -> None:
    environment = peer.environment()
    environment["PYTHONPATH"] = os.pathsep.join([environment["PYTHONPATH"], str(peer.source), str(REPOSITORY)])
    command = [str(peer.python), "-m", "tests.families.with_converter", str(folder), *names]
    done = subprocess.run(command, env=environment, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    print(
        *(line for line in done.stderr.splitlines() if line.startswith(tuple(f"{name}: " for name in names))), sep="\n"
    )


def main() -> None:
    names = sys.argv[1:] or [name for name, (_, case) in all_cases().items() if case.converter]
    known = whole_files() if FILE.exists() else {}
    for start in range(0, len(names), 16):
        with tempfile.TemporaryDirectory() as folder:
            known |= compute(names[start : start + 16], Path(folder))
        FILE.write_text(json.dumps(dict(sorted(known.items())), indent=0) + "\n")
        print(f"{min(start + 16, len(names))} of {len(names)}", flush=True)


if __name__ == "__main__":
    main()

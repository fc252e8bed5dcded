"""What llama-imatrix has entries for in every tiny model: `python -m tests.imatrix.llama_names GROUP ...` asks it anew.

golden/GROUP.json: case -> tensor name without its layer -> [in how many layers, how many values each]. Where layers
differ in values, the name of each number after the first has it in front ("256 attn_output.weight").
"""

import json
import re
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from tests.families.expected import write_checkpoint
from tests.families.models import VOCAB, all_cases
from tests.helpers.conversions import to_gguf
from tests.helpers.imatrix_peer import Entry, llama_imatrix

GOLDEN = Path(__file__).with_name("golden")
TOKENS = np.random.RandomState(0).randint(3, VOCAB - 8, (4, 32)).astype(np.int32)
# llama-imatrix puts BOS first where a vocabulary asks for it
TOKENS[:, 0] = 1

Shape = dict[str, list[int]]


def shape_of(sizes: Mapping[str, int]) -> Shape:
    """Tensor name -> how many values, in the golden file's form."""
    result: Shape = {}
    for name in sorted(sizes):
        short = re.sub(r"^blk\.\d+\.", "", name)
        if result.setdefault(short, [0, sizes[name]])[1] != sizes[name]:
            short = f"{sizes[name]} {short}"
            result.setdefault(short, [0, sizes[name]])
        result[short][0] += 1
    return result


def of_llama_cpp(name: str, folder: Path) -> tuple[Path, dict[str, Entry]]:
    """The checkpoint of a case, and llama-imatrix's entries of it over TOKENS."""
    checkpoint = write_checkpoint(name, folder / name)
    return checkpoint, llama_imatrix(to_gguf(checkpoint, "f32", folder), TOKENS, folder)


def known_entries() -> dict[str, Shape]:
    """The stored shapes of every case."""
    return {name: shape for path in GOLDEN.glob("*.json") for name, shape in json.loads(path.read_text()).items()}


def main() -> None:
    groups = sys.argv[1:] or sorted({group for group, _ in all_cases().values()})
    GOLDEN.mkdir(exist_ok=True)
    for group in groups:
        golden = {}
        for name in sorted(name for name, (of, _) in all_cases().items() if of == group):
            with tempfile.TemporaryDirectory() as folder:
                _, entries = of_llama_cpp(name, Path(folder))
            golden[name] = shape_of({tensor: entry.sums.size for tensor, entry in entries.items()})
        lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(shape)}" for name, shape in golden.items())
        (GOLDEN / f"{group}.json").write_text("{\n" + lines + "\n}\n")
        print(f"{group}: {len(golden)} cases")


if __name__ == "__main__":
    main()

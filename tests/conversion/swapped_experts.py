"""`quantkit` with a mistake: w2 of experts 0 and 1 of one layer changes places.

    python -m tests.conversion.swapped_experts LAYER WORDS ...

The mapping is where such a mistake would be made; everything after it is the command as it is.
"""

import sys
from collections.abc import Mapping
from dataclasses import replace

from quantkit.cli import main
from quantkit.families import Family, Hyperparameters, MappedTensor
from quantkit.families.base.mapping import Shaped, map_tensors
from quantkit.outputs import model as inputs

LAYER = sys.argv.pop(1)


def swapped(family: Family, sizes: Hyperparameters, tensors: Mapping[str, Shaped]) -> list[MappedTensor]:
    """The family's mapping, but for two parts of one tensor."""
    name = f"blk.{LAYER}.ffn_down_exps.weight"
    mapped = {tensor.name: tensor for tensor in map_tensors(family, sizes, tensors)}
    first, second, *rest = mapped[name].parts
    mapped[name] = replace(mapped[name], parts=(second, first, *rest))
    return list(mapped.values())


if __name__ == "__main__":
    inputs.map_tensors = swapped
    main()

"""The sizes that a plan states without a header, against the headers that are written."""

import json
from pathlib import Path
from random import Random

import pytest

from quantkit.checkpoint import open_checkpoint
from quantkit.families.base.native import Native
from quantkit.outputs.packed_folders import FolderRequest, all_layers, plan_folder_of
from quantkit.packed.layout import Parts, every_tensor, folder_bytes, plan_folder, total_bytes
from quantkit.packed.registry import FORMATS
from tests.families.expected import write_checkpoint


def _weights(random: Random) -> list[tuple[str, Parts]]:
    """Weights with names that JSON escapes, few or many tensors each, and sizes of any remainder."""
    kinds: list[Parts] = [
        tuple(
            (
                random.choice(["", "weight", 'q"\\é', "日"]) + str(i),
                random.choice(["U8", "F16", "I32"]),
                tuple(random.randrange(41) for _ in range(random.randrange(4))),
            )
            for i in range(random.randrange(1, 4))
        )
        for _ in range(4)
    ]
    return [(f"{random.choice(['', 'é', 'w'])}{i}.", random.choice(kinds)) for i in range(random.randrange(1, 30))]


def test_the_bytes_are_those_of_the_files_that_are_laid_out() -> None:
    random = Random(22)
    for _ in range(200):
        weights, most = _weights(random), random.choice([1, 1000, 10**5, 10**9])
        shards = plan_folder(every_tensor(weights), most)
        tensors = sum(place.nbytes for shard in shards for place in shard.places)
        assert folder_bytes(weights, most) == (total_bytes(shards), tensors)
        for shard in shards:
            assert json.loads(shard.header[8:]).keys() == {"__metadata__", *(place.name for place in shard.places)}
            assert shard.size == len(shard.header) + sum(place.nbytes for place in shard.places)


def test_sizes_beyond_64_bits_are_counted_too() -> None:
    weights: list[tuple[str, Parts]] = [(f"w{i}.", (("a", "F32", (1 << 40, 1 << 22)),)) for i in range(3)]
    assert folder_bytes(weights) == (total_bytes(plan_folder(every_tensor(weights))), 3 << 64)


@pytest.mark.parametrize("case", ["llama", "mixtral", "gpt2"])
def test_the_size_of_each_format_is_that_of_its_files(case: str, tmp_path: Path) -> None:
    with open_checkpoint(str(write_checkpoint(case, tmp_path / case))) as checkpoint:
        native = Native(checkpoint)
        layers = all_layers(native)
        counted = []
        for method, folder_format in FORMATS.items():
            grid = folder_format.grid(4, 32, symmetric=True)
            request = FolderRequest(method, grid, max_shard=20_000)
            try:
                plan = plan_folder_of(native, layers, request, tmp_path / method)
            except Exception as error:  # shapes of a tiny model fit few formats
                assert "does not fit" in str(error) or "no loader" in str(error) or "mlx" in str(error), method
                continue
            assert len(plan.shards) > 1
            assert plan.size == sum(shard.size for shard in plan.shards)
            assert plan.tensor_bytes == sum(place.nbytes for shard in plan.shards for place in shard.places)
            counted.append(method)
        assert {"awq", "gptq"} <= set(counted)

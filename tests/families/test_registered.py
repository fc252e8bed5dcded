"""registered.txt, the text architectures of llama.cpp's converter, from which docs/reference counts the families."""

import json
import subprocess

import pytest

from quantkit.families import all_families, find_family
from quantkit.families.unconverted import CONVERTER, LEFT_TO_CONVERTER, LIMITS
from quantkit.families.wrappers import WRAPPERS
from quantkit.llamacpp import pinned_converter
from tests.helpers.peer import newest_converter
from tools.shown import REGISTERED, mixed, mixed_configs


@pytest.mark.full
def test_the_list_is_that_of_the_newest_converter() -> None:
    peer = newest_converter()
    code = "import conversion, json; print(json.dumps(sorted(conversion.TEXT_MODEL_MAP)))"
    environment = peer.environment() | {"PYTHONPATH": f"{peer.source}:{peer.source / 'gguf-py'}"}
    done = subprocess.run([str(peer.python), "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == REGISTERED.read_text("utf-8").split()


def test_an_architecture_that_only_the_converter_has_is_refused_with_the_way_to_it() -> None:
    known = {name for family in all_families() for name in family.architectures}
    known |= {wrapper.architecture for wrapper in WRAPPERS}
    assert set(REGISTERED.read_text("utf-8").split()) - known == LEFT_TO_CONVERTER
    assert LIMITS.keys() <= LEFT_TO_CONVERTER
    assert CONVERTER == pinned_converter.VERSION


def test_every_family_is_compared_with_llama_cpp_at_a_published_size() -> None:
    """The types of its tensors, by the tests of the lists that `mixed` reads."""
    assert {family.name for family in all_families()} - mixed() == set()


def test_every_architecture_of_a_gguf_is_compared_with_llama_cpp_at_a_published_size() -> None:
    """A family may write more than one: mixtures apart, as llama.cpp has them."""
    compared = {family.arch(family.sizes(config)) for config in mixed_configs() for family in [find_family(config)]}
    assert {arch for family in all_families() for arch in family.gguf_archs} - compared == set()

"""The options that `quantkit inspect` reads back from quantkit.json are the ones that were written."""

from pathlib import Path

from tests.helpers.command import quantkit
from tests.helpers.tiny import tiny_llama


def test_options_are_shown_as_they_were_written_and_defaults_are_not(tmp_path: Path) -> None:
    tiny_llama(tmp_path / "m", variant="llama3")
    quiet = ("--no-logits", "--format", "quiet")
    assert quantkit("gguf", "m", "-t", "q8_0", *quiet, cwd=tmp_path).code == 0
    plain = quantkit("inspect", "m-GGUF", cwd=tmp_path).stdout
    assert "by quantkit" in plain and ", with" not in plain
    words = ("--pure", "--output-type", "q6_k", "--embedding-type", "f16", "--tensor-type", "attn_v=q5_0")
    assert quantkit("gguf", "m", "-t", "q4_0", *words, *quiet, "-o", "given", cwd=tmp_path).code == 0
    shown = quantkit("inspect", "given/m-GGUF", cwd=tmp_path).stdout
    assert ", with --pure, --output-type q6_k, --embedding-type f16, --tensor-type attn_v=q5_0" in " ".join(
        shown.lower().split()
    )

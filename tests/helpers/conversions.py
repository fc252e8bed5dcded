"""A checkpoint converted to one GGUF file by the driver, in this process."""

from pathlib import Path
from typing import Any

from quantkit.checkpoint import open_checkpoint
from quantkit.conversion.run import run
from quantkit.gguf.file_types import file_type
from quantkit.outputs.gguf_files import GgufRequest
from quantkit.outputs.plan import ConversionRequest
from quantkit.outputs.planner import plan_conversion


def to_gguf(checkpoint: Path, kind: str, folder: Path, **options: Any) -> Path:
    """The file NAME-GGUF/NAME-KIND.gguf under `folder`; `options` are those of GgufRequest."""
    with open_checkpoint(str(checkpoint)) as source:
        request = ConversionRequest(folder, gguf=GgufRequest((file_type(kind),), **options))
        result = run(plan_conversion(source, request), logits=False)
    assert not result.failed, [output.failed for output in result.failed]
    return result.plan.paths[0]

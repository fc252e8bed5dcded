"""Links planted at the names under which a conversion works: refused, and their targets untouched."""

from pathlib import Path

import pytest

import quantkit
from quantkit.errors import OutputError
from quantkit.outputs.calibration import CalibrationRequest
from tests.helpers.tiny import tiny_llama

PRECIOUS = "precious\nlast line without an end"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("source") / "m", variant="llama3", layers=1)


@pytest.mark.parametrize(
    ("link", "is_folder"),
    [
        ("m-GGUF/m-Q8_0.gguf.partial", False),
        ("m-conversion.partial/journal", False),
        ("m-conversion.partial", True),
        ("m-AWQ.partial", True),
        ("m-AWQ.partial/model.safetensors", False),
    ],
)
def test_a_planted_link_is_refused_and_its_target_is_untouched(
    link: str, is_folder: bool, source: Path, tmp_path: Path
) -> None:
    target = tmp_path / "target"
    if is_folder:
        target.mkdir()
    precious = target / "precious" if is_folder else target
    precious.write_text(PRECIOUS)
    planted = tmp_path / "out" / link
    planted.parent.mkdir(parents=True)
    planted.symlink_to(target)
    calibration = CalibrationRequest(text=str(text(tmp_path)), samples=2, seq_len=16)
    options = quantkit.ConvertOptions(group_size=32, logits=False, calibration=calibration)
    with pytest.raises(OutputError, match="is a link"):
        quantkit.convert(source, ["q8_0", "awq"], tmp_path / "out", options)
    assert precious.read_text() == PRECIOUS
    assert planted.is_symlink()


def text(folder: Path) -> Path:
    (folder / "text.txt").write_text("Nothing is written through a link.\n" * 20)
    return folder / "text.txt"

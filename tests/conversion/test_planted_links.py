"""Links planted at the names under which a conversion works: refused or removed, and their targets untouched."""

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
def test_nothing_is_written_through_a_planted_link(link: str, is_folder: bool, source: Path, tmp_path: Path) -> None:
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
    try:
        quantkit.convert(source, ["q8_0", "awq"], tmp_path / "out", options)
    except OutputError as error:
        assert "is a link" in str(error)
    else:  # a link among the remains of another run is removed with them
        outputs = list((tmp_path / "out").rglob("*"))
        assert len(outputs) > 5
        assert not any(path.is_symlink() for path in outputs)
    assert precious.read_text() == PRECIOUS
    if is_folder:
        assert list(target.iterdir()) == [precious]


def text(folder: Path) -> Path:
    (folder / "text.txt").write_text("Nothing is written through a link.\n" * 20)
    return folder / "text.txt"

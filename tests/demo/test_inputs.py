import hashlib
import zipfile
from pathlib import Path

import pytest

from demo.inputs import InputsUnavailable, Pinned, extract


@pytest.fixture
def own_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of wheels in place of the package index, with one tiny wheel in it; pip itself is the real one."""
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    wheel = wheels / "tinyinput-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("tinyinput/data.txt", "held inside")
        archive.writestr("tinyinput-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tinyinput\nVersion: 1.0\n")
        archive.writestr(
            "tinyinput-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr("tinyinput-1.0.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    return wheel


def test_a_pinned_member_is_extracted_and_nothing_else_stays(own_index: Path, tmp_path: Path) -> None:
    target = tmp_path / "cache"
    target.mkdir()
    pinned = Pinned("tinyinput", "1.0", hashlib.sha256(own_index.read_bytes()).hexdigest(), "tinyinput/data.txt")
    assert extract(pinned, target).read_text() == "held inside"
    assert [path.name for path in target.iterdir()] == ["data.txt"]


def test_a_wheel_with_another_checksum_is_refused(own_index: Path, tmp_path: Path) -> None:
    target = tmp_path / "cache"
    target.mkdir()
    with pytest.raises(InputsUnavailable, match=r"tinyinput-1\.0.*not the pinned 0000"):
        extract(Pinned("tinyinput", "1.0", "0" * 64, "tinyinput/data.txt"), target)
    assert not list(target.iterdir())


def test_a_package_that_cannot_be_had_is_one_sentence_with_pips_reason(own_index: Path, tmp_path: Path) -> None:
    with pytest.raises(InputsUnavailable, match=r"could not download absent==2\.0: ") as caught:
        extract(Pinned("absent", "2.0", "0" * 64, "absent/data.txt"), tmp_path)
    assert "\n" not in str(caught.value)

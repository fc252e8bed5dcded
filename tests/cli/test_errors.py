"""How every failure is shown: one sentence, a traceback with --debug alone, no control characters."""

from pathlib import Path

import pytest

from quantkit.cli import main
from tests.helpers.command import quantkit
from tests.helpers.tiny import tiny_llama


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("sound") / "model", variant="llama3", shards=2)


def test_an_output_that_exists_is_kept_without_force(sound: Path, tmp_path: Path) -> None:
    words = ("gguf", sound, "-t", "q8_0", "-o", tmp_path, "--no-logits")
    assert quantkit(*words).code == 0
    file = tmp_path / "model-GGUF" / "model-Q8_0.gguf"
    stamp = file.stat().st_mtime_ns
    answer = quantkit(*words)
    assert answer.code == 1
    assert "--force" in answer.sentence
    assert file.stat().st_mtime_ns == stamp
    assert not list(tmp_path.rglob("*.partial"))
    assert quantkit(*words, "--force").code == 0


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    answer = quantkit("gguf", tmp_path, "--debug")
    assert answer.code == 1
    assert "Traceback" in answer.stderr


def test_what_a_template_says_does_not_reach_the_terminal_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "loud.jinja").write_text("{{ raise_exception('\x1b[2J\x07gone') }}")
    answer = quantkit("gguf", "no/such-source", "--offline", "--chat-template", tmp_path / "loud.jinja")
    assert answer.code == 1
    assert "gone" in answer.stderr
    assert "\x1b" not in answer.stderr and "\x07" not in answer.stderr


def test_an_interrupt_is_one_sentence_too(
    sound: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("sys.argv", ["quantkit", "inspect", str(sound)])
    monkeypatch.setattr("quantkit.inspection.inspect_source", interrupted)
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 130
    sentence = capsys.readouterr().err
    assert sentence.startswith("quantkit: interrupted; ") and sentence.count("\n") == 1

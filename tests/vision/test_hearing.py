"""Models that hear: their projectors load, `run --audio` answers about a sound, and bad input is one sentence."""

import json
import subprocess
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quantkit.llamacpp.projector_session import file_features
from tests.helpers.command import Answer, quantkit
from tests.helpers.peer import REPOSITORY, newest_converter
from tests.vision.cases import HEARING
from tests.vision.expected import expected, write_checkpoint

NAMES = [case.name for case in HEARING]
HEARS = "qwen2-audio"
"""llama.cpp b11549 stops at every sound for Voxtral: its graph gives 188 vectors where it expects 187 (clip.cpp)."""


def converted(checkpoint: Path, out: Path) -> Answer:
    words = ("-t", "q8_0", "--mmproj", "f16", "-o", out, "--pre", "smollm", "--format", "json")
    return quantkit("gguf", checkpoint, *words)


@pytest.mark.usefixtures("libmtmd")
@pytest.mark.parametrize("name", NAMES)
def test_llama_cpp_loads_the_projector_and_run_says_that_it_only_hears(name: str, tmp_path: Path) -> None:
    answer = converted(write_checkpoint(name, expected(name)["layout"], tmp_path), tmp_path)
    assert answer.code == 0, answer.stderr
    folder = tmp_path / f"{name}-GGUF"
    entry = json.loads((folder / "quantkit.json").read_text())["outputs"][f"mmproj-{name}-F16"]
    load = next(check for check in entry["checks"] if check["name"] == "load")
    assert load["status"] == "passed", load
    (tmp_path / "image.png").write_bytes(b"not read")
    answer = quantkit("run", folder / f"{name}-Q8_0.gguf", "-p", "hi", "--image", tmp_path / "image.png")
    assert answer.code == 1 and "only hears; pass a sound with --audio, not --image" in answer.sentence


def whole_tower(name: str, root: Path) -> Path:
    """The checkpoint of a case whose tower takes 30 seconds, as llama.cpp cuts sounds, converted in root/NAME-GGUF."""
    layout = expected(name)["layout"]
    (positions,) = [tensor for tensor in layout if tensor.endswith("embed_positions.weight")]
    checkpoint = write_checkpoint(name, {**layout, positions: [1500, 64]}, root)
    config = json.loads((checkpoint / "config.json").read_text())
    config["audio_config"]["max_source_positions"] = 1500
    (checkpoint / "config.json").write_text(json.dumps(config))
    assert converted(checkpoint, root).code == 0
    return checkpoint


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Qwen2-Audio, and two sounds."""
    root = tmp_path_factory.mktemp("hears")
    whole_tower(HEARS, root)
    for name, pitch in (("low", 220), ("high", 2000)):
        write_sound(root / f"{name}.wav", pitch)
    return root


def write_sound(path: Path, pitch: int) -> np.ndarray:
    """Half a second of a tone of `pitch` Hz; its samples from -1 to 1."""
    samples = (8000 * np.sin(2 * np.pi * pitch * np.arange(8000) / 16000)).astype("<i2")
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16000)
        file.writeframes(samples.tobytes())
    return samples.astype(np.float32) / 32768


@pytest.mark.usefixtures("libmtmd")
def test_the_model_answers_about_a_sound(folder: Path) -> None:
    model = folder / f"{HEARS}-GGUF" / f"{HEARS}-Q8_0.gguf"
    words = ("run", model, "-p", "what is it?", "-n", "8", "--raw", "--temperature", "0", "--ctx", "1024")
    answers = []
    for name in ("low", "high"):
        answer = quantkit(*words, "--format", "json", "--audio", folder / f"{name}.wav")
        assert answer.code == 0, answer.stderr
        answers.append(json.loads(answer.stdout))
    assert answers[0]["sounds"] == [str(folder / "low.wav")] and "images" not in answers[0]
    assert answers[0]["mmproj"] == str(model.with_name(f"mmproj-{HEARS}-F16.gguf"))
    # 30 seconds are 1500 vectors, of which Qwen2-Audio takes the mean of each two
    assert answers[0]["prompt_tokens"] >= 1500 // 2
    assert answers[0]["answer"] != answers[1]["answer"]


@pytest.mark.usefixtures("libmtmd")
def test_a_file_that_is_no_sound_is_one_sentence(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.wav").write_text("not a sound, but text")
    (tmp_path / "cut.wav").write_bytes((folder / "low.wav").read_bytes()[:20])
    words = ("run", folder / f"{HEARS}-GGUF" / f"{HEARS}-Q8_0.gguf", "-p", "what is it?", "--audio")
    for name in ("notes.wav", "cut.wav"):
        answer = quantkit(*words, tmp_path / name)
        sentence = f"cannot read {name} as a sound; pass an intact WAV, MP3 or FLAC file"
        assert answer.code == 1 and answer.sentence.endswith(sentence)
    assert "none.wav was not found; correct --audio" in quantkit(*words, tmp_path / "none.wav").sentence
    refused = quantkit(*words, folder / "low.wav", "--prompt-cache", tmp_path / "cache")
    assert refused.code == 2 and "--prompt-cache works with prompts of text only" in refused.sentence


@pytest.mark.full
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("libmtmd")
@pytest.mark.parametrize("name", [HEARS, "audio-flamingo3"])
def test_a_sound_gives_the_vectors_of_transformers(name: str, tmp_path: Path) -> None:
    checkpoint = whole_tower(name, tmp_path)
    np.save(tmp_path / "sound.npy", write_sound(tmp_path / "sound.wav", 220))
    out, files = tmp_path / f"{name}-GGUF", (f"{name}-Q8_0.gguf", f"mmproj-{name}-F16.gguf")
    ours = np.concatenate(file_features(*(out / file for file in files), tmp_path / "sound.wav", sound=True))
    peer = newest_converter()
    paths = (checkpoint, tmp_path / "sound.npy", tmp_path / "theirs.npy")
    words = [str(peer.python), "-m", "tests.vision.sound_features", *map(str, paths)]
    environment = peer.environment() | {"PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(words, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    theirs = np.load(tmp_path / "theirs.npy")
    assert ours.shape == theirs.shape == (750, 64)
    cosines = (ours * theirs).sum(-1) / np.linalg.norm(ours, axis=-1) / np.linalg.norm(theirs, axis=-1)
    assert cosines.min() > 0.999, cosines


def test_other_commands_say_that_the_model_hears(tmp_path: Path) -> None:
    checkpoint = write_checkpoint("voxtral", expected("voxtral")["layout"], tmp_path)
    assert converted(checkpoint, tmp_path).code == 0
    folder = tmp_path / "voxtral-GGUF"
    assert "it hears audio; quantkit gguf --mmproj f16 writes its" in " ".join(
        quantkit("inspect", checkpoint).stdout.split()
    )
    described = quantkit("inspect", folder / "mmproj-voxtral-F16.gguf")
    assert described.code == 0 and "vectors of 64 values for the text model" in " ".join(described.stdout.split())
    planned = quantkit("plan", checkpoint, "--vram", "none", "--ram", "4G", "--bandwidth", "10G", "--format", "json")
    assert any("the model hears audio; --mmproj f16 counts" in note for note in json.loads(planned.stdout)["notes"])
    assert quantkit("card", folder).code == 0
    text = (folder / "README.md").read_text()
    assert "pipeline_tag: text-generation" in text and "--image" not in text


REFUSALS: dict[str, tuple[dict[str, Any], str]] = {
    "another activation": ({"activation_function": "relu"}, "activation_function is 'relu', but llama.cpp runs"),
    "another width": ({"intermediate_size": 112}, "intermediate_size is 112, but llama.cpp runs Voxtral's tower only"),
    "a layer more": ({"num_hidden_layers": 5}, "is missing from the checkpoint"),
    "other bins": ({"num_mel_bins": 16}, "but config.json makes it"),
}


@pytest.mark.parametrize("damage", REFUSALS)
def test_what_llama_cpp_does_not_run_is_one_sentence(damage: str, tmp_path: Path) -> None:
    checkpoint = write_checkpoint("voxtral", expected("voxtral")["layout"], tmp_path)
    settings, sentence = REFUSALS[damage]
    config = json.loads((checkpoint / "config.json").read_text())
    config["audio_config"].update(settings)
    (checkpoint / "config.json").write_text(json.dumps(config))
    answer = converted(checkpoint, tmp_path / "out")
    assert answer.code == 1 and sentence in answer.sentence
    assert not list((tmp_path / "out").rglob("*.gguf"))

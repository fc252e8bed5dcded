"""What classes of transformers give the text model for a sound. Runs in a peer's venv.

    <peer's python> -m tests.vision.sound_features CHECKPOINT SOUND.npy OUT.npy

SOUND.npy: samples at 16 kHz, float32 from -1 to 1. OUT.npy: (n_tokens, width) float32, for 30 seconds.
"""

import json
import sys
from pathlib import Path

import numpy as np


def main() -> None:
    import torch
    from transformers import AutoModelForMultimodalLM, AutoModelForSeq2SeqLM, WhisperFeatureExtractor

    checkpoint, sound, out = map(Path, sys.argv[1:])
    config = json.loads((checkpoint / "config.json").read_text())
    auto = AutoModelForSeq2SeqLM if config["model_type"] == "audioflamingo3" else AutoModelForMultimodalLM
    model = auto.from_pretrained(checkpoint, dtype=torch.float32).eval()
    extract = WhisperFeatureExtractor(feature_size=config["audio_config"]["num_mel_bins"])
    mel = extract(np.load(sound), sampling_rate=16000, return_tensors="pt").input_features
    modules = dict(model.named_modules())
    tower, projector = (
        next(module for name, module in modules.items() if name.split(".")[-1] == last)
        for last in ("audio_tower", "multi_modal_projector")
    )
    # llama.cpp masks no frame, whatever the length of the sound
    mask = {"input_features_mask": torch.ones(1, mel.shape[-1])} if config["model_type"] == "audioflamingo3" else {}
    with torch.no_grad():
        np.save(out, projector(tower(mel, **mask).last_hidden_state)[0].numpy())


if __name__ == "__main__":
    main()

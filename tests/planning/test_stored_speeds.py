"""Speeds that `measure --speed` keeps, and the plans that use them."""

import importlib.metadata
import json
from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path

import pytest
from gguf import GGMLQuantizationType

from quantkit.machine import cores
from quantkit.planning.context import Context
from quantkit.planning.layers import placement_that_fits
from quantkit.planning.speed import DeviceSpeed
from quantkit.planning.stored_speeds import VALID, VARIABLE, store_speeds, stored_speeds
from tests.helpers.command import quantkit
from tests.planning.models import write_model

CPU = DeviceSpeed(16e9, {"Q4_0": 16e9}, operation=1e-6, transfer=2e-4, token=5e-5)
GPU = DeviceSpeed(7e9, {"Q4_0": 7e9, "Q8_0": 11e9}, operation=1e-6, transfer=2e-4, description=5e-7, token=2e-4)
CARD = "A card"
SIZES = {"n_layer": 8, "n_embd": 512, "n_ff": 2048, "n_head": 8, "n_head_kv": 8}


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "speeds.json"
    monkeypatch.setenv(VARIABLE, str(path))
    return path


def test_speeds_are_read_as_they_were_stored_for_the_same_devices_and_threads(file: Path) -> None:
    store_speeds((CPU, GPU), (CARD,), 4)
    stored = stored_speeds([CARD], 4)
    assert {name: entry.speed for name, entry in stored.items()} == {"CPU": CPU, "GPU": GPU}
    assert stored["CPU"].day == date.today() and file.stat().st_mode & 0o777 == 0o600
    assert list(stored_speeds([], 4)) == ["CPU"]
    # other threads are another CPU, and half of the devices is not enough
    assert not stored_speeds([CARD], 2) and not stored_speeds([CARD, "another"], 4)


def test_a_later_measurement_replaces_the_figures_and_keeps_the_other_types(file: Path) -> None:
    store_speeds((CPU, GPU), (CARD,), 4)
    store_speeds((replace(CPU, by_type={"Q6_K": 9e9}, bandwidth=9e9),), (), 4)
    speed = stored_speeds([], 4)["CPU"].speed
    assert speed.bandwidth == 9e9 and speed.by_type == {"Q4_0": 16e9, "Q6_K": 9e9}
    assert stored_speeds([CARD], 4)["GPU"].speed == GPU


@pytest.mark.parametrize(
    "change", ["day", "future", "llama.cpp", "operation", "by_type", "bandwidth", "json", "missing"]
)
def test_speeds_that_are_old_damaged_or_of_another_llama_cpp_are_not_used(file: Path, change: str) -> None:
    store_speeds((CPU,), (), 4)
    entries = json.loads(file.read_text())
    (entry,) = entries.values()
    today = date.today()
    entry |= {
        "day": {"day": (today - VALID - timedelta(1)).isoformat()},
        "future": {"day": (today + timedelta(1)).isoformat()},
        "llama.cpp": {"llama.cpp": "0.0.1"},
        "operation": {"operation": "fast"},
        "by_type": {"by_type": {"Q4_0": 0}},
        "bandwidth": {"bandwidth": -1},
    }.get(change, {})
    if change == "missing":
        del entry["transfer"]
    file.write_text("{" if change == "json" else json.dumps(entries))
    assert not stored_speeds([], 4)
    # and the next measurement writes a sound file
    store_speeds((CPU,), (), 4)
    assert stored_speeds([], 4)["CPU"].speed == CPU


def test_an_empty_name_keeps_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "")
    store_speeds((CPU,), (), 4)
    assert not stored_speeds([], 4)


def test_speeds_of_an_xllamacpp_do_not_serve_another_one(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed = {"xllamacpp": "0.1"}

    def version(package: str) -> str:
        if package not in installed:
            raise importlib.metadata.PackageNotFoundError(package)
        return installed[package]

    monkeypatch.setattr(importlib.metadata, "version", version)
    store_speeds((CPU,), (), 4)
    assert stored_speeds([], 4)
    installed["xllamacpp"] = "0.2"
    assert not stored_speeds([], 4)


def test_layers_stay_on_a_cpu_that_was_measured_to_be_faster(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model.gguf", SIZES, GGMLQuantizationType.Q4_0)
    context, room = Context(256), [1 << 40]
    assert placement_that_fits(model, context, room).gpu_layers == 9
    assert placement_that_fits(model, context, room, speeds={"CPU": CPU, "GPU": GPU}).gpu_layers == 0
    quick = replace(GPU, by_type={}, bandwidth=400e9)
    assert placement_that_fits(model, context, room, speeds={"CPU": CPU, "GPU": quick}).gpu_layers == 9


@pytest.mark.usefixtures("every_core")
def test_a_plan_states_the_stored_speed_and_ignores_it_on_request(file: Path, tmp_path: Path) -> None:
    model = write_model(tmp_path / "model.gguf", SIZES, GGMLQuantizationType.Q4_0)
    store_speeds((replace(CPU, bandwidth=123e9, by_type={}),), (), cores())
    words = ("plan", model, "--vram", "none", "--ram", "8G")
    used, ignored, given = (
        quantkit(*words),
        quantkit(*words, "--no-stored-speeds"),
        quantkit(*words, "--bandwidth", "5G"),
    )
    assert f"123 GB/s (CPU, measured on {date.today().isoformat()} by measure --speed)" in used.stderr
    assert "(CPU, measured)" in ignored.stderr and "(CPU, given)" in given.stderr

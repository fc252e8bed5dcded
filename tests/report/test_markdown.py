"""The Markdown of a report: its figures are the document's, its names cannot break a table, the absent stays absent."""

import re

import pytest

from quantkit.report.markdown import markdown
from tests.report.sample import CHINESE, WIKI, sample, spoilt_documents

_NUMBER = re.compile(r"([+−]?)([0-9][0-9,]*(?:\.[0-9]+)?)")


def tables(text: str) -> list[list[dict[str, str]]]:
    """Every table as rows of header -> cell, read by the rules of GitHub's Markdown."""
    result: list[list[dict[str, str]]] = []
    for block in text.split("\n\n"):
        lines = block.splitlines()
        if len(lines) > 1 and set(lines[1]) <= set("|-:"):
            headers, _, *rows = [
                [re.sub(r"\\(.)", r"\1", cell.strip()) for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines
            ]
            assert all(len(row) == len(headers) for row in rows)
            result.append([dict(zip(headers, row, strict=True)) for row in rows])
    return result


def assert_shown(cell: str, *expected: float) -> None:
    """The cell's numbers are the expected ones, rounded to the digits it shows and not cut."""
    numbers = _NUMBER.findall(cell)
    assert len(numbers) == len(expected), (cell, expected)
    for (sign, digits), value in zip(numbers, expected, strict=True):
        unit = 10.0 ** -len(digits.partition(".")[2])
        shown = float(digits.replace(",", "")) * (-1 if sign == "−" else 1)
        assert abs(shown - value) <= unit * 0.5000001, (cell, value)
        assert shown or not value, (cell, value)


@pytest.mark.parametrize(("place", "name"), [(0, WIKI), (1, CHINESE)])
def test_every_figure_of_a_text_is_the_documents(place: int, name: str) -> None:
    document = sample()
    text = markdown(document)
    assert f"**{name}**" in text
    rows = tables(text)[1 + place]
    assert [row["model"] for row in rows] == ["bf16 (reference)", "q8_0", "q4_k_m", "q4_0", "q2_k"]
    for row, model in zip(rows, document["models"], strict=True):
        quality = model["quality"][place]
        assert_shown(row["size"].removesuffix(" MB"), model["bytes"] / 1e6)
        assert_shown(row["bits/weight"], model["bits_per_weight"])
        assert_shown(row["perplexity"], quality["perplexity"]["value"], quality["perplexity"]["error"])
        if model["role"] == "reference":
            assert {row["perplexity change"], row["KL mean"], row["KL 99%"], row["same top token"]} == {"–"}
            continue
        ratio, kl, top1 = quality["perplexity_ratio"], quality["kl"], quality["top1"]
        assert_shown(row["perplexity change"], 100 * (ratio["value"] - 1), 100 * ratio["error"])
        assert_shown(row["KL mean"], kl["mean"], kl["error"])
        assert_shown(row["KL 99%"], kl["p99"])
        assert_shown(row["same top token"], 100 * top1["value"], 100 * top1["error"])


def test_several_texts_stand_side_by_side_first() -> None:
    document = sample()
    for row, model in zip(tables(markdown(document))[0][1:], document["models"][1:], strict=True):
        for quality in model["quality"]:
            ratio = quality["perplexity_ratio"]
            assert_shown(row[f"perplexity change, {quality['text']}"], 100 * (ratio["value"] - 1), 100 * ratio["error"])


def test_memory_and_speed_are_the_documents() -> None:
    document = sample()
    *_, memory, speed = tables(markdown(document))
    expected = [
        (model["label"], row, device)
        for model in document["models"]
        for row in model["memory"]
        for device in row["devices"]
    ]
    for shown, (label, row, device) in zip(memory, expected, strict=True):
        assert (shown["model"], shown["layers on GPU"], shown["device"]) == (
            label,
            {31: "31 (all)"}.get(row["gpu_layers"], str(row["gpu_layers"])),
            device["name"],
        )
        for header, key in (("weights", "weights"), ("KV cache", "kv"), ("compute", "compute")):
            assert_shown(shown[header].removesuffix(" MB"), device[key] / 1e6)
        assert_shown(shown["together"].removesuffix(" MB"), sum(v for k, v in device.items() if k != "name") / 1e6)
        if device["name"] == "CPU":
            assert_shown(shown["peak PSS"].removesuffix(" MB"), row["peak_pss"] / 1e6)
            assert shown["driver"] == "–"
        else:
            assert_shown(shown["driver"].removesuffix(" MB"), row["driver"][0]["bytes"] / 1e6)
    for shown, model in zip(speed, document["models"], strict=True):
        measured = model["speed"][0]
        assert_shown(shown["prompt, tokens/s"], measured["prompt"]["value"], measured["prompt"]["error"])
        assert_shown(shown["generation, tokens/s"], measured["generation"]["value"], measured["generation"]["error"])
        assert_shown(shown["estimate"], measured["estimate"])
        assert_shown(shown["repetitions"], measured["repetitions"])


def test_one_text_is_one_table_with_a_line_on_the_method_under_it() -> None:
    document = sample()
    document["texts"] = document["texts"][:1]
    for model in document["models"]:
        model["quality"] = model["quality"][:1]
        del model["memory"], model["speed"]
    text = markdown(document)
    assert len(tables(text)) == 1
    method = text.split("\n\n")[1]
    assert "windows of 512 tokens" in method
    assert "40 windows, 10,200 tokens scored" in method
    assert "bf16" in method


def test_names_cannot_break_the_table_or_become_markup() -> None:
    document = sample()
    name = "a|b\n| c <img src=x> [x](http://y) *z* `w` $q$ _u_"
    document["models"][1]["label"] = name
    row = tables(markdown(document))[0][1]
    assert row["model"] == name.replace("\n", " ")
    assert "\\<img src=x\\>" in markdown(document)


def test_a_document_with_any_part_spoilt_still_has_a_table() -> None:
    checked = 0
    for document in spoilt_documents():
        text = markdown(document)
        assert text.strip()
        assert not re.search(r"\b(nan|inf|None)\b", text)
        checked += 1
    assert checked > 500


def test_an_empty_document_says_so() -> None:
    assert markdown({}) == "Nothing was measured.\n"


def test_what_is_flagged_is_said() -> None:
    document = {**sample(), "flags": ["q2_k: perplexity changed by more than 50%"]}
    assert "Flagged: q2_k: perplexity changed by more than 50%" in markdown(document)

"""report.json is read back strictly, and old reports are still read."""

import json
from pathlib import Path

import pytest

from quantkit.errors import MeasureError, UsageError
from quantkit.measurement.document import SCHEMA
from quantkit.measurement.reading import load_report, read_report
from tests.report.sample import sample


def test_a_report_is_read_back_with_and_without_a_schema(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    document = sample()
    assert "schema" not in document  # as reports were written before the schema had a version
    for written in (document, {"schema": SCHEMA, **document}):
        path.write_text(json.dumps(written), "utf-8")
        assert load_report(path) == json.loads(json.dumps(written))
        assert read_report(load_report(path)) == read_report(document)


DAMAGED = {
    "cut": ('{"models": [', "is not valid JSON"),
    "too deep": ("[" * 100_000, "is not valid JSON"),
    "a list": ("[]", "is not a report of quantkit measure"),
    "newer": (json.dumps({"schema": SCHEMA + 1, "models": []}), "upgrade quantkit"),
    "no models": ("{}", "no sound list of models"),
    "a model that is a word": ('{"models": ["q4_0"]}', "no sound list of models"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_or_newer_report_is_refused_in_one_sentence(tmp_path: Path, case: str) -> None:
    text, sentence = DAMAGED[case]
    path = tmp_path / "report.json"
    path.write_text(text, "utf-8")
    with pytest.raises(MeasureError, match=sentence) as refusal:
        load_report(path)
    assert str(path) in str(refusal.value) and "\n" not in str(refusal.value)


def test_a_report_that_is_not_there_is_wrong_usage(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot read the report"):
        load_report(tmp_path / "report.json")

import pytest

from quantkit.measurement.document import Value
from quantkit.report.figures import change, percent, plus_minus, significant, size, smaller, tick


@pytest.mark.parametrize(
    "value,error,shown",
    [
        (26.7725, 2.3301, "26.8 ± 2.3"),
        (0.123456, 0.00219, "0.1235 ± 0.0022"),
        (1234567.0, 4521.0, "1,234,567 ± 4,521"),
        (-0.0123, 0.001, "−0.0123 ± 0.0010"),
        (0.0, 0.0, "0 ± 0"),
        (3.5, None, "3.500"),
        (1.0, 1e-12, "1.000000 ± <0.000001"),
    ],
)
def test_a_figure_has_two_digits_of_its_error(value: float, error: float | None, shown: str) -> None:
    assert plus_minus(Value(value, error)) == shown


def test_perplexity_keeps_two_decimals_however_large_its_error() -> None:
    assert plus_minus(Value(26.7725, 2.3301), decimals=2) == "26.77 ± 2.33"


def test_a_ratio_is_a_change_in_percent_with_its_sign() -> None:
    assert change(Value(1.202, 0.027)) == "+20.2% ± 2.7%"
    assert change(Value(0.9991, 0.0006)) == "−0.090% ± 0.060%"
    assert change(Value(1.0, 0.0)) == "0% ± 0%"
    assert change(None) == "–"


def test_full_agreement_is_100_percent() -> None:
    assert percent(Value(1.0, 0.0)) == "100.0% ± 0%"


@pytest.mark.parametrize(
    "value,shown",
    [(0, "0"), (0.31452, "0.3145"), (12.3456, "12.35"), (123456.0, "123,456"), (1e-9, "1.000e-09"), (None, "–")],
)
def test_a_figure_without_error_has_four_digits(value: float | None, shown: str) -> None:
    assert significant(value) == shown


@pytest.mark.parametrize(
    "count,shown",
    [
        (0, "0"),
        (999, "999 bytes"),
        (1000, "1.00 kB"),
        (91_731_000, "91.7 MB"),
        (269_060_000, "269 MB"),
        (999_600_000, "1.00 GB"),
        (46.7e9, "46.7 GB"),
    ],
)
def test_sizes_are_decimal_with_three_digits(count: float, shown: str) -> None:
    assert size(count) == shown


def test_how_much_smaller_is_said_both_ways() -> None:
    assert smaller(34, 100) == "66% smaller"
    assert smaller(120, 100) == "20% larger"
    assert smaller(100, 100) == "as large as the reference"
    assert smaller(250, 100) == "2.5 times the size"
    assert smaller(None, 100) is None


@pytest.mark.parametrize("value,shown", [(0.00001, "0.00001"), (100.0, "100"), (0.30000000000000004, "0.3"), (0, "0")])
def test_ticks_are_plain(value: float, shown: str) -> None:
    assert tick(value) == shown

from collections.abc import Iterator

import pytest

from quantkit.report.drawing import Plot
from quantkit.report.plots import plots
from tests.helpers.plots_drawn import every_plot
from tests.report.sample import sample


@pytest.fixture(scope="package", autouse=True)
def all_plots() -> Iterator[None]:
    """Unlike in other tests."""
    with every_plot():
        yield


@pytest.fixture(scope="session")
def sample_plots() -> list[Plot]:
    """The sample's plots, which take seconds to draw."""
    with every_plot():
        return plots(sample())

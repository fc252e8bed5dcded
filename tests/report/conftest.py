import pytest

from quantkit.report.drawing import Plot
from quantkit.report.plots import plots
from tests.report.sample import sample


@pytest.fixture(scope="session")
def sample_plots() -> list[Plot]:
    """The sample's plots, which take seconds to draw."""
    return plots(sample())

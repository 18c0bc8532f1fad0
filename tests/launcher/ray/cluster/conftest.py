"""What all tests of the cluster alone compare with."""

from __future__ import annotations

import numpy as np
import pytest

from tests.launcher.ray.cluster.flight import Flight
from tests.launcher.ray.servers import Served


@pytest.fixture(scope="session")
def calm(served: Served) -> list[list[np.ndarray]]:
    """The pictures of all requests in flight, as `krea2 serve` draws them undisturbed."""
    return Flight(served).run()

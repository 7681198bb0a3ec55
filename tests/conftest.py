"""Fixtures that tests of several rooms share."""

import os

import pytest

# Before torch is imported. The networks of the tests are tiny: a second thread costs more than it
# brings, and with pytest-xdist every processor already has a worker.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture
def planted(tmp_path_factory):
    """The tiny network with a backdoor that the contract suites use; trained once a session."""
    # Imported here, so that tests which need no torch do not wait for it.
    from excise.testing import planted_digits, shared_folder

    return planted_digits(shared_folder(tmp_path_factory))

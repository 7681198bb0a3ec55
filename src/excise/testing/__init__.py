"""Contract suites: what every method of Excise promises, as tests an outside author can run.

Subclass a suite in a test file, give it one fixture, and pytest does the rest::

    import pytest

    from excise.inversion import Oracle
    from excise.testing import DefenseContract

    class TestMine(DefenseContract):
        @pytest.fixture
        def method(self, planted):
            return Mine(inverter=Oracle(planted.backdoor.trigger))

Needs pytest (``pip install excise[dev]``). The suites bring their own tiny planted network, which
is trained once a session, on the digits of scikit-learn: about five seconds, no download.
"""

import pytest

# Before the suites are imported: a failing assertion in them then shows its values.
pytest.register_assert_rewrite(
    *(
        f"excise.testing.{name}"
        for name in ("attack", "defense", "guards", "inverter", "scanner", "trigger")
    )
)

from excise.testing.attack import (  # noqa: E402
    AttackContract,
    CleanLabelContract,
    DirtyLabelContract,
    DrawnContract,
)
from excise.testing.defense import DefenseContract  # noqa: E402
from excise.testing.guards import (  # noqa: E402
    Interruption,
    Snapshot,
    differences,
    interrupt_at,
    nothing_global_changes,
    rebuilt_from_spec,
    shared_storage,
)
from excise.testing.inverter import InverterContract  # noqa: E402
from excise.testing.planted import Planted, planted_digits, shared_folder  # noqa: E402
from excise.testing.scanner import ScannerContract  # noqa: E402
from excise.testing.trigger import TriggerContract  # noqa: E402

__all__ = [
    "AttackContract",
    "CleanLabelContract",
    "DefenseContract",
    "DirtyLabelContract",
    "DrawnContract",
    "Interruption",
    "InverterContract",
    "Planted",
    "ScannerContract",
    "Snapshot",
    "TriggerContract",
    "differences",
    "interrupt_at",
    "nothing_global_changes",
    "planted_digits",
    "rebuilt_from_spec",
    "shared_folder",
    "shared_storage",
]

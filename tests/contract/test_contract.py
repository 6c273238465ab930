"""The whole contract, on every pipeline."""

import importlib
import pkgutil

import ucm.conformance

# Not on every pipeline: test_conformance_command.py has them.
ELSEWHERE = ("test_faults", "test_measured")


def collect(names):
    """Take the tests of the suite into this module."""
    for module in pkgutil.iter_modules(ucm.conformance.__path__, "ucm.conformance."):
        name = module.name.rpartition(".")[2]
        if name.startswith("test_") and name not in ELSEWHERE:
            for name, test in vars(importlib.import_module(module.name)).items():
                if name.startswith("test_"):
                    assert name not in names, f"two tests are called {name}"
                    names[name] = test


collect(globals())

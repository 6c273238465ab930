"""The whole contract, on every pipeline."""

import importlib
import pkgutil

import ucm.conformance


def collect(names):
    """Take every test of the suite into this module."""
    for module in pkgutil.iter_modules(ucm.conformance.__path__, "ucm.conformance."):
        if module.name.rpartition(".")[2].startswith("test_"):
            for name, test in vars(importlib.import_module(module.name)).items():
                if name.startswith("test_"):
                    assert name not in names, f"two tests are called {name}"
                    names[name] = test


collect(globals())

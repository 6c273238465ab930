"""Registries of a test's own, and plugins that are wrong on purpose."""

from pathlib import Path

import pytest
from support import compile_library

import ucm
from ucm import registry

HERE = Path(__file__).parent


@pytest.fixture
def registered(monkeypatch):
    """Return a function that makes stores known, for this test only, next to our own layers."""

    def register(*paths, **stores):
        monkeypatch.setenv("UCM_PLUGINS", ":".join(map(str, paths)))
        registry.registry.cache_clear()
        for name, store in stores.items():
            registry.registry().register(name, store)

    yield register
    registry.registry.cache_clear()


@pytest.fixture
def tiny(tmp_path):
    """Compile a plugin that differs from a good one as the macros say."""

    def build(name="tiny", /, **macros):
        flags = [f"-D{macro}={value}" for macro, value in macros.items()]
        return compile_library(HERE / "tiny.c", tmp_path / f"{name}.so", *flags)

    return build


@pytest.fixture(scope="session")
def gate_library(tmp_path_factory):
    return compile_library(HERE / "gate.c", tmp_path_factory.mktemp("gate") / "gate.so")


@pytest.fixture
def error_of():
    """Return the message of the ConfigError that a configuration gets."""

    def message(pipeline, **options):
        with pytest.raises(ucm.ConfigError) as raised:
            ucm.open_pipeline(pipeline, **options).close()
        assert isinstance(raised.value, (ValueError, RuntimeError))
        assert "\n" not in str(raised.value)
        return str(raised.value)

    return message

"""The one hook of the entry-point group ``ucm``."""

from __future__ import annotations

from typing import Protocol

import pluggy

hookspec = pluggy.HookspecMarker("ucm")
hookimpl = pluggy.HookimplMarker("ucm")


class Register(Protocol):
    """What ``ucm_register_stores`` is given."""

    def __call__(self, name: str, store: object) -> None:
        """Make a kind of store known under the word ``name`` of a pipeline string.

        ``store`` is the absolute path of a StoreV1 library (str or path; opened only when the word
        is used), a class derived from :class:`ucm.StoreBase`, :class:`ucm.LayerBase` or
        ``UcmKVStoreBaseV1``, or a builder: a callable that is given the layout, the options and the
        store below (or None) and returns such an object.
        """


@hookspec
def ucm_register_stores(register: Register) -> None:
    """Call ``register(name, store)`` for each kind of store that this package has."""

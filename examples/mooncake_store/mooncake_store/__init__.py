"""UcmMooncakeStore: blocks of KV cache in the memory pool of a Mooncake cluster."""

import ucm
from mooncake_store.store import UcmMooncakeStore

__all__ = ["UcmMooncakeStore"]


@ucm.hookimpl
def ucm_register_stores(register):
    register("UcmMooncakeStore", UcmMooncakeStore)

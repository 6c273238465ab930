from ucm.conformance.fixtures import open_store, rng, storage, store, target

__all__ = ["open_store", "rng", "storage", "store", "target"]

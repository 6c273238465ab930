"""The contract of a store, as tests that run against any pipeline.

    pytest --pyargs ucm.conformance --ucm-pipeline "Cache|MyStore" --ucm-option key=value

``--ucm-pipeline`` is a pipeline string of registered names, or ``module:Class`` for a Python store
that is not registered. ``--ucm-option`` may be repeated; ``{tmp}`` in a value becomes a directory
that is fresh for every test and shared by the stores that this test opens. What a test expects
follows the capabilities that the store publishes. Only pytest is needed.
"""

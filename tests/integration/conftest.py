"""KV caches as a worker has them, without an engine."""

import numpy as np
import pytest
from kv_tensors import BLOCKS, DIM, HEADS, LAYERS, TOKENS, registered

from ucm.integration.vllm.layout import KvLayout


@pytest.fixture
def kv():
    """KV cache of three layers, every number different."""
    shape = (LAYERS, BLOCKS, HEADS, TOKENS, 2 * DIM)
    return np.arange(np.prod(shape), dtype=np.uint16).view(np.float16).reshape(shape)


@pytest.fixture
def layout(kv):
    return KvLayout(registered(kv), BLOCKS)

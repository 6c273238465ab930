"""Tensors as an engine registers them, over numpy memory."""

from types import SimpleNamespace


class Tensor:
    """As much of a torch tensor as a layout looks at, over numpy memory."""

    def __init__(self, array, device="cpu"):
        self.array = array
        self.device = SimpleNamespace(type=device)
        self.shape = array.shape
        self.dtype = {"float16": "torch.float16", "uint8": "torch.uint8"}[array.dtype.name]

    def data_ptr(self):
        return self.array.ctypes.data

    def stride(self):
        return tuple(s // self.array.itemsize for s in self.array.strides)

    def element_size(self):
        return self.array.itemsize


BLOCKS, LAYERS, HEADS, TOKENS, DIM = 6, 3, 2, 4, 8


def registered(kv):
    """Return the layers' tensors as an engine registers them, in any order."""
    return {f"model.layers.{i}.attn": Tensor(kv[i]) for i in reversed(range(len(kv)))}

"""An array as those that open files lazily: shape and dtype are there, values are read by indexing and conversion.

And what reading takes: `peak_memory`.
"""

import tracemalloc

import numpy as np


def peak_memory(call, *arguments):
    """The most bytes that a call held at once, as Python and numpy count them."""
    tracemalloc.start()
    try:
        call(*arguments)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


class LazyArray:
    """Counts in `reads` (a list of one number, shared by its slices) how many values were read."""

    def __init__(self, values, shape=None, dtype=None, reads=None):
        self.values, self.reads = values, [0] if reads is None else reads
        self.shape = values.shape if shape is None else shape
        self.dtype = values.dtype if dtype is None else dtype

    def __getitem__(self, index):
        return LazyArray(self.values[index], reads=self.reads)

    def __array__(self, dtype=None, copy=None):
        self.reads[0] += self.values.size
        return np.asarray(self.values, dtype=dtype)


class Sealed(LazyArray):
    """Of any shape and dtype, and must not be read."""

    def __init__(self, *shape, dtype=np.float32):
        super().__init__(None, shape, np.dtype(dtype))

    def __getitem__(self, index):
        assert isinstance(index, int)  # one sample of a batch, which is no reading
        return Sealed(*self.shape[1:], dtype=self.dtype)

    def __array__(self, dtype=None, copy=None):
        raise AssertionError("an array was read that its shape and dtype should have refused")

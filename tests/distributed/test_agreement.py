"""What ranks tell each other of their arguments."""

import pytest
import torch

from modeling_axial.distributed import agreement
from modeling_axial.distributed.agreement import arguments_in_words, checksum, in_words


@pytest.mark.parametrize(
    "dtype", [torch.bool, torch.uint8, torch.bfloat16, torch.float32, torch.int64, torch.complex64]
)
def test_a_checksum_is_of_bits_and_their_order(dtype):
    tensor = torch.tensor([[0, 1], [1, 1]]).to(dtype)
    assert checksum(tensor) == checksum(tensor.clone()) == checksum(tensor.t().contiguous().t())
    others = tensor, tensor.flip(0), tensor.flip(1), torch.zeros_like(tensor)
    assert len({checksum(other) for other in others}) == len(others)
    assert checksum(tensor[:0]) == 0


def test_a_checksum_is_of_all_of_a_large_tensor(monkeypatch):
    monkeypatch.setattr(agreement, "CHUNK_SIZE", 5)
    tensors = torch.eye(11, dtype=torch.int8)
    assert len({checksum(tensor) for tensor in tensors}) == 11


def test_arguments_go_by_their_names():
    def function(first, second=None, **others):
        pass

    one = torch.ones(2)
    assert arguments_in_words(function, (one,), {"third": [1, None]}) == arguments_in_words(
        function, (), {"first": one, "third": [1, None]}
    )
    text = "missing a required argument: 'first'"
    assert arguments_in_words(function, (), {}) == [f"error = {text!r}"]
    assert in_words({"a": (1, one)}) == f"{{a: [1, (2,) torch.float32 of checksum {checksum(one):x}]}}"

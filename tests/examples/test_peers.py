"""A run of a peer in a folder of its own, and a U-Net of the size of a model."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from examples.peers import equally_large, equally_large_unet, peer_arguments
from examples.training_run import RunArguments


class Widths(nn.Module):
    def __init__(self, widths):
        super().__init__()
        self.widths, self.weight = tuple(widths), nn.Parameter(torch.zeros(sum(widths), 10))

    def num_parameters(self):
        return self.weight.numel()


@pytest.mark.parametrize("size", [70, 210, 234, 236, 1000])
def test_the_widths_nearest_to_a_size(size):
    """Sums of widths are whole, and each of them is found."""
    peer = equally_large_unet(Widths, size)
    assert abs(peer.num_parameters() - size) <= 5
    assert all(1.5 * small <= large for small, large in zip(peer.widths, peer.widths[1:], strict=False))


def test_no_such_size():
    with pytest.raises(ValueError, match="no U-Net has within 5 % of the 10 parameters of the model"):
        equally_large_unet(Widths, 10)


def test_the_nearest_of_those_that_are_given():
    candidates = [(3,), (9,), (10,), (20,)]
    assert equally_large(Widths, candidates, 96, "network").widths == (10,)
    with pytest.raises(ValueError, match="no network has within 5 % of the 150 parameters .* differs by -50"):
        equally_large(Widths, candidates, 150, "network")


def test_a_peer_resumes_where_it_stands():
    run = RunArguments(output_dir="out", push_to_hub=True, logging_steps=3)
    assert peer_arguments(run, "unet") == replace(run, output_dir="out/unet", push_to_hub=False)
    resumed = peer_arguments(replace(run, resume_from_checkpoint="out/checkpoint-4"), "unet")
    assert resumed.resume_from_checkpoint == "latest"

"""Tensors exchanged between the ranks of a group, each exchange differentiated by its true adjoint.

The adjoint of a sum over what all ranks hold: a gradient goes back to where its number came from, and where a number
went to several ranks their gradients are added. So the gradients that a rank ends with are those of the sum of the
losses of all ranks with respect to its own numbers.

A dimension may be split unevenly, also so that some ranks hold nothing of it: its sizes on each rank stand in the call.
"""

import itertools

import torch
import torch.distributed as dist
from torch import Tensor


def shard_sizes(length: int, world_size: int) -> list[int]:
    """How many of `length` cells each of `world_size` ranks holds: as equal as can be, the longer parts first."""
    return [length // world_size + (rank < length % world_size) for rank in range(world_size)]


def shard_slice(length: int, rank: int, world_size: int) -> slice:
    """The cells of `length` that a rank holds, one part behind the other."""
    starts = list(itertools.accumulate(shard_sizes(length, world_size), initial=0))
    return slice(starts[rank], starts[rank + 1])


class Exchange(torch.autograd.Function):
    """A flat tensor, of which each rank gets a part, for the parts that the ranks have for this one, rank by rank."""

    @staticmethod
    def forward(ctx, sent: Tensor, send_sizes: list[int], receive_sizes: list[int], group: dist.ProcessGroup) -> Tensor:
        ctx.the_way_back = receive_sizes, send_sizes, group
        received = sent.new_empty(sum(receive_sizes))
        dist.all_to_all_single(received, sent, receive_sizes, send_sizes, group=group)
        return received

    @staticmethod
    def backward(ctx, gradient: Tensor):  # pyrefly: ignore[bad-override]  torch declares any number of gradients
        return Exchange.apply(gradient.contiguous(), *ctx.the_way_back), None, None, None


class AllReduce(torch.autograd.Function):
    """The sum over the ranks, which is its own adjoint."""

    @staticmethod
    def forward(ctx, states: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        total = states.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx, gradient: Tensor):  # pyrefly: ignore[bad-override]
        return AllReduce.apply(gradient, ctx.group), None


def exchange(pieces: list[Tensor], shapes: list[torch.Size], group: dist.ProcessGroup) -> list[Tensor]:
    """`pieces[r]` goes to rank r; returns what came from each rank, of the `shapes` that are on their way."""
    send_sizes, receive_sizes = [piece.numel() for piece in pieces], [shape.numel() for shape in shapes]
    received = Exchange.apply(one_behind_the_other(pieces), send_sizes, receive_sizes, group)
    return [part.view(shape) for part, shape in zip(received.split(receive_sizes), shapes, strict=True)]


def one_behind_the_other(pieces: list[Tensor]) -> Tensor:
    """All numbers of tensors, flat."""
    # Columns: vectors without numbers torch.cat leaves out, and with them the second derivatives of all ranks.
    return torch.cat([piece.reshape(-1, 1) for piece in pieces]).flatten()


def lies_in_parts(shape: torch.Size, dim: int) -> bool:
    """Whether parts along a dim of a contiguous tensor lie one behind the other, so that none needs to be copied."""
    return shape[:dim].numel() == 1


def resized(shape: torch.Size, sizes: dict[int, int]) -> torch.Size:
    """A shape with other sizes of some dims."""
    return torch.Size(sizes.get(dim, size) for dim, size in enumerate(shape))


def switch(
    states: Tensor,
    scatter_dim: int,
    scatter_sizes: list[int],
    gather_dim: int,
    gather_sizes: list[int],
    group: dist.ProcessGroup,
) -> Tensor:
    """A tensor split along `gather_dim`, split along `scatter_dim` instead.

    Its inverse, and its adjoint, is the switch with the two changed over. A rank sends (P - 1) / P of what it holds, of
    P ranks.

    Args:
        states: this rank's, contiguous or not.
        scatter_sizes, gather_sizes: how many indices of the dim each rank of the group holds when it is split.
    """
    scattered = {scatter_dim: scatter_sizes[dist.get_rank(group)]}
    if lies_in_parts(states.shape, scatter_dim):
        sent = states.flatten()
    else:
        sent = one_behind_the_other(list(states.split(scatter_sizes, scatter_dim)))
    send_sizes = [resized(states.shape, {scatter_dim: size}).numel() for size in scatter_sizes]
    return put_together(sent, send_sizes, resized(states.shape, scattered), gather_dim, gather_sizes, group)


def gather(states: Tensor, dim: int, sizes: list[int], group: dist.ProcessGroup) -> Tensor:
    """All of a tensor that is split along `dim`, `sizes` indices on each rank, to every rank."""
    sent = one_behind_the_other([states] * len(sizes))
    return put_together(sent, [states.numel()] * len(sizes), states.shape, dim, sizes, group)


def put_together(
    sent: Tensor, send_sizes: list[int], shape: torch.Size, dim: int, sizes: list[int], group: dist.ProcessGroup
) -> Tensor:
    """What comes for flat numbers, along a dim. `shape`: of what comes from each rank, but for its `sizes` there."""
    shapes = [resized(shape, {dim: size}) for size in sizes]
    receive_sizes = [part.numel() for part in shapes]
    received = Exchange.apply(sent, send_sizes, receive_sizes, group)
    if lies_in_parts(shape, dim):
        return received.view(resized(shape, {dim: sum(sizes)}))
    return torch.cat([part.view(size) for part, size in zip(received.split(receive_sizes), shapes, strict=True)], dim)


def all_reduce(states: Tensor, group: dist.ProcessGroup) -> Tensor:
    """The sum over the ranks of tensors of one shape, to every rank."""
    return AllReduce.apply(states, group)


def neighbours(rank: int, sizes: list[int], wraps: bool) -> list[tuple[int, int] | None]:
    """The cell before the first of a rank and the one behind its last, as (rank that holds it, index there).

    None beyond the ends, unless the dim wraps: then the last cell stands before the first. A rank that holds nothing
    has neighbours, too: those of the place where its part would be.
    """
    starts = list(itertools.accumulate(sizes, initial=0))
    owners = [(owner, index) for owner, size in enumerate(sizes) for index in range(size)]
    cells = starts[rank] - 1, starts[rank + 1]
    return [owners[cell % len(owners)] if wraps or 0 <= cell < len(owners) else None for cell in cells]


def with_neighbours(states: Tensor, dim: int, sizes: list[int], wraps: bool, group: dist.ProcessGroup) -> Tensor:
    """A tensor split along `dim` with one index more at either end, which its neighbours hold; zeros beyond the ends.

    `wraps`: whether the ends of the whole meet.
    """
    rank, ranks = dist.get_rank(group), range(len(sizes))
    wanted = [neighbours(other, sizes, wraps) for other in ranks]
    pieces = []
    for other in ranks:
        indices = [cell[1] for cell in wanted[other] if cell is not None and cell[0] == rank]
        pieces.append(torch.cat([states.narrow(dim, 0, 0), *(states.narrow(dim, index, 1) for index in indices)], dim))
    counts = [sum(cell is not None and cell[0] == other for cell in wanted[rank]) for other in ranks]
    received = exchange(pieces, [resized(states.shape, {dim: count}) for count in counts], group)
    nothing = states.new_zeros(resized(states.shape, {dim: 1}))
    before, behind = wanted[rank]
    first = nothing if before is None else received[before[0]].narrow(dim, 0, 1)
    last = nothing if behind is None else received[behind[0]].narrow(dim, counts[behind[0]] - 1, 1)
    # Also where none are fetched the result hangs on the exchange, so that all ranks take part in its way back.
    return torch.cat([first, states, last, received[rank].narrow(dim, 0, 0)], dim)

"""Whether the ranks of a group were given the same, found out before one of them waits for another in vain."""

import inspect
import itertools
import zlib
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

TEXT_SIZE = 2048  # bytes that each rank tells the others
INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by their bytes
CHUNK_SIZE = 2**16  # numbers that are looked at together, so few that they stay in a processor's cache


def scattered(count: int, device: torch.device) -> Tensor:
    """1, 2, ..., mixed to int64 without a pattern (SplitMix64, Steele et al. 2014): alike on all kinds of devices."""
    mixed = torch.arange(1, count + 1, device=device) * -0x61C8864680B583EB
    for shift, factor in ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15)):
        mixed = (mixed ^ (mixed >> shift)) * factor
    return mixed ^ (mixed >> 31)


def checksum(tensor: Tensor) -> int:
    """A number of all bits of a tensor and of their order."""
    flat = tensor.detach().reshape(-1)
    flat = torch.view_as_real(flat).reshape(-1) if flat.is_complex() else flat
    bits = flat.contiguous().view(INTEGERS[flat.element_size()])
    places = scattered(min(len(bits), CHUNK_SIZE), bits.device)
    total = torch.zeros((), dtype=torch.int64, device=bits.device)
    for chunk in bits.split(CHUNK_SIZE):
        total = 31 * total + (chunk * places[: len(chunk)]).sum()  # int64, which wraps around
    return int(total)


def in_words(value: Any) -> str:
    """A tensor by shape, dtype and checksum, other values by their text, and what contains such piece by piece."""
    if isinstance(value, Tensor):
        return f"{tuple(value.shape)} {value.dtype} of checksum {checksum(value):x}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(in_words, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{name}: {in_words(entry)}' for name, entry in value.items())}}}"
    return repr(value)


def named_arguments(function: Callable, args: tuple, kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a call by their names; what is wrong with them as the only one, if they are none of this
    function."""
    try:
        return dict(inspect.signature(function).bind(*args, **kwargs).arguments)
    except TypeError as error:
        return {"error": str(error)}


def arguments_in_words(function: Callable, args: tuple, kwargs: dict[str, Any]) -> list[str]:
    """Each argument of a call by its name, in words."""
    return [f"{name} = {in_words(value)}" for name, value in named_arguments(function, args, kwargs).items()]


def all_texts(text: str, mesh: DeviceMesh, timeout: timedelta | None) -> list[str]:
    """The texts of all ranks of a mesh of one dim, cut to `TEXT_SIZE` bytes.

    Raises `RuntimeError` when others have not called this after `timeout`, by default that of the process group.
    """
    written = text.encode()[:TEXT_SIZE].ljust(TEXT_SIZE)
    own = torch.frombuffer(bytearray(written), dtype=torch.uint8).to(mesh.device_type)
    received = [torch.empty_like(own) for _ in range(mesh.size())]
    work: Any = dist.all_gather(received, own, group=mesh.get_group(), async_op=True)
    try:
        work.wait() if timeout is None else work.wait(timeout)
    except RuntimeError as error:
        limit = "the time limit of the process group" if timeout is None else f"{timeout.total_seconds():g} seconds"
        raise RuntimeError(
            f"rank {dist.get_rank()} waited for the other ranks of its axis, in vain, for {limit} at most ({error}): "
            "each of them must call the model whenever one does."
        ) from error
    return [bytes(text.tolist()).decode(errors="ignore").rstrip() for text in received]


def check_agreement(
    entries: list[str], refusals: list[str], mesh: DeviceMesh, timeout: timedelta | None, told: str = ""
) -> list[str]:
    """One small collective, after which all ranks go on or all raise.

    Args:
        entries: texts in which all ranks must agree.
        refusals: why this rank cannot go on.
        told: what this rank tells the others, a short text in which they may differ.

    Returns:
        What each rank has told.

    Raises:
        ValueError: on all ranks, if any refuses, or if they do not agree.
        RuntimeError: as in `all_texts`.
    """
    mark = "refused" if refusals else "agreed"
    lines = [line.replace("\n", " ") for line in (refusals or entries)]
    digest = f"{zlib.crc32('|'.join(lines).encode()):x}"  # of all, as the text may be cut
    texts = [text.split("\n") for text in all_texts("\n".join([mark, told, digest, *lines]), mesh, timeout)]
    for rank, (mark, _, _, *reasons) in enumerate(texts):
        if mark == "refused":
            raise ValueError(f"{' '.join(reasons)} (rank {rank} along the split axis)")
    if len({text[2] for text in texts}) > 1:
        rows = list(itertools.zip_longest(*(text[3:] for text in texts), fillvalue="nothing"))
        different = next((row for row in rows if len(set(row)) > 1), ["something else, too long to tell"] * len(texts))
        words = "; ".join(f"rank {rank}: {entry}" for rank, entry in enumerate(different))
        raise ValueError(
            f"all ranks along the split axis must give the model the same, in the same mode; {words}. Draw the batches "
            "by the rank along the other axes of the mesh."
        )
    return [text[1] for text in texts]

"""
Segment a volume of which each of 4 processes reads and holds a quarter: `python examples/by_feature/one_huge_volume.py`

Started like this it starts 4 processes of itself. On several machines, each of which sees the file:

    torchrun --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint first-machine:29500 \
        examples/by_feature/one_huge_volume.py --folder /shared/volume

The volume lies in a file, of which a process maps its own slab. No process ever holds the whole grid, neither pixels
nor activations nor logits, and what they write together is what one process would have written.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from modeling_axial import AxialConfig, AxialForSemanticSegmentation
from modeling_axial.distributed import own_slice, shard_axis

AXIS, PATCH, SHAPE = 0, 4, (88, 48, 56)  # 22 slices of tokens on 4 processes: 6, 6, 5 and 5


def new_model() -> AxialForSemanticSegmentation:
    torch.manual_seed(0)
    config = AxialConfig(
        image_size=list(SHAPE),
        patch_size=[PATCH] * 3,
        num_channels=1,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_labels=3,
    )
    return AxialForSemanticSegmentation(config).eval()


def segment(model: torch.nn.Module, slab: np.ndarray) -> np.ndarray:
    """(depth, height, width) -> the class of each voxel."""
    with torch.no_grad():
        logits = model(pixel_values=torch.from_numpy(slab.astype(np.float32))[None, None]).logits
    return logits[0].argmax(0).to(torch.uint8).numpy()


def of_one_process(folder: Path) -> None:
    dist.init_process_group("gloo")
    model = new_model()
    volume = np.load(folder / "volume.npy", mmap_mode="r")
    classes = np.load(folder / "classes.npy", mmap_mode="r+")

    # ---- the feature ----
    mesh = init_device_mesh("cpu", (dist.get_world_size(),), mesh_dim_names=("axis",))
    model = shard_axis(model, mesh["axis"], AXIS, gather=False)
    cells = own_slice(model.config.grid_shape, mesh["axis"], AXIS)
    slab = slice(cells.start * PATCH, cells.stop * PATCH)
    classes[slab] = segment(model, volume[slab])
    # ---------------------

    classes.flush()
    # one write, so that lines of several processes never mix: an unbuffered print writes the end of the line apart
    sys.stdout.write(f"process {dist.get_rank()} has segmented the slices {slab.start} to {slab.stop - 1}\n")
    sys.stdout.flush()
    dist.barrier()
    time.sleep(0.5)  # gloo's threads may still let go of tensors: a Python that shuts down meanwhile is aborted, rarely
    dist.destroy_process_group()


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where the volume is; default: one that is made for this run")
    folder = parser.parse_args(arguments).folder
    if "RANK" in os.environ:
        of_one_process(folder)
        return
    with tempfile.TemporaryDirectory() as made:
        folder = folder or Path(made)
        volume = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
        np.save(folder / "volume.npy", volume)
        np.save(folder / "classes.npy", np.zeros(SHAPE, np.uint8))
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=4"]
        launched = subprocess.run(
            [*launch, __file__, f"--folder={folder}"], stdout=subprocess.PIPE, text=True, check=True
        )
        print(*sorted(launched.stdout.splitlines()), sep="\n")
        expected = segment(new_model(), volume)
        same = (np.load(folder / "classes.npy") == expected).mean()
    print(f"{same:.2%} of {volume.size} voxels, in {len(np.unique(expected))} classes, are as of one process")
    assert same > 0.9999  # of voxels whose classes are about as likely the last bits decide


if __name__ == "__main__":
    main()

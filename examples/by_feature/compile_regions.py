"""
Train with compiled layers that keep their memory promise: `python examples/by_feature/compile_regions.py`

Accelerate's `compile_regions` compiles each of several equal parts with one compilation for all of them. For a
reversible model the parts are the attention and the feed-forward of each layer: these run again in backward, compiled,
to rebuild the activations. (A whole compiled layer stores them.)
"""

import argparse

import torch
from accelerate import Accelerator
from accelerate.utils import compile_regions
from digits import read_digits

from modeling_axial import AxialConfig, AxialForImageClassification


def new_model() -> AxialForImageClassification:
    torch.manual_seed(0)
    config = AxialConfig(
        image_size=28,
        patch_size=4,
        num_channels=1,
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        reversible=True,
        num_labels=10,
    )
    return AxialForImageClassification(config)


def train(model, steps: int = 5) -> list[float]:
    accelerator = Accelerator(cpu=not torch.accelerator.is_available())
    pixel_values, labels = (tensor.to(accelerator.device) for tensor in read_digits(held_out=False))
    model, optimizer = accelerator.prepare(model, torch.optim.AdamW(model.parameters(), lr=1e-3))
    losses = []
    for step in range(steps):
        batch = torch.arange(step, len(labels), 100)  # digits of all classes: they are sorted
        loss = model(pixel_values=pixel_values[batch], labels=labels[batch]).loss
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backend", default="inductor", help="what torch.compile hands the graphs to")
    backend = parser.parse_args(arguments).backend
    expected = train(new_model())
    model = new_model()

    # ---- the feature ----
    for name in ("attention", "feed_forward"):
        parts = torch.nn.ModuleList(getattr(layer, name) for layer in model.axial.layers)
        for layer, compiled in zip(model.axial.layers, compile_regions(parts, backend=backend), strict=True):
            setattr(layer, name, compiled)
    # ---------------------

    losses = train(model)
    print("loss, eager:    " + " ".join(f"{loss:.4f}" for loss in expected))
    print("loss, compiled: " + " ".join(f"{loss:.4f}" for loss in losses))
    assert max(abs(a - b) for a, b in zip(losses, expected, strict=True)) < 1e-3


if __name__ == "__main__":
    main()

"""
Compile a whole model, for inference and for training: `python examples/by_feature/compile_model.py`

One graph without breaks. In a compiled graph a reversible model stores its activations; `compile_regions.py` compiles
and rebuilds them.
"""

import argparse
import time

import torch
from digits import accuracy, logits_of, open_model, read_digits


def seconds(run) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backend", default="inductor", help="what torch.compile hands the graph to")
    backend = parser.parse_args(arguments).backend
    model = open_model()
    pixel_values, labels = read_digits()
    eager_logits = logits_of(model, pixel_values)

    # ---- the feature ----
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    # ---------------------

    first = seconds(lambda: logits_of(compiled, pixel_values[:250]))
    compiled_logits = logits_of(compiled, pixel_values)
    torch.testing.assert_close(compiled_logits, eager_logits, rtol=1e-3, atol=1e-3)
    print(f"{accuracy(compiled_logits, labels):.1%} of {len(labels)} digits, as without it; {first:.0f} s to compile.")

    def training_step(callable_model) -> float:
        model.zero_grad()
        loss = callable_model(pixel_values=pixel_values[:64], labels=labels[:64]).loss
        loss.backward()
        return loss.item()

    losses = training_step(model), training_step(compiled)
    assert abs(losses[0] - losses[1]) < 1e-4, losses
    pairs = [(seconds(lambda: training_step(model)), seconds(lambda: training_step(compiled))) for _ in range(9)]
    ratio = sorted(eager / ours for eager, ours in pairs)[4]
    print(f"A training step of 64 digits: {ratio:.2f} times as fast as eager, median of {len(pairs)} pairs.")


if __name__ == "__main__":
    main()

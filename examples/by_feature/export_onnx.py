"""
Export a model to ONNX, for any number and size of pictures: `python examples/by_feature/export_onnx.py`

Needs the extra `features`: onnx, onnxscript, onnxruntime.
"""

import argparse
from pathlib import Path

import onnxruntime
import torch
from digits import accuracy, open_model, read_digits


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("outputs/digits.onnx"))
    path = parser.parse_args(arguments).output
    path.parent.mkdir(parents=True, exist_ok=True)
    model = open_model()
    pixel_values, labels = read_digits()

    # ---- the feature ----
    patch = model.config.patch_size
    height, width = (patch * torch.export.Dim(name, min=1, max=256) for name in ("patch_rows", "patch_columns"))
    torch.onnx.export(
        model,
        (pixel_values[:2],),
        path,
        dynamo=True,
        external_data=False,
        input_names=["pixel_values"],
        output_names=["logits"],
        dynamic_shapes={"pixel_values": {0: torch.export.Dim("batch", min=1, max=4096), 2: height, 3: width}},
    )
    # ---------------------

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def run(pictures: torch.Tensor) -> torch.Tensor:
        (logits,) = session.run(["logits"], {"pixel_values": pictures.numpy()})
        return torch.from_numpy(logits)

    print(f"{accuracy(run(pixel_values), labels):.1%} of {len(labels)} digits, from {path}.")
    with torch.no_grad():
        for size in ((28, 28), (12, 40)):  # the second: another size than the model was trained on
            pictures = torch.randn(3, 1, *size)
            torch.testing.assert_close(run(pictures), model(pictures).logits, rtol=1e-4, atol=1e-4)
    print("The same as the model at other sizes, too.")


if __name__ == "__main__":
    main()

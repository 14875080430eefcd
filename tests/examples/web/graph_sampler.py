"""The loops of `page/completion.js`, in Python: what the exported graphs draw."""

import numpy as np
import onnxruntime
import torch


def open_graphs(folder):
    return {
        path.stem: onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        for path in folder.glob("*.onnx")
    }


def uniform_draws(seed, rows, columns, vocab_size):
    """(rows, columns, vocab_size) from 0 to 1, those behind the noise of `generate` with a generator of this seed."""
    generator = torch.Generator().manual_seed(seed)
    noise = [torch.empty(1, columns, vocab_size, dtype=torch.float64) for _ in range(rows)]
    return torch.cat([of_row.exponential_(generator=generator) for of_row in noise]).neg().exp().numpy()


class Stream:
    """One picture of one class on its way through the graphs."""

    def __init__(self, graphs, class_label):
        self.graphs = graphs
        (self.context,) = graphs["context"].run(None, {"class_label": np.array([class_label])})
        self.gathered = np.zeros_like(self.context[:, :1])
        self.states = {name: self.no_state(name) for name in ("pixel", "row")}

    def no_state(self, name):
        (shape,) = [given.shape for given in self.graphs[name].get_inputs() if given.name == "state"]
        return np.zeros(shape, np.float32)

    def run(self, name, position, **inputs):
        inputs |= {"position": np.array([position]), "state": self.states[name]}
        output, self.states[name] = self.graphs[name].run(None, inputs)
        return output

    def logits(self, token, row, column):
        context = self.context[:, row : row + 1, column : column + 1] + self.gathered[:, :, column : column + 1]
        return self.run("pixel", column, token=np.array([token]), context=context)[0].astype(np.float64)

    def finish_row(self, tokens, row):
        self.gathered = self.run("row", row, tokens=tokens[None], context=self.context[:, row : row + 1])


def complete(graphs, picture, known_rows, class_labels, guidance_scale, uniform):
    """`picture` (rows, columns) with the rows from `known_rows` on drawn; two `class_labels` are guided from the second
    to the first."""
    picture = picture.astype(np.int64)
    picture[known_rows:] = 0
    streams = [Stream(graphs, label) for label in class_labels]
    for row, tokens in enumerate(picture):
        for column in range(len(tokens)) if row >= known_rows else ():
            previous = tokens[column - 1] if column else 0
            scores, *unguided = (stream.logits(previous, row, column) for stream in streams)
            for logits in unguided:
                scores = logits + guidance_scale * (scores - logits)
            tokens[column] = np.argmax(scores - np.log(-np.log(uniform[row, column])))
        for stream in streams:
            stream.finish_row(tokens, row)
    return picture

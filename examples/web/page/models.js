/** Opens what the build has put beside this page: the runtime, the five graphs, settings and examples. */

import * as ort from "./runtime/ort.wasm.bundle.min.mjs";

const GRAPHS = ["classifier", "context", "pixel", "row", "segmenter"];

// One thread: several need a page isolated from others, which a static host does not promise, and gain nothing here.
ort.env.wasm.numThreads = 1;
ort.env.wasm.wasmPaths = { wasm: new URL("./runtime/ort-wasm-simd-threaded.wasm", import.meta.url).href };

export const { Tensor } = ort;

/**
 * @typedef {object} Models
 * @property {object} settings as `settings.json` has them
 * @property {{pixels: Uint8Array, label: number}[]} examples digits that were kept out of training
 * @property {{pixels: Uint8Array, mask: Uint8Array, row: number}[]} nuclei pictures that were kept out of training,
 *   which pixels experts have marked as nuclei, and where they begin in the half that they are of
 * @property {Object<string, ort.InferenceSession>} graphs
 */

/**
 * @param {(done: number, of: number) => void} onProgress called as each part arrives
 * @returns {Promise<Models>}
 */
export async function openModels(onProgress = () => {}) {
  let done = 0;
  const counted = async (promise) => {
    const result = await promise;
    onProgress((done += 1), GRAPHS.length + 3);
    return result;
  };
  const settings = await counted(fetched("settings.json").then((response) => response.json()));
  const [digitBytes, nucleiBytes] = await Promise.all(
    ["examples.bin", "nuclei.bin"].map((path) => counted(fetched(path).then((response) => response.arrayBuffer()))),
  );
  const graphs = {};
  for (const name of GRAPHS) {
    const graph = await fetched(`models/${name}.onnx`).then((response) => response.arrayBuffer());
    graphs[name] = await counted(ort.InferenceSession.create(graph, { executionProviders: ["wasm"] }));
  }
  const size = settings.rows * settings.columns;
  const examples = settings.example_labels.map((label, index) => ({
    pixels: new Uint8Array(digitBytes, index * size, size),
    label,
  }));
  const area = settings.segmenter.side ** 2;
  const nuclei = settings.segmenter.example_rows.map((row, index) => ({
    pixels: new Uint8Array(nucleiBytes, 2 * index * area, area),
    mask: new Uint8Array(nucleiBytes, (2 * index + 1) * area, area),
    row,
  }));
  return { settings, examples, nuclei, graphs };
}

async function fetched(path) {
  const response = await fetch(new URL(path, import.meta.url));
  if (!response.ok) throw new Error(`${path} did not load: ${response.status} ${response.statusText}`);
  return response;
}

/**
 * @param {ort.InferenceSession} graph
 * @param {string} name of an input
 * @returns {ort.Tensor} zeros of its shape
 */
export function zeros(graph, name) {
  const { shape } = graph.inputMetadata.find((input) => input.name === name);
  return new Tensor("float32", new Float32Array(shape.reduce((product, length) => product * length, 1)), shape);
}

/**
 * @param {number[]} values whole numbers
 * @param {number[]} shape
 * @returns {ort.Tensor} int64
 */
export function integers(values, shape) {
  return new Tensor("int64", BigInt64Array.from(values, BigInt), shape);
}

/** Joins the parts of the page. */

import { AttentionView } from "./attention_view.js";
import { classify } from "./classifier.js";
import { complete } from "./completion.js";
import { DrawingPad } from "./drawing_pad.js";
import { uniformFromSeed } from "./draws.js";
import { openModels } from "./models.js";
import { paintNuclei } from "./nuclei_view.js";
import { readPicture } from "./own_picture.js";
import { paintPixels, paintUnknown, prepare } from "./picture.js";
import { count, intersectionOverUnion, segment } from "./segmenter.js";

const GUIDANCE_SCALE = 2; // towards the digit that is asked for
const DRAWN_INK = [255, 190, 140];
const KNOWN_INK = [255, 255, 255];
const KEPT_BEFORE = 6;

const element = (id) => document.getElementById(id);
const seconds = (milliseconds) => `${(milliseconds / 1000).toFixed(milliseconds < 1000 ? 2 : 1)} s`;
const nextFrame = () => new Promise((resolve) => requestAnimationFrame(resolve));

/** Runs `task` once for any number of calls that come while it runs or waits for the next frame. */
function coalesced(task) {
  let isWaiting = false;
  let isWanted = false;
  return async () => {
    isWanted = true;
    if (isWaiting) return;
    isWaiting = true;
    try {
      while (isWanted) {
        await nextFrame();
        isWanted = false;
        await task();
      }
    } finally {
      isWaiting = false;
    }
  };
}

/** The list of classes with a bar for each; returns what shows new probabilities in it. */
function probabilityBars(list, classes) {
  const bars = classes.map((name) => {
    const item = document.createElement("li");
    const [label, bar, share] = ["label", "bar", "share"].map((part) => {
      const span = document.createElement("span");
      span.className = part;
      item.append(span);
      return span;
    });
    label.textContent = name;
    list.append(item);
    return { item, bar, share };
  });
  return (probabilities) => {
    const best = Math.max(...probabilities);
    bars.forEach(({ item, bar, share }, index) => {
      const percent = `${(100 * probabilities[index]).toFixed(0)}%`;
      item.classList.toggle("best", probabilities[index] === best);
      bar.style.setProperty("--share", percent);
      share.textContent = percent;
    });
  };
}

function addOptions(select, texts) {
  texts.forEach((text, value) => select.add(new Option(text, String(value))));
}

function showClassifier(models, pad) {
  const { settings } = models;
  const view = new AttentionView([element("map-0"), element("map-1")], element("map-text"), settings);
  const showProbabilities = probabilityBars(element("probabilities"), settings.classes);
  let layersAreListed = false;

  const update = coalesced(async () => {
    const pixels = pad.pixels.slice();
    const { probabilities, maps, milliseconds } = await classify(models, pixels);
    const isEmpty = pixels.every((grey) => grey === 0);
    showProbabilities(isEmpty ? probabilities.map(() => 0) : probabilities);
    const best = probabilities.indexOf(Math.max(...probabilities));
    element("answer").textContent = isEmpty ? "–" : settings.classes[best];
    element("class-time").textContent = `computed in ${milliseconds.toFixed(1)} ms`;
    if (!layersAreListed) addOptions(element("layer"), Array.from({ length: maps.layers }, (_, layer) => layer + 1));
    layersAreListed = true;
    view.show(pixels, maps);
  });

  pad.addEventListener("change", update);
  view.addEventListener("change", () => (element("all-cells").disabled = view.cell === null));
  element("all-cells").addEventListener("click", () => view.select(null));
  element("layer").addEventListener("change", ({ target }) =>
    view.selectLayer(target.value === "" ? null : Number(target.value)),
  );
  return update();
}

function showCompletion(models, pad) {
  const { rows, columns, classes } = models.settings;
  const canvas = element("completed");
  const context = prepare(canvas, rows, columns);
  const knownRows = rows / 2;
  const buttons = [element("complete"), element("another")];
  addOptions(element("class"), classes);

  const paint = (target, picture, rowsThere) => {
    paintPixels(target, picture, columns, (row) => (row < knownRows ? KNOWN_INK : DRAWN_INK));
    paintUnknown(target, rowsThere);
  };
  const paintHalf = () => paint(context, pad.pixels, knownRows);

  let isRunning = false;
  let isShown = false; // a completed picture, until the drawing changes
  pad.addEventListener("change", () => {
    if (isRunning) return;
    if (isShown) keepEarlier(canvas);
    isShown = false;
    paintHalf();
  });

  async function run() {
    isRunning = true;
    buttons.forEach((button) => (button.disabled = true));
    const seed = element("seed").valueAsNumber || 0;
    const asked = element("class").value;
    if (isShown) keepEarlier(canvas);
    try {
      const { pixels, drawn, milliseconds } = await complete(models, {
        pixels: pad.pixels,
        knownRows,
        classLabels: asked === "" ? [classes.length] : [Number(asked), classes.length],
        guidanceScale: GUIDANCE_SCALE,
        uniform: uniformFromSeed(seed),
        onRow: async (picture, rowsThere) => {
          paint(context, picture, rowsThere);
          await nextFrame();
        },
      });
      isShown = true;
      const { logits, probabilities } = await classify(models, pixels);
      const seen = classes[logits.indexOf(Math.max(...logits))];
      element("complete-time").textContent =
        `${drawn} pixels drawn in ${seconds(milliseconds)}, ${(milliseconds / drawn).toFixed(1)} ms each. The ` +
        `classifier reads ${seen} (${(100 * Math.max(...probabilities)).toFixed(0)}%).`;
      canvas.setAttribute("aria-label", `Your upper half, completed with seed ${seed}. The classifier reads ${seen}.`);
      canvas.dataset.pixels = pixels.join(" ");
    } finally {
      isRunning = false;
      buttons.forEach((button) => (button.disabled = false));
    }
  }

  element("complete").addEventListener("click", () => guarded(run));
  element("another").addEventListener("click", () => {
    element("seed").valueAsNumber = ((element("seed").valueAsNumber || 0) + 1) % 2 ** 32;
    guarded(run);
  });
  buttons.forEach((button) => (button.disabled = false));
  paintHalf();
}

/** A small copy of a completed picture, before the next one takes its place. */
function keepEarlier(canvas) {
  const strip = element("earlier");
  const copy = document.createElement("canvas");
  [copy.width, copy.height] = [canvas.width, canvas.height];
  copy.getContext("2d").drawImage(canvas, 0, 0);
  copy.setAttribute("role", "img");
  copy.setAttribute("aria-label", canvas.getAttribute("aria-label"));
  strip.prepend(copy);
  while (strip.children.length > KEPT_BEFORE) strip.lastChild.remove();
}

function showTools(pad, examples) {
  let next = 0;
  const showExample = () => pad.show(examples[next++ % examples.length].pixels);
  element("erase").addEventListener("click", () => (pad.erases = !pad.erases));
  pad.addEventListener("tool", () => element("erase").setAttribute("aria-pressed", String(pad.erases)));
  element("undo").addEventListener("click", () => pad.undo());
  element("clear").addEventListener("click", () => pad.clear());
  element("example").addEventListener("click", showExample);
  showExample();
}

function showSegmenter(models) {
  const { nuclei } = models;
  const { side } = models.settings.segmenter;
  const [button, file] = [element("next-cells"), element("own-cells")];
  let shown; // the picture: its pixels, words about it, and the mask of an example

  const update = coalesced(async () => {
    const { pixels, words, truth } = shown;
    const { mask, milliseconds } = await segment(models, pixels);
    const [share, found] = [percentage(count(mask) / mask.length), count(mask).toLocaleString("en")];
    paintNuclei(element("nuclei"), pixels, mask);
    element("nuclei").setAttribute("aria-label", `${words} Outlined as nuclei: ${share}.`);
    element("nuclei-share").textContent = share;
    element("nuclei-time").textContent = `computed in ${seconds(milliseconds)}`;
    element("nuclei-text").textContent =
      `of the picture is nucleus: ${found} of ${mask.length.toLocaleString("en")} pixels.` +
      (truth ? comparison(mask, truth) : "");
  });

  function show(picture) {
    shown = picture;
    for (const id of ["cells", "nuclei"]) paintNuclei(element(id), picture.pixels);
    element("cells").setAttribute("aria-label", picture.words);
    element("cells-text").textContent = picture.words;
    element("nuclei-text").textContent = "Computing …";
    return update();
  }

  let next = 0;
  function showExample() {
    const number = next++ % nuclei.length;
    const { pixels, mask, row } = nuclei[number];
    const place = `rows ${row + 1} to ${row + side} of the half that was kept out of training`;
    file.value = ""; // so that the same file can be opened again
    return show({ pixels, words: `Example ${number + 1} of ${nuclei.length}: ${place}.`, truth: mask });
  }

  async function showOwn() {
    if (file.files.length === 0) return;
    const [{ name }] = file.files;
    try {
      const { pixels, width, height } = await readPicture(file.files[0], side);
      await show({ pixels, words: `${name}, ${width} × ${height} pixels: ${whatIsTaken(width, height, side)}` });
    } catch (error) {
      element("nuclei-text").textContent = error.message;
    }
  }

  button.addEventListener("click", () => guarded(showExample));
  file.addEventListener("change", () => guarded(showOwn));
  for (const control of [button, file]) control.disabled = false;
  return showExample();
}

const percentage = (share) => `${(100 * share).toFixed(1)}%`;

/** How far the mask of the model is that of the experts, in words. */
function comparison(mask, truth) {
  return (
    ` Experts have marked ${percentage(count(truth) / truth.length)}; what both call nucleus is ` +
    `${percentage(intersectionOverUnion(mask, truth))} of what either does.`
  );
}

/** What becomes of a picture of another size, in words. */
function whatIsTaken(width, height, side) {
  const taken = Math.min(width, height);
  const part = width === height ? "all of it" : `its middle, ${taken} × ${taken},`;
  return `${part} in grey` + (taken === side ? "." : `, resized to ${side} × ${side}.`);
}

/** What computes here, in words. */
function about({ runtime, rows, columns, classifier_weights, decoder_weights, segmenter }) {
  const [reads, draws, finds] = [classifier_weights, decoder_weights, segmenter.weights].map((weights) =>
    weights.toLocaleString("en"),
  );
  return (
    `Digits have ${rows} × ${columns} pixels, as you see them. The classifier, of ${reads} weights, attends along the ` +
    `rows and columns of a grid of patches; the model that draws, of ${draws} weights, keeps the keys and values of all ` +
    `that it has drawn. Both have learnt from 4,000 digits of MNIST. The model that finds nuclei, of ${finds} weights, ` +
    `has learnt from one half of a picture of the Data Science Bowl 2018, which comes with the package stardist. All ` +
    `run as ONNX graphs by ${runtime.replace("@", " ")}, in WebAssembly, on one thread.`
  );
}

/** Says on the page why something failed. */
async function guarded(task) {
  try {
    await task();
  } catch (error) {
    element("status").textContent = `This failed: ${error.message}`;
    throw error;
  }
}

guarded(async () => {
  const start = performance.now();
  const models = await openModels((done, of) => (element("status").textContent = `Loading the models … ${done} of ${of}`));
  const pad = new DrawingPad(element("pad"), models.settings.rows, models.settings.columns);
  showTools(pad, models.examples);
  await showClassifier(models, pad);
  showCompletion(models, pad);
  element("status").textContent = `Ready after ${seconds(performance.now() - start)}.`;
  element("about").textContent = about(models.settings);
  await showSegmenter(models); // last, as it takes longest
});

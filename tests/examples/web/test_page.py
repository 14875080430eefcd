"""The page in a real browser: Debian's chromium, driven by selenium through its chromedriver."""

import shutil
import threading
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor

from examples.segmentation_data import read_picture
from examples.web import build_page
from examples.web.export_models import SEGMENTER, open_models
from tests.conftest import ROOT
from tests.examples.web.graph_sampler import complete, open_graphs, uniform_draws

pytestmark = [pytest.mark.browser, pytest.mark.audit]

ANY_CLASS = 10
SIZE = 28
DARK = {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}


@contextmanager
def served(folder):
    """The address of a web server of `folder` on loopback."""

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture(scope="module")
def programs():
    """The paths of the browser and of its driver."""
    pytest.importorskip("selenium", reason="needs selenium, of the extra `browser`")
    paths = {name: shutil.which(name) for name in ("chromium", "chromedriver")}
    if None in paths.values():
        pytest.skip(f"needs Debian's chromium and chromium-driver, found {paths}")
    return paths


@pytest.fixture(scope="module")
def address(programs, exported, tmp_path_factory):
    package = ROOT / "build" / build_page.PACKAGE
    if not package.exists():
        pytest.skip("needs onnxruntime-web, which `make web` fetches once")
    folder = tmp_path_factory.mktemp("page") / "web"
    build_page.build(folder, build_page.fetch_runtime(package.parent), exported)
    with served(folder) as address:
        yield address


@pytest.fixture(scope="module")
def driver(programs, address, tmp_path_factory):
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = programs["chromium"]
    for argument in (
        "--headless=new",
        "--no-sandbox",  # which root cannot have
        "--disable-dev-shm-usage",
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
        "--window-size=1440,1400",
        f"--user-data-dir={tmp_path_factory.mktemp('profile')}",
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, Service(programs["chromedriver"]))
    driver.set_script_timeout(120)
    yield driver
    driver.quit()


@pytest.fixture
def page(driver, address):
    """The driver, on a fresh page that is ready; what the page complains of fails the test."""
    driver.get_log("browser")
    driver.get(address)
    wait_for(driver, lambda: text_of(driver, "status").startswith("Ready"))
    yield driver
    assert not [entry for entry in driver.get_log("browser") if entry["level"] == "SEVERE"]


def wait_for(driver, condition):
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(driver, 60, poll_frequency=0.1).until(lambda _: condition())


def find(driver, name):
    return driver.find_element("id", name)


def text_of(driver, name):
    return find(driver, name).text


def run(driver, body, *arguments):
    """What `body`, the inside of an async function with the modules of the page, returns for its `given`."""
    code = """
        const [given, done] = arguments;
        const load = (name) => import(new URL(name + ".js", document.baseURI));
        (async () => { %s })().then((value) => done({ value }), (error) => done({ error: String(error) }));
    """
    result = driver.execute_async_script(code % body, list(arguments))
    assert "error" not in result, result
    return result["value"]


OPEN = 'const { openModels } = await load("models"); const models = await openModels();'


def test_logits_are_those_of_the_model(page):
    pictures, _ = build_page.example_digits()
    assert len(pictures) == 20
    logits = run(
        page,
        OPEN
        + """
        const { classify } = await load("classifier");
        const all = [];
        for (const picture of given[0]) all.push(Array.from((await classify(models, Uint8Array.from(picture))).logits));
        return all;""",
        pictures.reshape(20, -1).tolist(),
    )
    pixel_values = AutoImageProcessor.from_pretrained(ROOT)(list(pictures), return_tensors="pt").pixel_values
    with torch.no_grad():
        expected = open_models()[0](pixel_values).logits
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4)


def test_every_grey_is_prepared_as_by_the_processor(page):
    greys = np.arange(SIZE * SIZE) % 256
    prepared = run(
        page,
        OPEN
        + """
        const { toPixelValues } = await load("classifier");
        return Array.from(toPixelValues(Uint8Array.from(given[0]), models.settings));""",
        greys.tolist(),
    )
    picture = greys.astype(np.uint8).reshape(SIZE, SIZE)
    expected = AutoImageProcessor.from_pretrained(ROOT)(picture, return_tensors="np").pixel_values
    np.testing.assert_allclose(prepared, expected.ravel(), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("class_label", "guidance_scale"), [(ANY_CLASS, 1), (7, 2)])
def test_halves_are_completed_as_by_the_model(page, class_label, guidance_scale):
    pictures, _ = build_page.example_digits()
    labels = [class_label] if guidance_scale == 1 else [class_label, ANY_CLASS]
    completed = run(
        page,
        OPEN
        + """
        const { complete } = await load("completion");
        const [picture, classLabels, guidanceScale, draws] = given;
        let used = 0;
        const uniform = (count) => Float64Array.from(draws.slice(used, (used += count)));
        const options = { pixels: Uint8Array.from(picture), knownRows: 14, classLabels, guidanceScale, uniform };
        const { pixels, milliseconds } = await complete(models, options);
        return { pixels: Array.from(pixels), milliseconds };""",
        pictures[7].ravel().tolist(),
        labels,
        guidance_scale,
        uniform_draws(4, SIZE, SIZE, 256).ravel().tolist(),
    )
    known = torch.zeros(SIZE, SIZE, dtype=torch.bool)
    known[:14] = True
    expected = open_models()[1].generate(
        class_labels=torch.tensor([class_label]),
        known=(torch.from_numpy(pictures[7])[None, None].long(), known[None, None]),
        guidance_scale=guidance_scale,
        generator=torch.Generator().manual_seed(4),
        sampler="cached",
    )
    assert completed["pixels"] == expected.ravel().tolist()
    assert completed["milliseconds"] <= 10_000


def drawing_of(page):
    """The pixels of the pad, as they are painted without the pen of the keyboard."""
    painted = run(
        page,
        """
        const pad = document.getElementById("pad");
        pad.blur();
        const scale = pad.width / 28;
        const { data } = pad.getContext("2d").getImageData(0, 0, pad.width, pad.height);
        return Array.from({ length: 784 }, (_, index) => {
          const [row, column] = [Math.floor(index / 28), index % 28].map((pixel) => Math.floor((pixel + 0.5) * scale));
          return data[4 * (row * pad.width + column)];
        });""",
    )
    return np.array(painted).reshape(SIZE, SIZE)


def pointer_at(page, kind, places):
    """Draws along `places`, (right, down) from the centre of the pad as shares of its side."""
    from selenium.webdriver.common.action_chains import ActionBuilder
    from selenium.webdriver.common.actions.pointer_input import PointerInput

    pad = find(page, "pad")
    actions = ActionBuilder(page, mouse=PointerInput(kind, kind), duration=20)
    pointer = actions.pointer_action
    for index, (right, down) in enumerate(places):
        pointer.move_to(pad, int(right * pad.size["width"]), int(down * pad.size["height"]))
        if index == 0:
            pointer.pointer_down()
    pointer.pointer_up()
    actions.perform()


@pytest.mark.parametrize("kind", ["mouse", "touch"])
def test_a_stroke_by_pointer_is_read(page, kind):
    find(page, "clear").click()
    wait_for(page, lambda: text_of(page, "answer") == "–")
    pointer_at(page, kind, [(0.02, -0.3), (0, 0), (-0.02, 0.3)])
    wait_for(page, lambda: text_of(page, "answer") == "1")
    drawing = drawing_of(page)
    assert drawing[6:22, 12:16].max(1).min() > 200 and not drawing[:4].any() and not drawing[:, :10].any()


def test_a_stroke_by_keyboard_is_read(page):
    from selenium.webdriver.common.keys import Keys

    find(page, "clear").click()
    wait_for(page, lambda: text_of(page, "answer") == "–")
    pad = find(page, "pad")
    pad.send_keys(" " + Keys.ARROW_DOWN * 14 + " " + Keys.ARROW_RIGHT * 3)
    wait_for(page, lambda: text_of(page, "answer") == "1")
    ink = drawing_of(page).astype(float)
    assert ink[8:21, 13:15].max(1).min() > 200 and not ink[:, 17:].any()
    pad.send_keys("u")
    wait_for(page, lambda: text_of(page, "answer") == "–")


def test_the_eraser_takes_ink_away(page):
    before = drawing_of(page).sum()
    find(page, "erase").click()
    assert find(page, "erase").get_attribute("aria-pressed") == "true"
    pointer_at(page, "mouse", [(-0.2, 0), (0.2, 0)])
    after = drawing_of(page)
    assert after.sum() < before and not after[13:15, 9:19].any()
    find(page, "undo").click()
    assert drawing_of(page).sum() == before


def completed_pixels(page, button):
    find(page, button).click()
    wait_for(page, lambda: find(page, button).is_enabled())
    assert "pixels drawn in" in text_of(page, "complete-time")
    return [int(value) for value in find(page, "completed").get_attribute("data-pixels").split()]


def test_a_drawing_is_completed_from_a_seed(page, exported):
    drawing = drawing_of(page)
    first = completed_pixels(page, "complete")
    draws = run(page, 'const { uniformFromSeed } = await load("draws"); return Array.from(uniformFromSeed(0)(200704));')
    draws = np.array(draws).reshape(SIZE, SIZE, 256)
    assert 0 < draws.min() < 1e-4 and 1 - 1e-4 < draws.max() < 1 and abs(draws.mean() - 0.5) < 5e-3
    expected = complete(open_graphs(exported), drawing, 14, [ANY_CLASS], 1, draws)
    assert first == expected.ravel().tolist() and first[:392] == drawing[:14].ravel().tolist()
    assert completed_pixels(page, "complete") == first
    assert completed_pixels(page, "another") != first and find(page, "seed").get_attribute("value") == "1"


def test_a_cell_shows_what_it_reads(page):
    from selenium.webdriver.common.keys import Keys

    assert text_of(page, "map-text").startswith("Read most: down the columns row ")
    view = find(page, "map-1")
    view.send_keys(Keys.ARROW_UP, Keys.ARROW_UP, Keys.ARROW_RIGHT)
    assert text_of(page, "map-text").startswith("The cell in row 3, column 5 of 7 × 7 reads most from row ")
    find(page, "all-cells").click()
    assert text_of(page, "map-text").startswith("Read most")


@pytest.fixture(scope="module")
def segmented():
    """A function that gives the logits (2, 256, 256) of the model for a grey picture."""
    model, processor = open_models()[2], AutoImageProcessor.from_pretrained(ROOT, subfolder=SEGMENTER)

    @torch.no_grad()
    def segment(picture):
        return model(**processor(picture, return_tensors="pt")).logits[0].numpy()

    return segment


@pytest.fixture(scope="module")
def nuclei():
    return build_page.example_nuclei(open_models()[2].config)


def test_nuclei_are_found_as_by_the_model(page, segmented, nuclei):
    for number, picture in enumerate(nuclei[0]):
        logits, mask = run(
            page,
            OPEN
            + """
            const { segment } = await load("segmenter");
            const { logits, mask } = await segment(models, models.nuclei[given[0]].pixels);
            return [Array.from(logits), Array.from(mask)];""",
            number,
        )
        expected = segmented(picture)
        np.testing.assert_allclose(np.reshape(logits, expected.shape), expected, rtol=0, atol=1e-4)
        np.testing.assert_array_equal(np.reshape(mask, picture.shape), expected.argmax(0))


def wait_for_nuclei(page, beginning):
    """Waits for the nuclei of the picture whose description begins so."""
    wait_for(page, lambda: text_of(page, "cells-text").startswith(beginning))
    wait_for(page, lambda: text_of(page, "nuclei-text").startswith("of the picture is nucleus"))


def painted(page, name):
    """The colours (256, 256, 3) of a canvas."""
    data = run(
        page,
        """
        const canvas = document.getElementById(given[0]);
        return Array.from(canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data);""",
        name,
    )
    return np.reshape(data, (256, 256, 4))[..., :3]


def assert_nuclei_are_shown(page, picture, logits):
    """Both canvases show the picture; on the second, nuclei are tinted, with a closed line on their outermost pixels
    and a dark one around it; the words count them."""
    mask = logits.argmax(0) == 1
    np.testing.assert_array_equal(painted(page, "cells"), np.repeat(picture[..., None], 3, 2))
    shown = painted(page, "nuclei")
    wide = np.pad(mask, 1, mode="edge")
    beside = np.stack([wide[:-2, 1:-1], wide[2:, 1:-1], wide[1:-1, :-2], wide[1:-1, 2:]])
    inside, outside = mask & beside.all(0), ~mask & ~beside.any(0)
    np.testing.assert_array_equal(shown[outside], np.repeat(picture[outside][:, None], 3, 1))
    assert (shown[inside][:, 0] > shown[inside][:, 2]).all()
    assert (shown[mask & ~inside] == shown[mask & ~inside][0]).all() and not shown[~mask & ~outside].any()
    assert f"{mask.sum():,} of 65,536 pixels" in text_of(page, "nuclei-text")
    assert text_of(page, "nuclei-share") == f"{100 * mask.mean():.1f}%"
    assert text_of(page, "nuclei-time").startswith("computed in ")
    assert text_of(page, "nuclei-share") in find(page, "nuclei").get_attribute("aria-label")


def test_nuclei_are_outlined_and_examples_reached_by_keyboard(page, segmented, nuclei):
    from selenium.webdriver.common.keys import Keys

    for number in (1, 2, 3, 1):
        wait_for_nuclei(page, f"Example {number} of 3")
        picture, truth = (part[number - 1] for part in nuclei)
        logits = segmented(picture)
        assert_nuclei_are_shown(page, picture, logits)
        found = logits.argmax(0)
        agreement = (found & truth).sum() / (found | truth).sum()
        assert f"Experts have marked {100 * truth.mean():.1f}%" in text_of(page, "nuclei-text")
        assert f"is {100 * agreement:.1f}% of what either does" in text_of(page, "nuclei-text")
        find(page, "next-cells").send_keys(Keys.ENTER)


def test_a_picture_file_is_segmented(page, segmented, nuclei, tmp_path):
    colours = np.stack([nuclei[0][1], nuclei[0][1][::-1], nuclei[0][1].T], 2)
    Image.fromarray(colours).save(tmp_path / "colours.png")
    find(page, "own-cells").send_keys(str(tmp_path / "colours.png"))
    wait_for_nuclei(page, "colours.png, 256 × 256 pixels: all of it in grey.")
    (grey,) = read_picture(tmp_path / "colours.png", num_channels=1)
    assert_nuclei_are_shown(page, grey, segmented(grey))
    assert "Experts" not in text_of(page, "nuclei-text")

    large = Image.fromarray(nuclei[0][0]).resize((512, 512))
    framed = Image.new("L", (700, 512), 255)
    framed.paste(large, (94, 0))
    name = f"large{'_and_long' * 10}.png"
    framed.save(tmp_path / name)
    find(page, "own-cells").send_keys(str(tmp_path / name))
    wait_for_nuclei(page, f"{name}, 700 × 512 pixels: its middle, 512 × 512, in grey, resized to 256 × 256.")
    width, needed = run(page, "const p = document.getElementById('cells-text'); return [p.clientWidth, p.scrollWidth]")
    assert needed <= width
    assert np.abs(painted(page, "cells")[..., 0] - nuclei[0][0].astype(int)).mean() < 3

    (tmp_path / "cells.tif").write_bytes(b"II*\0")
    find(page, "own-cells").send_keys(str(tmp_path / "cells.tif"))
    wait_for(page, lambda: text_of(page, "nuclei-text").startswith("cells.tif is no picture that this browser can"))
    find(page, "next-cells").click()
    wait_for_nuclei(page, "Example 2 of 3")
    assert find(page, "own-cells").get_attribute("value") == ""


@pytest.mark.parametrize("width", [360, 1440])
@pytest.mark.parametrize("dark", [False, True])
def test_the_page_fits_and_is_legible(page, width, dark):
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", DARK if dark else {"features": []})
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        assert run(page, "return document.documentElement.scrollWidth") <= width
        tops = {section.rect["y"] for section in page.find_elements("tag name", "section")}
        assert len(tops) == (4 if width == 360 else 2)
        pictures = [find(page, name).rect for name in ("cells", "nuclei")]
        assert len({picture["y"] for picture in pictures}) == (2 if width == 360 else 1)
        assert all(picture["height"] == picture["width"] > 250 for picture in pictures)
        contrast, text = lowest_contrast(page)
        assert contrast >= 4.5, text
        background = run(page, "return getComputedStyle(document.body).backgroundColor")
        assert (max(map(int, background[4:-1].split(","))) < 60) == dark
    finally:
        page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def lowest_contrast(page):
    """The least contrast of any text of the page with what is behind it, as the WCAG count it, and that text."""
    return run(
        page,
        """
        const luminance = (colour) => {
          const [red, green, blue] = colour.match(/[\\d.]+/g).map((part) => {
            const share = part / 255;
            return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
          });
          return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
        };
        const isOpaque = (element) => !/^rgba.*, 0\\)$/.test(getComputedStyle(element).backgroundColor);
        const behind = (element) => (isOpaque(element) ? element : behind(element.parentElement));
        const hasText = (element) => [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
        const isSeen = (element) => element.checkVisibility();
        const texts = [...document.body.querySelectorAll("*")].filter(hasText).filter(isSeen);
        const contrasts = texts.map((element) => {
          const background = luminance(getComputedStyle(behind(element)).backgroundColor);
          const both = [luminance(getComputedStyle(element).color), background].sort((a, b) => b - a);
          return [(both[0] + 0.05) / (both[1] + 0.05), element.outerHTML];
        });
        return contrasts.sort((a, b) => a[0] - b[0])[0];""",
    )


def test_nothing_is_loaded_from_elsewhere(page, address):
    completed_pixels(page, "complete")
    loaded = run(page, 'return performance.getEntriesByType("resource").map((entry) => entry.name)')
    assert len(loaded) > 10 and all(name.startswith((address, "data:")) for name in loaded)
    assert "on your own machine" in page.find_element("tag name", "header").text

"""The site is built from the checkout alone; in headless Chromium its pages and the explorer read well for everyone."""

import os
import re
import shutil
import subprocess
import sys
from decimal import ROUND_HALF_UP, Decimal
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from browser import Browser, chromium

from experiments import explorer
from isouq import stats

ROOT = Path(__file__).parents[1]
FOLDER = (ROOT / explorer.PAGE).parent
ARTEFACTS = Path(os.environ.get("ISOUQ_ARTEFACTS", ROOT / "out" / "site"))  # screenshots, to look at
DESKTOP, PHONE = (1100, 900), (375, 740)

needs_chromium = pytest.mark.skipif(
    chromium() is None, reason="no Chromium to open the page with; apt install chromium, or set $CHROMIUM to its path"
)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the built site."""
    pytest.importorskip("mkdocs", reason="needs the extra docs")
    folder = tmp_path_factory.mktemp("built") / "site"
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", folder],
        cwd=ROOT, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_the_site_is_built_without_a_warning_and_without_the_network(site):
    pages = list(site.rglob("*.html"))
    assert len(pages) > 30
    for page in pages:
        text = page.read_text(encoding="utf-8")
        fetched = re.findall(r'<(?:script|link|img|iframe)[^>]*?(?:src|href)="(https?:[^"]*)"', text)
        assert not [url for url in fetched if "canonical" not in url], page
    method = (site / "method.html").read_text(encoding="utf-8")
    assert "<math " in method
    assert "arithmatex" not in method


@needs_chromium
def test_pages_read_well_on_a_phone_and_in_the_dark(browser, site):
    for name, size, dark in (
        ("index", PHONE, False),
        ("method", PHONE, False),
        ("comparison", PHONE, False),
        ("developers", PHONE, False),
        ("api/uncertainty", DESKTOP, True),
    ):
        browser.screen(*size, dark=dark)
        browser.open((site / f"{name}.html").as_uri(), storage=False)
        browser.shoot(artefact(f"{name.replace('/', '-')}-{'dark' if dark else size[0]}.png"))
        check(browser, size)
    assert browser.errors == []


@needs_chromium
@pytest.mark.slow
def test_no_page_has_a_serious_fault_of_accessibility_in_either_scheme(browser, site):
    # 404.html takes its style from the root of a server, which a folder has not
    for page in sorted(page for page in site.rglob("*.html") if page.name != "404.html"):
        for dark in (False, True):
            browser.screen(*DESKTOP, dark=dark)
            browser.open(page.as_uri(), storage=False)
            check(browser, DESKTOP)


@needs_chromium
def test_the_search_works_from_a_folder(browser, site):
    browser.screen(*DESKTOP)
    browser.open((site / "index.html").as_uri())
    browser.run("document.querySelector('.md-search__input').focus()")
    browser.run(
        """(async () => {
        const input = document.querySelector(".md-search__input");
        for (let tries = 0; tries < 600 && !document.querySelector(".md-search-result__item"); tries++) {
          input.value = "kronecker";
          input.dispatchEvent(new Event("keyup"));
          await new Promise((done) => setTimeout(done, 100));
        } })()"""
    )
    assert browser.run("document.querySelectorAll('.md-search-result__item').length") > 2


def artefact(name):
    ARTEFACTS.mkdir(parents=True, exist_ok=True)
    return ARTEFACTS / name


def check(browser, size):
    """No serious fault of accessibility, nothing wider than the screen."""
    if find_spec("axe_core_python") is None:
        pytest.skip("axe-core is not installed; pip install axe-core-python")
    axe = Path(find_spec("axe_core_python").origin).with_name("axe.min.js").read_text(encoding="utf-8")
    browser.run(axe + ";true")
    found = browser.run("axe.run(document).then((answer) => answer.violations)")
    serious = [fault for fault in found if fault["impact"] in ("serious", "critical")]
    faults = [(fault["id"], [node["html"] for node in fault["nodes"]]) for fault in serious]
    assert not serious, f"{browser.run('location.pathname')}: {faults}"
    width = browser.run("document.documentElement.scrollWidth")
    assert width <= size[0], f"the page is {width} pixels wide on a screen of {size[0]}"


@pytest.fixture(scope="module")
def content():
    """The committed data; models without maps get waves, so that every model has some."""
    made = explorer.read(ROOT / explorer.PAGE)
    axis = np.linspace(-3, 3, 50)
    for index, model in enumerate(model for model in made["models"] if "maps" not in model):
        line = model["kind"] == "regression"
        grid = np.linspace(-3, 3, 400)[:, None] if line else np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)
        names = explorer.CURVES if line else explorer.MAPS
        waves = {name: np.exp(np.sin(grid @ np.ones(grid.shape[1]) * (1 + i) + index)) for i, name in enumerate(names)}
        waves |= {name: waves[name] / 12 for name in waves if "aleatoric" in name}
        model |= explorer.maps_of({"grid": grid, **waves})
        made["points"].setdefault(model["problem"], {"xs": grid[::41].tolist(), "ys": [0] * len(grid[::41])})
    return made


@pytest.fixture(scope="module")
def address(content, tmp_path_factory):
    folder = tmp_path_factory.mktemp("site") / "explorer"
    shutil.copytree(FOLDER, folder)
    (folder / explorer.PAGE.name).write_text(explorer.page(content), encoding="utf-8")
    return (folder / "index.html").as_uri()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    browser = Browser(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


def fixed(value):
    """Two digits as the page writes them."""
    if value is None:
        return "–"
    digits = Decimal(value).quantize(Decimal("0.01"), ROUND_HALF_UP)
    return str(digits if digits else abs(digits)).replace("-", "−")


def over_seeds(value):
    mean, low, high, count = value
    if not count:
        return "unconverged"
    return fixed(mean) if low is None else f"{fixed(mean)} [{fixed(low)}, {fixed(high)}]"


def hash_of(model, **more):
    state = {
        "problem": model["problem"],
        "prior": f"{model['prior']}-{model['sigma']:g}",
        "width": model["width"],
        **more,
    }
    return "#" + "&".join(f"{name}={value}" for name, value in state.items())


def find(content, problem, width, prior="unit", sigma=1):
    wanted = (problem, width, prior, sigma)
    return next(m for m in content["models"] if (m["problem"], m["width"], m["prior"], m["sigma"]) == wanted)


def texts(browser, *names):
    return [browser.run(f"document.getElementById('{name}').textContent") for name in names]


@needs_chromium
def test_every_model_is_shown_with_its_own_numbers(browser, address, content):
    browser.screen(*DESKTOP)
    browser.open(address)
    hashes = [hash_of(model) for model in content["models"]]
    shown = browser.run(
        f"""(async () => {{
        const shown = [];
        for (const hash of {hashes}) {{
          location.hash = hash;
          await new Promise((done) => addEventListener("hashchange", done, {{ once: true }}));
          shown.push(["verdict", "about", "epistemic-numbers", "aleatoric-numbers", "terms-table", "across-table"]
            .map((name) => document.getElementById(name).textContent));
        }}
        return shown; }})()"""
    )
    assert browser.errors == []
    for model, (verdict, about, epistemic, aleatoric, terms, across) in zip(content["models"], shown, strict=True):
        assert verdict.startswith(f"Reference posterior of seed 0: {model['verdict']}.")
        assert ("no yardstick" in verdict) == (not model["is_accepted"]) == ("unconverged" in verdict)
        assert f"{model['parameters']} parameters" in about
        assert f"{model['accepted']} of {model['seeds']} seeds" in about
        for name, text in (("epistemic", epistemic), ("aleatoric", aleatoric)):
            if name not in model["seed"]:
                assert "there is no map" in text
                continue
            own, mean = model["seed"][name], model["agreement"][name]
            assert f"r = {fixed(own['pearson'])}, ρ = {fixed(own['spearman'])}." in text
            if mean["pearson"][3]:
                assert f": r = {over_seeds(mean['pearson'])}, ρ = {over_seeds(mean['spearman'])}." in text
            assert over_seeds(mean["pearson"]) in across
        for term in explorer.TERMS:
            assert over_seeds(model["decomposition"][term]["spearman"]) in terms


@needs_chromium
def test_keys_choose_another_width_and_the_address_brings_it_back(browser, address, content):
    browser.screen(*DESKTOP)
    browser.open(address + hash_of(find(content, "multiclass/rings", 32)))
    picture = "document.querySelector('#epistemic image').getAttribute('href')"
    before = browser.run(picture)
    browser.run("document.getElementById('width').focus()")
    browser.press("ArrowDown")
    model = find(content, "multiclass/rings", 64)
    assert f"{model['parameters']} parameters" in texts(browser, "about")[0]
    assert browser.run(picture) != before
    browser.run("document.getElementById('at1').focus()")
    browser.press("ArrowRight", times=3)
    there = browser.run("location.hash")
    assert "width=64" in there
    assert "at1=28" in there
    shown = texts(browser, "about", "values")
    browser.open(address + there)
    assert texts(browser, "about", "values") == shown
    browser.open(address + "#problem=none&width=7&prior=x&at1=-5&scale=9")  # a mistyped address: the nearest there is
    assert "one hidden layer of 8 tanh units" in texts(browser, "about")[0]
    assert browser.errors == []


@needs_chromium
@pytest.mark.parametrize("scale", ["range", "rank"])
def test_colours_are_those_of_the_values_and_compared_maps_share_their_limits(browser, address, content, scale):
    model = find(content, "binary/xor", 16)
    browser.screen(*DESKTOP)
    browser.open(address + hash_of(model, scale=scale, points="no"))
    pixels = browser.run(
        """Promise.all([...document.querySelectorAll(".pair image")].map(async (drawn) => {
        const image = new Image();
        image.src = drawn.getAttribute("href");
        await image.decode();
        const canvas = Object.assign(document.createElement("canvas"), { width: image.width, height: image.height });
        canvas.getContext("2d").drawImage(image, 0, 0);
        return [...canvas.getContext("2d").getImageData(0, 0, image.width, image.height).data]; }))"""
    )
    palette = np.array([[int(stop[i : i + 2], 16) for i in (1, 3, 5)] for stop in content["palette"]], float)
    stops = np.linspace(0, 1, len(palette))
    assert len(pixels) == len(explorer.MAPS)
    for name, drawn in zip(explorer.MAPS, pixels, strict=True):
        values = explorer.decode(model["maps"][name])
        low, high = (0, 0.25) if "aleatoric" in name else (values.min(), values.max())
        share = (values - low) / (high - low)
        if scale == "rank":
            share = np.array([np.mean(values < v) + np.mean(values == v) / 2 for v in values])
        expected = np.stack([np.interp(share, stops, channel) for channel in palette.T], -1).reshape(50, 50, 3)
        found = np.array(drawn).reshape(50, 50, 4)[::-1, :, :3]  # the first row of an image is at the top
        assert np.abs(found - expected).max() <= (1 if scale == "range" else 3)


@needs_chromium
def test_the_explorer_has_no_serious_fault_of_accessibility(browser, address, content):
    rings, line = find(content, "multiclass/rings", 2, "fan_in", 3), find(content, "regression/nonlinear", 32)
    for name, model, size, dark in (
        ("desktop-rings", rings, DESKTOP, False),
        ("dark-line", line, DESKTOP, True),
        ("phone-rings", rings, PHONE, False),
        ("phone-line", line, PHONE, False),
    ):
        browser.screen(*size, dark=dark)
        browser.open(address + hash_of(model))
        browser.shoot(artefact(f"explorer-{name}.png"))
        browser.run("document.querySelectorAll('details').forEach((one) => (one.open = true))")
        check(browser, size)
    assert browser.errors == []


def test_a_map_keeps_its_values_in_one_byte():
    values = np.geomspace(1e-6, 3.0, 2500)
    error = np.abs(explorer.decode(explorer.encode(values)) - values)
    assert error.max() < 0.0062 * 3.0
    assert stats.spearman(explorer.decode(explorer.encode(values)), values) > 0.999
    assert np.ptp(explorer.decode(explorer.encode(np.full(9, 0.25)))) == 0


def test_the_committed_maps_agree_with_the_committed_numbers():
    committed = explorer.read(ROOT / explorer.PAGE)["models"]
    groups = explorer.models(ROOT / "results")
    assert [(m["problem"], m["seeds"], m["parameters"]) for m in committed] == [
        (rows[0]["problem"], len(rows), rows[0]["num_params"]) for rows in groups
    ], "docs/explorer/data.js is older than results/; python -m experiments.explorer OUT"
    drawn = [model for model in committed if "codes" in model.get("maps", {}).get("epistemic", {})]
    if not drawn:
        pytest.skip("docs/explorer/data.js holds no maps; python -m experiments.explorer OUT")
    assert len(drawn) > len(committed) / 2
    for model in drawn:
        if model["is_accepted"] and "flat" not in model:
            for name, reference in (("epistemic", "reference"), ("aleatoric", "aleatoric_reference")):
                pair = [explorer.decode(model["maps"][one]) for one in (name, reference)]
                assert stats.pearson(*pair) == pytest.approx(model["seed"][name]["pearson"], abs=explorer.FAR)
                assert stats.spearman(*pair) == pytest.approx(model["seed"][name]["spearman"], abs=explorer.FAR)


def test_the_page_needs_nothing_from_elsewhere():
    for path in FOLDER.iterdir():
        text = path.read_text(encoding="utf-8")
        assert not re.findall(r"https?://(?!www\.w3\.org/2000/svg)", text), path
    assert (ROOT / explorer.PAGE).stat().st_size < 700_000

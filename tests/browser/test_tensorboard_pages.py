"""What a person sees of a run of signals_clustering, in Chromium; skipped where there is none."""

import json
import os
import re
import shutil
import subprocess
import sys
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from time_limits import LIMIT_S

CHROMIUM = shutil.which("chromium")
ROOT = Path(__file__).parents[2]
ARGUMENTS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--use-gl=angle", "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
]  # fmt: skip
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium"),
]
QUICK = {
    "trainer.max_epochs": 3,
    "trainer.log_every_n_steps": 2,
    "data.init_args.repeats": 8,
    "embeddings.every_n_validations": 1,
    "summaries.histograms_every_n_validations": 1,
    "publish": "null",
}
WHOLE = {"publish": "null", "embeddings.keep": 1}
SCREENSHOTS = os.environ.get("UNITRAIN_SCREENSHOTS")
"""A folder for pictures of the pages, those of docs/images; the training is a whole one then."""


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A TensorBoard on two short runs."""
    logs = tmp_path_factory.mktemp("experiments")
    for changes in (WHOLE if SCREENSHOTS else QUICK, QUICK | {"model.init_args.width": 16}):
        flags = [word for name, value in changes.items() for word in (f"--{name}", str(value))]
        settings = ROOT / "examples/signals_clustering/settings.yaml"
        command = [sys.executable, "-m", "unitrain", "fit", "--config", settings, "--experiments_dir", logs]
        subprocess.run([*command, *flags], check=True, timeout=LIMIT_S, capture_output=True)
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "unitrain",
            "tensorboard",
            "--experiments_dir",
            logs,
            "--port",
            "0",
            "--no-browser",
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    found = next(filter(None, (re.search(r"http://\S+", line) for line in process.stdout)))
    yield found[0].rstrip("/")
    process.terminate()
    process.communicate(timeout=LIMIT_S)


@pytest.fixture(scope="module")
def page(url: str) -> Iterator[Any]:
    """A tab."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        tab = browser.new_page(viewport={"width": 1400, "height": 900})
        tab.set_default_timeout(150_000)  # three-dimensional drawing without a graphics card
        yield tab
        browser.close()


def answer(url: str, route: str, **query: str) -> Any:
    """What the server has for one of the page's requests."""
    where = f"{url}/data/{route}?{urllib.parse.urlencode(query)}"
    with urllib.request.urlopen(where, timeout=LIMIT_S) as found:  # noqa: S310 - our own server's http
        return json.load(found)


def keep(page: Any, name: str) -> None:
    """Leave a screenshot where UNITRAIN_SCREENSHOTS says."""
    if SCREENSHOTS:
        page.screenshot(path=Path(SCREENSHOTS) / f"{name}.png")


def test_the_projector_shows_points_by_name_label_and_thumbnail(page: Any, url: str) -> None:
    """The three tensors, 40 validation signals, their classes, and a drawn curve for each."""
    with page.expect_response(lambda r: "sprite_image" in r.url) as sprite:
        page.goto(f"{url}/#projector")
    assert sprite.value.ok
    assert sprite.value.body().startswith(b"\x89PNG")
    projector = next(frame for frame in page.frames if frame.url.endswith("projector_binary.html"))
    projector.get_by_text("Points:").first.wait_for()
    assert projector.get_by_text("Points:").first.inner_text() == "Points: 40"
    assert projector.get_by_text("Dimension:").first.inner_text() == "Dimension: 24"
    names = {
        info["tensorName"].partition("@")[0]
        for run in answer(url, "plugin/projector/runs")
        for info in answer(url, "plugin/projector/info", run=run)["embeddings"]
    }
    assert names == {"validation/code", "validation/reconstruction", "validation/signals"}
    by_class = projector.locator("paper-item:visible").filter(has_text=re.compile(r"^\s*class"))
    for _ in range(60):  # a menu that is opened before the labels are read stays empty
        projector.locator("#colorby").click()
        page.wait_for_timeout(1000)
        if by_class.count():
            break
        page.keyboard.press("Escape")
    by_class.first.click()
    projector.get_by_text("Running").first.wait_for()  # the legend
    page.mouse.move(700, 500)
    for _ in range(3):  # all points in view
        page.mouse.wheel(0, 200)
        page.wait_for_timeout(500)
    page.wait_for_timeout(1500)
    keep(page, "projector")


def test_every_tab_has_what_the_run_has_to_tell(page: Any, url: str) -> None:
    """Scalars, histograms, the graph, figures and the settings as text."""
    run, _ = sorted(run for run in answer(url, "runs") if "embeddings" not in run)
    scalars = set(answer(url, "plugin/scalars/tags")[run])
    wanted = {"train_loss", "val_loss", "val_reconstruction", "val_explained_variance", "lr", "gradient_norm"}
    assert wanted | {"ema_distance", "best/val_explained_variance"} <= scalars
    assert "weights/encoder.0.weight" in answer(url, "plugin/histograms/tags")[run]
    assert "reconstruction" in answer(url, "plugin/images/tags")[run]
    assert any(tag.startswith("settings") for tag in answer(url, "plugin/text/tags")[run])
    assert run in answer(url, "plugin/graphs/info")
    page.goto(f"{url}/#timeseries")
    page.get_by_text("best/val_explained_variance").first.wait_for()
    keep(page, "scalars")
    page.goto(f"{url}/#images")
    page.locator("tf-image-loader img").first.wait_for()
    page.wait_for_timeout(1500)
    keep(page, "images")
    page.goto(f"{url}/#text")
    page.get_by_text("BasicMotions").first.wait_for()


def test_the_hparams_tab_has_a_row_a_run_with_settings_and_metrics(page: Any, url: str) -> None:
    """Both by their names, with the settings as columns, and final and best metrics to compare them by."""
    page.goto(f"{url}/#hparams")
    page.get_by_text("data.init_args.batch_size").first.wait_for()
    page.get_by_text("model.init_args.width").first.wait_for()
    for metric in ("best/val_explained_variance", "val_explained_variance", "val_loss"):
        page.get_by_text(metric, exact=True).first.wait_for(state="attached")
    runs = [run for run in answer(url, "runs") if "embeddings" not in run]
    rows = page.get_by_text(re.compile(r"^\s*\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d"))
    rows.nth(1).wait_for()
    shown = " ".join(rows.all_inner_texts())
    assert all(run.partition("/")[2] in shown for run in runs)
    keep(page, "hparams")

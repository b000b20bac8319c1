"""The notebooks in JupyterLab, in a real browser: kernel, figures, progress bars, interrupt and restart, a missing input.

`make browser` runs this; screenshots lie in data/runs/browser. Needs the extra `browser` and a Chromium on the machine.
"""

import contextlib
import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import nbformat
import pytest

from vau_lib.workspace import presets

ROOT = Path(__file__).parents[1]
CHROMIUM = next((found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None)
SETTINGS = {  # all cells are in the page, nothing asks the web
    "notebook-extension/tracker": {"windowingMode": "none"},
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
}
IDLE = '.jp-NotebookPanel:not(.lm-mod-hidden) .jp-Notebook-ExecutionIndicator[data-status="idle"]'
PANEL = ".jp-NotebookPanel:not(.lm-mod-hidden)"
pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A folder with notebooks 00 (at smoke scale) and 04, and two notebooks of one idea each."""
    if not os.environ.get("VAU_BROWSER"):
        pytest.skip("takes minutes: make browser (VAU_BROWSER=1)")
    pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install -e '.[browser]'")
    if not CHROMIUM:
        pytest.skip("needs a Chromium: apt install chromium")
    root = tmp_path_factory.mktemp("project")
    folder = root / "notebooks"
    folder.mkdir()
    shutil.copytree(ROOT / "params", root / "params")
    (root / "data").mkdir()
    (root / "data" / "toy_models").symlink_to(ROOT / "data" / "toy_models")  # 00 shows the kept stream
    for name in ("00_start_here", "04_memtsm_training"):
        notebook = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
        lines = [f"{key} = {value!r}" for key, value in presets.load_preset("smoke", name).items()]
        place = next(i for i, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", []))
        notebook.cells.insert(place + 1, nbformat.v4.new_code_cell("\n".join(lines)))
        notebook.cells = [cell for cell in notebook.cells if "skip-execution" not in cell.metadata.get("tags", [])]
        nbformat.write(notebook, folder / f"{name}.ipynb")
    bar = "import time\nfrom tqdm.auto import tqdm\nfor clip in tqdm(range(7), desc='clips'):\n    time.sleep(0.05)"
    for name, source in (("bar", bar), ("long", "import time\nprint('begun')\ntime.sleep(300)")):
        cells = [nbformat.v4.new_code_cell(source), nbformat.v4.new_code_cell("print(6 * 7)")]
        kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
        nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), folder / f"{name}.ipynb")
    return root


@pytest.fixture(scope="module")
def lab(project, tmp_path_factory):
    """A JupyterLab server on the project; gives its address up to the path of a notebook."""
    config = tmp_path_factory.mktemp("config")
    for name, values in SETTINGS.items():
        place = config / "lab" / "user-settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(json.dumps(values))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1", f"--port={port}"]
    command += [f"--ServerApp.root_dir={project}", "--IdentityProvider.token=", "--ServerApp.port_retries=0"]
    environment = {**os.environ, "VAU_PROJECT": str(project), "JUPYTER_CONFIG_DIR": str(config), "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    log = (config / "log").open("w")
    server = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment, cwd=project)
    try:
        for _ in range(240):
            try:
                urllib.request.urlopen(f"{address}/api/status", timeout=5).close()
                break
            except (urllib.error.URLError, OSError):
                assert server.poll() is None, (config / "log").read_text()[-800:]
                time.sleep(0.5)
        yield f"{address}/lab/tree/notebooks"
    finally:
        server.terminate()
        server.wait(30)
        log.close()


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def opened(lab, browser, request):
    """A function that opens a notebook and waits for its kernel; a screenshot is taken at the end, failed or not."""
    page = browser.new_page(viewport={"width": 1400, "height": 1000})
    page.set_default_timeout(120_000)

    def open_(name):
        page.goto(f"{lab}/{name}.ipynb?reset")
        page.get_by_text("Python 3 (ipykernel) | Idle").wait_for()  # the kernel was found and answers
        page.wait_for_timeout(1000)
        page.wait_for_selector(IDLE)
        assert not page.locator(".jp-Dialog").count()  # nothing is asked
        return page

    yield open_
    folder = ROOT / "data" / "runs" / "browser"
    folder.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=folder / f"{request.node.name.removeprefix('test_')}.png")
    page.close()


def menu(page, title, entry):
    page.click(f'.lm-MenuBar-itemLabel:text-is("{title}")')
    page.click(f'.lm-Menu-itemLabel:text-is("{entry}")')


def saved(page, project, name):
    """Save as a user does; return the code cells of the file, once it is written to its end."""
    path = project / "notebooks" / f"{name}.ipynb"
    before = path.stat().st_mtime_ns
    page.keyboard.press("Control+s")
    for _ in range(240):
        with contextlib.suppress(nbformat.reader.NotJSONError):
            if path.stat().st_mtime_ns != before:
                return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
        page.wait_for_timeout(250)
    raise AssertionError(f"{name} was not saved in a minute")


def check_player(page):
    """Click an event of the player: playhead and video go there; return whether it is a widget (where anywidget is) or a frame."""
    widget = page.locator(f"{PANEL} .jp-OutputArea-output .vau").count()
    here = page if widget else page.frame_locator(f"{PANEL} .jp-OutputArea-output iframe")
    here.locator(".vau[data-ready=yes]").first.scroll_into_view_if_needed()
    event = here.locator(".vau .events button[data-at]").first
    event.click()
    second = float(event.get_attribute("data-at"))
    here.locator(f".vau .clock:text-is('{second:.1f} s')").wait_for()
    assert here.locator(".vau video").evaluate("video => video.currentTime") == pytest.approx(second, abs=0.1)
    head = here.locator(".vau:not(.unplayable) svg.plot .head").first
    assert float(head.get_attribute("x1")) > float(here.locator(".vau").first.get_attribute("data-left"))
    (ROOT / "data" / "runs" / "browser").mkdir(parents=True, exist_ok=True)
    page.screenshot(path=ROOT / "data" / "runs" / "browser" / f"player_{'widget' if widget else 'frame'}.png")
    return bool(widget)


def test_run_all_of_00_shows_its_figures_and_the_player(opened, project):
    page = opened("00_start_here")
    menu(page, "Run", "Run All Cells")
    page.wait_for_function("document.querySelector('.jp-Notebook-ExecutionIndicator').dataset.status == 'busy'")
    page.wait_for_selector(IDLE, timeout=400_000)
    images = page.locator(f"{PANEL} .jp-OutputArea-output img")
    assert images.count() >= 3 and images.first.evaluate("image => image.complete && image.naturalWidth > 100")
    images.last.scroll_into_view_if_needed()
    assert check_player(page) == (importlib.util.find_spec("anywidget") is not None)
    cells = saved(page, project, "00_start_here")
    errors = [output for cell in cells for output in cell.outputs if output.output_type == "error"]
    assert not errors and all(cell.execution_count for cell in cells)


def test_a_progress_bar_is_a_widget(opened):
    page = opened("bar")
    menu(page, "Run", "Run All Cells")
    page.wait_for_selector(f"{PANEL} .jp-OutputArea-output .widget-hprogress, {PANEL} .jp-OutputArea-output [role=progressbar]")
    page.wait_for_selector(f"{PANEL} .jp-OutputArea-output :text('7/7')")
    page.wait_for_selector(f"{PANEL} .jp-OutputArea-output pre:text-is('42')")


def test_interrupt_and_restart_give_the_kernel_back(opened):
    page = opened("long")
    menu(page, "Run", "Run All Cells")
    page.wait_for_selector(f"{PANEL} .jp-OutputArea-output pre:text('begun')")
    menu(page, "Kernel", "Interrupt Kernel")
    page.wait_for_selector(f"{PANEL} .jp-OutputArea-output :text('KeyboardInterrupt')")
    menu(page, "Kernel", "Restart Kernel…")
    page.click(".jp-Dialog .jp-mod-accept")
    page.wait_for_timeout(500)
    page.wait_for_selector(IDLE)
    page.locator(f"{PANEL} .jp-CodeCell").nth(1).locator(".jp-InputArea-editor").click()
    page.keyboard.press("Control+Enter")
    page.wait_for_selector(f"{PANEL} .jp-OutputArea-output pre:text-is('42')")
    assert page.locator(f"{PANEL} .jp-CodeCell").nth(1).locator(".jp-InputPrompt").inner_text().strip() == "[1]:"  # a new kernel


def test_a_notebook_without_its_inputs_says_which_one_makes_them(opened, project):
    page = opened("04_memtsm_training")
    menu(page, "Run", "Run All Cells")
    page.wait_for_selector(f"{PANEL} .jp-RenderedText .ansi-red-fg").scroll_into_view_if_needed()
    page.wait_for_selector(IDLE)
    cells = saved(page, project, "04_memtsm_training")
    (shown,) = [output for cell in cells for output in cell.outputs if output.output_type == "error"]
    assert "notebook 03" in shown.evalue, shown.evalue

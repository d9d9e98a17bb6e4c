"""A notebook in a browser's Jupyter, by mouse and keyboard, without the network."""

import os
import socket
import subprocess
import sys
import time

import pytest

from numgpt.lessons.exercises import EXERCISES
from numgpt.lessons.notebooks import write_notebooks

pytestmark = [pytest.mark.browser, pytest.mark.live("jupyterlab", "matplotlib")]
NOTEBOOK = "02_from_a_neuron_to_a_layer.ipynb"
SECONDS = 120


@pytest.fixture
def jupyter(tmp_path):
    """The address of a server on a directory with the notebooks, which knows no settings of
    ours."""
    write_notebooks(tmp_path / "course")
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    homes = ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR")
    homes = {name: str(tmp_path / name.lower()) for name in (*homes, "JUPYTERLAB_SETTINGS_DIR")}
    flags = ("--no-browser", "--allow-root", f"--port={port}", "--IdentityProvider.token=")
    flags += (f"--ServerApp.root_dir={tmp_path / 'course'}", "--LabApp.news_url=")
    with open(tmp_path / "log", "wb") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "jupyterlab", *flags],
            env=os.environ | homes,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        ends = time.monotonic() + SECONDS
        while True:
            with socket.socket() as tried:
                if tried.connect_ex(("127.0.0.1", port)) == 0:
                    break
            if server.poll() is not None or time.monotonic() > ends:
                pytest.fail((tmp_path / "log").read_text())
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(20)


def test_a_learner_solves_an_exercise(browser, jupyter):
    asked: list[str] = []
    page = browser.new_page(viewport={"width": 1200, "height": 900})
    page.set_default_timeout(1000 * SECONDS)
    page.on("request", lambda request: asked.append(request.url))
    page.goto(f"{jupyter}/doc/tree/{NOTEBOOK}")
    page.wait_for_selector(".jp-Notebook .jp-Cell")
    # Mathematics is set, by Jupyter's own MathJax; solutions are folded away.
    page.wait_for_selector(".jp-Notebook mjx-container")
    page.wait_for_selector("text=Python 3 (ipykernel) | Idle")
    # Run all: the plots are there, and the first check finds dots.
    page.click('[data-command="notebook:restart-run-all"]')
    page.click(".jp-Dialog .jp-mod-accept")
    text = "✗ 2.1 neuron_backward: it returns nothing yet"
    page.wait_for_selector(f'.jp-OutputArea-output:has-text("{text}")')
    # … and the first cell that uses what was to be written ends the run.
    page.wait_for_selector('.jp-OutputArea-output:has-text("NoneType")')
    # Write the solution in the place of the dots, run that cell and the next.
    cell = page.locator('.jp-CodeCell:has-text("def neuron_backward")').first
    cell.locator(".cm-content").click()
    page.keyboard.press("Control+a")
    page.keyboard.insert_text(EXERCISES["2.1"].cell.solved)
    page.keyboard.press("Shift+Enter")
    page.keyboard.press("Shift+Enter")
    page.wait_for_selector('.jp-OutputArea-output:has-text("✓ 2.1 neuron_backward is right.")')
    assert page.locator(f'.jp-OutputArea-output:has-text("{text}")').count() == 0
    page.close()
    elsewhere = [url for url in asked if not url.startswith((jupyter, "data:", "blob:"))]
    assert elsewhere == []

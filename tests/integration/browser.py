"""Pages, opened in headless Chromium."""

import re
import shutil
import subprocess

import pytest
from PIL import Image

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")


CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
FLAGS = [
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--hide-scrollbars"),
    *("--host-resolver-rules=MAP * ~NOTFOUND", "--enable-logging=stderr", "--v=0", "--virtual-time-budget=60000"),
]
LOOK = """<script>
addEventListener("load", async () => {
  const root = document.documentElement;
  while (!root.dataset.plotsDrawn) await new Promise((done) => setTimeout(done, 50));
  await new Promise((done) => setTimeout(done, 500));
  const inked = (canvas) => canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data.some((n) => n);
  const drawn = views.filter((view) => view.canvas_view && inked(view.canvas_view.primary.canvas)).length;
  const overflow = root.scrollWidth - root.clientWidth;
  parent.postMessage({ drawn, overflow, idle: root.dataset.plotsDrawn, width: innerWidth }, "*");
});
</script>"""
"""Tells how many figures have anything on them, and by how many pixels the page is too wide."""
FRAME = """<!doctype html><html style="color-scheme: light dark"><body style="margin: 0">
<iframe src="page.html" width="{width}" height="{height}" style="border: 0"></iframe>
<script>onmessage = (message) => Object.assign(document.documentElement.dataset, message.data)</script></body></html>"""
"""Chromium's own windows are not as narrow as a phone."""
browser = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")


def open_page(path, folder, width, height, scheme):
    """(what the page tells of itself, console messages, screenshot) of a page in Chromium."""
    (folder / "page.html").write_text(path.read_text().replace("</body>", LOOK + "</body>"))
    (folder / "frame.html").write_text(FRAME.format(width=width, height=height))
    settings = [f"--window-size={max(width, 500)},{height}", f"--blink-settings=preferredColorScheme={scheme}"]
    outputs = ["--dump-dom", f"--screenshot={folder / 'page.png'}", f"--user-data-dir={folder / 'profile'}"]
    opened = [CHROMIUM, *FLAGS, *settings, *outputs, (folder / "frame.html").as_uri()]
    done = subprocess.run(opened, capture_output=True, text=True, timeout=180, check=True)
    told = dict(re.findall(r'data-([\w-]+)="([^"]*)"', re.search(r"<html[^>]*>", done.stdout).group()))
    messages = re.findall(r"CONSOLE:\d+\] (.*)", done.stderr)
    return told, messages, Image.open(folder / "page.png").convert("RGB")


def check_drawn(page, width, told, messages):
    figures = str(page.count("data-plot="))
    assert told == {"idle": figures, "drawn": figures, "overflow": "0", "width": str(width)}
    assert [message for message in messages if "setting log level" not in message] == []

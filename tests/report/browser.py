"""Pages in Chromium: laid out at a width and in a colour scheme, and measured there."""

import html
import json
import re
import shutil
import subprocess

import pytest

CHROMIUM = next(
    (path for name in ("chromium-headless-shell", "chromium", "google-chrome") if (path := shutil.which(name))), None
)
_MEASURE = """
const result = frame => {
  const page = frame.contentDocument, view = frame.contentWindow;
  for (const each of page.querySelectorAll("details")) each.open = true;
  const wide = [...page.querySelectorAll("body *")].filter(one => {
    const box = one.getBoundingClientRect();
    return box.right > view.innerWidth + 1 && !one.closest("figure.wide, pre");
  });
  const paint = page.createElement("canvas").getContext("2d", {willReadFrequently: true});
  const bytes = colour => {
    paint.clearRect(0, 0, 1, 1); paint.fillStyle = colour; paint.fillRect(0, 0, 1, 1);
    return [...paint.getImageData(0, 0, 1, 1).data];
  };
  const texts = {};
  const walker = page.createTreeWalker(page.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const one = walker.currentNode.parentElement, style = view.getComputedStyle(one);
    if (!walker.currentNode.data.trim() || !one.getClientRects().length || one.closest("style, title")) continue;
    let behind = one;
    while (behind && !bytes(view.getComputedStyle(behind).backgroundColor)[3]) behind = behind.parentElement;
    const colours = [one instanceof view.SVGElement ? style.fill : style.color,
                     view.getComputedStyle(behind || page.body).backgroundColor].map(bytes);
    texts[JSON.stringify(colours)] = walker.currentNode.data.trim().slice(0, 40);
  }
  return {
    visible: view.innerWidth,
    width: page.documentElement.scrollWidth,
    wide: wide.map(one => one.outerHTML.slice(0, 100)),
    background: view.getComputedStyle(page.body).backgroundColor,
    texts: Object.entries(texts).map(([colours, text]) => [text, ...JSON.parse(colours)]),
  };
};
onload = () => {
  const results = [...document.querySelectorAll("iframe")].map(result);
  document.body.innerHTML = "<pre id=results></pre>";
  document.getElementById("results").textContent = JSON.stringify(results);
};
"""


def measured(folder, pages, width):
    """What each page looks like in the light and the dark scheme: its width, what is too wide, its colours.

    Args:
      folder: for the files of the browser.
      pages: the texts of HTML pages.
      width: of the screen, in CSS pixels.

    Returns:
      For each page, what was measured by scheme.
    """
    frames = [
        f'<iframe style="border:0;color-scheme:{scheme}" width={width} srcdoc="{html.escape(page)}"></iframe>'
        for page in pages
        for scheme in ("light", "dark")
    ]
    file = folder / "frames.html"
    file.write_text(f"<!doctype html><body>{''.join(frames)}<script>{_MEASURE}</script>", encoding="utf-8")
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--dump-dom"]
    command += [f"--user-data-dir={folder / 'profile'}", file.as_uri()]
    found = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    results = re.search(r'<pre id="results">(.*)</pre>', found.stdout)
    assert results, found.stdout[-500:] + found.stderr[-2000:]
    schemes = iter(json.loads(html.unescape(results[1])))
    return [{"light": next(schemes), "dark": next(schemes)} for _ in pages]


needs_browser = pytest.mark.skipif(not CHROMIUM, reason="no Chromium is installed (Debian: apt-get install chromium)")

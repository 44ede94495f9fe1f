"""Opens a report in headless Chromium as a reader would, and says what is wrong with it.

Usage: python scripts/check_report.py REPORT.html [--output DIR] [--chromium PROGRAM]

The page is loaded at the width of a desktop and of a phone, in light and in dark. Checked each time: nothing was written
to the console, nothing asked for but the file itself, nothing wider than the window, every image shows and is described,
text can be told from what is behind it and stays inside its plot, links lead somewhere, the theme button changes the
colours, the pointer reads values off a plot, and the search hides prompts. Screenshots go to DIR. Exit status 1 means a
complaint. Needs Chromium and Python's own library: the browser is driven over a pipe by the DevTools protocol.
"""

import argparse
import base64
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SCREENS = {"desktop": (1280, 900, False), "phone": (390, 844, True)}
THEMES = ("light", "dark")
TALLEST = 12_000  # pixels of a screenshot; Chromium's own limit is 16,384
PATIENCE = 60  # seconds

# What a loaded page says of itself.
LOOK = """(() => {
  const broken = [...document.images].filter(i => i.checkVisibility() && !(i.complete && i.naturalWidth)).length;
  const rgb = c => (c.match(/[\\d.]+/g) || []).map(Number);
  const luminance = c => c.slice(0, 3).map(v => v / 255)
    .map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = e => {
    for (; e; e = e.parentElement) {
      const c = rgb(getComputedStyle(e).backgroundColor);
      if (c.length === 3 || c[3] > 0.99) return c;
      if (c[3] > 0) return null;
    }
    return [255, 255, 255];
  };
  const faint = new Set();
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node; node = walker.nextNode();) {
    const e = node.parentElement;
    if (!node.textContent.trim() || e.closest('svg, script, style') || !e.checkVisibility()) continue;
    const back = behind(e);
    if (!back) continue;
    const [a, b] = [luminance(rgb(getComputedStyle(e).color)), luminance(back)];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) faint.add(`${ratio.toFixed(1)}: ${node.textContent.trim().slice(0, 40)}`);
  }
  return {broken, faint: [...faint].slice(0, 5), width: document.documentElement.scrollWidth, height: document.documentElement.scrollHeight,
    background: getComputedStyle(document.body).backgroundColor, title: document.title,
    images: document.images.length, plots: document.querySelectorAll('svg').length};
})()"""

# What is wrong with the page's structure and with what its script does.
FAULTS = """(() => {
  const faults = [];
  const ids = [...document.querySelectorAll('[id]')].map(e => e.id);
  for (const id of new Set(ids.filter((id, i) => ids.indexOf(id) !== i))) faults.push(`two elements have the id ${id}`);
  for (const link of document.querySelectorAll('a[href]'))
    if (!ids.includes(link.getAttribute('href').slice(1))) faults.push(`a link leads nowhere: ${link.getAttribute('href')}`);
  if (document.querySelectorAll('h1').length !== 1) faults.push('there is not exactly one main heading');
  for (const image of document.images) if (!image.alt) faults.push('an image is not described');
  for (const plot of document.querySelectorAll('svg')) {
    if (!plot.getAttribute('aria-label')) faults.push('a plot is not described');
    const box = plot.getBoundingClientRect();
    for (const text of plot.querySelectorAll('text')) {
      const inner = text.getBoundingClientRect();
      if (inner.width && (inner.left < box.left - 1 || inner.right > box.right + 1 || inner.bottom > box.bottom + 1))
        faults.push(`text leaves its plot: ${text.textContent}`);
    }
  }
  const plot = document.querySelector('svg[data-plot]');
  if (plot) {
    const {left, top, width, height} = plot.getBoundingClientRect();
    plot.dispatchEvent(new PointerEvent('pointermove', {clientX: left + width / 2, clientY: top + height / 2}));
    if (document.getElementById('readout').hidden) faults.push('the pointer reads nothing off a plot');
    plot.dispatchEvent(new PointerEvent('pointerleave'));
  }
  for (const search of document.querySelectorAll('input[type=search]')) {
    const shown = () => [...search.closest('section').querySelectorAll('.card')].filter(card => !card.hidden).length;
    const ask = words => { search.value = words; search.dispatchEvent(new Event('input')); return shown(); };
    const all = shown();
    if (ask('words that no prompt has')) faults.push('the search finds what is not there');
    if (ask('') !== all) faults.push('an empty search hides prompts');
  }
  return [...new Set(faults)].slice(0, 10);
})()"""

TOGGLE = """(() => {
  const button = [...document.querySelectorAll('button')].find(b => /theme|dark|light/i.test(
    `${b.id} ${b.className} ${b.title} ${b.ariaLabel} ${b.textContent}`));
  if (!button) return null;
  button.click();
  const after = getComputedStyle(document.body).backgroundColor;
  button.click();
  return after;
})()"""


class Browser:
    """Chromium behind a pipe: messages are JSON objects that end in a zero byte."""

    def __init__(self, program, profile):
        read_end, self.send_fd = os.pipe()
        self.receive_fd, write_end = os.pipe()

        def hand_over():  # The protocol is spoken on descriptors 3 and 4; the spare copies outlive either's reuse.
            spare = os.dup(read_end), os.dup(write_end)
            os.dup2(spare[0], 3)
            os.dup2(spare[1], 4)

        arguments = ["--headless=new", "--remote-debugging-pipe", "--no-first-run", "--hide-scrollbars",
                     "--disable-gpu", "--disable-background-networking", f"--user-data-dir={profile}"]
        if os.geteuid() == 0:
            arguments.append("--no-sandbox")
        self.process = subprocess.Popen([program, *arguments, "about:blank"], preexec_fn=hand_over, close_fds=False,
                                        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        os.close(read_end)
        os.close(write_end)
        self.buffer, self.events, self.number, self.session = b"", [], 0, None

    def call(self, method, **params):
        self.number += 1
        message = {"id": self.number, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.send_fd, json.dumps(message).encode() + b"\0")
        while True:
            answer = self.receive()
            if answer.get("id") == self.number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']['message']}")
                return answer["result"]
            self.events.append(answer)

    def receive(self):
        while b"\0" not in self.buffer:
            chunk = os.read(self.receive_fd, 1 << 20)
            if not chunk:
                raise RuntimeError("Chromium ended")
            self.buffer += chunk
        message, self.buffer = self.buffer.split(b"\0", 1)
        return json.loads(message)

    def evaluate(self, expression):
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(answer["exceptionDetails"]["exception"].get("description", "script failed"))
        return answer["result"].get("value")

    def open(self):
        """A new tab, which later calls go to."""
        self.session = None
        tab = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=tab, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        return tab

    def load(self, url):
        """Loads a page to its end; `events` then holds what happened meanwhile."""
        self.events.clear()
        self.call("Page.navigate", url=url)
        deadline = time.monotonic() + PATIENCE
        while self.evaluate("document.readyState") != "complete":
            if time.monotonic() > deadline:
                raise RuntimeError(f"{url} was not loaded after {PATIENCE} s")
            time.sleep(0.05)
        # Images that load when they are near the window: pass by all of them, then have the rest loaded.
        self.evaluate("""(async () => {
          for (let y = 0; y < document.documentElement.scrollHeight; y += 600) {
            window.scrollTo(0, y); await new Promise(r => setTimeout(r, 10));
          }
          window.scrollTo(0, 0);
          for (const image of document.images) image.loading = 'eager';
          await Promise.all([...document.images].map(image => image.decode().catch(() => null)));
          return true;
        })()""")

    def close(self):
        self.session = None
        try:
            self.call("Browser.close")
        except (RuntimeError, OSError):
            pass
        self.process.wait(timeout=PATIENCE)


def complaints_of(events, url):
    """What the page wrote to the console, and what it asked for."""
    for event in events:
        params = event.get("params", {})
        match event.get("method"):
            case "Runtime.consoleAPICalled":
                words = " ".join(str(a.get("value", a.get("description"))) for a in params["args"])
                yield f"console {params['type']}: {words}"
            case "Runtime.exceptionThrown":
                details = params["exceptionDetails"]
                yield "exception: " + details.get("exception", {}).get("description", details["text"])
            case "Log.entryAdded":
                yield f"log {params['entry']['level']}: {params['entry']['text']}"
            case "Network.requestWillBeSent":
                asked = params["request"]["url"]
                if asked.split("#")[0] != url and not asked.startswith(("data:", "blob:")):
                    yield f"asks for {asked[:100]}"


def check(browser, url, screen, theme, target):
    width, height, mobile = SCREENS[screen]
    tab = browser.open()
    browser.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=mobile)
    browser.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": theme}])
    browser.load(url)
    look = browser.evaluate(LOOK)
    found = list(complaints_of(browser.events, url))
    if look["width"] > width:
        found.append(f"is {look['width'] - width} pixels wider than the window")
    if look["broken"]:
        found.append(f"{look['broken']} images do not show")
    found += [f"text is faint, contrast {faint}" for faint in look["faint"]]
    found += browser.evaluate(FAULTS)
    toggled = browser.evaluate(TOGGLE)
    if toggled is None:
        found.append("has no button for the theme")
    elif toggled == look["background"]:
        found.append("the theme button changes nothing")
    clip = dict(x=0, y=0, width=width, height=min(look["height"], TALLEST), scale=1)
    shot = browser.call("Page.captureScreenshot", format="png", clip=clip, captureBeyondViewport=True)
    (target / f"{screen}-{theme}.png").write_bytes(base64.b64decode(shot["data"]))
    browser.session = None
    browser.call("Target.closeTarget", targetId=tab)
    return look, found


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("report", type=Path)
    parser.add_argument("--output", type=Path, default=Path("report-check"), help="folder of the screenshots")
    parser.add_argument("--chromium", default=shutil.which("chromium") or shutil.which("google-chrome"))
    options = parser.parse_args()
    if not options.chromium:
        parser.error("no Chromium found; install it (Debian: apt-get install chromium) or give --chromium")
    options.output.mkdir(parents=True, exist_ok=True)
    url = options.report.resolve(strict=True).as_uri()
    failed = False
    with tempfile.TemporaryDirectory() as profile:
        browser = Browser(options.chromium, profile)
        try:
            for screen in SCREENS:
                backgrounds = set()
                for theme in THEMES:
                    look, found = check(browser, url, screen, theme, options.output)
                    backgrounds.add(look["background"])
                    print(f"{screen}, {theme}: {look['images']} images, {look['plots']} plots, "
                          f"{look['height']} pixels high, {len(found)} complaints")
                    for complaint in found:
                        print(f"  {complaint}")
                    failed |= bool(found)
                if len(backgrounds) < len(THEMES):
                    print(f"{screen}: light and dark look the same")
                    failed = True
        finally:
            browser.close()
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

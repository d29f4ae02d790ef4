"""The report page in a real browser, where one is installed: drawn in light and dark, its figures, and no request."""

import json
import shutil
import subprocess
import threading
import zlib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
from test_report import COMMITTED, Page

from harness.page import page
from harness.results import from_json, to_json

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")
FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking")


def browse(*arguments: str) -> str:
    assert BROWSER is not None
    found = subprocess.run([BROWSER, *FLAGS, *arguments], capture_output=True, text=True, timeout=120)
    assert found.returncode == 0, found.stderr
    return found.stdout


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(page(from_json(COMMITTED.read_text(), "r"), COMMITTED.name))
    return path


@pytest.fixture
def proxy() -> Iterator[tuple[str, set[str]]]:
    """A proxy that notes every host it is asked for and reaches none."""
    hosts: set[str] = set()

    class Noting(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            hosts.add(urlsplit(self.path).hostname or self.path)
            self.send_error(404)

        do_POST = do_HEAD = do_GET

        def do_CONNECT(self) -> None:
            hosts.add(self.path.partition(":")[0])
            self.send_error(502)

        def log_message(self, format: str, *args: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Noting) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", hosts
        server.shutdown()
        thread.join()


def test_no_request_leaves_the_page(file: Path, tmp_path: Path, proxy: tuple[str, set[str]]) -> None:
    address, hosts = proxy
    asked = []
    for text in ("<p>nothing", '<img src="http://outside.example/x.png">', file.read_text()):
        path = tmp_path / "page.html"
        path.write_text(text)
        hosts.clear()
        browse(f"--proxy-server={address}", "--proxy-bypass-list=<-loopback>", "--dump-dom", path.as_uri())
        asked.append(set(hosts))
    empty, leaking, ours = asked
    assert "outside.example" in leaking  # that such a request would be seen
    # The browser's own errands come and go with any page; a page of ours could only name what is in its text.
    assert not {host for host in ours - empty if host in file.read_text()}
    assert "outside.example" not in ours


def test_the_browsers_document_holds_the_records_figures(file: Path) -> None:
    shown = Page(browse("--dump-dom", file.as_uri()))
    record = to_json(from_json(COMMITTED.read_text(), "r"))
    points = {(p["data-path"], p["data-context"], float(p["data-value"])) for p in shown.points}
    for table in record["tables"]:
        for row in table["rows"]:
            for name in ("decode_rate", "prompt_rate", "first_token"):
                if row[name] is not None:
                    assert (row["path"], str(row["context"]), row[name]) in points
    assert "17.78" in shown.cells and "script" not in shown.tags
    assert json.loads(COMMITTED.read_text())["model"]["sha256"] in shown.cells


@pytest.mark.parametrize(
    ("scheme", "background", "line"),
    [("1", (255, 255, 255), (0, 114, 178)), ("0", (13, 17, 23), (86, 180, 233))],
    ids=["light", "dark"],
)
def test_it_is_drawn_in_light_and_dark(
    file: Path, tmp_path: Path, scheme: str, background: tuple[int, ...], line: tuple[int, ...]
) -> None:
    shot = tmp_path / "shot.png"
    size = ("--hide-scrollbars", "--window-size=1200,2400")
    browse(*size, f"--blink-settings=preferredColorScheme={scheme}", f"--screenshot={shot}", file.as_uri())
    pixels = png_pixels(shot.read_bytes())
    assert pixels.shape == (2400, 1200, 3)
    assert (pixels[5, 5] == background).all()
    # The first path's colour: its lines are 2 of 640 units wide, in charts 560 pixels wide.
    assert 300 < (pixels == line).all(axis=2).sum() < 50_000


def test_it_prints_on_a_few_pages(file: Path, tmp_path: Path) -> None:
    target = tmp_path / "page.pdf"
    browse("--no-pdf-header-footer", f"--print-to-pdf={target}", file.as_uri())
    assert 2 <= target.read_bytes().count(b"/Type /Page\n") <= 6


def png_pixels(data: bytes) -> np.ndarray:
    """RGB of an 8-bit PNG without interlacing, u8 [height, width, 3]; filters as the PNG specification has them."""
    at, body = 8, b""
    width = height = channels = 0
    while at < len(data):
        length, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        chunk = data[at + 8 : at + 8 + length]
        if kind == b"IHDR":
            width, height = int.from_bytes(chunk[:4], "big"), int.from_bytes(chunk[4:8], "big")
            channels = {2: 3, 6: 4}[chunk[9]]
            assert chunk[8] == 8 and chunk[12] == 0
        if kind == b"IDAT":
            body += chunk
        at += 12 + length
    lines = np.frombuffer(zlib.decompress(body), np.uint8).reshape(height, 1 + width * channels)
    out = np.zeros((height, width, channels), np.uint8)
    above = np.zeros((width, channels), np.int64)
    for y, line in enumerate(lines):
        out[y] = above = unfiltered(int(line[0]), line[1:].reshape(width, channels).astype(np.int64), above)
    return out[:, :, :3]


def unfiltered(kind: int, line: np.ndarray, above: np.ndarray) -> np.ndarray:
    if kind == 0:
        return line
    if kind == 1:
        return np.cumsum(line, axis=0) % 256
    if kind == 2:
        return (line + above) % 256
    found, left, corner = np.zeros_like(line), np.zeros_like(line[0]), np.zeros_like(line[0])
    for x in range(len(line)):
        if kind == 3:
            guess = (left + above[x]) // 2
        else:
            base = left + above[x] - corner
            distance = np.abs(base - left), np.abs(base - above[x]), np.abs(base - corner)
            nearest_above = np.where(distance[1] <= distance[2], above[x], corner)
            guess = np.where((distance[0] <= distance[1]) & (distance[0] <= distance[2]), left, nearest_above)
        left = found[x] = (line[x] + guess) % 256
        corner = above[x]
    return found

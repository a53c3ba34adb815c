"""`jseg serve` as a process: its answers are the model's, hostile uploads get a clear status and leave it unharmed."""

import base64
import io
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest
from PIL import Image
from running import MAX_MB, MAX_PIXELS, PNG

from jseg.data.io import read_image, read_mask


def form(data: bytes, file_name: str = "street.png", field: str = "image") -> tuple[bytes, dict]:
    """A multipart form with one file, and its headers."""
    head = f'--B\r\nContent-Disposition: form-data; name="{field}"; filename="{file_name}"\r\n\r\n'
    return head.encode() + data + b"\r\n--B--\r\n", {"Content-Type": "multipart/form-data; boundary=B"}


def png(width: int, height: int, packed: bytes) -> bytes:
    """A grey PNG file of one bit with any size in its header."""
    parts = ((b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)), (b"IDAT", packed), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(struct.pack(">I", len(content)) + kind + content
                                           + struct.pack(">I", zlib.crc32(kind + content)) for kind, content in parts)


def test_answers_are_those_of_the_model(server, pictures, segmentor):
    picture = read_image(pictures[0])
    labels, probability = segmentor.infer(picture, with_prob=True)
    counts = np.bincount(labels.ravel(), minlength=11)
    plain = server.ask("/predict", pictures[0], PNG)
    assert (plain.status, plain.type) == (200, "image/png")
    np.testing.assert_array_equal(read_mask(plain.content), labels)
    assert Image.open(io.BytesIO(plain.content)).getpalette()[:33] == segmentor.palette.ravel().tolist()
    for asked in (server.ask("/predict?what=json", *form(pictures[0])),
                  server.ask("/predict", pictures[0], {**PNG, "Accept": "application/json"})):
        found = asked.json()
        assert (found["width"], found["height"], found["pixels"]) == (120, 90, counts.tolist())
        assert found["classes"] == segmentor.classes and found["palette"] == segmentor.palette.tolist()
        assert found["shares"] == pytest.approx(counts / labels.size, abs=1e-6) and found["ms"] > 0
    overlay = server.ask("/predict?what=overlay&opacity=0.3&outlines=0", pictures[0], PNG)
    np.testing.assert_array_equal(read_image(overlay.content),
                                  segmentor.overlay(picture, labels, opacity=0.3, outlines=False))
    several = server.ask("/predict?what=json,labels,probability,polygons&min_area=20", pictures[0], PNG).json()
    np.testing.assert_array_equal(read_mask(base64.b64decode(several["labels"])), labels)
    grey = read_image(base64.b64decode(several["probability"]))[..., 0]
    assert np.abs(grey / 255 - probability).max() <= 0.5 / 255 + 1e-6
    regions = segmentor.regions(labels, probability, min_pixels=20)
    assert [shape["properties"]["pixels"] for shape in several["polygons"]["features"]] == [r.pixels for r in regions]


def test_other_addresses(server):
    assert server.ask("/health").json()["status"] == "ok"
    facts = server.ask("/classes").json()
    assert facts["model"] == "segnext_tiny_camvid.safetensors" and len(facts["classes"]) == len(facts["palette"]) == 11
    page = server.ask("/")
    assert page.type.startswith("text/html") and b"http" not in page.content, "the page works without a network"


def test_requests_at_once_are_answered_in_turn(server, pictures, segmentor):
    expected = [segmentor.infer(read_image(picture)) for picture in pictures]
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda k: server.ask("/predict", pictures[k % 4], PNG), range(8)))
    for k, answer in enumerate(answers):
        np.testing.assert_array_equal(read_mask(answer.content), expected[k % 4])


def hostile(good: bytes) -> dict[str, tuple]:
    """Name -> (path, body, headers, expected status, a word of the message)."""
    cut_jpeg = cv2.imencode(".jpg", read_image(good))[1].tobytes()[:-200]
    return {
        "bomb": ("/predict", png(50_000, 50_000, zlib.compress(bytes(1 << 22))), PNG, 413, "50,000 x 50,000"),
        "a row too many": ("/predict", png(1024, 1025, zlib.compress(bytes(1025 * 129))), PNG, 413, "1,024 x 1,025"),
        "longer than it says": ("/predict", png(8, 8, zlib.compress(bytes(1 << 26))), PNG, None, ""),
        "cut PNG": ("/predict", good[:-300], PNG, 400, "truncated"),
        "cut JPEG": ("/predict", cut_jpeg, {"Content-Type": "image/jpeg"}, 400, "truncated"),
        "text": ("/predict", b"no picture", PNG, 400, "not a picture"),
        "program": ("/predict", open(sys.executable, "rb").read(100_000), PNG, 400, "not a picture"),
        "EPS": ("/predict", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(x) run\n", PNG, 400, "not a picture"),
        "empty": ("/predict", b"", PNG, 400, "empty"),
        "empty field": ("/predict", *form(b""), 400, "empty"),
        "other field": ("/predict", *form(good, field="file"), 400, "0 files called image"),
        "open form": ("/predict", form(good)[0][:-30], form(good)[1], 400, ""),
        "name of a path": ("/predict?what=json", *form(good, "../../../tmp/x.png"), 200, ""),
        "too long": ("/predict", bytes(3 * MAX_MB * 1_000_000), PNG, 413, "--max-mb"),
        "huge header": ("/predict", good, {**PNG, "X-Long": "a" * 200_000}, 431, "headers"),
        "other type": ("/predict", good, {"Content-Type": "text/plain"}, 415, "image/*"),
        "other site's name": ("/predict", good, {**PNG, "Host": "evil.example:8000"}, 403, "Host"),
        "other site's page": ("/predict", good, {**PNG, "Origin": "https://evil.example"}, 403, "Origin"),
        "unknown word": ("/predict?what=lables", good, PNG, 400, "did you mean 'labels'"),
        "unknown option": ("/predict?opacty=1", good, PNG, 400, "did you mean 'opacity'"),
        "no number": ("/predict?opacity=nan", good, PNG, 400, "0 to 1"),
        "other address": ("/../../etc/passwd", None, {}, 404, "no such address"),
        "other method": ("/predict", None, {}, 405, "not allowed")}


def resident_mb(process: int) -> float:
    """What the kernel holds in memory of a process, in MB."""
    with open(f"/proc/{process}/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def test_hostile_uploads_are_refused_and_leave_nothing(server, pictures):
    assert server.ask("/predict", pictures[0], PNG).status == 200
    before, wrong = resident_mb(server.process.pid), []
    cases = hostile(pictures[0])
    for _ in range(2):
        for name, (path, body, headers, status, word) in cases.items():
            answer = server.ask(path, body, headers)
            if status not in (None, answer.status):
                wrong.append(f"{name}: {answer}")
            elif answer.status != 200:
                told = answer.json()
                if told["status"] != answer.status or word not in told["error"]:
                    wrong.append(f"{name}: {told}")
    assert not wrong, "\n".join(wrong)
    assert server.ask("/predict", pictures[0], PNG).status == 200
    assert resident_mb(server.process.pid) < before + 40, "the bombs must not be unpacked"
    assert [list(folder.iterdir()) for folder in server.folders] == [[], []], "nothing is written to the disk"
    assert MAX_PIXELS == 1024 * 1024


def test_a_request_that_trickles_in_is_ended():
    """Headers without end, however often a byte comes, and a body that never comes."""
    from jseg.serve.server import Server, open_socket
    listener = open_socket("127.0.0.1", 0)
    server = Server(lambda environ, start: [], listener, max_bytes=1000, places=1, timeout_s=1)
    threading.Thread(target=server.run, daemon=True).start()
    for head in (b"GET / HTTP/1.1\r\n", b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 500\r\n\r\n"):
        with socket.create_connection(listener.getsockname(), timeout=0.1) as client:
            client.sendall(head)
            began, answer = time.monotonic(), b""
            while b"}" not in answer and time.monotonic() < began + 20:
                try:
                    answer += client.recv(4096)
                except socket.timeout:
                    client.sendall(b"a")
        assert answer.startswith(b"HTTP/1.0 408 ") and b'{"status": 408' in answer, head


class SlowSegmentor:
    """Waits with each picture until the test lets it go on."""

    def __init__(self):
        from pathlib import Path
        self.classes, self.palette, self.bands, self.scale = ["a"], np.zeros((1, 3), np.uint8), None, "bits"
        self.path, self.begun, self.go_on = Path("slow.safetensors"), threading.Semaphore(0), threading.Event()
        self.count = 0

    def infer(self, picture: np.ndarray) -> np.ndarray:
        """Labels of zeros, in the end."""
        self.count += 1
        self.begun.release()
        assert self.go_on.wait(60)
        return np.zeros(picture.shape[:2], np.uint8)


def test_a_full_queue_and_a_turn_that_does_not_come(pictures):
    """One picture is being segmented, one waits, a third is refused; the one that waits too long is not computed."""
    from jseg.serve.work import Desk, Refused, Wish
    slow, wish = SlowSegmentor(), Wish((), True)
    desk = Desk(slow, places=1, timeout_s=1.5)
    worker = threading.Thread(target=desk.work, daemon=True)
    worker.start()
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(desk.ask, pictures[0], wish)
        assert slow.begun.acquire(timeout=60)
        late = pool.submit(desk.ask, pictures[0], wish)
        while not desk.waiting:
            assert not late.done()
        with pytest.raises(Refused, match="1 pictures wait already") as full:
            desk.ask(pictures[0], wish)
        with pytest.raises(Refused, match="did not come within 1.5 s") as missed:
            late.result(60)
        slow.go_on.set()
        assert json.loads(first.result(60).content)["pixels"] == [120 * 90], "what has begun is answered, however late"
        with pytest.raises(Refused, match="left"):
            desk.ask(pictures[0], wish, lambda: True)
    desk.close()
    worker.join(60)
    assert (full.value.status, missed.value.status, slow.count) == (503, 503, 1)


def test_options_and_a_taken_port_are_errors_of_the_user(capsys):
    from jseg.cli import main
    with socket.create_server(("127.0.0.1", 0)) as taken:
        words = {f"--port {taken.getsockname()[1]}": "cannot listen there", "--port 70000": "0 to 65535",
                 "--timeout 0": "1 to", "--max-pixels 0": "--max-pixels", "--host 192.0.2.1": "cannot listen"}
        for given, told in words.items():
            assert main(["serve", "missing.safetensors", *given.split()]) == 2
            assert told in capsys.readouterr().err, given


def test_sigterm_ends_it_while_it_works(server, pictures):
    """The last test of this folder: it ends the server of all."""
    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(server.ask, "/predict", pictures[k], PNG) for k in range(4)]
        done = server.ask("/health").json()["done"]
        while server.ask("/health").json()["done"] == done:
            pass
        server.process.send_signal(signal.SIGTERM)
        try:
            assert server.process.wait(10) == 143
        except subprocess.TimeoutExpired:
            pytest.fail("it does not end")
        for future in asked:
            assert future.exception(60) is None or isinstance(future.exception(), OSError)

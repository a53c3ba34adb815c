"""The index of published weights and `jseg weights`: a server on this machine stands in for the publishers'."""

import hashlib
import http.server
import pathlib
import socket
import threading

import pytest

from jseg.cli import main
from jseg.convert import weights_index
from jseg.convert.weights_index import Published, fetch, find_entry, read_index
from jseg.engine.checkpoint import load_weights
from jseg.errors import ConvertError

ROOT = pathlib.Path(__file__).resolve().parents[2]
CONTENT = (pathlib.Path(__file__).parent / "golden" / "mini_mmseg.pth").read_bytes()
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves CONTENT; the server's `mode` and `cuts` say how badly."""

    def do_GET(self):
        server, start = self.server, 0
        server.ranges.append(self.headers.get("Range"))
        if server.mode == "gone":
            return self.send_error(404)
        if self.headers.get("Range") and server.mode != "no ranges":
            start = int(self.headers["Range"].removeprefix("bytes=").rstrip("-"))
            if start >= len(CONTENT):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(CONTENT)}")
                return self.end_headers()
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}")
        else:
            self.send_response(200)
        body = CONTENT[start:]
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if server.cuts:
            server.cuts -= 1
            body = body[:len(body) // 3]
        self.wfile.write(body)

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as found:
        found.mode, found.cuts, found.ranges = "ranges", 0, []
        threading.Thread(target=found.serve_forever, daemon=True).start()
        yield found
        found.shutdown()


def entry(server, **changes) -> Published:
    values = {"name": "mini", "file": "mini.pth", "url": f"http://127.0.0.1:{server.server_address[1]}/mini.pth", "source": "a test",
              "sha256": SHA256[:8]}
    return Published(**{**values, **changes})


def test_index_is_sound():
    index = read_index()
    assert {"segnext_tiny_ade20k_mmseg", "segnext_large_cityscapes_authors", "segnext_base_ade20k_jseg"} <= set(index)
    for found in index.values():
        if found.source == "mmsegmentation 1.x":  # its file names end with the hash
            assert found.url.endswith(f"/{found.file}") and found.file.endswith(f"-{found.sha256}.pth") and found.licence == "Apache-2.0"
        assert found.config is None or (ROOT / found.config).is_file(), found
    assert len({found.url for found in index.values()}) == len({found.file for found in index.values()}) == len(index)


def test_the_index_is_part_of_the_package():
    """An installed jseg has it; the name in weights/ leads to the same file."""
    assert weights_index.INDEX.parent == ROOT / "jseg" / "convert" and (ROOT / "weights" / "index.yaml").read_text() == weights_index.INDEX.read_text()


def test_unknown_names_and_bad_indexes(tmp_path):
    with pytest.raises(ConvertError, match="no weights are called 'segnext_tiny_ade20k_mseg'; did you mean 'segnext_tiny_ade20k_mmseg'"):
        find_entry("segnext_tiny_ade20k_mseg", read_index())
    with pytest.raises(ConvertError, match="no index of weights there; jseg brings one"):
        read_index(tmp_path / "gone.yaml")
    good = "file: a.pth, url: http://x/a, source: us"
    for text, message in ((f"a: {{{good}, shaa: 1}}", "unknown key 'shaa'"), ("a: {file: a.pth}", "url is None"), ("a: 3", "not a block"),
                          ("a: {file: ../a.pth, url: http://x/a, source: us}", "a bare file name"),
                          ("a: {file: a.pth, url: file:///etc/x, source: us}", "an http or https address"), (f"a: {{{good}, sha256: 12}}", "sha256 is 12")):
        (tmp_path / "i.yaml").write_text(text)
        with pytest.raises(ConvertError, match=message):
            read_index(tmp_path / "i.yaml")


def test_fetch_and_use_again(server, tmp_path):
    seen = []
    path, digest, came_from = fetch(entry(server), tmp_path / "new", progress=lambda done, total: seen.append((done, total)))
    assert path.read_bytes() == CONTENT and digest == SHA256 and came_from == entry(server).url
    assert seen[-1] == (len(CONTENT), len(CONTENT)) and [p.name for p in path.parent.iterdir()] == ["mini.pth"]
    assert fetch(entry(server), tmp_path / "new") == (path, SHA256, "already there") and len(server.ranges) == 1
    with pytest.raises(ConvertError, match="its SHA-256 begins with .*move it away"):
        fetch(entry(server, sha256="0" * 8), tmp_path / "new")


def test_an_interrupted_download_goes_on(server, tmp_path):
    server.cuts = 2
    path, _, _ = fetch(entry(server), tmp_path, pause_s=0)
    third = len(CONTENT) // 3
    assert path.read_bytes() == CONTENT
    assert server.ranges == [None, f"bytes={third}-", f"bytes={third + (len(CONTENT) - third) // 3}-"]


def test_a_download_given_up_goes_on_next_time(server, tmp_path):
    server.cuts = 99
    with pytest.raises(ConvertError, match=r"(?s)the connection .*bytes are kept in .*mini\.pth\.part.*or: Fetch http|the connection .*goes on from there"):
        fetch(entry(server), tmp_path, pause_s=0)
    size = (tmp_path / "mini.pth.part").stat().st_size
    assert 0 < size < len(CONTENT) and not (tmp_path / "mini.pth").exists()
    server.cuts = 0
    server.ranges.clear()
    assert fetch(entry(server), tmp_path)[0].read_bytes() == CONTENT and server.ranges == [f"bytes={size}-"]


@pytest.mark.parametrize("mode", ["ranges", "no ranges"])
@pytest.mark.parametrize("left", [CONTENT[:100], CONTENT, b"of another file" * 9, CONTENT + b"more"])
def test_whatever_part_is_left_the_file_is_right(server, tmp_path, mode, left):
    server.mode = mode
    (tmp_path / "mini.pth.part").write_bytes(left)
    path, digest, _ = fetch(entry(server), tmp_path, pause_s=0)
    assert path.read_bytes() == CONTENT and digest == SHA256 and not (tmp_path / "mini.pth.part").exists()


def test_a_wrong_hash_keeps_nothing(server, tmp_path):
    with pytest.raises(ConvertError, match=f"begins with {SHA256[:8]}, not with abcdef01.*Nothing was kept.*by hand"):
        fetch(entry(server, sha256="abcdef01"), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_missing_file_is_told_at_once(server, tmp_path):
    server.mode = "gone"
    with pytest.raises(ConvertError, match=r"answers 404 Not Found.*Fetch http.*by hand, put it at .*mini\.pth"):
        fetch(entry(server), tmp_path)
    assert len(server.ranges) == 1 and not list(tmp_path.iterdir())


def test_offline_says_what_to_do_by_hand(tmp_path, monkeypatch):
    monkeypatch.setattr(weights_index.time, "sleep", lambda seconds: pytest.fail("offline needs no waiting"))
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/mini.pth"
        with pytest.raises(ConvertError) as error:
            fetch(Published("mini", "mini.pth", url, "a test", SHA256[:8]), tmp_path)
    assert "no connection" in str(error.value)
    assert f"Fetch {url}, whose SHA-256 begins with {SHA256[:8]}, by hand, put it at {tmp_path / 'mini.pth'}, and run the same command again" in str(error.value)


def test_the_command(server, tmp_path, capsys):
    index, folder = tmp_path / "index.yaml", tmp_path / "weights"
    index.write_text(f'mini: {{file: mini.pth, url: "{entry(server).url}", source: a test, sha256: "{SHA256[:8]}", miou: [41.5, 42.59]}}\n')
    words = ["--dir", str(folder), "--index", str(index)]
    assert main(["weights", "list", *words]) == 0
    assert "mini  41.5/42.59  " in capsys.readouterr().out
    for origin in (entry(server).url, "already there"):
        assert main(["weights", "get", "mini", *words]) == 0
        out = capsys.readouterr().out
        assert f"mini.pth: {origin}; a test, licence not stated by the publisher" in out and f"sha256 {SHA256}, begins with {SHA256[:8]} as published" in out
    assert load_weights(folder / "mini.safetensors")[1]["origin"]["sha256"] == SHA256
    assert main(["weights", "list", *words]) == 0 and "converted" in capsys.readouterr().out
    index.write_text(index.read_text().replace(SHA256[:8], "0" * 8))
    for folder in (folder, tmp_path / "other"):  # a file that is there, and one that comes
        assert main(["weights", "get", "mini", "--dir", str(folder), "--index", str(index)]) == 2
        assert "its SHA-256 begins with" in (err := capsys.readouterr().err) or "SHA-256 begins with" in err and "Nothing was kept" in err
    assert not list((tmp_path / "other").iterdir())
    assert main(["weights", "get", *words]) == 2 and main(["weights", "get", "maxi", *words]) == 2

"""The index of published weights and `jseg weights`: a server on this machine stands in for the publishers'."""

import base64
import hashlib
import http.server
import json
import pathlib
import pickle
import socket
import threading
import time

import pytest

from jseg.cli import main
from jseg.convert import download, weights_index
from jseg.convert.weights_index import Published, fetch, find_entry, read_index, record_hash
from jseg.engine.checkpoint import load_weights
from jseg.errors import ConvertError

ROOT = pathlib.Path(__file__).resolve().parents[2]
CONTENT = (pathlib.Path(__file__).parent / "golden" / "mini_mmseg.pth").read_bytes()
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves the server's `content` with an ETag; its `mode` and `cuts` say how badly."""

    def do_GET(self):
        server, start, content = self.server, 0, self.server.content
        server.ranges.append(self.headers.get("Range"))
        if server.mode == "gone":
            return self.send_error(404)
        if server.mode in ("circle", "file", "ftp"):
            return self.lead_on({"circle": "/again", "file": "file:///etc/passwd",
                                 "ftp": "ftp://127.0.0.1/x"}[server.mode])
        if server.mode == "elsewhere" and self.path == "/mini.pth":
            return self.lead_on("/other/mini.pth")
        tag = f'"{hashlib.md5(content).hexdigest()}"'
        same = self.headers.get("If-Range") in (tag, None) or server.mode == "no If-Range"
        if self.headers.get("Range") and server.mode != "no ranges" and same:
            start = int(self.headers["Range"].removeprefix("bytes=").rstrip("-"))
            if start >= len(content):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(content)}")
                return self.end_headers()
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        else:
            self.send_response(200)
        body = content[start:]
        if server.mode == "Content-MD5":
            self.send_header("Content-MD5", base64.b64encode(hashlib.md5(CONTENT).digest()).decode())
        if server.mode not in ("no tag", "endless"):
            self.send_header("ETag", tag)
        if server.mode != "endless":
            self.send_header("Content-Length", str(len(body) + (99 if server.mode == "too long" else 0)))
        self.end_headers()
        if server.cuts:
            server.cuts -= 1
            body = body[:len(body) // 3]
        self.send_body(body)

    def lead_on(self, where: str) -> None:
        self.send_response(302)
        self.send_header("Location", where)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def send_body(self, body: bytes) -> None:
        try:
            if self.server.mode == "drip":
                for at in range(len(body)):
                    self.wfile.write(body[at:at + 1])
                    time.sleep(0.05)
            self.wfile.write(body[:100] if self.server.mode == "stall" else body)
            while self.server.mode == "endless":
                self.wfile.write(body)
            while self.server.mode == "stall" and not self.server.over.wait(0.1):
                pass
        except OSError:
            pass  # the client left

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as found:
        found.mode, found.cuts, found.ranges, found.content, found.over = "ranges", 0, [], CONTENT, threading.Event()
        found.daemon_threads = True
        threading.Thread(target=found.serve_forever, args=(0.05,), daemon=True).start()
        yield found
        found.over.set()
        found.mode = "over"
        found.shutdown()


def entry(server, **changes) -> Published:
    values = {"name": "mini", "file": "mini.pth", "url": f"http://127.0.0.1:{server.server_address[1]}/mini.pth",
              "source": "a test", "sha256": SHA256[:8]}
    return Published(**{**values, **changes})


def test_index_is_sound():
    index = read_index()
    assert {"segnext_tiny_ade20k_mmseg", "segnext_large_cityscapes_authors", "segnext_base_ade20k_jseg"} <= set(index)
    for found in index.values():
        if found.source == "mmsegmentation 1.x":  # its file names end with the hash
            assert (found.url.endswith(f"/{found.file}") and found.file.endswith(f"-{found.sha256}.pth")
                    and found.licence == "Apache-2.0")
        assert found.config is None or (ROOT / found.config).is_file(), found
    assert len({found.url for found in index.values()}) == len({found.file for found in index.values()}) == len(index)


def test_the_index_is_part_of_the_package():
    """An installed jseg has it; the name in weights/ leads to the same file."""
    assert (weights_index.INDEX.parent == ROOT / "jseg" / "convert"
            and (ROOT / "weights" / "index.yaml").read_text() == weights_index.INDEX.read_text())


def test_unknown_names_and_bad_indexes(tmp_path):
    with pytest.raises(ConvertError, match="no weights are called 'segnext_tiny_ade20k_mseg'; did you mean "
                                           "'segnext_tiny_ade20k_mmseg'"):
        find_entry("segnext_tiny_ade20k_mseg", read_index())
    with pytest.raises(ConvertError, match="no index of weights there; jseg brings one"):
        read_index(tmp_path / "gone.yaml")
    good = "file: a.pth, url: http://x/a, source: us"
    for text, message in ((f"a: {{{good}, shaa: 1}}", "unknown key 'shaa'"), ("a: {file: a.pth}", "url is None"),
                          ("a: 3", "not a block"),
                          ("a: {file: ../a.pth, url: http://x/a, source: us}", "a bare file name"),
                          ("a: {file: a.pth, url: file:///etc/x, source: us}", "an http or https address"),
                          (f"a: {{{good}, sha256: 12}}", "sha256 is 12")):
        (tmp_path / "i.yaml").write_text(text)
        with pytest.raises(ConvertError, match=message):
            read_index(tmp_path / "i.yaml")


def test_fetch_and_use_again(server, tmp_path):
    seen = []
    found = fetch(entry(server), tmp_path / "new", progress=lambda done, total: seen.append((done, total)))
    path = found.path
    assert (path.read_bytes() == CONTENT and found.sha256 == SHA256 and found.came_from == entry(server).url
            and found.proven)
    assert seen[-1] == (len(CONTENT), len(CONTENT)) and [p.name for p in path.parent.iterdir()] == ["mini.pth"]
    again = fetch(entry(server), tmp_path / "new")
    assert (again.path, again.sha256, again.came_from) == (path, SHA256, "already there") and len(server.ranges) == 1
    with pytest.raises(ConvertError, match="its SHA-256 begins with .*Move it away"):  # a whole hash is vouched for
        fetch(entry(server, sha256="0" * 64), tmp_path / "new")
    assert path.read_bytes() == CONTENT


def test_an_interrupted_download_goes_on(server, tmp_path):
    server.cuts = 2
    path = fetch(entry(server), tmp_path, pause_s=0).path
    third = len(CONTENT) // 3
    assert path.read_bytes() == CONTENT
    assert server.ranges == [None, f"bytes={third}-", f"bytes={third + (len(CONTENT) - third) // 3}-"]


def test_a_download_given_up_goes_on_next_time(server, tmp_path):
    server.cuts = 99
    with pytest.raises(ConvertError, match=r"(?s)the connection .*bytes are kept in .*mini\.pth\.part.*or: Fetch "
                                           r"http|the connection .*goes on from there"):
        fetch(entry(server), tmp_path, pause_s=0)
    size = (tmp_path / "mini.pth.part").stat().st_size
    assert 0 < size < len(CONTENT) and not (tmp_path / "mini.pth").exists()
    server.cuts = 0
    server.ranges.clear()
    assert fetch(entry(server), tmp_path).path.read_bytes() == CONTENT and server.ranges == [f"bytes={size}-"]


@pytest.mark.parametrize("mode", ["ranges", "no ranges"])
@pytest.mark.parametrize("left", [CONTENT[:100], CONTENT, b"of another file" * 9, CONTENT + b"more"])
def test_whatever_part_is_left_the_file_is_right(server, tmp_path, mode, left):
    server.mode = mode
    (tmp_path / "mini.pth.part").write_bytes(left)
    found = fetch(entry(server), tmp_path, pause_s=0)
    assert (found.path.read_bytes() == CONTENT and found.sha256 == SHA256
            and [p.name for p in tmp_path.iterdir()] == ["mini.pth"])


def test_digits_that_differ_prove_nothing(server, tmp_path):
    """mmsegmentation's published SegNeXt files are such; the file is had, with what speaks for it."""
    found = fetch(entry(server, sha256="abcdef01"), tmp_path)
    assert found.path.read_bytes() == CONTENT and not found.proven
    assert ("does not begin with abcdef01" in found.proof and "proves nothing" in found.proof
            and "its MD5 is the one that the server states" in found.proof)
    again = fetch(entry(server, sha256="abcdef01"), tmp_path)
    assert again.came_from == "already there" and not again.proven
    record_hash(again, entry(server))
    assert json.loads((tmp_path / "mini.pth.json").read_text())["sha256"] == SHA256
    assert fetch(entry(server, sha256="abcdef01"), tmp_path).proven
    found.path.write_bytes(CONTENT[:-1] + b"!")
    with pytest.raises(ConvertError, match="was recorded when it was first converted"):
        fetch(entry(server, sha256=None), tmp_path)
    assert found.path.exists()


def test_a_wrong_whole_hash_is_put_aside(server, tmp_path):
    with pytest.raises(ConvertError, match=r"begins with .*, not with 0000.*kept as .*mini\.pth\.rejected.*by "
                                           r"hand.*jseg convert FILE"):
        fetch(entry(server, sha256="0" * 64), tmp_path)
    assert ([p.name for p in tmp_path.iterdir()] == ["mini.pth.rejected"]
            and (tmp_path / "mini.pth.rejected").read_bytes() == CONTENT)


@pytest.mark.parametrize("sha256", [None, "abcdef01"])
@pytest.mark.parametrize("content, words", [(b"<!DOCTYPE html><html>sign in</html>", "HTML page"),
                                            (CONTENT[:-200], "truncated"), (b"", "it is empty"),
                                            (b"\x80\x02cos\nsystem\n.", "os.system"),
                                            (b"something else", "starts with")],
                         ids=["html", "cut", "empty", "code", "other"])
def test_a_wrong_download_does_not_get_the_name(server, tmp_path, content, words, sha256):
    server.content = content
    with pytest.raises(ConvertError, match=f"(?s){words}.*rejected.*by hand"):
        fetch(entry(server, sha256=sha256), tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["mini.pth.rejected"]
    (tmp_path / "mini.pth").write_bytes(content)  # and one that was put there is not "already there" for ever
    with pytest.raises(ConvertError, match=f"{words}.*Move it away"):
        fetch(entry(server, sha256=sha256), tmp_path)
    assert (tmp_path / "mini.pth").read_bytes() == content
    server.content = CONTENT
    (tmp_path / "mini.pth").unlink()
    assert fetch(entry(server, sha256=sha256), tmp_path).path.read_bytes() == CONTENT


def test_a_file_that_changes_between_two_parts_is_never_mixed(server, tmp_path):
    for mode in ("ranges", "no If-Range", "no tag"):
        server.mode, server.content, server.cuts = mode, b"#" * len(CONTENT), 99
        with pytest.raises(ConvertError, match="bytes are kept"):
            fetch(entry(server, sha256=None), tmp_path / mode, pause_s=0)
        server.content, server.cuts = CONTENT, 0
        assert fetch(entry(server, sha256=None), tmp_path / mode, pause_s=0).path.read_bytes() == CONTENT, mode


def test_bounds_of_size_and_time(server, tmp_path, monkeypatch):
    for mode, words in (("endless", "it does not end: more than 1000000 bytes"), ("too long", "ended early|416"),
                        ("circle", "leads on in a circle"), ("file", "no web address"), ("ftp", "less safe")):
        server.mode = mode
        began = time.monotonic()
        with pytest.raises(ConvertError, match=words):
            fetch(entry(server), tmp_path / mode, pause_s=0, max_bytes=1_000_000)
        assert time.monotonic() - began < 5 and not (tmp_path / mode / "mini.pth").exists()
    server.mode = "ranges"
    with pytest.raises(ConvertError, match=f"has {len(CONTENT)} bytes; at most 1000 are fetched"):
        fetch(entry(server), tmp_path, max_bytes=1000)
    assert not list(tmp_path.glob("mini*"))
    monkeypatch.setattr(download, "TRIES", 2)
    monkeypatch.setattr(download, "TIMEOUT_S", 0.3)
    monkeypatch.setattr(download, "STALL_S", 0.5)
    for mode, words in (("stall", "timed out"), ("drip", "bytes in 0.5 s")):
        server.mode = mode
        with pytest.raises(ConvertError, match=f"the connection broke .*{words}.*bytes are kept"):
            fetch(entry(server), tmp_path / mode, pause_s=0)
    server.mode = "elsewhere"
    assert fetch(entry(server), tmp_path / "moved").path.read_bytes() == CONTENT


def test_a_content_md5_decides(server, tmp_path):
    server.mode, server.content = "Content-MD5", CONTENT[:-1] + bytes([CONTENT[-1] ^ 1])
    with pytest.raises(ConvertError, match="its MD5 is .*, the server said"):
        fetch(entry(server, sha256=None), tmp_path)
    server.content = CONTENT
    assert "its MD5 is the one" in fetch(entry(server, sha256=None), tmp_path).proof


def test_a_missing_file_is_told_at_once(server, tmp_path):
    server.mode = "gone"
    with pytest.raises(ConvertError, match=r"answers 404 Not Found.*Fetch http.*by hand, put it at .*mini\.pth"):
        fetch(entry(server), tmp_path)
    assert len(server.ranges) == 1 and not list(tmp_path.iterdir())


def test_offline_says_what_to_do_by_hand(tmp_path, monkeypatch):
    monkeypatch.setattr(download.time, "sleep", lambda seconds: pytest.fail("offline needs no waiting"))
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/mini.pth"
        with pytest.raises(ConvertError) as error:
            fetch(Published("mini", "mini.pth", url, "a test", SHA256[:8]), tmp_path)
    assert "no connection" in str(error.value)
    assert (f"Fetch {url}, whose SHA-256 may begin with {SHA256[:8]}, by hand, put it at {tmp_path / 'mini.pth'}, and "
            "run the same command again" in str(error.value))


def test_the_command(server, tmp_path, capsys):
    index, folder = tmp_path / "index.yaml", tmp_path / "weights"
    index.write_text(f'mini: {{file: mini.pth, url: "{entry(server).url}", source: a test, sha256: "{SHA256[:8]}", '
                     f'miou: [41.5, 42.59]}}\n')
    words = ["--dir", str(folder), "--index", str(index)]
    assert main(["weights", "list", *words]) == 0
    assert "mini  41.5/42.59  " in capsys.readouterr().out
    for origin in (entry(server).url, "already there"):
        assert main(["weights", "get", "mini", *words]) == 0
        out = capsys.readouterr().out
        assert (f"mini.pth: {origin}; a test, licence not stated by the publisher" in out
                and f"sha256 {SHA256}, begins with {SHA256[:8]} as published" in out)
    assert load_weights(folder / "mini.safetensors")[1]["origin"]["sha256"] == SHA256
    assert main(["weights", "list", *words]) == 0 and "converted" in capsys.readouterr().out
    assert json.loads((folder / "mini.pth.json").read_text())["sha256"] == SHA256
    index.write_text(index.read_text().replace(SHA256[:8], "0" * 8))
    assert main(["weights", "get", "mini", "--dir", str(tmp_path / "other"), "--index", str(index)]) == 0
    assert ("does not begin with 00000000" in capsys.readouterr().out
            and (tmp_path / "other" / "mini.safetensors").exists())
    server.content = pickle.dumps({"state_dict": {"layer1.0.conv1.weight": 1}}, 2)
    assert main(["weights", "get", "mini", "--dir", str(tmp_path / "third"), "--index", str(index)]) == 2
    assert "kept as" in capsys.readouterr().err and [p.name for p in (tmp_path / "third").iterdir()] == [
        "mini.pth.rejected"]
    assert main(["weights", "get", *words]) == 2 and main(["weights", "get", "maxi", *words]) == 2

"""Fetch one file over HTTP into `<name>.part`: resumed, bounded in size and time, never a mixture of two files.

    <file>.part        what has arrived
    <file>.part.json   address, length and validator (ETag or Last-Modified) of the file that the part is of

A part is gone on with only where the server says, by `If-Range`, that its file is still the same; otherwise it begins
anew. Redirects lead from http to http or https, at most `REDIRECTS` times. A server that keeps the connection open and
sends less than `LEAST_BYTES` in `STALL_S` seconds counts as broken off.
"""

from __future__ import annotations

import base64
import dataclasses
import http.client
import json
import pathlib
import re
import socket
import time
import urllib.error
import urllib.parse
import urllib.request
from typing import Any, Callable

from jseg.errors import ConvertError, WriteError
from jseg.files import write_atomically
from jseg.text import printable

__all__ = ["Arrived", "Progress", "download", "MAX_BYTES"]

CHUNK, TIMEOUT_S, TRIES, REDIRECTS = 1 << 18, 30, 4, 5
STALL_S, LEAST_BYTES = 60, 1 << 16  # 1 kB a second; the slowest modem line is faster
MAX_BYTES = 8 << 30                 # SegNeXt-L with its optimizer's state has 0.8 GB
Progress = Callable[[int, "int | None"], None]  # (bytes on disk, bytes in all or None)


@dataclasses.dataclass
class Arrived:
    """What the server said of the file: its `length` in bytes and its `md5` as 32 hexadecimal digits, where it said so.

    `md5_is_sure` tells a Content-MD5 from an ETag of that form, which is mostly, but not always, the MD5.
    """

    length: int | None = None
    md5: str | None = None
    md5_is_sure: bool = False


class _Refused(ConvertError):
    """An answer that trying again does not change."""


class _Redirects(urllib.request.HTTPRedirectHandler):
    max_redirections, max_repeats = REDIRECTS, 2

    def redirect_request(self, request, file, code, reason, headers, url):
        before, after = urllib.parse.urlsplit(request.full_url).scheme, urllib.parse.urlsplit(url).scheme
        if after not in ("http", "https") or (before, after) == ("https", "http"):
            raise _Refused(f"it leads on to {printable(url)[:200]}, which is less safe than {before}")
        return super().redirect_request(request, file, code, reason, headers, url)


def download(url: str, part: pathlib.Path, *, progress: Progress | None = None, pause_s: float = 1.0,
             max_bytes: int = MAX_BYTES) -> Arrived:
    """Fill the .part file; a connection that breaks is taken up again where it broke, some times.

    Args:
        url: http or https.
        part: grows; its folder exists.
        progress: called while bytes arrive.
        pause_s: wait before going on after a broken connection, in seconds; doubled each time.
        max_bytes: of the whole file.
    Raises:
        ConvertError: why the file did not come whole; what came is kept in `part`.
        WriteError: the folder cannot be written.
    """
    reason = ""
    for attempt in range(TRIES):
        try:
            return _receive(url, part, progress, max_bytes)
        except urllib.error.HTTPError as error:
            reason = _answer_told(error)
            if error.code == 416 and part.exists():  # nothing lies behind our end: the part is of another file
                _forget(part)
                continue
            if error.code < 500:
                raise ConvertError(reason) from error
        except urllib.error.URLError as error:
            reason = f"no connection ({error.reason})"
            # offline: no use in waiting
            if attempt == 0 and not isinstance(error.reason, (TimeoutError, socket.timeout)):
                break
        # Python 3.9: two timeouts
        except (http.client.HTTPException, TimeoutError, socket.timeout, ConnectionError) as error:
            reason = f"the connection broke ({printable(error) or type(error).__name__})"
        except ValueError as error:  # an address that urllib cannot read, after a redirect
            raise ConvertError(f"it leads to an address that cannot be read ({printable(error)[:200]})") from error
        if attempt + 1 < TRIES:
            time.sleep(pause_s * 2 ** attempt)
    raise ConvertError(reason)


def _answer_told(error: urllib.error.HTTPError) -> str:
    if 300 <= error.code < 400:
        return (f"it leads on in a circle, more than {REDIRECTS} times, or to what is no web address (answers "
                f"{error.code})")
    closed = "; the file has moved or is closed to us" if error.code < 500 else ""
    return f"it answers {error.code} {printable(error.reason)[:100]}{closed}"


def _receive(url: str, part: pathlib.Path, progress: Progress | None, max_bytes: int) -> Arrived:
    """One request, from the end of the .part file on where the server's file is still the same."""
    kept = _kept(part, url)
    start = part.stat().st_size if kept else 0
    if kept and kept["length"] == start:
        return Arrived(start, kept["md5"], kept["sure"])
    headers = {"User-Agent": "jseg", "Accept-Encoding": "identity"}
    headers |= {"Range": f"bytes={start}-", "If-Range": kept["validator"]} if start else {}
    opener = urllib.request.build_opener(_Redirects())
    with opener.open(urllib.request.Request(url, headers=headers), timeout=TIMEOUT_S) as answer:
        goes_on = answer.status == 206
        if goes_on and not (answer.headers.get("Content-Range") or "").startswith(f"bytes {start}-"):
            raise http.client.HTTPException(f"asked for bytes from {start} on, got "
                                            f"{answer.headers.get('Content-Range')!r:.100}")
        if answer.headers.get("Content-Encoding", "identity") != "identity":
            raise _Refused("it sends the file compressed, which was not asked for")
        start = start if goes_on else 0
        length = answer.headers.get("Content-Length")
        total = start + int(length) if length and length.isdigit() and len(length) < 20 else None
        if goes_on and (kept["length"] not in (None, total)
                        or _validator(answer.headers) not in (None, kept["validator"])):
            _forget(part)  # a server that does not know If-Range
            raise http.client.HTTPException("the file there has changed; it begins anew")
        if max(total or 0, start) > max_bytes:
            raise _Refused(f"the file has {total} bytes; at most {max_bytes} are fetched")
        md5, sure = (kept["md5"], kept["sure"]) if goes_on else _md5_of(answer.headers)
        if not goes_on:
            _keep(part, {"url": url, "length": total, "validator": _validator(answer.headers), "md5": md5,
                         "sure": sure})
        start = _copy(answer, part, "ab" if goes_on else "wb", start, total, progress, max_bytes)
    if total is not None and start < total:
        raise http.client.HTTPException("ended early")
    return Arrived(total, md5, sure)


def _copy(answer: Any, part: pathlib.Path, mode: str, start: int, total: int | None, progress: Progress | None,
          max_bytes: int) -> int:
    """Append what arrives; the size at the end. TimeoutError when next to nothing does."""
    began, since = time.monotonic(), start
    try:
        file = open(part, mode)
    except OSError as error:  # not to be taken for a fault of the connection
        raise WriteError(
            f"{part}: cannot be written ({error.strerror}); free disk space or allow writing there") from error
    with file:
        while chunk := answer.read1(CHUNK):
            try:
                file.write(chunk)
            except OSError as error:
                raise WriteError(f"{part}: cannot be written ({error.strerror}); free disk space or allow writing "
                                 f"there") from error
            start += len(chunk)
            if start > max_bytes:
                raise _Refused(f"it does not end: more than {max_bytes} bytes came")
            if time.monotonic() - began > STALL_S:
                if start - since < LEAST_BYTES:
                    raise TimeoutError(f"{start - since} bytes in {STALL_S} s")
                began, since = time.monotonic(), start
            if progress:
                progress(start, total)
    return start


def _validator(headers: Any) -> str | None:
    """What `If-Range` takes: a strong ETag, else the date of the last change."""
    tag = headers.get("ETag")
    return tag if tag and tag.startswith('"') else headers.get("Last-Modified")


def _md5_of(headers: Any) -> tuple[str | None, bool]:
    """(the MD5 that an answer with the whole file promises, whether it is called so)."""
    try:
        digest = base64.b64decode(headers.get("Content-MD5") or "", validate=True).hex()
    except ValueError:
        digest = ""
    if len(digest) == 32:
        return digest, True
    tag = (headers.get("ETag") or "").strip('"').lower()
    return (tag, False) if re.fullmatch("[0-9a-f]{32}", tag) else (None, False)


def _record(part: pathlib.Path) -> pathlib.Path:
    return part.with_name(f"{part.name}.json")


def _keep(part: pathlib.Path, facts: dict) -> None:
    write_atomically(_record(part), json.dumps(facts).encode(), durable=False)


def _kept(part: pathlib.Path, url: str) -> dict | None:
    """What was said of the file that a part is of; None where it must begin anew."""
    try:
        facts = json.loads(_record(part).read_bytes())
        mark = facts["validator"]
        fits = facts["url"] == url and isinstance(mark, str) and mark.isprintable() and part.is_file()
        return facts if fits and {"length", "md5", "sure"} <= set(facts) and (facts["length"] or 0) >= 0 else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _forget(part: pathlib.Path) -> None:
    """Begin anew: a part is ours alone, and of another file."""
    for path in (part, _record(part)):
        path.unlink(missing_ok=True)

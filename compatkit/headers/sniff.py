"""What a file that is no readable model really is: a pointer, a web page, a config, an archive…

Used only after the readers' own marks were not found. Looks at the first kilobytes (and, for zip, the last), never
further; only JSON of a few megabytes is read whole.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from compatkit.headers.problems import DOWNLOAD_AGAIN, corrupt, refused, truncated
from compatkit.headers.safetensors import MAX_HEADER, is_bomb
from compatkit.headers.suffixes import OPENED_AS, suffix
from compatkit.sources.naming import shown
from compatkit.vocabulary import HeaderError

if TYPE_CHECKING:
    from compatkit.sources import Source

#: Bytes of the start that `unmask` wants to see.
HEAD = 4096

_MAX_JSON = 1 << 22

#: What an error message does not hold: an assignment, an address, a long word of letters and digits.
_SECRET = re.compile(r"\w\s*=|@|passw|\b(?=\w*\d)(?=\w*[A-Za-z])[\w-]{16,}", re.I)

# (offset, mark, what it is). Facts from the formats' own specifications.
_MARKS: tuple[tuple[int, bytes, str], ...] = (
    (0, b"\x89PNG\r\n\x1a\n", "a PNG picture"),
    (0, b"\xff\xd8\xff", "a JPEG picture"),
    (0, b"GIF8", "a GIF picture"),
    (8, b"WEBP", "a WebP picture"),
    (4, b"ftyp", "an MP4 video"),
    (0, b"%PDF-", "a PDF document"),
    (0, b"\x1f\x8b", "a gzip archive"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (0, b"Rar!\x1a\x07", "a RAR archive"),
    (0, b"\xfd7zXZ\x00", "an xz archive"),
    (0, b"\x28\xb5\x2f\xfd", "a zstd archive"),
    (0, b"BZh", "a bzip2 archive"),
    (0, b"\x04\x22\x4d\x18", "an lz4 archive"),
    (257, b"ustar", "a tar archive"),
    (0, b"\x93NUMPY", "a NumPy array (.npy)"),
    (0, b"\x89HDF\r\n\x1a\n", "an HDF5 file (Keras weights?)"),
    (4, b"TFL3", "a TensorFlow Lite model"),
    (0, b"\x7fELF", "a Linux program or library"),
    (0, b"MZ", "a Windows program"),
    (0, b"SQLite format 3\x00", "an SQLite database"),
)
_ARCHIVES = ("gzip", "7z", "RAR", "xz", "zstd", "bzip2", "lz4", "tar", "zip")

# GGUF's predecessors, by their first four bytes
_OLD_GGML = {b"lmgg": "GGML", b"fmgg": "GGMF", b"tjgg": "GGJT", b"algg": "GGLA", b"FUGG": "GGUF (byte-swapped)"}

_FIX_SOURCE = "Download the model file itself: the link led to something else."


def unmask(source: Source, head: bytes) -> HeaderError | None:
    """The error that names what `source` is, `None` if it cannot be told. `head` is its first `HEAD` bytes."""
    for look in (_empty, _pointer, _old_ggml, _pickle, _zip, _marked, _page, _json, _hole, _onnx, _text):
        if error := look(source, head):
            return error
    return None


def explain(source: Source, head: bytes) -> HeaderError:
    """As `unmask`, with an answer also where nothing was recognised: then the name says what was expected."""
    if error := unmask(source, head):
        return error
    name, size = source.name, source.size
    if b"GGUF".startswith(head[:4]):
        return truncated(name, size, 24, "a GGUF header needs 24 bytes before its first entry", exact=False)
    if OPENED_AS.get(suffix(name)) == "safetensors":
        if size < 10:
            what = "a safetensors header needs 8 bytes for its length and 2 for an empty list"
            return truncated(name, size, 10, what, exact=False)
        length = int.from_bytes(head[:8], "little")
        if length > MAX_HEADER:
            what = f"bytes 0..8 give the header a length of {length:,} bytes, the format allows {MAX_HEADER:,}"
        else:
            seen = "text" if _readable(head[8:16]) else repr(head[8:16])
            what = f"its JSON header should start with '{{' at byte 8, but has {seen}"
        return corrupt(name, what, offset=0)
    what = "neither safetensors nor GGUF nor anything else that is known"
    fix = "Check that this is the file meant, and that the download is complete."
    seen = "text" if _readable(head[:16]) else repr(head[:16])  # text may be anybody's secret
    return _is(source, "file/not-a-model", f"{what}; it starts with {seen}", fix)


def _readable(some: bytes) -> bool:
    return all(0x20 <= b < 0x7F or b in b"\t\r\n" for b in some)


def _is(source: Source, rule: str, what: str, fix: str, **evidence: Any) -> HeaderError:
    return refused(rule, f"{shown(source.name)} is {what}", fix, size=source.size, **evidence)


def _empty(source: Source, head: bytes) -> HeaderError | None:
    if source.size == 0:
        fix = "Download or copy the file again; the disk may have been full."
        return refused("file/empty", f"{shown(source.name)} is empty: it has 0 bytes", fix, size=0)
    return None


def _pointer(source: Source, head: bytes) -> HeaderError | None:
    start = head[:1024]
    if not start.startswith(
        (b"version https://git-lfs.github.com/", b"version https://hawser.github.com/", b"# xet version")
    ):
        return None
    oid = re.search(rb"^oid (\w+:[0-9a-f]{6,128})\s*$", start, re.M)
    size = re.search(rb"^size (\d{1,18})\s*$", start, re.M)
    about: dict[str, Any] = {}
    words = "a Git LFS pointer" if start.startswith(b"version") else "a Xet pointer"
    words += f" of {source.size:,} bytes, not the model"
    if size:
        about["real_size"] = int(size[1])
        words += f": the real file has {int(size[1]):,} bytes"
    if oid:
        about["oid"] = oid[1].decode()
        words += f" ({'and ' if not size else ''}{oid[1].decode()})"
    return _is(
        source,
        "file/lfs-pointer",
        words,
        "Run `git lfs pull`, or download the file itself with `hf download`.",
        **about,
    )


def _old_ggml(source: Source, head: bytes) -> HeaderError | None:
    if old := _OLD_GGML.get(head[:4]):
        fix = "Get the GGUF version of the model."
        return _is(source, "file/gguf-version", f"a {old} file (first four bytes), a format that GGUF replaced", fix)
    return None


def _pickle(source: Source, head: bytes) -> HeaderError | None:
    if head[257:262] == b"ustar" and head[:100].rstrip(b"\0") in (b"sys_info", b"pickle", b"storages", b"tensors"):
        what = "a torch checkpoint of the oldest kind (tar), which is not read, and never executed"
        return _is(source, "file/pickle", what, "Get the model as safetensors.")
    return None


def _zip(source: Source, head: bytes) -> HeaderError | None:
    if head[:4] not in (b"PK\x03\x04", b"PK\x05\x06"):
        return None
    # names stand at the front before each entry and, all together, at the end
    names = head + source.read(max(0, source.size - 65_536), 65_536)
    if b"model_index.json" in names and b".safetensors" in names:
        fix = "Unpack it to a folder, which can be read."
        return _is(
            source, "file/not-a-model", "a zip archive of a diffusers folder (DDUF); those are not read yet", fix
        )
    if b".npy" in names:
        return _is(source, "file/not-a-model", "a zip of NumPy arrays (.npz)", _FIX_SOURCE)
    return _is(source, "file/not-a-model", "a zip archive", "Unpack it: the model may be inside.")


def _marked(source: Source, head: bytes) -> HeaderError | None:
    for at, mark, what in _MARKS:
        if head[at : at + len(mark)] == mark:
            archive = any(f" {kind} " in f"{what} " for kind in _ARCHIVES)
            fix = "Unpack it: the model may be inside." if archive else _FIX_SOURCE
            return _is(source, "file/not-a-model", what, fix)
    return None


def _page(source: Source, head: bytes) -> HeaderError | None:
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not start.startswith(
        (b"<!doctype html", b"<html", b"<head", b"<body", b"<script", b"<?xml", b"<error", b"<!--")
    ):
        return None
    html = b"<html" in start or b"<!doctype html" in start or not start.startswith((b"<?xml", b"<error"))
    title = re.search(rb"<(title|message)[^>]*>(.{1,200}?)</", head, re.S | re.I)
    about: dict[str, Any] = {}
    what = "a web page (HTML)" if html else "an XML page, as servers send for an error"
    if title:
        about["title"] = " ".join(title[2].decode("utf-8", "replace").split())
        what += f" titled {shown(about['title'])}"
        about["title"] = shown(about["title"])[1:-1]
    login = re.search(rb"log ?in|sign ?in|gated|access|restricted|401|403", head, re.I)
    fix = "Download the model file itself"
    fix += "; the page speaks of access: log in, accept the licence, and pass a token." if login else "."
    return _is(source, "file/web-page", f"{what}, saved under a model's name", fix, **about)


def _json(source: Source, head: bytes) -> HeaderError | None:
    content = read_json(source, head)
    if content is None:
        return None
    if not isinstance(content, dict):
        return _is(source, "file/not-a-model", f"JSON ({type(content).__name__}), not a model", _FIX_SOURCE)
    if "weight_map" in content:
        what = "the index of a split model (JSON), not the model"
        fix = "Give it its name back (….safetensors.index.json) and put the shards that it lists beside it."
    elif "_class_name" in content or "_diffusers_version" in content:
        kind = shown(content.get("_class_name", "?"), 60)
        what, fix = f"a diffusers config (JSON, {kind}), not a model", "Get the .safetensors file beside that config."
    elif "model_type" in content or "architectures" in content:
        kind = shown(content.get("model_type", "?"), 60)
        what, fix = (
            f"a transformers config (JSON, {kind}), not a model",
            "Get the .safetensors file beside that config.",
        )
    elif "nodes" in content or any(isinstance(v, dict) and "class_type" in v for v in content.values()):
        what, fix = "a ComfyUI workflow (JSON), not a model", "Give it the suffix .json."
    elif words := next(
        (content[k] for k in ("error", "message", "detail", "msg") if isinstance(content.get(k), str)), None
    ):
        what = f"an error message (JSON) that says {shown(words)}, saved under a model's name"
        return _is(source, "file/web-page", what, _FIX_SOURCE)
    else:
        what, fix = "JSON, not a model", _FIX_SOURCE
    return _is(source, "file/not-a-model", what, fix)


def read_json(source: Source, head: bytes, limit: int = _MAX_JSON) -> Any:
    """The content of a source that is JSON of at most `limit` bytes; `None` if it is not, whatever the reason."""
    if head.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] not in (b"{", b"[") or source.size > limit:
        return None
    try:
        text = source.read(0, source.size).decode("utf-8-sig")
        return None if is_bomb(text) else json.loads(text)
    except (ValueError, RecursionError):
        return None


def _hole(source: Source, head: bytes) -> HeaderError | None:
    if head.strip(b"\0"):
        return None
    what = f"all zeros in its first {len(head):,} bytes: space was set aside for it, and the content never written"
    return _is(source, "file/corrupt", what, DOWNLOAD_AGAIN)


def _onnx(source: Source, head: bytes) -> HeaderError | None:
    # protobuf: field 1 (IR version, a small number), then field 2 (producer) or 7 (graph) as a length-prefixed value
    if (
        head[:1] == b"\x08"
        and b"\0" < head[1:2] < b"\x20"
        and head[2:3] in (b"\x12", b"\x3a")
        and (b"onnx" in head or b"pytorch" in head)
    ):
        return _is(
            source, "file/not-a-model", "an ONNX model, a format that is not read", "Get the safetensors version."
        )
    return None


def _text(source: Source, head: bytes) -> HeaderError | None:
    start = head[:512]
    try:
        text = start.decode()
    except UnicodeDecodeError as error:
        if error.start < 509:  # else the cut at 512 went through a character
            return None
        text = start[: error.start].decode()
    if len(text) < 4 or not all(c.isprintable() or c in "\t\r\n" for c in text):
        return None
    line = next((line.strip() for line in text.splitlines() if line.strip()), "")
    denied = re.search(
        r"not found|denied|forbidden|unauthori[sz]ed|invalid (username|token|cred)|restricted|gated|error", text, re.I
    )
    if denied and source.size < 4096:
        said = "" if _SECRET.search(line) else f": {shown(line)}"
        return _is(source, "file/web-page", f"an error message in plain text{said}", _FIX_SOURCE)
    return _is(source, "file/not-a-model", "plain text, not a model", _FIX_SOURCE)  # whose content is nobody's business

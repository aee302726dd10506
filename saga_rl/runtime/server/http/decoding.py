"""Bodies with a `Content-Encoding` (Codex sends zstd): vLLM reads plain ones only, so they are decoded ahead of it."""

from __future__ import annotations

from collections.abc import Iterable

import pyarrow as pa

NAMES = {"gzip": "gzip", "x-gzip": "gzip", "zstd": "zstd", "br": "brotli"}
"""Content codings -> pyarrow's names."""
Headers = Iterable[tuple[bytes, bytes]]


class NotDecoded(Exception):
    """What the client is told. status: of the answer."""

    def __init__(self, status: int, message: str) -> None:
        self.status = status
        super().__init__(message)


def decoded(headers: Headers, body: bytes, most: int) -> tuple[list[tuple[bytes, bytes]], bytes] | None:
    """The headers and the body without their coding; None if there is none. `NotDecoded` for codings that are not
    known, bytes that do not follow theirs, and what would be longer than `most`."""
    headers = list(headers)
    said = ",".join(v.decode("latin-1") for k, v in headers if k.lower() == b"content-encoding")
    codings = [c for part in said.lower().split(",") if (c := part.strip()) not in ("", "identity")]
    if not codings:
        return None
    for coding in reversed(codings):
        if coding not in NAMES or len(codings) > 4:
            raise NotDecoded(415, f"Content-Encoding {said[:80]!r} is not read here: send the body plain, or coded by "
                                  f"one of {', '.join(NAMES)}")
        body = _plain(NAMES[coding], coding, body, most)
    kept = [(k, v) for k, v in headers if k.lower() not in (b"content-encoding", b"content-length")]
    return [*kept, (b"content-length", str(len(body)).encode())], body


def _plain(codec: str, coding: str, body: bytes, most: int) -> bytes:
    try:
        with pa.CompressedInputStream(pa.BufferReader(body), codec) as f:
            out = bytearray()
            while part := f.read(1 << 20):
                out += part
                if len(out) > most:
                    raise NotDecoded(413, f"the body is longer than {most} bytes when it is decoded: send less, or "
                                          "have the server's saga_http.most_bytes raised")
    except (OSError, pa.ArrowException) as e:
        raise NotDecoded(400, f"the body is not {coding}, as its Content-Encoding says: {e}"[:300]) from None
    return bytes(out)

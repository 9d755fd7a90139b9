"""From a file's bytes to FHIR resources: bundles, single resources, lists and bulk NDJSON, plain or gzipped.

What a file is, is found from its content; its name is never asked. A broken line or entry loses only itself.
"""

from __future__ import annotations

import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from context.fhir_text import Ambiguous

MIB = 1024 * 1024
#: One JSON document is held in memory as a whole, at about eight times its size. Bigger exports come as NDJSON.
MAX_DOCUMENT_BYTES = 256 * MIB
#: One resource. The largest seen in public exports (an explanation of benefit) has well under 1 MiB.
MAX_LINE_BYTES = 16 * MIB
#: All lines of one NDJSON file, unpacked: the end of a gzip file that unpacks for ever.
MAX_FILE_BYTES = 8 * 1024 * MIB
#: Lines that are tried before a file whose first line is broken is called no NDJSON.
_PROBE_LINES = 5
#: Bundles within bundles: a batch of searches answers in that shape; deeper ones do not occur.
_MAX_NESTED_BUNDLES = 3
#: An integer of more digits is read as a float, which the import refuses by its size.
_INT_DIGITS = 18

_BOM = b"\xef\xbb\xbf"


class FhirFileError(Exception):
    """A file that cannot be read; ``reason`` holds neither its content nor its name."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Entry(msgspec.Struct, kw_only=True):
    """One resource of a file, or what stands in its place.

    number: entry of a bundle or line of NDJSON, from 1.
    bundle: number of the bundle in this file, from 1; 0 for a resource outside a bundle.
    deleted: "Type/id" of a resource that the bundle says is deleted; ``resource`` is None then.
    problem: why there is no resource; "" if there is one.
    """

    number: int
    bundle: int = 0
    resource: dict[str, Any] | None = None
    full_url: str = ""
    deleted: str = ""
    deleted_at: str = ""
    problem: str = ""


def read_file(source: Path | str | bytes, on_bytes: Callable[[int], None] | None = None) -> Iterator[Entry]:
    """Yield every entry of a file, in its order.

    Args:
        source: a path, or the bytes themselves.
        on_bytes: called now and then with how many bytes of the file on disk are read.
    Raises:
        FhirFileError: the file as a whole cannot be read, or not further; what was yielded before stands.
    """
    try:
        with _open(source) as raw:
            yield from _read(raw, on_bytes)
    except FhirFileError:
        raise
    except (EOFError, zlib.error, gzip.BadGzipFile):
        raise FhirFileError("damaged or truncated gzip") from None
    except IsADirectoryError:
        raise FhirFileError("is a folder") from None
    except FileNotFoundError:
        raise FhirFileError("file not found") from None
    except OSError as error:
        raise FhirFileError(f"cannot be read ({error.strerror or 'input error'})") from None


def _open(source: Path | str | bytes) -> BinaryIO:
    if isinstance(source, bytes):
        return io.BytesIO(source)
    return open(source, "rb")


def _read(raw: BinaryIO, on_bytes: Callable[[int], None] | None) -> Iterator[Entry]:
    def tell() -> None:
        if on_bytes is not None:
            on_bytes(raw.tell())

    magic = raw.read(4)
    raw.seek(0)
    file: BinaryIO | gzip.GzipFile = gzip.GzipFile(fileobj=raw) if magic[:2] == b"\x1f\x8b" else raw
    if magic == b"PK\x03\x04":
        raise FhirFileError("a zip archive; unpack it first")
    if magic[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise FhirFileError("not UTF-8")

    head, start_line = _first_line(file)
    if not head:
        raise FhirFileError("empty file")
    if head.lstrip()[:1] == b"<":
        raise FhirFileError("XML; only FHIR JSON is read")
    whole_line = len(head) <= MAX_LINE_BYTES
    first = _parse(head) if whole_line else None
    tell()
    if isinstance(first, dict):
        rest, line = _next_line(file, start_line)
        if not rest:
            yield from _document(first, 1)
        else:
            yield from _ndjson(file, [(start_line, head), (line, rest)], tell)
        return

    # Not a JSON object by itself: the first line of a document over several lines, or a broken line of NDJSON.
    pending = [(start_line, head)]
    is_ndjson = False
    line = start_line
    while whole_line and not is_ndjson and len(pending) <= _PROBE_LINES:
        text, line = _next_line(file, line)
        if not text:
            break
        pending.append((line, text))
        probe = _parse(text)
        is_ndjson = isinstance(probe, dict) and bool(_type(probe))
    if is_ndjson and head.lstrip()[:1] != b"[":
        yield from _ndjson(file, pending, tell)
        return
    data = b"".join(text for _, text in pending)
    rest = file.read(MAX_DOCUMENT_BYTES - len(data) + 1)
    tell()
    if len(data) + len(rest) > MAX_DOCUMENT_BYTES:
        raise FhirFileError(f"one JSON document of more than {MAX_DOCUMENT_BYTES // MIB} MiB")
    data += rest
    # A list with a resource in each line looks like NDJSON after a broken line; it is a list if it parses as one.
    if is_ndjson and (listed := _parse(data)) is not None:
        yield from _document(listed, 1)
    elif is_ndjson:
        yield from _ndjson(io.BytesIO(data), [], tell)
    else:
        yield from _document(_parse_document(data), 1)


def _first_line(file: BinaryIO | gzip.GzipFile) -> tuple[bytes, int]:
    text, line = file.readline(MAX_LINE_BYTES + 1), 1
    if text.startswith(_BOM):
        text = text[len(_BOM) :]
    if text and not text.strip():
        return _next_line(file, line)
    return text, line


def _next_line(file: BinaryIO | gzip.GzipFile, line: int) -> tuple[bytes, int]:
    """The next line that is not blank, with its number; b"" at the end; of a line over the limit its first part."""
    while text := file.readline(MAX_LINE_BYTES + 1):
        line += 1
        if text.strip():
            return text, line
    return b"", line


def _ndjson(
    file: BinaryIO | gzip.GzipFile, pending: list[tuple[int, bytes]], tell: Callable[[], None]
) -> Iterator[Entry]:
    total, bundles = 0, 0
    number, text = 0, b"\n"
    while text:
        number, text = pending.pop(0) if pending else _next_line(file, number)[::-1]
        if not text:
            return
        tell()
        total += len(text)
        if total > MAX_FILE_BYTES:
            raise FhirFileError(f"more than {MAX_FILE_BYTES // MIB} MiB")
        if len(text) > MAX_LINE_BYTES:
            while text and not text.endswith(b"\n"):
                text = file.readline(MAX_LINE_BYTES + 1)
                total += len(text)
                if total > MAX_FILE_BYTES:
                    raise FhirFileError(f"more than {MAX_FILE_BYTES // MIB} MiB")
            yield Entry(number=number, problem=f"line of more than {MAX_LINE_BYTES // MIB} MiB")
            text = b"\n"
            continue
        parsed = _parse(text)
        if not isinstance(parsed, dict):
            yield Entry(number=number, problem="not a JSON object" if parsed is not None else "not valid JSON")
        elif not _type(parsed):
            yield Entry(number=number, problem="not a FHIR resource")
        elif parsed["resourceType"] == "Bundle":
            bundles += 1
            yield from _bundle(parsed, bundles, 1)
        else:
            yield Entry(number=number, resource=parsed)


def _document(parsed: Any, bundle: int) -> Iterator[Entry]:
    if isinstance(parsed, list):
        for number, item in enumerate(parsed, 1):
            if isinstance(item, dict) and _type(item) == "Bundle":
                yield from _bundle(item, number, 1)
            elif isinstance(item, dict) and _type(item):
                yield Entry(number=number, resource=item)
            else:
                yield Entry(number=number, problem="not a FHIR resource")
    elif not isinstance(parsed, dict) or not _type(parsed):
        raise FhirFileError("JSON, but not a FHIR resource")
    elif parsed["resourceType"] == "Bundle":
        yield from _bundle(parsed, bundle, 1)
    else:
        yield Entry(number=1, resource=parsed)


def _bundle(bundle: dict[str, Any], index: int, level: int) -> Iterator[Entry]:
    entries = bundle.get("entry")
    if isinstance(bundle, Ambiguous) or (entries is not None and not isinstance(entries, list)):
        yield Entry(number=1, bundle=index, problem="not a FHIR bundle")
        return
    for number, entry in enumerate(entries or (), 1):
        yield from _bundle_entry(entry, number, index, level)


def _bundle_entry(entry: Any, number: int, index: int, level: int) -> Iterator[Entry]:
    if not isinstance(entry, dict) or isinstance(entry, Ambiguous):
        yield Entry(number=number, bundle=index, problem="not a bundle entry")
        return
    url = entry.get("fullUrl")
    full_url = url if isinstance(url, str) else ""
    resource = entry.get("resource")
    request = entry.get("request")
    if isinstance(request, dict) and request.get("method") == "DELETE":
        target = request.get("url")
        response = entry.get("response")
        when = response.get("lastModified") if isinstance(response, dict) else None
        yield Entry(
            number=number,
            bundle=index,
            full_url=full_url,
            deleted=target if isinstance(target, str) else full_url,
            deleted_at=when if isinstance(when, str) else "",
        )
    elif resource is None:
        yield Entry(number=number, bundle=index, problem="entry without a resource")
    elif not isinstance(resource, dict) or not _type(resource):
        yield Entry(number=number, bundle=index, problem="not a FHIR resource")
    elif resource["resourceType"] == "Bundle":
        if level >= _MAX_NESTED_BUNDLES:
            yield Entry(number=number, bundle=index, problem="bundles nested too deep")
        else:
            yield from _bundle(resource, index, level + 1)
    else:
        yield Entry(number=number, bundle=index, resource=resource, full_url=full_url)


def _type(resource: dict[str, Any]) -> str:
    kind = resource.get("resourceType")
    # A type name ends up in reports: letters only, as FHIR's own are.
    return kind if isinstance(kind, str) and kind.isascii() and kind.isalpha() and len(kind) <= 64 else ""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    return found if len(found) == len(pairs) else Ambiguous(found)


def _integer(digits: str) -> int | float:
    return int(digits) if len(digits) <= _INT_DIGITS else float(digits)


def _loads(data: bytes) -> Any:
    # NaN and Infinity are no JSON; they are let through here so that only their resource is refused, not the file.
    return json.loads(data.decode("utf-8"), object_pairs_hook=_object, parse_int=_integer)


def _parse(data: bytes) -> Any:
    """The JSON value of ``data``; None where there is none (a bare ``null`` counts as none)."""
    try:
        return _loads(data)
    except (ValueError, RecursionError):
        return None


def _parse_document(data: bytes) -> Any:
    try:
        return _loads(data)
    except UnicodeDecodeError:
        raise FhirFileError("not UTF-8") from None
    except json.JSONDecodeError as error:
        raise FhirFileError(f"not valid JSON (line {error.lineno}, column {error.colno})") from None
    except RecursionError:
        raise FhirFileError("JSON nested too deep") from None

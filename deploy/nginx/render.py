#!/usr/bin/env python3
"""Makes nginx's configuration for one hospital: ``render.py SITE.TOML FOLDER [--down GATEWAY ...]``.

Standard library only. Every value is checked against the form of what it is: none can carry another directive along.
"""

from __future__ import annotations

import argparse
import re
import shutil
import sys
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

HERE: Final = Path(__file__).resolve().parent
TEMPLATES: Final = ("nginx.conf", "chatd.conf")
PAGES: Final = ("away.html", "maintenance.html")

_PATH: Final = r"/[A-Za-z0-9/._-]+"
_ADDRESS: Final = r"[0-9A-Fa-f:.]+(?:/[0-9]{1,3})?"
_NAME: Final = r"[A-Za-z0-9][A-Za-z0-9_-]{0,31}"
#: A department as it stands in a path; the characters of chatd's ids that need no care in nginx.
_DEPARTMENT: Final = r"[A-Za-z0-9][A-Za-z0-9_-]{0,127}"
_GATEWAY: Final = rf"unix:{_PATH}|(?:[A-Za-z0-9.-]+|\[[0-9A-Fa-f:]+\]):[0-9]{{1,5}}"
_LISTEN: Final = r"(?:(?:[0-9.]+|\[[0-9A-Fa-f:]+\]):)?[0-9]{1,5}"

#: Key to (form, list of it). A key with a default below may be left out.
_FORMS: Final[Mapping[str, tuple[str, bool]]] = {
    "authority": (r"[a-z0-9.-]+(?::[0-9]{1,5})?", False),
    "listen": (_LISTEN, True),
    "plain": (_LISTEN, True),
    "certificate": (_PATH, False),
    "key": (_PATH, False),
    "origins": (r"https://[a-z0-9.-]+(?::[0-9]{1,5})?", True),
    "monitoring": (_ADDRESS, True),
    "maintenance_file": (_PATH, False),
    "logs": (_PATH, False),
    "run": (_PATH, False),
    "user": (r"(?:[a-z_][a-z0-9_-]*)?", False),
}
_DEFAULTS: Final[Mapping[str, Any]] = {
    "plain": [],
    "monitoring": ["127.0.0.1", "::1"],
    "phones_per_address": 500,
    "open_files": 65_536,
    "user": "",
    "departments": {},
}
#: Key to least and most.
_NUMBERS: Final[Mapping[str, tuple[int, int]]] = {"phones_per_address": (1, 100_000), "open_files": (1_024, 1_048_576)}
#: The page and all that it loads are some thirty files.
_FILES_OF_PAGE: Final = 30


class SiteError(ValueError):
    """The site's file cannot be used; the text names the key."""


def load(path: Path) -> dict[str, Any]:
    """The checked settings of a site. Raises SiteError, OSError."""
    try:
        site: dict[str, Any] = {**_DEFAULTS, **tomllib.loads(path.read_text())}
    except tomllib.TOMLDecodeError as error:
        raise SiteError(f"{path}: {error}") from None
    known = {*_FORMS, *_NUMBERS, "gateways", "departments"}
    if unknown := sorted(site.keys() - known):
        raise SiteError(f"{unknown[0]}: no such key")
    if missing := sorted(known - site.keys()):
        raise SiteError(f"{missing[0]}: missing")
    for key, (form, is_list) in _FORMS.items():
        values = site[key] if is_list else [site[key]]
        if not isinstance(values, list) or not all(isinstance(v, str) and re.fullmatch(form, v) for v in values):
            raise SiteError(f"{key}: not of its form")
    for key in ("listen", "origins"):
        if not site[key]:
            raise SiteError(f"{key}: empty")
    for key, (least, most) in _NUMBERS.items():
        number = site[key]
        if not isinstance(number, int) or isinstance(number, bool) or not least <= number <= most:
            raise SiteError(f"{key}: {least} to {most}")
    _check_gateways(site["gateways"], site["departments"])
    return site


def _check_gateways(gateways: object, departments: object) -> None:
    if not isinstance(gateways, dict) or not gateways:
        raise SiteError("gateways: none")
    for name, address in gateways.items():
        if not re.fullmatch(_NAME, name) or not isinstance(address, str) or not re.fullmatch(_GATEWAY, address):
            raise SiteError("gateways: not of its form")
    if not isinstance(departments, dict):
        raise SiteError("departments: not a table")
    for department, names in departments.items():
        if not re.fullmatch(_DEPARTMENT, department) or not isinstance(names, list) or not names:
            raise SiteError("departments: not of its form")
        if not all(isinstance(name, str) and name in gateways for name in names):
            raise SiteError(f"departments.{department}: names no gateway")


def _upstream(name: str, gateways: Mapping[str, str], own: Sequence[str], down: frozenset[str]) -> str:
    """One group. Gateways that are not ``own`` stand in; a server that is ``down`` gets nothing new."""
    lines = [f"upstream {name} {{", f"    zone {name} 64k;", "    least_conn;"]
    for gateway, address in gateways.items():
        spare = "" if gateway in own else " backup"
        off = " down" if gateway in down else ""
        lines.append(f"    server {address} max_fails=1 fail_timeout=2s{spare}{off};")
    return "\n".join([*lines, "    keepalive 16;", "}"])


def _listen(addresses: Sequence[str], options: str, is_first: bool = True) -> str:
    """``ipv6only`` and the like are said once for each address."""
    only = {address: " ipv6only=on" if address.startswith("[::]") and is_first else "" for address in addresses}
    return "\n".join(f"    listen {address}{options}{only[address]};" for address in addresses)


def render(site: Mapping[str, Any], folder: Path, down: frozenset[str] = frozenset()) -> dict[str, str]:
    """The configuration's files by name, for ``folder``; nothing is written.

    Raises:
        SiteError: ``down`` names no gateway, or all of them: then nobody would be let in, which is maintenance.
    """
    gateways: Mapping[str, str] = site["gateways"]
    if not down <= gateways.keys():
        raise SiteError("--down names no gateway")
    if down >= gateways.keys():
        raise SiteError("--down names all gateways; use the maintenance file")
    if not re.fullmatch(_PATH, str(folder)):
        raise SiteError("the folder's path has other characters than letters, digits and /._-")
    name = site["authority"].partition(":")[0]
    phones = site["phones_per_address"]
    groups = [_upstream("chatd_all", gateways, tuple(gateways), down)]
    routes = []
    for number, (department, own) in enumerate(site["departments"].items()):
        groups.append(_upstream(f"chatd_{number}", gateways, own, down))
        routes.append(rf'    "~^/(?:chat|v1/departments)/{department}/" chatd_{number};')
    plain = ""
    if site["plain"]:
        # A fixed target: nothing of the request is repeated.
        plain = "\n".join(
            [
                "server {",
                _listen(site["plain"], " default_server"),
                "    server_name _;",
                f"    return 301 https://{site['authority']}/;",
                "}",
                "",
            ]
        )
    values = {
        "USER": f"user {site['user']};" if site["user"] else "",
        "CONF": str(folder),
        "RUN": site["run"],
        "LOGS": site["logs"],
        "NAME": name,
        "AUTHORITY": site["authority"],
        "LISTEN": _listen(site["listen"], " ssl", is_first=False),
        "LISTEN_DEFAULT": _listen(site["listen"], " ssl default_server"),
        "PLAIN": plain,
        "CERTIFICATE": site["certificate"],
        "KEY": site["key"],
        "MAINTENANCE": site["maintenance_file"],
        "ORIGINS": "\n".join(f'    "{origin}" 0;' for origin in site["origins"]),
        "MONITORING": "\n".join([*(f"        allow {who};" for who in site["monitoring"]), "        deny all;"]),
        "UPSTREAMS": "\n\n".join(groups) + "\n",
        "DEPARTMENTS": "\n".join(routes),
        "OPEN_FILES": str(site["open_files"]),
        "CONNECTIONS": str(site["open_files"] // 2),
        "ADDRESS_RATE": str(max(20, phones // 5)),
        "ADDRESS_BURST": str(phones * 2),
        "PAGE_RATE": str(max(200, phones)),
        "PAGE_BURST": str(phones * _FILES_OF_PAGE),
        "LINES": str(phones * 4),
    }
    files = {}
    for template in TEMPLATES:
        text = (HERE / f"{template}.in").read_text()
        files[template] = re.sub(r"@([A-Z_]+)@", lambda found: values[found[1]], text)
    return files


def write(site: Mapping[str, Any], folder: Path, down: frozenset[str] = frozenset()) -> None:
    """Write the configuration and its pages; each file is replaced at once. Raises SiteError, OSError."""
    files = render(site, folder, down)
    folder.mkdir(parents=True, exist_ok=True)
    for page in PAGES:
        shutil.copyfile(HERE / page, folder / page)
    for name, text in files.items():
        beside = folder / f".{name}"
        beside.write_text(text)
        beside.replace(folder / name)


def main() -> int:
    parser = argparse.ArgumentParser(description="Make nginx's configuration for chatd.")
    parser.add_argument("site", type=Path, help="the site's settings, as in site.toml")
    parser.add_argument("folder", type=Path, help="where the configuration is written, such as /etc/nginx/chatd")
    parser.add_argument("--down", action="append", default=[], metavar="GATEWAY", help="gets no new connections")
    arguments = parser.parse_args()
    try:
        write(load(arguments.site), arguments.folder.absolute(), frozenset(arguments.down))
    except (SiteError, OSError) as error:
        print(f"render: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

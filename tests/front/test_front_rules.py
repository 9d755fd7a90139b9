"""The rendered configuration: what a site's file may say, and that nothing in it can bring a directive along."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


def _script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "deploy" / "nginx" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


render = _script("render")
SITE = ROOT / "deploy" / "nginx" / "site.toml"
FOLDER = Path("/etc/nginx/chatd")


@pytest.fixture
def changed(tmp_path: Path) -> Callable[[str, str], Path]:
    """site.toml with one text replaced."""

    def change(old: str, new: str) -> Path:
        text = SITE.read_text()
        assert old in text
        path = tmp_path / "site.toml"
        path.write_text(text.replace(old, new))
        return path

    return change


def test_shipped_site_renders_without_a_hole() -> None:
    """The site that comes with chatd fills every place of the templates."""
    for text in render.render(render.load(SITE), FOLDER).values():
        assert not re.search(r"@[A-Z_]+@", text)


@pytest.mark.parametrize(
    ("old", "new", "key"),
    [
        ('"chat.hospital.example"', '"chat.example; deny all"', "authority"),
        ('"/etc/chatd/tls/chat.key"', '"/etc/chatd/chat key"', "key"),
        ('"443", "[::]:443"', '"443 http2"', "listen"),
        ('"https://chat.hospital.example"', '"*"', "origins"),
        ('"https://chat.hospital.example"', '"http://chat.hospital.example"', "origins"),
        ('["https://chat.hospital.example"]', "[]", "origins"),
        ('"127.0.0.1", "::1"', '"all"', "monitoring"),
        ("phones_per_address = 500", "phones_per_address = 0", "phones_per_address"),
        ("phones_per_address = 500", "phones_per_address = true", "phones_per_address"),
        ('"unix:/run/chatd-b/gateway.sock"', '"unix:/run/b.sock weight=9"', "gateways"),
        ('b = "unix', '"b;" = "unix', "gateways"),
        ('# cardiology = ["a"]', 'cardiology = ["c"]', "departments"),
        ('# cardiology = ["a"]', '"card.*" = ["a"]', "departments"),
        ("run =", "runs =", "runs"),
        ("logs = ", "# logs = ", "logs"),
        ("listen = ", "listen ", "site.toml"),
    ],
)
def test_bad_site_is_refused_by_its_key(changed: Callable[[str, str], Path], old: str, new: str, key: str) -> None:
    """A value that is not of its form, an unknown key and a missing one are refused, named by the key."""
    with pytest.raises(render.SiteError, match=key):
        render.load(changed(old, new))


def _upstreams(site: dict[str, Any], *down: str) -> dict[str, list[str]]:
    text = render.render(site, FOLDER, frozenset(down))["chatd.conf"]
    groups = re.findall(r"^upstream (\w+) \{(.*?)^\}", text, re.M | re.S)
    return {name: re.findall(r"server (.*?);", body) for name, body in groups}


def test_gateway_that_is_down_gets_nothing_new() -> None:
    """``--down`` marks this gateway in each group and leaves the others; not all can be down."""
    site = render.load(SITE)
    a, b = _upstreams(site, "a")["chatd_all"]
    assert (a.endswith(" down"), b.endswith(" down")) == (True, False)
    for wrong in (("c",), ("a", "b")):
        with pytest.raises(render.SiteError, match="down"):
            render.render(site, FOLDER, frozenset(wrong))


def test_department_has_its_gateways_and_the_others_stand_in(changed: Callable[[str, str], Path]) -> None:
    """A named department goes to its gateways first; the rest are spare, so that none is without a gateway."""
    site = render.load(changed('# cardiology = ["a"]', 'cardiology = ["a"]'))
    a, b = _upstreams(site)["chatd_0"]
    assert (" backup" in a, " backup" in b) == (False, True)
    assert '"~^/(?:chat|v1/departments)/cardiology/" chatd_0;' in render.render(site, FOLDER)["chatd.conf"]

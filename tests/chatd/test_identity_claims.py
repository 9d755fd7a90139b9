"""A provider's claims become roles and departments by the mapping alone."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatd.gateway.auth import TokenConfig, TokenError, TokenVerifier
from chatd.identity.claims import ClaimError, ClaimRules, Rule, load, mapped
from chatd.identity.jwks import TokenConfigError
from protocols.errors import ErrorCode
from tests.identity_attacks import Forge

NOW = datetime(2026, 1, 15, 7, 45, 20, tzinfo=UTC)
NOW_S = int(NOW.timestamp())
RULES = ClaimRules(
    roles=(
        Rule(("realm_access", "roles"), {"med": ("physician",), "chief": ("physician", "charge_doctor")}),
        Rule(("scope",), {"alerts:raise": ("service",)}, " "),
    ),
    departments=(Rule(("groups",), {"/ward/cardio": ("cardiology",), "/ward/*": ("icu",)}),),
    user=("ext", "login"),
)


def given_by(claims: dict[str, Any]) -> tuple[object, object, object]:
    found = mapped(RULES, claims)
    return found.get("sub"), found["roles"], found["departments"]


@pytest.mark.parametrize(
    ("claims", "gives"),
    [
        ({}, (None, [], [])),
        ({"ext": {"login": "dr.a"}, "sub": "7f-uuid"}, ("dr.a", [], [])),
        ({"realm_access": {"roles": ["med"]}}, (None, ["physician"], [])),
        ({"realm_access": {"roles": ["med", "chief", "med"]}}, (None, ["physician", "charge_doctor"], [])),
        ({"realm_access": {"roles": ["MED", "physician", ""]}}, (None, [], [])),
        ({"scope": "openid alerts:raise"}, (None, ["service"], [])),
        ({"scope": "alerts:raised"}, (None, [], [])),
        ({"groups": "/ward/cardio"}, (None, [], ["cardiology"])),
        ({"groups": ["/ward/icu"]}, (None, [], [])),
        ({"roles": ["physician"], "departments": ["icu"], "sub": "dr.b"}, (None, [], [])),
        ({"realm_access": None, "groups": None}, (None, [], [])),
    ],
)
def test_only_what_is_mapped_gives_anything(claims: dict[str, Any], gives: tuple[object, object, object]) -> None:
    """Unmapped groups, other letters, and a token's own roles and departments give nothing."""
    assert given_by(claims) == gives


@pytest.mark.parametrize(
    "claims",
    [
        {"groups": 7},
        {"groups": {"/ward/cardio": True}},
        {"groups": ["/ward/cardio", 1]},
        {"realm_access": ["roles"]},
        {"realm_access": "roles"},
        {"ext": "dr.a"},
    ],
)
def test_claim_of_another_form_is_refused(claims: dict[str, Any]) -> None:
    """A claim that is neither missing nor as the mapping says is no reason to guess."""
    with pytest.raises(ClaimError):
        mapped(RULES, claims)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)


@given(
    st.dictionaries(st.sampled_from(["groups", "scope", "realm_access", "ext", "roles", "departments"]), json_values)
)
def test_any_claims_give_only_what_the_rules_hold(claims: dict[str, Any]) -> None:
    """Whatever a provider says, no role and no department comes out that the mapping does not name."""
    try:
        _, roles, departments = given_by(claims)
    except ClaimError:
        return
    assert isinstance(roles, list)
    assert isinstance(departments, list)
    assert set(roles) <= {"physician", "charge_doctor", "service"}
    assert set(departments) <= {"cardiology", "icu"}


def test_mapped_token_must_name_its_subject_and_user(tmp_path: Path) -> None:
    """With a mapping, ``sub`` is still required, and the user must be where the mapping says, as an id."""
    forge = Forge()
    (tmp_path / "jwks.json").write_bytes(forge.jwks())
    rules = {"roles": [], "departments": [], "user": ["login"]}
    (tmp_path / "claims.json").write_text(json.dumps(rules))
    verifier = TokenVerifier(TokenConfig(jwks_file=tmp_path / "jwks.json", claims_file=tmp_path / "claims.json"))
    good = verifier.verify(forge.make({"claims": {"login": "dr.a", "sub": "7f/uuid"}}, NOW_S), now=NOW)
    assert (good.user_id, good.roles, good.departments) == ("dr.a", (), ())
    for claims in ({"login": None}, {"login": "../a"}, {"login": ["dr.a"]}, {"login": "dr.a", "sub": None}):
        with pytest.raises(TokenError) as error:
            verifier.verify(forge.make({"claims": claims}, NOW_S), now=NOW)
        assert (error.value.code, error.value.detail) == (ErrorCode.UNAUTHORIZED, "claims")


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{}",
        '{"roles": []}',
        '{"roles": [], "departments": [], "rolls": []}',
        '{"roles": [{"claim": [], "values": {}}], "departments": []}',
        '{"roles": [{"claim": "groups", "values": {}}], "departments": []}',
        '{"roles": [{"claim": ["groups"], "values": {"a": ["not an id"]}}], "departments": []}',
        '{"roles": [], "departments": [], "user": []}',
    ],
)
def test_mapping_that_cannot_be_used_stops_the_start(tmp_path: Path, content: str) -> None:
    """A mapping with a mistake is told with its file; a misspelt field does not give nothing silently."""
    path = tmp_path / "claims.json"
    path.write_text(content)
    with pytest.raises(TokenConfigError, match=r"claims\.json"):
        load(path)

"""The protocol library: what it loads and refuses, what it quotes, and the vignettes of the clinical test data."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from importlib import resources
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from context.library import Hit, Library, LibraryError, Query
from context.library.library import SECTIONS_PER_PROTOCOL
from protocols.frames import ProtocolQuote
from tests.clinical_data import clinical_path

LIBRARY = Library.load()
TODAY = date(2026, 1, 15)
EMERGENCIES = [
    "stemi",
    "stroke",
    "sepsis",
    "trauma",
    "cardiac_arrest",
    "anaphylaxis",
    "hyperkalaemia",
    "glucose",
    "heart_failure",
    "shock",
    "af",
    "qtc",
    "bleeding",
    "respiratory_failure",
]
ANALYTES = [
    "potassium",
    "sodium",
    "glucose",
    "calcium",
    "ionised_calcium",
    "magnesium",
    "bicarbonate",
    "haemoglobin",
    "platelets",
    "wbc",
    "inr",
    "lactate",
    "ph",
    "pco2",
    "po2",
    "troponin",
    "creatinine",
    "fibrinogen",
    "digoxin",
]


def _ids(hits: tuple[Hit, ...]) -> list[str]:
    return list(dict.fromkeys(hit.protocol.id for hit in hits))


# --- the vignettes --------------------------------------------------------------------------------------------


def _vignettes() -> list[dict[str, Any]]:
    lines = clinical_path("vignettes", "acute_vignettes.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines if line.strip()]


def _vignette_query(case: dict[str, Any]) -> Query:
    """The query of a vignette, with the signals that triage would give: critical flags and the NEWS2 band."""
    names = {"hemoglobin": "haemoglobin"}
    signals = []
    for lab in case["labs"]:
        if lab["flag"] in ("HH", "LL"):
            name = lab["name"].lower()
            side = "high" if lab["flag"] == "HH" else "low"
            signals.append(f"critical.{names.get(name, name)}.{side}")
    news2 = case["expected"]["news2"]
    signals += ["news2.high"] if news2 >= 7 else ["news2.medium"] if news2 >= 5 else []
    return Query(
        question=case["question"],
        department=case["department"],
        problems=tuple(case["problems"]),
        medicines=tuple(case["medications"]),
        signals=tuple(signals),
    )


def test_search_every_vignette_finds_its_protocols_and_their_lines() -> None:
    """Every vignette's protocols are found among at most four, with the lines it needs, and few others."""
    missing, silent, beside = [], [], 0
    cases = _vignettes()
    for case in cases:
        hits = LIBRARY.search(_vignette_query(case), limit=4)
        expected = set(case["expected"]["protocols"])
        found = set(_ids(hits))
        if not expected <= found:
            missing.append((case["id"], sorted(expected - found)))
        beside += len(found - expected)
        quoted = "\n".join(hit.section.text for hit in hits).casefold()
        silent += [
            (case["id"], word) for word in case["expected"].get("must_mention", ()) if word.casefold() not in quoted
        ]
        if not expected:
            assert not hits, case["id"]
    assert missing == []
    assert silent == []
    assert beside <= len(cases) // 5


# --- the data -------------------------------------------------------------------------------------------------


def test_data_carries_every_fact_of_the_source_notes_byte_for_byte() -> None:
    """Every fact of the notes stands in exactly one section of its protocol, with its source and basis."""
    notes = json.loads(clinical_path("protocols", "protocol_facts.json").read_text(encoding="utf-8"))
    for note in notes["protocols"]:
        protocol = LIBRARY.get(note["id"])
        ours = sorted((f.kind, f.text, f.source, f.basis) for s in protocol.sections for f in s.facts)
        theirs = sorted((f["kind"], f["text"], f["source"], f["basis"]) for f in note["facts"])
        assert ours == theirs, note["id"]
        assert protocol.source == note["primary_source"]
        assert protocol.trigger == note["trigger"]
        assert list(protocol.departments) == note["departments"]


@pytest.mark.parametrize("protocol_id", LIBRARY.ids())
def test_data_every_protocol_is_a_draft_with_year_source_and_review(protocol_id: str) -> None:
    """Nothing that comes with chatd is clinically approved, and everything has source, year and a review date."""
    protocol = LIBRARY.get(protocol_id)
    assert protocol.status == "draft"
    assert protocol.approver is None
    assert protocol.source
    assert 2000 <= protocol.year <= 2026
    assert protocol.review_date >= date(protocol.year, 1, 1)
    assert any(section.lead for section in protocol.sections)
    assert protocol.title_pt != protocol.title
    assert protocol.triggers.pt.strong
    assert protocol.triggers.en.strong


def test_data_pages_without_seen_source_say_so() -> None:
    """The pages added to the notes claim nothing as seen in a primary source."""
    notes = json.loads(clinical_path("protocols", "protocol_facts.json").read_text(encoding="utf-8"))
    added = set(LIBRARY.ids()) - {note["id"] for note in notes["protocols"]}
    assert added == {"oxygen", "transfusion"}
    for protocol_id in added:
        assert all(f.basis in ("S2", "G") for s in LIBRARY.get(protocol_id).sections for f in s.facts)


@pytest.mark.parametrize("emergency", EMERGENCIES)
def test_search_every_recognised_emergency_has_a_page_in_every_department(emergency: str) -> None:
    """A recognised emergency brings a page whatever was asked and wherever, even with the smallest limit."""
    for department in ("cardiology", "emergency", "surgery", "icu", "unknown"):
        query = Query(question="Which allergies?", department=department, signals=(f"emergency.{emergency}",))
        assert LIBRARY.search(query, limit=1)


@pytest.mark.parametrize("analyte", ANALYTES)
def test_search_every_critical_analyte_has_a_page_when_asked_what_to_do(analyte: str) -> None:
    """A critical result brings a page to "what now?", and none to a question about something else."""
    signals = (f"critical.{analyte}",)
    assert LIBRARY.search(Query(question="What should I do next?", signals=signals))
    assert not LIBRARY.search(Query(question="Who is on call tonight?", signals=signals))


def test_search_more_emergencies_than_the_limit_are_all_found() -> None:
    """The limit never hides a recognised emergency."""
    emergencies = ("stemi", "stroke", "sepsis", "anaphylaxis", "hyperkalaemia", "glucose")
    query = Query(question="CHA2DS2-VASc?", signals=tuple(f"emergency.{e}" for e in emergencies))
    assert set(emergencies) <= set(_ids(LIBRARY.search(query, limit=2)))


def test_search_limit_counts_protocols_and_caps_sections() -> None:
    """At most ``limit`` protocols, each with at most the capped number of sections, grouped and best first."""
    question = "septic shock, MAP 50, new AF, K 6.9, QTc 520, STEMI, glucose 40, PEA arrest"
    for limit in (1, 2, 4, 8):
        hits = LIBRARY.search(Query(question=question), limit=limit)
        ids = [hit.protocol.id for hit in hits]
        assert len(set(ids)) == limit
        assert all(1 <= ids.count(i) <= SECTIONS_PER_PROTOCOL for i in set(ids))
        assert ids == [i for i in _ids(hits) for _ in range(ids.count(i))]
        assert [h.score for h in hits] == sorted((h.score for h in hits), reverse=True)


def test_search_department_only_breaks_ties() -> None:
    """The department orders equals and never removes a page."""
    question = "RASS and QTc"
    for department, first in (("icu", {"sedation", "qtc"}), ("cardiology", {"qtc"})):
        found = _ids(LIBRARY.search(Query(question=question, department=department)))
        assert set(found) == {"qtc", "sedation"}
        assert found[0] in first


def test_search_why_holds_the_librarys_words_only() -> None:
    """The reason of a hit is fit for an audit: it holds no word that only the question has."""
    query = Query(question="Zebedeu Quintanilha, potassium 6.9", problems=("Zebedeu CKD",), reports=("Quintanilha",))
    hits = LIBRARY.search(query)
    assert hits
    why = " ".join(reason for hit in hits for reason in hit.why).casefold()
    assert "zebedeu" not in why
    assert "quintanilha" not in why


# --- quotes and banners ---------------------------------------------------------------------------------------


def _sections() -> Iterator[tuple[str, str]]:
    for protocol_id in LIBRARY.ids():
        for section in LIBRARY.get(protocol_id).sections:
            yield protocol_id, section.id


@pytest.mark.parametrize(("protocol_id", "section_id"), list(_sections()))
def test_quote_is_the_file_byte_for_byte(protocol_id: str, section_id: str) -> None:
    """The quote is what stands in the data file, in both languages."""
    raw = json.loads(resources.files("context.library.data").joinpath(f"{protocol_id}.json").read_bytes())
    (section,) = (s for s in raw["sections"] if s["id"] == section_id)
    for lang, title in (("en", raw["title"]), ("pt-PT", raw["title_pt"])):
        quote = LIBRARY.quote((protocol_id, section_id), today=TODAY, lang=lang)
        assert quote.quote.encode() == "\n".join(f["text"] for f in section["facts"]).encode()
        assert (quote.id, quote.title, quote.section) == (protocol_id, title, section_id)
        assert (quote.source, quote.year) == (raw["source"], raw["year"])
        assert quote.superseded_by == raw["superseded_by"]
        assert quote.review_due == raw["review_date"]
        assert quote.approved_by is None
        assert msgspec.json.decode(msgspec.json.encode(quote), type=ProtocolQuote) == quote


@given(days=st.integers(-4000, 4000), lang=st.sampled_from(["en", "pt", "pt-BR", "PT-pt", "", "de"]))
def test_quote_notice_says_superseded_overdue_unapproved_and_unfounded(days: int, lang: str) -> None:
    """Each state that a reader must know stands in the notice, exactly when it holds."""
    portuguese = lang.lower().startswith("pt")
    for protocol_id, section_id in _sections():
        protocol = LIBRARY.get(protocol_id)
        today = protocol.review_date + timedelta(days=days)
        notice = LIBRARY.quote((protocol_id, section_id), today=today, lang=lang).notice
        assert (("SUBSTITUÍDO" if portuguese else "SUPERSEDED") in notice) == (protocol.superseded_by is not None)
        assert (("REVISÃO EM ATRASO" if portuguese else "REVIEW OVERDUE") in notice) == (days > 0)
        assert ("Sem aprovação clínica" if portuguese else "Not clinically approved") in notice
        unfounded = any(f.basis == "G" for f in protocol.section(section_id).facts)
        assert (("Conhecimento geral" if portuguese else "General knowledge") in notice) == unfounded


def test_quote_names_the_lines_of_general_knowledge() -> None:
    """The notice counts the lines without a seen source from 1, in the order of the quote."""
    quote = LIBRARY.quote(("stemi", "medicines"), today=TODAY, lang="en")
    assert quote.notice.endswith("General knowledge, no source seen: line 2, line 3, line 6.")
    assert quote.quote.split("\n")[1].startswith("P2Y12 load")


def test_quote_sepsis_is_superseded_by_2026() -> None:
    """The 2021 sepsis page says that the 2026 edition has replaced it."""
    quote = LIBRARY.quote(("sepsis", "first_hour"), today=TODAY, lang="en")
    assert quote.year == 2021
    assert quote.superseded_by is not None
    assert "2026" in quote.superseded_by
    assert quote.notice.startswith("SUPERSEDED by Surviving Sepsis Campaign 2026")


def test_quote_unknown_section_is_refused() -> None:
    """An unknown protocol or section is a KeyError, never an empty quote."""
    for key in (("nosuch", "times"), ("stemi", "nosuch")):
        with pytest.raises(KeyError):
            LIBRARY.quote(key, today=TODAY, lang="en")


# --- searching anything ---------------------------------------------------------------------------------------

WORDS = """
no sem not não K 6.9 chest pain dor torácica STEMI sepsis AVC
history of , . : ( or ou QTc 520 HIT hit MAP 55
glucose 42 mmol/L HFrEF trauma in 2019 ruled out denies nega no choque ST elevation
"""
CLINICAL_WORDS = st.sampled_from(WORDS.split())
ANY_TEXT = st.one_of(st.text(max_size=300), st.lists(CLINICAL_WORDS, max_size=40).map(" ".join))
ANY_SIGNAL = st.one_of(
    st.sampled_from([f"emergency.{e}" for e in EMERGENCIES]),
    st.sampled_from([f"critical.{a}" for a in ANALYTES] + ["critical.potassium.high", "critical.sodium.low"]),
    st.sampled_from(["news2.high", "news2.medium"]),
    st.text(max_size=20),
)
SOME = st.lists(ANY_TEXT, max_size=4).map(tuple)
QUERIES = st.builds(
    Query,
    question=ANY_TEXT,
    department=st.sampled_from(["", "icu", "emergency", "surgery", "cardiology"]),
    problems=SOME,
    medicines=SOME,
    reports=SOME,
    signals=st.lists(ANY_SIGNAL, max_size=6).map(tuple),
)


@settings(max_examples=300)
@given(query=QUERIES, limit=st.integers(-2, 30))
def test_search_any_text_gives_the_same_hits_again(query: Query, limit: int) -> None:
    """No text raises; the same query gives the same hits, also from a library loaded anew; no section twice."""
    hits = LIBRARY.search(query, limit=limit)
    assert hits == LIBRARY.search(query, limit=limit) == OTHER.search(query, limit=limit)
    places = [(hit.protocol.id, hit.section.id) for hit in hits]
    assert len(set(places)) == len(places)
    for hit in hits:
        assert hit.section in hit.protocol.sections
        assert LIBRARY.quote(hit, today=TODAY, lang="en").quote == hit.section.text


OTHER = Library.load()


@given(query=QUERIES, emergency=st.sampled_from(["stemi", "stroke", "sepsis", "cardiac_arrest", "anaphylaxis"]))
def test_search_emergency_is_never_hidden(query: Query, emergency: str) -> None:
    """Whatever else stands in question and record, a recognised emergency's page is found."""
    query = msgspec.structs.replace(query, signals=(f"emergency.{emergency}", *query.signals))
    assert emergency in _ids(LIBRARY.search(query, limit=1))


def test_search_long_texts_are_read_within_bounds() -> None:
    """Megabytes of text in every field are cut, not refused."""
    long = "chest pain hyperkalaemia xxxxxxy " * 40_000
    query = Query(question=long, problems=(long,) * 300, medicines=(long,) * 300, reports=(long,) * 300)
    assert "hyperkalaemia" in _ids(LIBRARY.search(query))


# --- loading --------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the data that a test may break."""
    for name in ("stemi.json", "nste_acs.json", "cardiac_arrest.json", "heart_failure.json", "terms.json"):
        shutil.copy(Path(str(resources.files("context.library.data").joinpath(name))), tmp_path / name)
    for name in ("stemi", "nste_acs", "cardiac_arrest", "heart_failure"):
        _edit(tmp_path, name, related=[], companions=[])
    return tmp_path


def _edit(folder: Path, name: str, **changes: Any) -> None:
    path = folder / f"{name}.json"
    raw = json.loads(path.read_bytes())
    for key, value in changes.items():
        if value is ...:
            del raw[key]
        else:
            raw[key] = value
    path.write_text(json.dumps(raw, ensure_ascii=False), encoding="utf-8")


def test_load_hospital_folder_replaces_all(folder: Path) -> None:
    """A hospital's folder is the whole library; its version follows its content."""
    ours = Library.load(folder)
    assert ours.ids() == ("cardiac_arrest", "heart_failure", "nste_acs", "stemi")
    assert _ids(ours.search(Query(question="STEMI"))) == ["stemi"]
    assert ours.version == Library.load(folder).version != LIBRARY.version
    _edit(folder, "stemi", year=2024)
    assert Library.load(folder).version != ours.version


def test_load_folder_without_terms_uses_chatds_own(folder: Path) -> None:
    """A hospital need not keep its own table of words."""
    (folder / "terms.json").unlink()
    assert _ids(Library.load(folder).search(Query(question="dor no peito com supra de ST"))) == ["stemi"]


def test_load_approved_protocol_names_its_approver(folder: Path) -> None:
    """An approved protocol carries the approver on the wire and in the notice, and no "not approved"."""
    _edit(folder, "stemi", status="approved", approver="Dr. A. Example", approved_on="2026-01-10")
    quote = Library.load(folder).quote(("stemi", "reperfusion"), today=TODAY, lang="en")
    assert quote.approved_by == "Dr. A. Example"
    assert quote.notice == "Approved by Dr. A. Example on 2026-01-10."


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"year": ...}, "year"),
        ({"year": "2025"}, "year"),
        ({"year": 1066}, "year"),
        ({"source": ...}, "source"),
        ({"source": ""}, "source"),
        ({"review_date": ...}, "review_date"),
        ({"review_date": "soon"}, "review_date"),
        ({"superseded_by": ...}, "superseded_by"),
        ({"departments": []}, "departments"),
        ({"related": ["nosuch"]}, "related"),
        ({"related": ["stemi"]}, "related"),
        ({"companions": ["nosuch"]}, "companions"),
        ({"id": "other"}, "id"),
        ({"id": "nste_acs"}, "id"),
        ({"status": "approved"}, "status"),
        ({"approver": "Dr. A"}, "status"),
        ({"sections": []}, "sections"),
        ({"unheard_of": 1}, "file"),
        ({"numbers": [{"name": "n", "section": "nosuch", "text": "x", "unit": ""}]}, "numbers"),
        (
            {"numbers": [{"name": "n", "section": "reperfusion", "text": "91 min", "unit": "min", "high": 91}]},
            "numbers",
        ),
        ({"numbers": [{"name": "n", "section": "reperfusion", "text": "90 min", "unit": "min", "high": 9}]}, "numbers"),
    ],
)
def test_load_broken_protocol_names_file_and_field(folder: Path, changes: dict[str, Any], field: str) -> None:
    """A protocol that lacks or contradicts something is refused, and the error says where."""
    _edit(folder, "stemi", **changes)
    with pytest.raises(LibraryError) as error:
        Library.load(folder)
    assert error.value.file == "stemi.json"
    assert field in error.value.field
    assert str(error.value).startswith("stemi.json: ")


def test_load_broken_fact_names_its_place(folder: Path) -> None:
    """An error inside a section says which section, which fact and which field."""
    raw = json.loads((folder / "stemi.json").read_bytes())
    raw["sections"][1]["facts"][2]["basis"] = "X"
    (folder / "stemi.json").write_text(json.dumps(raw), encoding="utf-8")
    with pytest.raises(LibraryError) as error:
        Library.load(folder)
    assert error.value.field == "sections[1].facts[2].basis"


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"null", b" " * 300_000])
def test_load_file_that_is_no_protocol_is_refused(folder: Path, content: bytes) -> None:
    """A truncated, empty, oversized or foreign file stops the start with its name."""
    (folder / "stemi.json").write_bytes(content)
    with pytest.raises(LibraryError) as error:
        Library.load(folder)
    assert error.value.file == "stemi.json"


def test_load_empty_or_missing_folder_is_refused(tmp_path: Path) -> None:
    """A server never starts with an empty library by mistake."""
    with pytest.raises(LibraryError):
        Library.load(tmp_path)
    with pytest.raises(LibraryError):
        Library.load(tmp_path / "nosuch")


def test_load_synonym_of_two_terms_is_refused(folder: Path) -> None:
    """A word that stands for two different terms is an error of the table, not a coin toss."""
    raw = json.loads((folder / "terms.json").read_bytes())
    raw["synonyms"].append(["something else", "norad"])
    (folder / "terms.json").write_text(json.dumps(raw), encoding="utf-8")
    with pytest.raises(LibraryError) as error:
        Library.load(folder)
    assert error.value.file == "terms.json"


def test_banner_follows_the_day_given() -> None:
    """The banner knows no clock: the last day of review is still in time, the next is not."""
    stemi = LIBRARY.get("stemi")
    late = stemi.review_date + timedelta(days=1)
    assert "OVERDUE" not in LIBRARY.banner(stemi, today=stemi.review_date, lang="en")
    assert "OVERDUE" in LIBRARY.banner(stemi, today=late, lang="en")
    assert LIBRARY.banner(stemi, today=datetime(2026, 1, 1, tzinfo=UTC).date(), lang="pt") == "Sem aprovação clínica."


def test_docs_list_every_protocol_with_its_year() -> None:
    """The page for the owners of the protocols names each one with the year of its source."""
    page = Path(__file__).resolve().parents[2].joinpath("docs", "protocol-library.md").read_text(encoding="utf-8")
    rows = {}
    for line in page.splitlines():
        cells = [cell.strip() for cell in line.split("|")]
        if line.startswith("| `") and cells[3].isdigit():
            rows[cells[1].strip("`")] = (int(cells[3]), "superseded" in cells[4])
    assert rows == {i: (LIBRARY.get(i).year, LIBRARY.get(i).superseded_by is not None) for i in LIBRARY.ids()}

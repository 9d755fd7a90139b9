"""Medicines in text, and what speaks against them: allergies and interactions, from one table with sources.

Over-alerting is a harm of its own: "critical" (which interrupts) is for the ONC pairs, same-class allergy and few hard
stops; the rest is "warning" or "info". Nothing is said of furosemide after a sulfonamide-antibiotic allergy, nor of
contrast with shellfish. The table is ``data/medication.json``; no pharmacist has approved it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from datetime import timedelta
from typing import Literal

import msgspec
from rapidfuzz import process
from rapidfuzz.distance import OSA

from chatd.safety.data import load
from chatd.safety.words import key, longest_by_first_word, number, pick, slug
from context.layers import Allergy, ChartRef, Medication, PatientLayer
from context.memo import remembers
from context.text import fold
from protocols.frames import Check

Level = Literal["info", "warning", "critical"]

#: Longer text is not read on: a medicine list fits many times over.
MAX_CHARS = 20_000
#: An estimated filtration rate older than this does not decide about contrast.
EGFR_MAX_AGE_DAYS = 90
#: LOINC codes of estimated glomerular filtration rates.
_EGFR = frozenset(
    {
        "33914-3",
        "48642-3",
        "48643-1",
        "50044-7",
        "62238-1",
        "69405-9",
        "77147-7",
        "88293-6",
        "88294-4",
        "98979-8",
        "98980-6",
    }
)


class DrugClass(msgspec.Struct, frozen=True, kw_only=True):
    """A class of medicines: its names, the basis of its member list, members by generic name, words for the class."""

    en: str
    pt: str
    basis: str
    members: tuple[str, ...]
    words: tuple[str, ...]


class AllergyRule(msgspec.Struct, frozen=True, kw_only=True):
    """What an allergy to one class means for another; the first rule that fits decides. "none" ends the search."""

    allergy: str
    medicine: str
    level: Literal["none", "info", "warning", "critical"]
    source: str
    en: str
    pt: str
    reaction: str = ""


class SideChain(msgspec.Struct, frozen=True, kw_only=True):
    """Beta-lactams with the same or a similar R1 side chain."""

    members: tuple[str, ...]
    basis: str


class Interaction(msgspec.Struct, frozen=True, kw_only=True):
    """A pair of classes or medicines that should not meet; ``requires``: stroke, renal or neonate."""

    id: str
    a: str
    b: str
    level: Level
    source: str
    severity: str
    en: str
    pt: str
    requires: str = ""


class Table(msgspec.Struct, frozen=True, kw_only=True):
    """``data/medication.json`` as it is."""

    about: str
    sources: dict[str, str]
    classes: dict[str, DrugClass]
    names: dict[str, tuple[str, ...]]
    combinations: dict[str, tuple[str, ...]]
    brands: dict[str, tuple[str, ...]]
    same_side_chain: tuple[SideChain, ...]
    allergy_rules: tuple[AllergyRule, ...]
    interactions: tuple[Interaction, ...]


TABLE: Table = msgspec.convert(load("medication"), Table)


class Drug(msgspec.Struct, frozen=True, kw_only=True):
    """A medicine found in a text.

    id: its generic name in English ("furosemide"), or the class's id when only a class was named (``is_class``).
    text: as written; ``start``, ``end``: where in the folded text. classes: ids of its classes.
    """

    id: str
    text: str
    classes: tuple[str, ...] = ()
    is_class: bool = False
    start: int = 0
    end: int = 0


def skeleton(word: str) -> str:
    """What the English, international and Portuguese spellings of a generic name have in common.

    "furosemide" and "furosemida", "amoxicillin" and "amoxicilina", "warfarin" and "varfarina",
    "spironolactone" and "espironolactona" are each one skeleton.
    """
    bare = key(word).replace(" ", "")
    for old, new in (
        ("ph", "f"),
        ("th", "t"),
        ("ch", "c"),
        ("y", "i"),
        ("w", "v"),
        ("k", "c"),
        ("ae", "e"),
        ("oe", "e"),
    ):
        bare = bare.replace(old, new)
    bare = bare.replace("mf", "nf")
    bare = re.sub(r"(.)\1", r"\1", bare)
    bare = re.sub(r"^es(?=[pt])", "s", bare)
    if len(bare) > 5:
        bare = re.sub(r"s$", "", bare)
        bare = re.sub(r"(um|[aeo])$", "", bare)
    return bare


def _classes_of() -> dict[str, tuple[str, ...]]:
    out: dict[str, list[str]] = {}
    for class_id, drug_class in TABLE.classes.items():
        for member in drug_class.members:
            out.setdefault(member, []).append(class_id)
    for class_id in TABLE.classes:
        own = out.setdefault(class_id, [])
        if class_id not in own:
            own.append(class_id)
    return {drug: tuple(classes) for drug, classes in out.items()}


_CLASSES = _classes_of()
_MEMBERS = frozenset(member for drug_class in TABLE.classes.values() for member in drug_class.members)


def _phrases() -> dict[str, tuple[tuple[str, ...], bool]]:
    """Every name of several words, or with a spelling of its own, to (generic names, is a class)."""
    out: dict[str, tuple[tuple[str, ...], bool]] = {}
    for class_id, drug_class in TABLE.classes.items():
        for word in drug_class.words:
            out[key(word)] = ((class_id,), True)
    for member in _MEMBERS:
        out[key(member)] = ((member,), False)
    for drug, names in TABLE.names.items():
        for name in names:
            out[key(name)] = ((drug,), False)
    for names_table in (TABLE.combinations, TABLE.brands):
        for name, drugs in names_table.items():
            out[key(name)] = (drugs, False)
    return out


_PHRASES = _phrases()
#: By its first word: of how many words the longest phrase is. Most words of a text begin none.
_LONGEST = longest_by_first_word(_PHRASES)
_WORD = re.compile(r"[a-z0-9]+")


def _skeletons() -> dict[str, tuple[tuple[str, ...], bool]]:
    out: dict[str, tuple[tuple[str, ...], bool]] = {}
    for phrase, found in sorted(_PHRASES.items()):
        if " " not in phrase and len(phrase) >= 5:
            out.setdefault(skeleton(phrase), found)
    return out


_SKELETONS = _skeletons()
_LONG_SKELETONS = tuple(sorted(bone for bone in _SKELETONS if len(bone) >= 7))

#: Shorter words are looked up as they stand alone: too much is one letter away from them.
_MIN_REPAIRED = 5
#: Ordinary words one letter away from a medicine.
_ORDINARY = frozenset(
    """aspirate aspirated aspiration mineral general generals central several paracentesis heparan hepatic
    opioide creatinine creatinina contrasts contrasta""".split()  # noqa: SIM905
)


@remembers(8192)
def _lookup(word: str) -> tuple[tuple[str, ...], bool] | None:
    """One word to generic names: as written, by its skeleton, or one letter away from exactly one skeleton."""
    if word in _PHRASES:
        return _PHRASES[word]
    if len(word) < _MIN_REPAIRED or word in _ORDINARY or not word.isalpha():
        return None
    bone = skeleton(word)
    if bone in _SKELETONS:
        return _SKELETONS[bone]
    if len(bone) < 7:
        return None
    near = process.extract(bone, _LONG_SKELETONS, scorer=OSA.distance, score_cutoff=1, limit=3)
    hits = {_SKELETONS[name] for name, _, _ in near if name[0] == bone[0]}
    return next(iter(hits)) if len(hits) == 1 else None


def drugs_in(text: str) -> tuple[Drug, ...]:
    """The medicines and classes of medicines that a text names, in its order, each mention.

    Doses, salts and forms are passed over; brands become generic names; a combination gives each of its parts.
    English and Portuguese names, one mistyped letter in long ones. Never raises; reads ``MAX_CHARS`` characters.
    """
    return drugs_in_folded(fold(text[:MAX_CHARS]))


def drugs_in_folded(plain: str) -> tuple[Drug, ...]:
    """``drugs_in`` of a text that is folded already (see ``context.text.fold``)."""
    words = _WORD.findall(plain)
    # Most words name nothing, and most lines no medicine. A short word does so only as it stands.
    starts = [
        at
        for at, word in enumerate(words)
        if word in _LONGEST or (len(word) >= _MIN_REPAIRED and _lookup(word) is not None)
    ]
    if not starts:
        return ()
    places = [match.span() for match in _WORD.finditer(plain)]
    found: list[Drug] = []
    free = 0
    for at in starts:
        if at < free:
            continue
        for size in range(min(_LONGEST.get(words[at], 1), len(words) - at), 0, -1):
            phrase = words[at] if size == 1 else " ".join(words[at : at + size])
            hit = _PHRASES.get(phrase) if size > 1 else _lookup(phrase)
            if hit is None or (size == 1 and not _means_a_drug(words, at)):
                continue
            start, end = places[at][0], places[at + size - 1][1]
            names, is_class = hit
            found.extend(
                Drug(id=name, text=plain[start:end], classes=_CLASSES[name], is_class=is_class, start=start, end=end)
                for name in names
            )
            free = at + size
            break
    return tuple(found)


def _means_a_drug(words: Sequence[str], at: int) -> bool:
    """False for "ASA III" (an anaesthetic class) and "in contrast"."""
    word = words[at]
    following = words[at + 1] if at + 1 < len(words) else ""
    before = words[at - 1] if at else ""
    if word == "asa":
        return re.fullmatch(r"[1-6]|i{1,3}|iv|v|vi|class|score|grade|physical|ps|classe", following) is None
    if word == "contrast":
        return not (before in {"in", "by"} and following in {"to", "with", ""})
    return True


# --- what is known about the patient, and what is asked -----------------------------------------------------


class _Item(msgspec.Struct, frozen=True, kw_only=True):
    """A medicine to check: where it was found (chart item, question or proposal)."""

    drug: Drug
    origin: Literal["current", "question", "proposed"]
    ref: ChartRef | None = None


#: A rule, and the medicine of the allergy that it is about; None for another substance.
_Rule = tuple[AllergyRule, Drug | None]


class _Allergen(msgspec.Struct, frozen=True, kw_only=True):
    """An allergy with the medicines and other substances it names, and the rules that may speak about it."""

    label: str
    drugs: tuple[Drug, ...]
    substances: tuple[str, ...]
    reaction: str
    severe: bool
    ref: ChartRef | None
    rules: tuple[_Rule, ...]


_SUBSTANCES = (
    ("egg_or_soya", re.compile(r"\b(eggs?|soya?|soy bean|ovos?|soja)\b")),
    ("shellfish", re.compile(r"\b(shellfish|seafood|prawns?|shrimps?|crustacea\w*|marisco|camarao|camaroes)\b")),
)
_NONE_KNOWN = re.compile(
    r"\b(no known|nkda|nka|none known|sem alergias|nao tem alergias|desconhec\w*"
    r"|nega alergias)\b"
)
_REACTIONS = {
    "angioedema": re.compile(r"\bangio ?o?edema\b"),
    "cough": re.compile(r"\b(cough|tosse)\b"),
    "hit": re.compile(
        r"\b(hit|tih|hitt|heparin induced|induzida p(or|ela) heparina|thrombocytop\w*"
        r"|trombocitop\w*)\b"
    ),
}
_INTOLERANCE = re.compile(
    r"\b(nausea\w*|vomit\w*|diarr\w*|gi upset|stomach\w*|dyspepsia|dispepsia|constipat\w*|obstipacao|headache"
    r"|cefaleia"
    r"|intoleran\w*|dizz\w*|tontur\w*|gastr\w*|myalgia|mialgia\w*)\b"
)
_SEVERE = re.compile(
    r"\b(anaphyla\w*|anafila\w*|angio ?o?edema|stevens|necrolys\w*|necrolis\w*|dress|shock|choque|bronchosp\w*"
    r"|broncosp\w*|severe|grave)\b"
)
_ALLERGY_BEFORE = re.compile(
    r"\b(?:allerg\w*|alergi\w*|intoleran\w*|anaphyla\w*|anafila\w*|reactions?|reacao|reacoes|angio ?o?edema|rash"
    r"|hypersensitiv\w*)"
    r"[ ]*(?::|to|for|with|from|on|after|a|ao|aos|as|com|por|da|do|de)[ ]*((?:[a-z0-9/]+[ ]*){0,4})$"
)
_ALLERGY_AFTER = re.compile(
    r"^[ ]*[-(:/]?[ ]*(?:allerg\w*|alergi\w*|anaphyla\w*|anafila\w*|intoleran\w*|hypersensitiv\w*|rash"
    r"|angio ?o?edema)\b"
)
_ASKING = re.compile(
    r"\b(can|could|give|giving|is|are|should|start|use|safe|ok|vs|or|need|needs|wants?|now|dar|posso|pode|podemos"
    r"|iniciar|usar|ou|precisa|administrar)\b"
)
_NOT_GIVEN = re.compile(
    r"\b(stop(?:ped|ping)?|hold(?:ing)?|withhold|withheld|discontinu\w*|avoid(?:ing)?|suspend\w*|suspens\w*|parar"
    r"|parou|evitar|evite"
    r"|instead of|em vez d[eo]|off|previously on|used to take|descontinu\w*)[ ]*(?:the |his |her |a |o |as "
    r"|os )?(?:[a-z0-9]+ )?$"
)


#: How far around a medicine the words decide whether it is meant, stopped or an allergy.
_AROUND_CHARS = 120


def _allergens(patient: PatientLayer) -> list[_Allergen]:
    """The active allergies of the record, and heparin-induced thrombocytopenia where it stands among the problems."""
    out = []
    for allergy in patient.allergies:
        name = fold(allergy.name)
        if not allergy.active or allergy.verification in {"refuted", "entered-in-error"} or _NONE_KNOWN.search(name):
            continue
        said = fold(f"{allergy.name} {allergy.reaction}")
        drugs = drugs_in(allergy.name)
        substances = tuple(id_ for id_, pattern in _SUBSTANCES if pattern.search(name))
        out.append(
            _Allergen(
                label=_allergy_label(allergy),
                drugs=drugs,
                substances=substances,
                reaction=said,
                severe=_SEVERE.search(said) is not None or allergy.criticality == "high",
                ref=allergy.ref,
                rules=_rules_of(drugs, substances, said),
            )
        )
    has_heparin = any("heparin" in drug.classes for one in out for drug in one.drugs)
    for condition in patient.conditions:
        hit = re.search(r"\b(hit|hitt|heparin.induced|induzida p(or|ela) heparina)\b", fold(condition.name))
        if (
            hit
            and condition.active
            and not has_heparin
            and not re.search(
                r"\b(no|excluded|sem"
                r"|excluid\w*)\b",
                fold(condition.name),
            )
        ):
            drugs, reaction = drugs_in("heparin"), f"hit {fold(condition.name)}"
            out.append(
                _Allergen(
                    label=condition.name,
                    drugs=drugs,
                    substances=(),
                    reaction=reaction,
                    severe=True,
                    ref=condition.ref,
                    rules=_rules_of(drugs, (), reaction),
                )
            )
            break
    return out


def _allergy_label(allergy: Allergy) -> str:
    return (
        allergy.name
        if not allergy.reaction or fold(allergy.reaction) in fold(allergy.name)
        else f"{allergy.name} ({allergy.reaction})"
    )


def _split_question(question: str) -> tuple[list[Drug], list[tuple[Drug, str]]]:
    """The medicines of a question: those it is about, and those it calls an allergy (with the words around)."""
    plain = fold(question[:MAX_CHARS])
    about: list[Drug] = []
    allergies: list[tuple[Drug, str]] = []
    for drug in drugs_in(question):
        before = re.split(r"[.;?!\n,]", plain[max(0, drug.start - _AROUND_CHARS) : drug.start])[-1]
        after = re.split(r"[.;?!\n,]", plain[drug.end : drug.end + _AROUND_CHARS])[0]
        stated = _ALLERGY_BEFORE.search(before)
        denied = re.search(
            r"\b(no|not|sem|nao|nega|denies"
            r"|without)\b[a-z ]{0,12}$",
            before[: stated.start()] if stated else before,
        )
        if _ALLERGY_AFTER.search(after) or (stated is not None and not _ASKING.search(stated.group(1))):
            if not denied:
                allergies.append((drug, f"{before} {after}"))
        elif not _NOT_GIVEN.search(before):
            about.append(drug)
    return about, allergies


def _current(patient: PatientLayer) -> list[_Item]:
    """Every medicine of the current list."""
    return [
        _Item(drug=drug, origin="current", ref=medication.ref)
        for medication in patient.medications
        if medication.active
        for drug in drugs_in(medication.name)
    ]


def _items(current: Sequence[_Item], about: Iterable[Drug], proposed: Iterable[Drug]) -> list[_Item]:
    """Every medicine once: the current list first, then what the question and the proposals add."""
    out = list(current)
    known = {item.drug.id for item in out}
    out += [_Item(drug=drug, origin="question") for drug in about]
    out += [_Item(drug=drug, origin="proposed") for drug in proposed]
    seen: set[tuple[str, bool]] = set()
    unique = []
    for item in out:
        mark = (item.drug.id, item.origin == "current" or item.drug.id in known)
        if mark not in seen:
            seen.add(mark)
            unique.append(item)
    return unique


# --- allergies ----------------------------------------------------------------------------------------------


def _shares_side_chain(a: str, b: str) -> bool:
    return any(a in group.members and b in group.members for group in TABLE.same_side_chain)


def _aminocephalosporin(drug: Drug) -> bool:
    """A cephalosporin with the side chain of amoxicillin or ampicillin: the two chains differ by one hydroxyl."""
    return "cephalosporin" in drug.classes and any(
        _shares_side_chain(drug.id, amino) for amino in TABLE.classes["aminopenicillin"].members
    )


def _concerns(what: str, drug: Drug, allergen: Drug | None) -> bool:
    """Whether ``drug`` is what a rule's ``medicine`` says."""
    if what == "aminocephalosporin_same_chain":
        return _aminocephalosporin(drug)
    if what == "same_side_chain":
        return allergen is not None and not drug.is_class and _shares_side_chain(drug.id, allergen.id)
    return what in drug.classes or what == drug.id


def _rules_of(drugs: Sequence[Drug], substances: Sequence[str], reaction: str) -> tuple[_Rule, ...]:
    """The rules of the table that may speak about an allergy, in their order, each with the medicine it begins at."""
    found: list[_Rule] = []
    for rule in TABLE.allergy_rules:
        if rule.reaction and not _REACTIONS[rule.reaction].search(reaction):
            continue
        if rule.allergy in substances:
            found.append((rule, None))
        found += [(rule, drug) for drug in drugs if rule.allergy in drug.classes or rule.allergy == drug.id]
    return tuple(found)


def _rule_for(allergen: _Allergen, drug: Drug) -> _Rule | None:
    """The first rule of the table that speaks about this allergy and this medicine."""
    return next((found for found in allergen.rules if _concerns(found[0].medicine, drug, found[1])), None)


class _Conflict(msgspec.Struct, kw_only=True):
    """An allergy and the medicines that one rule finds against it."""

    id: str
    level: Level
    allergen: _Allergen
    why: str
    source: str
    items: list[_Item]


_LEVELS: dict[str, int] = {"info": 0, "warning": 1, "critical": 2}


def _allergy_conflicts(allergens: list[_Allergen], items: list[_Item], lang: str) -> list[_Conflict]:
    conflicts: dict[tuple[str, str | None], _Conflict] = {}
    for allergen in allergens:
        for item in items:
            conflict = _conflict(allergen, item, lang)
            if conflict is None:
                continue
            # sacubitril/valsartan after angioedema: the block on one part makes the caution on the other noise
            known = conflicts.get((conflict.id, allergen.ref))
            if known is None:
                conflicts[conflict.id, allergen.ref] = conflict
            elif item.drug.id not in {one.drug.id for one in known.items}:
                known.items.append(item)
    return _without_covered(list(conflicts.values()))


def _without_covered(conflicts: list[_Conflict]) -> list[_Conflict]:
    """Without what is said of a medicine that the same allergy blocks already, or of another part of its product."""
    out = []
    for one in conflicts:
        covered = any(
            other is not one
            and other.allergen is one.allergen
            and _LEVELS[other.level] > _LEVELS[one.level]
            and all(_same_product(item, other.items) for item in one.items)
            for other in conflicts
        )
        if not covered:
            out.append(one)
    return out


def _same_product(item: _Item, others: list[_Item]) -> bool:
    """The same chart item, or written side by side in one product ("sacubitril/valsartan")."""
    for other in others:
        if item.drug.id == other.drug.id:
            return True
        if item.origin == other.origin and item.ref is not None and item.ref == other.ref:
            return True
        near = min(abs(item.drug.start - other.drug.end), abs(other.drug.start - item.drug.end))
        if item.ref is None and item.origin == other.origin and (near <= 3 or item.drug.start == other.drug.start):
            return True
    return False


def _conflict(allergen: _Allergen, item: _Item, lang: str) -> _Conflict | None:
    found = _rule_for(allergen, item.drug)
    same = next((d for d in allergen.drugs if d.id == item.drug.id), None)
    if found is None and same is None:
        return None
    level: Level
    if found is not None:
        rule, _ = found
        if rule.level == "none":
            return None
        level, why, source = rule.level, pick(lang, rule.en, rule.pt), TABLE.sources[rule.source]
        id_ = f"allergy.{rule.allergy}" if rule.allergy == rule.medicine else f"allergy.{rule.allergy}__{rule.medicine}"
        tolerates = rule.reaction != ""
    else:
        assert same is not None  # noqa: S101 - the other way out was taken above
        level, source, tolerates = "critical", TABLE.sources["general"], False
        why = pick(lang, "the same medicine: do not give", "o mesmo medicamento: não administrar")
        id_ = f"allergy.{slug(same.id)}"
    if same is not None and level != "critical" and not tolerates:
        level = "critical"
        why = pick(lang, "the same medicine: do not give", "o mesmo medicamento: não administrar")
        id_ = f"allergy.{slug(same.id)}"
    if level == "critical" and not tolerates and not allergen.severe and _INTOLERANCE.search(allergen.reaction):
        level = "warning"
        why += pick(lang, " (recorded as an intolerance)", " (registada como intolerância)")
    return _Conflict(id=id_, level=level, allergen=allergen, why=why, source=source, items=[item])


def _where(item: _Item, lang: str) -> str:
    name = item.drug.text
    if item.origin == "current":
        return f"{name} ({item.ref})"
    if item.origin == "question":
        return pick(lang, f"{name} (in the question)", f"{name} (na pergunta)")
    return pick(lang, f"{name} (proposed)", f"{name} (proposto)")


def _allergy_check(conflict: _Conflict, lang: str) -> Check:
    ref = conflict.allergen.ref or pick(lang, "stated in the question", "referida na pergunta")
    medicines = ", ".join(_where(item, lang) for item in conflict.items)
    label = pick(lang, "Allergy", "Alergia")
    source = pick(lang, "Source", "Fonte")
    return Check(
        id=conflict.id,
        level=conflict.level,
        text=f"{label}: {conflict.allergen.label} ({ref}); {medicines}: {conflict.why}. {source}: {conflict.source}.",
        ref=conflict.allergen.ref,
    )


_ANTIBIOTIC_TOPIC = re.compile(
    r"\b(antibi\w*|antimicrob\w*|prophyla\w*|profila\w*|seps\w*|septic\w*|urosep\w*|pneumonia\w*|infec\w*"
    r"|cellulitis|celulite|meningit\w*)\b"
)
_SURGERY = re.compile(
    r"\b(pre ?op\w*|surg\w*|cirurg\w*|operat\w*|operac\w*|incision|incisao|prosthe\w*|protese"
    r"|theatre|bloco)\b"
)
_ANTIBIOTIC_CLASSES = frozenset(
    {
        "penicillin",
        "cephalosporin",
        "carbapenem",
        "monobactam",
        "beta_lactam_word",
        "sulfonamide_antibiotic",
        "fluoroquinolone",
    }
    | {"macrolide", "aminoglycoside", "glycopeptide", "tetracycline", "antibiotic", "antifolate"}
)


def _antibiotic_notes(question: str, allergens: list[_Allergen], items: list[_Item], lang: str) -> list[Check]:
    """Quiet notes for a question about antibiotics that names none: which recorded allergy matters, and cefazolin."""
    plain = key(question)
    if not _ANTIBIOTIC_TOPIC.search(plain):
        return []
    named = any(
        item.origin != "current" and _ANTIBIOTIC_CLASSES & set(item.drug.classes) - {"antibiotic"} for item in items
    )
    out = []
    for allergen in allergens:
        classes = [c for drug in allergen.drugs for c in drug.classes if c in _ANTIBIOTIC_CLASSES]
        if not classes:
            continue
        if "penicillin" in classes and _SURGERY.search(plain) and not named:
            rule = next(r for r in TABLE.allergy_rules if (r.allergy, r.medicine) == ("penicillin", "cefazolin"))
            why, source = pick(lang, rule.en, rule.pt), TABLE.sources[rule.source]
            id_ = "allergy.penicillin__cefazolin"
        elif not named:
            why = pick(lang, "matters to the choice of an antibiotic", "importa para a escolha do antibiótico")
            source, id_ = pick(lang, "the record", "o registo"), f"allergy.{classes[0]}__antibiotic"
        else:
            continue
        ref = allergen.ref or pick(lang, "stated in the question", "referida na pergunta")
        label, origin = pick(lang, "Allergy", "Alergia"), pick(lang, "Source", "Fonte")
        text = f"{label}: {allergen.label} ({ref}): {why}. {origin}: {source}."
        out.append(Check(id=id_, level="info", text=text, ref=allergen.ref))
    return out


# --- interactions -------------------------------------------------------------------------------------------

_STROKE = re.compile(r"\b(stroke|cva|avc|isch?a?emic|isquemico)\b")
_AKI = re.compile(
    r"\b(aki|acute kidney injury|acute renal failure|lesao renal aguda|lra|insuficiencia renal aguda"
    r"|ira)\b"
)


def _egfr(patient: PatientLayer) -> float | None:
    """The latest estimated filtration rate of the last 90 days, None if there is none."""
    rates = [
        o
        for o in patient.observations
        if o.value is not None
        and not o.comparator
        and (
            o.code in _EGFR
            or re.fullmatch(
                r"(e ?gfr|tfg( estimada)?"
                r"|estimated glomerular filtration rate).*",
                key(o.name),
            )
        )
        and o.as_of is not None
        and patient.as_of - timedelta(days=EGFR_MAX_AGE_DAYS) <= o.as_of
    ]
    newest = max(rates, key=lambda o: (o.as_of or patient.as_of, o.ref), default=None)
    return None if newest is None else newest.value


def _applies(rule: Interaction, patient: PatientLayer, question: str, lang: str) -> tuple[Level, str] | None:
    """The level at which a rule counts for this patient and what is added to its text; None if it does not."""
    if rule.requires == "stroke":
        problems = " ".join(c.name for c in patient.conditions if c.active)
        return (rule.level, "") if _STROKE.search(key(f"{question} {problems}")) else None
    if rule.requires == "neonate":
        if patient.birth_date is None:
            return None
        return (rule.level, "") if (patient.as_of.date() - patient.birth_date).days <= 28 else None
    if rule.requires == "renal":
        rate = _egfr(patient)
        if any(c.active and _AKI.search(key(c.name)) for c in patient.conditions):
            return rule.level, pick(lang, "acute kidney injury in the record", "lesão renal aguda no registo")
        if rate is None:
            return "info", pick(lang, "no recent eGFR in the record", "sem TFG recente no registo")
        if rate >= 30:
            return None
        return rule.level, f"eGFR {number(rate)}"
    return rule.level, ""


def _is_side(side: str, drug: Drug) -> bool:
    return side == drug.id or side in drug.classes


def _interactions(patient: PatientLayer, question: str, items: list[_Item], lang: str) -> list[Check]:
    by_drug: dict[str, _Item] = {}
    for item in items:
        by_drug.setdefault(item.drug.id, item)
    unique = list(by_drug.values())
    out: list[Check] = []
    told: list[set[str]] = []
    present = {side for item in unique for side in (item.drug.id, *item.drug.classes)}
    for rule in TABLE.interactions:
        if rule.a not in present or rule.b not in present:
            continue
        involved = [i for i in unique if _is_side(rule.a, i.drug) or _is_side(rule.b, i.drug)]
        a = [i for i in involved if _is_side(rule.a, i.drug)]
        b = [i for i in involved if _is_side(rule.b, i.drug)]
        pairs = [(x, y) for x in a for y in b if x.drug.id != y.drug.id and not _parts_of_one(x, y)]
        if not pairs:
            continue
        applied = _applies(rule, patient, question, lang)
        if applied is None:
            continue
        members = {i.drug.id for pair in pairs for i in pair}
        # the same medicines at the same danger once: amiodarone with ciprofloxacin is told as QT + QT
        if rule.source != "onc" and any(members <= said for said in told):
            continue
        told.append(members)
        level, note = applied
        shown = [i for i in unique if i.drug.id in members]
        medicines = " + ".join(_where(i, lang) for i in shown)
        ref = next((i.ref for i in shown if i.ref is not None), None)
        label = pick(lang, "Interaction", "Interação")
        effect = pick(lang, rule.en, rule.pt) + (f" ({note})" if note else "")
        severity = _severity(rule.severity, lang)
        source = f"{pick(lang, 'Source', 'Fonte')}: {TABLE.sources[rule.source]}"
        out.append(
            Check(
                id=f"interaction.{rule.id}",
                level=level,
                text=f"{label}: {medicines}: {effect} ({severity}). {source}.",
                ref=ref,
            )
        )
    return out


_SEVERITY_PT = {
    "contraindicated": "contraindicado",
    "major": "grave",
    "moderate": "moderado",
    "major (boxed warning)": "grave (aviso reforçado)",
}


def _severity(severity: str, lang: str) -> str:
    return pick(lang, severity, _SEVERITY_PT[severity])


def _parts_of_one(a: _Item, b: _Item) -> bool:
    """Two parts of one combination product are not an interaction."""
    return a.ref is not None and a.ref == b.ref


class Checker:
    """What speaks against medicines for one patient and one question, asked for one list of proposals after the other.

    What does not depend on the proposals is read once. It holds what it was given: no longer than its question is
    worked on.
    """

    def __init__(self, patient: PatientLayer, question: str, lang: str = "en") -> None:
        self._patient = patient
        self._question = question
        self._lang = lang
        self._about, stated = _split_question(question)
        self._current = _current(patient)
        self._allergens = _allergens(patient)
        self._proposed: dict[str, tuple[Drug, ...]] = {}
        self._stated: list[Check] = []
        for drug, around in stated:
            if any(drug.id == d.id or set(drug.classes) & set(d.classes) for a in self._allergens for d in a.drugs):
                continue
            self._allergens.append(
                _Allergen(
                    label=drug.text,
                    drugs=(drug,),
                    substances=(),
                    reaction=fold(around),
                    severe=bool(_SEVERE.search(around)),
                    ref=None,
                    rules=_rules_of((drug,), (), fold(around)),
                )
            )
            self._stated.append(
                Check(
                    id=f"allergy_unrecorded.{slug(drug.id)}",
                    level="warning",
                    text=pick(
                        lang,
                        f"The question names an allergy that is not in the record: {drug.text}. Confirm and record it.",
                        f"A pergunta refere uma alergia que não está no registo: {drug.text}. Confirmar e registar.",
                    ),
                )
            )

    def check(self, proposed: tuple[str, ...] = ()) -> tuple[Check, ...]:
        """What speaks against the medicines of the question, these proposals and the current list; see ``check``."""
        lang, allergens = self._lang, self._allergens
        for text in proposed:
            if text not in self._proposed:
                self._proposed[text] = drugs_in(text)
        items = _items(self._current, self._about, [drug for text in proposed for drug in self._proposed[text]])
        checks = list(self._stated)
        checks += [_allergy_check(conflict, lang) for conflict in _allergy_conflicts(allergens, items, lang)]
        checks += _antibiotic_notes(self._question, allergens, items, lang)
        checks += _interactions(self._patient, self._question, items, lang)
        unique = {(one.id, one.text): one for one in checks}
        return tuple(sorted(unique.values(), key=lambda one: -_LEVELS[one.level]))


def check(patient: PatientLayer, question: str, lang: str = "en", proposed: tuple[str, ...] = ()) -> tuple[Check, ...]:
    """What speaks against the medicines of the question, the proposals and the current list; the gravest first.

    Allergies: the record's active ones, and those the question states, against every medicine. Interactions: among
    the current ones, and between them and what the question or a proposal adds. A medicine that the question stops,
    or names as an allergy, is not one that it would give. Each finding once; the same input gives the same tuple.
    """
    return Checker(patient, question, lang).check(proposed)


# --- order for the facts card -------------------------------------------------------------------------------

#: Words of a question and the classes of medicines that matter to it.
_TOPICS: tuple[tuple[re.Pattern[str], tuple[str, ...]], ...] = (
    (re.compile(r"\b(qt|qtc|torsad\w*)\b"), ("qt_high_risk",)),
    (
        re.compile(r"\b(k|potassium|potassio|hyperkal\w*|hipercal\w*|hypokal\w*|hipocal\w*|dialys\w*|dialise)\b"),
        ("potassium_sparing", "ace_inhibitor", "arb", "arni", "loop_diuretic"),
    ),
    (
        re.compile(r"\b(glucose|glicose|glic\w*|hypoglyc\w*|hipoglic\w*|dka|cetoacid\w*|diabet\w*|insulin\w*)\b"),
        ("insulin", "antidiabetic"),
    ),
    (
        re.compile(
            r"\b(bleed\w*|ha?emorrh\w*|hemorr\w*|sangr\w*|hb|ha?emoglobin|hemoglobina|stroke|avc|thromb\w*|tromb\w*"
            r"|surg\w*|cirurg\w*|trauma\w*|inr"
            r"|anticoag\w*|platelets|plaquetas|preop|pre op|vte|tvp|dvt|pe|tep|af|fa|hit|heparin\w*)\b"
        ),
        ("anticoagulant", "antiplatelet", "thrombolytic", "nsaid"),
    ),
    (
        re.compile(r"\b(ecg|stemi|troponin\w*|chest|torac\w*|enfarte|eam|acs|sca|pci|cath|cateter\w*|angina)\b"),
        ("antiplatelet", "anticoagulant", "beta_blocker", "nitrate", "pde5_inhibitor", "statin", "antiarrhythmic"),
    ),
    (
        re.compile(r"\b(heart failure|hf\w*|insuficiencia cardiaca|ic|oedema|edema|furosemid\w*|sacubitril)\b"),
        ("loop_diuretic", "ace_inhibitor", "arb", "arni", "beta_blocker", "potassium_sparing"),
    ),
    (
        re.compile(
            r"\b(seps\w*|septic\w*|antibi\w*|infec\w*|prophyla\w*"
            r"|profila\w*)\b"
        ),
        tuple(sorted(_ANTIBIOTIC_CLASSES)),
    ),
    (
        re.compile(
            r"\b(rass|sedat\w*|sedac\w*|delirium|pain|dor"
            r"|agita\w*)\b"
        ),
        ("sedative", "opioid", "benzodiazepine"),
    ),
    (
        re.compile(
            r"\b(map|pam|shock|choque|bp|ta|pressor\w*|vasopres\w*|hypotens\w*"
            r"|hipotens\w*)\b"
        ),
        ("vasopressor",),
    ),
    (
        re.compile(r"\b(renal|kidney|creatinin\w*|aki|contrast\w*|gfr|egfr|tfg)\b"),
        ("ace_inhibitor", "arb", "nsaid", "aminoglycoside", "antidiabetic", "loop_diuretic"),
    ),
    (re.compile(r"\b(anaphyla\w*|anafila\w*)\b"), ("beta_blocker", "ace_inhibitor")),
)


def _topic_classes(question: str) -> frozenset[str]:
    plain = key(question)
    return frozenset(c for pattern, classes in _TOPICS if pattern.search(plain) for c in classes)


def relevant_medications(patient: PatientLayer, question: str) -> tuple[Medication, ...]:
    """The active medicines, those that matter to the question first: named in it, in a finding, or of its topic."""
    asked = {drug.id for drug in drugs_in(question)}
    asked_classes = {c for drug in drugs_in(question) for c in drug.classes} - {"other", "antibiotic"}
    topics = _topic_classes(question)
    found = " ".join(one.text for one in check(patient, question))

    def rank(medication: Medication) -> int:
        drugs = drugs_in(medication.name)
        classes = {c for drug in drugs for c in drug.classes}
        if any(drug.id in asked for drug in drugs):
            return 0
        if f"({medication.ref})" in found:
            return 1
        if classes & topics:
            return 2
        return 3 if classes & asked_classes else 4

    return tuple(sorted((m for m in patient.medications if m.active), key=rank))


def relevant_allergies(patient: PatientLayer, question: str) -> tuple[Allergy, ...]:
    """All allergies of the record, those that matter to the question first; none is ever left out."""
    found = {one.ref for one in check(patient, question)}
    asked = drugs_in(question)
    asked_ids = {drug.id for drug in asked}
    asked_classes = {c for drug in asked for c in drug.classes} - {"other"}

    def rank(allergy: Allergy) -> tuple[int, int, int]:
        drugs = drugs_in(allergy.name)
        named = any(drug.id in asked_ids for drug in drugs)
        related = any(set(drug.classes) & asked_classes for drug in drugs)
        matters = 0 if allergy.ref in found else 1 if named else 2 if related else 3
        severe = _SEVERE.search(fold(f"{allergy.name} {allergy.reaction}")) or allergy.criticality == "high"
        return (not allergy.active, matters, 0 if severe else 1 if drugs else 2)

    return tuple(sorted(patient.allergies, key=rank))

"""What a model wrote, line by line against what is known, and the one answer that is made of what remains.

A line passes only whole: a line with a number that was not given, a medicine that speaks against the patient, another
patient, a false certainty or a broken form is held back, and a check says how many and why, never what. Actions are
those that the rules propose; the model only orders them. Pure and total: any text gives a valid frame.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from datetime import date, datetime
from functools import cached_property
from typing import Final, Literal
from typing import Protocol as Shape

import msgspec

from chatd.actions.rules import Proposal
from chatd.inference.jobs import FinishReason, ModelCard
from chatd.replies.answer import (
    MAX_HEADLINE,
    Asked,
    Citations,
    Parts,
    content_of,
    findings_of,
    headline_of,
    marks,
    recommendations_of,
    respond,
    response_type,
)
from chatd.replies.facts import FactsResult
from chatd.replies.grounds import number_lock
from chatd.replies.values import stamp
from chatd.replies.wording import Lang, say
from chatd.safety import medication as medicines
from chatd.safety.numbers import NumberLock, dates_in
from context.compose import PROMPT_VERSION, Prompt, safe
from context.layers import Layers, PatientLayer
from context.store import PatientCard
from context.text import fold, fold_line
from protocols.frames import (
    AiResponse,
    Check,
    Citation,
    Content,
    ModelInfo,
    ProtocolQuote,
    Status,
    Timing,
)

Part = Literal["headline", "findings", "interpretation", "recommendations", "missing"]
Why = Literal["numbers", "drug", "allergies", "identity", "certainty", "form"]

#: Longer lines are held back: the grammar allows 240 characters.
MAX_LINE: Final = 400
#: More lines of one part than the grammar allows come from no engine of ours.
MAX_LINES: Final = 12

_LEVELS: Final[dict[str, int]] = {"critical": 0, "warning": 1, "info": 2}
#: How grave it is that a line was held back for this.
_GRAVITY: Final[dict[Why, Literal["info", "warning", "critical"]]] = {
    "numbers": "warning",
    "drug": "critical",
    "allergies": "critical",
    "identity": "critical",
    "certainty": "warning",
    "form": "info",
}
_CHECK_ID: Final[dict[Why, str]] = {
    "numbers": "review.numbers",
    "drug": "review.drug",
    "allergies": "review.allergies",
    "identity": "identity.other_patient",
    "certainty": "review.certainty",
    "form": "review.form",
}


class Draft(Shape):
    """The model's sections; ``chatd.inference.sections.Sections`` is one."""

    @property
    def headline(self) -> str: ...
    @property
    def findings(self) -> Sequence[str]: ...
    @property
    def interpretation(self) -> Sequence[str]: ...
    @property
    def recommendations(self) -> Sequence[str]: ...
    @property
    def missing(self) -> Sequence[str]: ...
    @property
    def actions(self) -> Sequence[str]: ...
    @property
    def is_complete(self) -> bool: ...


class Reviewed(msgspec.Struct, frozen=True, kw_only=True):
    """What passed, with citation marks " [n]" at the ends of lines, and checks that say what did not.

    headline: "" where none passed. ranking: ids as the model ranked them, not yet held against the proposals.
    held_back: number of lines. is_empty: not one line of the model's passed.
    """

    headline: str = ""
    findings: tuple[str, ...] = ()
    interpretation: tuple[str, ...] = ()
    recommendations: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    ranking: tuple[str, ...] = ()
    checks: tuple[Check, ...] = ()
    citations: tuple[Citation, ...] = ()
    held_back: int = 0
    is_complete: bool = True

    @property
    def is_empty(self) -> bool:
        return not (self.headline or self.findings or self.interpretation or self.recommendations or self.missing)


# --- the form of a line --------------------------------------------------------------------------------------

_INVISIBLE = re.compile("[\u00ad\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufe00-\ufe0f\ufeff\ufff0-\uffff]")
_TAG = re.compile(r"[<‹]\s*/?\s*[!|a-zA-Z_?][^<>‹›]{0,80}[>›]|<\||\|>|<<|>>|\[/?(?:INST|SYS)\]|［", re.IGNORECASE)
_MARKDOWN_LINK = re.compile(r"!?\[([^\[\]]{0,200})\]\([^()\s]{0,400}\)")
_LINK = re.compile(r"(?i)\b(?:[a-z][a-z0-9+.-]{1,20}://|www\.|mailto:|javascript:|data:[a-z]+/)\S*")
_MARKUP = re.compile(r"\*{1,3}|_{2,3}|`+|~~|^[#>|\s]+|\\(?=[*_#`\[\]])")
_BULLET = re.compile(r"^(?:[-•–—·▪*]\s+|\(?\d{1,2}[.)]\s+(?=\D))")
_LABEL = re.compile(
    r"(?i)^(?:headline|findings|interpretation|recommendations?|missing|actions|título|achados|interpretação"
    r"|recomendações|em falta|ações)\s*:\s*"
)
_ROLE = re.compile(r"(?i)^(?:system|user|assistant|model|human|developer|rules?|format|instructions?|question)\s*:")
_RESIDUE = re.compile(
    r"(?i)\b(?:ignor\w*|disregard\w*|forget\w*|override|esque\w+|desconsider\w*)\b.{0,40}"
    r"\b(?:instruction|rule|prompt|system|previous|above|instruç|instruc|regra|anterior)"
    r"|\b(?:system|this|my|the) prompt\b|\bcatalogue of actions\b"
    r"|\bas an ai\b|\blanguage model\b|\bmodelo de linguagem\b|\bstart_of_turn\b"
    r"|\bend_of_turn\b|\bunused\d+\b|\bjailbreak\b|\bi (?:am|was) (?:instructed|told)\b"
)
#: Words as ids of actions are written; those of no catalogue are no words of an answer.
_ID = re.compile(r"\b[a-z][a-z0-9]*(?:_[a-z0-9]+)+\b")
_CERTAINTY = re.compile(
    r"\b(?:definitely|certainly|undoubtedly|without (?:a )?doubt|guarantee[ds]?|100 ?% (?:sure|certain|safe)"
    r"|(?:completely|perfectly|entirely|absolutely) (?:safe|normal|fine)|no need to worry|nothing to worry|don'?t worry"
    r"|no cause for concern|sem (?:qualquer )?duvida|com certeza|de certeza|certamente|definitivamente|garantid[oa]"
    r"|(?:completamente|totalmente|absolutamente) (?:segur[oa]|normal)|nao se preocupe|nada a recear)\b"
)
_NO_ALLERGY = re.compile(
    r"\b(?:no (?:known |recorded |documented |drug |reported )*(?:drug )?allerg\w*|nkda|nka|not allergic|non-?allergic"
    r"|(?:allerg\w*|alergi\w*)\s*:?\s*(?:none|nil|nenhuma?s?|negativ\w*|no\b)"
    r"|denies (?:any )?allerg\w*|without (?:known )?allerg\w*|sem (?:quaisquer )?alergias?|nao (?:e|tem|ha|apresenta)"
    r" (?:alergi\w*|alergias?)|nega alergias|desconhecem-se alergias)\b"
)
_BRACKETED = re.compile(r"\[([^\[\]]*)\]")
_BRACKETS = re.compile(r"\s?\[([^\[\]]{0,200})\]")
_PART_OF_REFERENCE = re.compile(r"[,;\s]+")
_NOTHING: Final = frozenset({"", "none", "nenhum", "nenhuma", "nada", "n/a", "-", "…", "..."})


def clean(text: str) -> str:
    """A line without what is no text: unseen signs, template tokens, markup, links, bullets, labels; on one line.

    Nothing is put in the place of what goes but a blank, so that no two numbers become one.
    """
    text = " ".join(safe(_INVISIBLE.sub("", text)).replace("\ufffd", " ").split())
    for _ in range(4):  # markup inside markup; what is still there then is harmless text
        before = text
        if "](" in text:
            text = _MARKDOWN_LINK.sub(r" \1 ", text)
        text = _TAG.sub(" ", text)
        if ":" in text or "www." in text.lower():  # no link is without; looking for one reads every word twice
            text = _LINK.sub(" ", text)
        text = text.replace("‹", " ")
        text = _MARKUP.sub("", text).strip()
        text = " ".join(_LABEL.sub("", _BULLET.sub("", text)).split())
        if text == before:
            break
    return text


# --- citations -----------------------------------------------------------------------------------------------


class _Sources:
    """What stood in the prompt under a reference."""

    def __init__(self, prompt: Prompt, facts: FactsResult, layers: Layers) -> None:
        text = prompt.text
        there = frozenset(_BRACKETED.findall(text))

        def is_there(ref: str) -> bool:
            return ref in there or (("[" in ref or "]" in ref) and f"[{ref}]" in text)

        self._items = {ref: (name, as_of) for ref, name, as_of in _items(layers.patient, facts) if is_there(ref)}
        self._quotes = {ref: quote for quote in facts.protocols if is_there(ref := f"{quote.id}#{quote.section}")}

    def number(self, ref: str, citations: Citations) -> int | None:
        """The number of a reference, None for one that names nothing."""
        if ref in self._items:
            return citations.item(ref, *self._items[ref])
        quote: ProtocolQuote | None = self._quotes.get(ref)
        return None if quote is None else citations.protocol(quote)

    def knows(self, ref: str) -> bool:
        return ref in self._items or ref in self._quotes


def _items(patient: PatientLayer | None, facts: FactsResult) -> Iterator[tuple[str, str, str | None]]:
    for fact in facts.facts:
        if fact.ref is not None:
            yield fact.ref, fact.name, fact.as_of
    if patient is None:
        return
    for allergy in patient.allergies:
        yield allergy.ref, allergy.name, stamp(allergy.recorded)
    for medication in patient.medications:
        yield medication.ref, medication.name, stamp(medication.since)
    for observation in patient.observations:
        yield observation.ref, observation.name, stamp(observation.as_of)
    for report in patient.reports:
        yield report.ref, report.title, stamp(report.as_of)
    for condition in patient.conditions:
        yield condition.ref, condition.name, stamp(condition.onset)
    for event in patient.events:
        yield event.ref, event.name, stamp(event.start)


def _split_references(text: str, sources: _Sources) -> tuple[str, list[str], int]:
    """A line without its references, the known ones in order, and how many name nothing.

    Square brackets of a line are the server's alone: those around other words become round ones.
    """
    known: list[str] = []
    unknown = 0

    def replaced(match: re.Match[str]) -> str:
        nonlocal unknown
        inner = match[1].strip()
        parts = [part for part in _PART_OF_REFERENCE.split(inner) if part]
        looks = [part for part in parts if "/" in part or "#" in part or part.isdigit() or sources.knows(part)]
        if not parts or len(looks) == len(parts):
            known.extend(part for part in parts if sources.knows(part))
            unknown += sum(1 for part in parts if not sources.knows(part))
            return " "
        if any(sources.knows(part) for part in looks):
            known.extend(part for part in looks if sources.knows(part))
            return " "
        return f" ({inner})"

    bare = _BRACKETS.sub(replaced, text)
    bare = " ".join(bare.replace("[", "(").replace("]", ")").split())
    return re.sub(r" (?=[.,;:!?](?:\s|$))", "", bare), known, unknown


# --- other patients ------------------------------------------------------------------------------------------

_PARTICLES: Final = frozenset({"de", "da", "do", "das", "dos", "e", "von", "van", "del", "di", "la"})
_TITLE = r"(?:mr|mrs|ms|miss|sr|sra|senhor|senhora|dona|d|patient|doente|paciente|utente)\.? "
#: Shorter ones are too often other words ("Rosa", "Leal", "Ramos").
_CAPITALISED = re.compile(r"\b[A-ZÀ-Þ][^\W\d_]{5,}\b")
#: Digits of a record number that may as well be a laboratory's value.
_SHORT_ID: Final = 4
_NAME_WORD = re.compile(r"[^\W\d_]+")
_RECORD = re.compile(r"\b(?:record|processo|mrn|patient|doente|utente|id|episodio|numero|number|no|n)\b[ .:#]*$")


class _Fence:
    """The other patients of the department, so that nothing of them passes."""

    def __init__(self, patient: PatientLayer | None, others: Iterable[PatientCard], prompt: Prompt) -> None:
        own = _name_words(patient.name) if patient is not None else frozenset()
        own_ids = set() if patient is None else {patient.patient_id, *patient.identifiers}
        self._prompt = prompt
        self._names: list[tuple[frozenset[str], frozenset[str]]] = []
        self._ids: set[str] = set()
        self._births: set[date] = set()
        for other in others:
            if patient is not None and other.patient_id == patient.patient_id:
                continue
            words = _name_words(other.name)
            if words - own:
                self._names.append((words, words - own))
            self._ids |= {fold_line(id_) for id_ in (other.patient_id, *other.identifiers) if id_ not in own_ids}
            if other.birth_date is not None and (patient is None or other.birth_date != patient.birth_date):
                self._births.add(other.birth_date)
        self._ids.discard("")
        self._foreign = frozenset(word for _, foreign in self._names for word in foreign)

    @cached_property
    def _given(self) -> str:
        """The prompt, folded: few lines say anything that must be looked for in it."""
        return fold(self._prompt.text)

    def names_another(self, text: str, plain: str) -> bool:
        """Whether a line names another patient: two words of the name, a title with one, record number, birth date.

        ``plain``: the line folded.
        """
        words = self._foreign.intersection(_NAME_WORD.findall(plain))
        return (
            (bool(words) and self._has_name(plain))
            or self._has_name_alone(text)
            or self._has_id(plain)
            or self._has_birth(text, plain)
        )

    def _has_name(self, plain: str) -> bool:
        words = frozenset(_NAME_WORD.findall(plain))
        for all_words, foreign in self._names:
            hits = words & all_words
            if hits & foreign and (len(hits) >= 2 or len(all_words) == 1):
                return True
            if any(re.search(rf"\b{_TITLE}{re.escape(word)}\b", plain) for word in hits & foreign):
                return True
        return False

    def _has_name_alone(self, text: str) -> bool:
        """One word of a name, written as a name, that this patient's prompt has nowhere ("Teixeira is worse")."""
        if not self._foreign:
            return False
        for word in _CAPITALISED.findall(text):
            plain = fold_line(word)
            if plain in self._foreign and not re.search(rf"\b{re.escape(plain)}\b", self._given):
                return True
        return False

    def _has_id(self, plain: str) -> bool:
        for id_ in self._ids:
            if id_ not in plain:
                continue
            for match in re.finditer(rf"(?<![^\W_]){re.escape(id_)}(?![^\W_])", plain):
                # A short number may be a result of this patient's too; behind "record" it is none.
                is_short = id_.isdigit() and len(id_) <= _SHORT_ID
                if not is_short or _RECORD.search(plain[: match.start()]) or not self._is_given(id_):
                    return True
        return False

    def _is_given(self, id_: str) -> bool:
        return re.search(rf"(?<![^\W_]){re.escape(id_)}(?![^\W_])", self._given) is not None

    def _has_birth(self, text: str, plain: str) -> bool:
        if not self._births:
            return False
        dates = dates_in(text)
        found = {birth for birth in self._births if (birth.year, birth.month, birth.day) in dates}
        return any(
            birth.isoformat() not in self._given or re.search(r"\b(?:born|birth|dob|nasc\w*)\b", plain)
            for birth in found
        )


def _name_words(name: str) -> frozenset[str]:
    return frozenset(word for word in _NAME_WORD.findall(fold_line(name)) if len(word) > 1) - _PARTICLES


# --- medicines -----------------------------------------------------------------------------------------------

_NOT = r"(?:do not|don'?t|does not|not|never|no|nao|nunca|must not|should not|cannot|can'?t)"
_GIVE = (
    r"(?:giv(?:e|ing|en)|start(?:ing|ed)?|us(?:e|ing|ed)|administer(?:ing|ed)?|prescrib(?:e|ing|ed)|consider(?:ing|ed)?"
    r"|continu(?:e|ing|ed)|resum(?:e|ing|ed)|restart(?:ing|ed)?|add(?:ing|ed)?|switch(?:ing|ed)?|treat(?:ing|ed)?"
    r"|prefer(?:red)?|recommend(?:ed|ing)?|load(?:ing)?|dar|da|iniciar|inicia|usar|administrar|prescrever|considerar|manter"
    r"|continuar|retomar|associar|adicionar|tratar|preferir|recomend\w*|trocar|mudar)"
)
#: Right in front of a medicine: it is warned of.
_WARNS_BEFORE = re.compile(
    r"\b(?:avoid(?:ing)?|withhold|hold off|stop(?:ping)?|discontinue|contra-?indication to|contra-?indicat(?:es|ing)"
    r"|evitar|evite|suspender|suspenda|parar|nao (?:dar|administrar|usar|iniciar|prescrever)"
    r"|contra-?indicacao (?:a|para)"
    rf"|{_NOT} (?:be )?(?:give|given|start|started|use|used|administer|administered|prescribe|prescribed)"
    r"|allerg(?:y|ic|ies) (?:to|with)|^(?:allergy|allergies|alergia|alergias) ?:"
    r"|alergi(?:a|co|ca|as) (?:a|ao|aos|as|com)"
    r"|anaphyla\w* (?:to|with|after)|anafilaxia (?:a|ao|com|apos)|interacts? with|interage com)"
    r"(?P<between>[^.;:]*)$"
)
#: Stands for each sign of another medicine's name.
_DRUG: Final = "\u00a4"
#: What may stand between a warning and its medicine, beside other medicines.
_BETWEEN_WARNED = re.compile(
    r"(?:\b(?:the|any|all|other|further|more|of|to|both|with|o|a|os|as|qualquer|outros?|outras?|and|or|e|ou|nem|nor)\b"
    rf"|[ ,/{_DRUG}])*"
)
#: Right behind it: the same.
_WARNS_AFTER = re.compile(
    r"^(?: and \w+| e \w+)?(?:[ -](?:allergy|alergia|anaphylaxis|anafilaxia)\b"
    r"|(?: (?:is|are|e|sao|esta|estao))? contra-?indic(?:at|ad)\w*"
    r"| (?:must|should) (?:not be (?:given|used|started)|be (?:avoided|withheld|stopped))"
    r"| (?:is|are) (?:not recommended|to be avoided)| deve(?:m)? ser evitad\w*"
    r"| nao deve(?:m)? ser (?:dad|usad|administrad|prescrit)\w*)"
)
#: Words that turn a warning round, or may: whatever else the line says, it is not sure to be one.
_REVERSED = re.compile(
    rf"\b{_NOT} (?:\w+ )?(?:avoid|withhold|stop|discontinue|hesitate|contra-?indicat\w*|forget|allerg\w*|evitar"
    r"|suspender|parar|hesitar|alergi\w*|contra-?indicad\w*)|\bno (?:longer )?(?:contra|allerg)|\bsem (?:contra|alergi)"
    r"|\b(?:despite|although|though|even if|even with|regardless|unless|except|apesar|embora|mesmo (?:com|que)|exceto"
    r"|salvo|a menos|but|however|mas|porem|instead|rather|still|yet|safe|segur[oa]|tolerat\w*|tolera\w*|can be|may be"
    r"|pode(?:m)? ser|low risk|baixo risco|ok|then|depois|followed by|seguido|delay\w*|late|after which|unlikely|mild"
    r"|false|falsa)\b"
)
_GIVES = re.compile(rf"\b{_GIVE}\b")
_CLAUSE_END = re.compile(r"[.;!?](?= |$)")


def _not_warned_of(plain: str) -> list[medicines.Drug]:
    """The medicines that a folded line names and does not itself warn of. In doubt it does not."""
    drugs = medicines.drugs_in_folded(plain)
    if not drugs or _REVERSED.search(plain):
        return list(drugs)
    covered = list(plain)
    for drug in drugs:
        covered[drug.start : drug.end] = _DRUG * (drug.end - drug.start)
    return [drug for drug in drugs if not _is_warned_of(plain, drug, "".join(covered))]


def _is_warned_of(plain: str, drug: medicines.Drug, covered: str) -> bool:
    """Whether a line warns of one medicine. ``covered``: the line with ``_DRUG`` for each sign of a medicine's name."""
    begin = max((match.end() for match in _CLAUSE_END.finditer(plain, 0, drug.start)), default=0)
    found = _CLAUSE_END.search(plain, drug.end)
    behind = plain[drug.end : len(plain) if found is None else found.start()]
    # A dose right behind the name, or a word for giving, is no warning.
    if re.match(r"[ :(-]*\d", behind) or _GIVES.search(_WARNS_AFTER.sub("", behind)):
        return False
    ahead = covered[begin : drug.start].lstrip()
    before = _WARNS_BEFORE.search(ahead)
    if before is not None and _BETWEEN_WARNED.fullmatch(before["between"]):
        return True
    return _WARNS_AFTER.search(behind) is not None and not _GIVES.search(ahead)


#: The class whose name covers both what is forbidden and what is not, and the member that decides.
_WIDE_CLASS: Final = "beta_lactam_word"
_WIDE_MEMBER: Final = "amoxicillin"


class _Pharmacist:
    """Holds the medicines of a line against allergies and current medicines, and against the lines before it."""

    def __init__(self, patient: PatientLayer | None, question: str, lang: Lang) -> None:
        self._checker = None if patient is None else medicines.Checker(patient, question, lang)
        self._accepted: list[str] = []
        self._standing = () if self._checker is None else self._checker.check()
        #: Texts of checks, folded: most are told again for each line.
        self._said: dict[str, str] = {}
        #: Quieter findings about what the model's lines name, to be shown with the answer.
        self.quiet: dict[str, Check] = {}

    def against(self, plain: str, part: Part) -> tuple[str, Check] | None:
        """The medicine that a folded line must not put forward and the check that says why; None if there is none."""
        if self._checker is None:
            return None
        drugs = _not_warned_of(plain)
        if not drugs:
            return None
        # "A beta-lactam" is a penicillin to somebody who must not have one.
        wide = next((drug for drug in drugs if drug.id == _WIDE_CLASS), None)
        if wide is not None:
            for check in self._checker.check((_WIDE_MEMBER,)):
                if check.level == "critical" and check.id.startswith("allergy") and _WIDE_MEMBER in fold(check.text):
                    return wide.text, check
        names = tuple(dict.fromkeys(drug.text if drug.is_class else drug.id for drug in drugs))
        proposed = names if part == "findings" else (*self._accepted, *names)
        for check in self._checker.check(proposed):
            if check.level == "info":
                continue
            said = self._said.get(check.text)
            if said is None:
                said = self._said[check.text] = fold_line(check.text)
            named = next((drug for drug in drugs if _is_named(drug, said)), None)
            if named is None:
                continue
            # What the record's own medicines do to each other is told by the facts; a finding may name them.
            if check.level == "critical" and not (part == "findings" and check in self._standing):
                return named.text, check
            if check.level == "warning" and check not in self._standing:
                self.quiet.setdefault(check.id, check)
        if part != "findings":
            self._accepted += [name for name in names if name not in self._accepted]
        return None


def _is_named(drug: medicines.Drug, plain: str) -> bool:
    """Whether a folded text has the medicine's name, as its line writes it or as the table does."""
    return any(
        name in plain and re.search(rf"\b{re.escape(name)}\b", plain)
        for name in {fold_line(drug.text), fold_line(drug.id)}
    )


# --- the review ----------------------------------------------------------------------------------------------


class _Desk:
    """One review: the judges, what has passed, and what was held back for which reason."""

    def __init__(
        self, facts: FactsResult, layers: Layers, prompt: Prompt, others: Sequence[PatientCard], lock: NumberLock
    ) -> None:
        self._facts = facts
        self._patient = layers.patient
        self._actions = {action.id for action in layers.department.actions}
        self._sources = _Sources(prompt, facts, layers)
        self._fence = _Fence(layers.patient, others, prompt)
        self._pharmacist = _Pharmacist(layers.patient, facts.question.text, facts.lang)
        self._lock = lock
        self._held: dict[Why, int] = {}
        self._drug_checks: dict[str, Check] = {}
        self._unknown_references = 0
        self.citations = Citations()

    def line(self, text: str, part: Part) -> str:
        """The line as it may be shown, "" if it may not."""
        bare, references, unknown = _split_references(clean(text), self._sources)
        plain = fold_line(bare)
        if plain.rstrip(".") in _NOTHING:
            return ""
        why = self._objection(bare, plain, part)
        if why is not None:
            self._held[why] = self._held.get(why, 0) + 1
            return ""
        self._unknown_references += unknown
        if part == "headline":
            return bare
        return bare + marks(self._sources.number(ref, self.citations) for ref in references)

    def _objection(self, text: str, plain: str, part: Part) -> Why | None:
        """What speaks against a line; ``plain`` is it, folded."""
        if self._fence.names_another(text, plain):
            return "identity"
        if len(text) > MAX_LINE or (part == "headline" and len(text) > MAX_HEADLINE):
            return "form"
        if any(id_ not in self._actions for id_ in _ID.findall(plain)):
            return "form"
        if _ROLE.search(text) or _RESIDUE.search(text) or re.search(r"[^\W\d_]", text) is None:
            return "form"
        # A line that was cut may have lost its "not".
        if text.endswith("…"):
            return "form"
        if self._denies_allergies(plain):
            return "allergies"
        against = self._pharmacist.against(plain, part)
        if against is not None:
            drug, check = against
            reason = say("review.drug", self._facts.lang, drug=drug, reason=check.text)
            id_ = f"{_CHECK_ID['drug']}.{check.id}"
            self._drug_checks.setdefault(id_, Check(id=id_, level="critical", text=reason, ref=check.ref))
            return "drug"
        if self._lock.unsupported(text):
            return "numbers"
        return "certainty" if _CERTAINTY.search(plain) else None

    def _denies_allergies(self, plain: str) -> bool:
        if _NO_ALLERGY.search(plain) is None:
            return False
        patient = self._patient
        return patient is None or bool(patient.allergies) or patient.allergy_status != "none_known"

    @property
    def held_back(self) -> int:
        return sum(self._held.values())

    def checks(self) -> tuple[Check, ...]:
        """What was held back and why, the gravest first, then quieter findings about medicines that passed."""
        lang = self._facts.lang
        found = list(self._drug_checks.values())
        for why, count in self._held.items():
            if why != "drug":
                text = say(f"review.{why}", lang, n=count) if why != "allergies" else say("review.allergies", lang)
                found.append(Check(id=_CHECK_ID[why], level=_GRAVITY[why], text=text))
        if self._unknown_references:
            text = say("review.citations", lang, n=self._unknown_references)
            found.append(Check(id="review.citations", level="info", text=text))
        found += self._pharmacist.quiet.values()
        return tuple(sorted(found, key=lambda check: _LEVELS[check.level]))


def review(
    sections: Draft, *, facts: FactsResult, layers: Layers, prompt: Prompt, others: Sequence[PatientCard] = ()
) -> Reviewed:
    """Judge every line of what a model wrote; about 10 ms of CPU, beside the event loop.

    Args:
        sections: as ``chatd.inference.sections.parse`` read them; any text may stand in them.
        prompt: the very prompt that the model was given.
        others: the department's patients; this answer's own patient among them is passed over.
    """
    desk = _Desk(facts, layers, prompt, others, number_lock(prompt, facts, layers))

    def lines(rows: Sequence[str], part: Part) -> tuple[str, ...]:
        return tuple(dict.fromkeys(line for row in rows[:MAX_LINES] if (line := desk.line(row, part))))

    findings = lines(sections.findings, "findings")
    interpretation = lines(sections.interpretation, "interpretation")
    recommendations = lines(sections.recommendations, "recommendations")
    missing = lines(sections.missing, "missing")
    headline = desk.line(sections.headline, "headline")
    return Reviewed(
        headline=headline,
        findings=findings,
        interpretation=interpretation,
        recommendations=recommendations,
        missing=missing,
        ranking=tuple(dict.fromkeys(sections.actions)),
        checks=desk.checks(),
        citations=tuple(desk.citations.rows),
        held_back=desk.held_back,
        is_complete=sections.is_complete,
    )


# --- the answer ----------------------------------------------------------------------------------------------


def compose_answer(
    reviewed: Reviewed,
    *,
    facts: FactsResult,
    layers: Layers,
    request: Asked,
    response_id: str,
    now: datetime,
    proposed: Sequence[Proposal],
    finish: FinishReason = "stop",
    model: ModelCard | None = None,
    timing: Timing | None = None,
    attempt: int = 1,
    is_shared: bool = False,
    processing_time_ms: int = 0,
) -> AiResponse:
    """The one ``ai_response`` of a question that a model has answered.

    Red flags, scores, checks and what is missing are the facts', always all of them; where nothing of the model's
    findings, recommendations or headline passed, the facts' stand there. With nothing of the model's at all it is the
    facts' answer with status ``degraded``. ``epoch`` and ``seq`` stay empty: they are the session log's to set.

    Args:
        proposed: what the rules propose; the model's ranking orders them and adds none.
        finish: why the text ended; anything but "stop" makes the answer ``incomplete``.
        timing: None: nothing was measured.
    """
    lang = facts.lang
    info = None
    if model is not None:
        info = ModelInfo(id=model.id, revision=model.revision, quantization=model.quantization, prompt=PROMPT_VERSION)
    actions, unproposed = _ordered(proposed, reviewed.ranking)
    extra = list(reviewed.checks)
    if unproposed:
        extra.append(Check(id="review.actions", level="info", text=say("review.actions", lang, n=unproposed)))
    known = {check.id for check in facts.checks}
    checks = (*facts.checks, *(check for check in extra if check.id not in known))
    is_cut = finish != "stop" or not reviewed.is_complete
    common = {
        "processing_time_ms": processing_time_ms,
        "finish_reason": finish,
        "timing": Timing() if timing is None else timing,
        "model": info,
        "attempt": attempt,
        "is_shared": is_shared,
    }
    if reviewed.is_empty or not facts.question.in_scope:
        bare = respond(
            msgspec.structs.replace(facts, checks=checks if facts.question.in_scope else facts.checks),
            layers,
            request,
            response_id=response_id,
            now=now,
            proposed=proposed,
            attempt=attempt,
        )
        notice = f"{say('model.held_all', lang)} {bare.notice}"
        text = bare.content.text
        if text.endswith(bare.notice):
            text = text[: -len(bare.notice)] + notice
        content = msgspec.structs.replace(bare.content, text=text)
        return msgspec.structs.replace(bare, content=content, status="degraded", notice=notice, **common)
    notice = say("model.notice", lang)
    if is_shared:
        notice = f"{say('model.shared', lang)} {notice}"
    if is_cut:
        notice = f"{say('model.incomplete', lang)} {notice}"
    status: Status = "incomplete" if is_cut else "completed"
    return AiResponse(
        response_id=response_id,
        content=_content(reviewed, facts, layers, checks, actions, notice),
        confidence=None,
        confidence_basis="none",
        status=status,
        client_msg_id=request.client_msg_id,
        session_id=request.session_id,
        department=layers.department.department_id,
        patient_id=facts.patient_id,
        response_type=response_type(facts),
        timestamp=stamp(now, milliseconds=True) or "",
        mode="normal",
        notice=notice,
        processing_time_ms=processing_time_ms,
        finish_reason=finish,
        timing=Timing() if timing is None else timing,
        model=info,
        attempt=attempt,
        is_shared=is_shared,
    )


def _ordered(proposed: Sequence[Proposal], ranking: Sequence[str]) -> tuple[tuple[Proposal, ...], int]:
    """The proposals in the model's order, those that it did not name behind; and how many it named without reason."""
    place = {id_: n for n, id_ in enumerate(ranking)}
    ordered = sorted(proposed, key=lambda proposal: place.get(proposal.action.id, len(place)))
    return tuple(ordered), len(place.keys() - {proposal.action.id for proposal in proposed})


def _content(
    reviewed: Reviewed,
    facts: FactsResult,
    layers: Layers,
    checks: tuple[Check, ...],
    proposed: Sequence[Proposal],
    notice: str,
) -> Content:
    citations = Citations(reviewed.citations)
    findings, findings_title = reviewed.findings, "model.findings"
    if not findings:
        findings, findings_title = findings_of(facts, citations), "answer.findings"
    recommendations, recommendations_title = reviewed.recommendations, "model.recommendations"
    if not recommendations:
        recommendations, recommendations_title = recommendations_of(facts, citations), "answer.protocols"
    interpretation, interpretation_title = reviewed.interpretation, "model.interpretation"
    if not interpretation:
        interpretation, interpretation_title = facts.trends, "answer.interpretation"
    name = layers.patient.name if layers.patient else ""
    headline = reviewed.headline
    if not headline:
        headline = headline_of(facts, name)
    elif name and len(name) + 2 + len(headline) <= MAX_HEADLINE and not fold(headline).startswith(fold(name)):
        headline = f"{name}: {headline}"
    parts = Parts(
        headline=headline,
        findings=findings,
        findings_title=findings_title,
        interpretation=interpretation,
        interpretation_title=interpretation_title,
        recommendations=recommendations,
        recommendations_title=recommendations_title,
        missing=tuple(dict.fromkeys([*facts.missing, *reviewed.missing])),
        checks=checks,
        citations=citations.rows,
    )
    return content_of(parts, facts, proposed=proposed, notice=notice)

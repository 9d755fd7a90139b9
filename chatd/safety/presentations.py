"""Which emergencies a text says that this patient has now, in English and Portuguese.

A phrase of the table counts only as said of this patient and now: not when it is negated ("no chest pain", "nega dor
torácica"), past ("previous stroke", "in 2019"), somebody else's ("mother had a stroke"), hypothetical ("if he develops
sepsis", "stroke prevention") or the topic of a general question ("what is the STEMI door-to-balloon time?").
Numbers count like phrases ("K 6.9", "TA 84", "GCS 7"). Deterministic; never raises on any text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping

import msgspec
from rapidfuzz.distance import OSA

from chatd.safety.analytes import BY_ID, Analyte, limits_of, to_canonical
from chatd.safety.presentation_table import (
    ALLERGIC_SKIN,
    ALLERGIC_SYSTEMIC,
    CONFUSION,
    CORRECT,
    INFECTION,
    REPAIRABLE,
    RULES,
)
from chatd.safety.words import pick
from context.memo import remembers
from context.text import fold

#: Longer text is not read on: a question fits many times over, and the time for one stays bounded.
MAX_CHARS = 20_000
#: A longer sentence is cut at a blank: what stands further off says nothing about a phrase, and each phrase looks at
#: its whole sentence.
MAX_SENTENCE_CHARS = 400
#: Phrases of one rule that are looked at in one text; people say a thing a few times, not hundreds.
MAX_MATCHES = 100


class Presentation(msgspec.Struct, frozen=True, kw_only=True):
    """One recognised emergency.

    id: "stemi", "sepsis", ...; ``phrase``: the words of the text that say so, as written.
    signals: protocol ids that fit, most specific first.
    """

    id: str
    en: str
    pt: str
    phrase: str
    signals: tuple[str, ...] = ()

    def text(self, lang: str) -> str:
        """ "Recognised emergency: possible acute stroke (\\"slurred speech\\")"."""
        label = pick(lang, "Recognised emergency", "Emergência reconhecida")
        return f'{label}: {pick(lang, self.en, self.pt)} ("{self.phrase}")'


class Normalised(msgspec.Struct, frozen=True):
    """Folded text with the place of each of its characters in the original."""

    text: str
    starts: tuple[int, ...]
    ends: tuple[int, ...]
    original: str

    def phrase(self, start: int, end: int) -> str:
        """The original's words for ``text[start:end]``, at most 80 characters."""
        said = self.original[self.starts[start] : self.ends[end - 1]]
        return " ".join(said.split())[:80]


#: Words that need no repair: those of the table itself and those listed as right.
_TABLE_WORDS = frozenset(w for rule in RULES for text in rule.words for w in re.findall(r"[a-z]{5,}", text))
_RIGHT = REPAIRABLE | CORRECT | _TABLE_WORDS
#: What a word may be repaired to. The long correct words among them are the opposites: "hypokalmia" is nearer to
#: hypokalaemia than to hyperkalaemia.
_CANDIDATES = tuple(sorted(REPAIRABLE | {word for word in CORRECT if len(word) >= 9}))


def _repair(word: str) -> str:
    """A mistyped word as it should be (one edit, two from nine letters); itself where that is not certain."""
    if len(word) < 5 or word in _RIGHT or not word.isalpha():
        return word
    best, best_distance, tied = word, 3, False
    for known in _CANDIDATES:
        allowed = 2 if min(len(known), len(word)) >= 9 else 1
        # the first letter is rarely mistyped, except for being swapped with the second
        if len(known) < 5 or (known[0] != word[0] and known[:2] != word[1::-1]):
            continue
        distance = OSA.distance(word, known, score_cutoff=allowed)
        if distance > allowed:
            continue
        if distance < best_distance:
            best, best_distance, tied = known, distance, False
        elif distance == best_distance:
            tied = True
    return word if tied else best


_repaired = remembers(4096)(_repair)


def normalise(text: str) -> Normalised:
    """Folded text, hyphens as spaces, mistyped key words repaired, with the way back to the original."""
    original = text[:MAX_CHARS]
    chars: list[str] = []
    places: list[int] = []
    for index, char in enumerate(original):
        # fold() strips, so that a blank or a line break is kept apart from it
        folded = "\n" if char == "\n" else " " if char.isspace() else fold(char) if char != "→" else ">"
        for one in folded:
            if one == " " and chars and chars[-1] == " ":
                continue
            chars.append(one)
            places.append(index)
    plain = "".join(chars)
    plain = re.sub(r"(?<=[a-z0-9])-(?=[a-z])", " ", plain)
    out: list[str] = []
    starts: list[int] = []
    ends: list[int] = []
    at = 0
    for match in re.finditer(r"[a-z]+|[^a-z]", plain):
        word = match.group(0)
        better = _repaired(word) if len(word) >= 5 else word
        if better == word:
            out.append(word)
            starts.extend(places[at : at + len(word)])
            ends.extend(place + 1 for place in places[at : at + len(word)])
        else:
            out.append(better)
            starts.extend([places[at]] * len(better))
            ends.extend([places[at + len(word) - 1] + 1] * len(better))
        at += len(word)
    return Normalised("".join(out), tuple(starts), tuple(ends), original)


def _compiled(words: Iterable[str]) -> re.Pattern[str]:
    # longest first, so that "septic shock" is the phrase and not "septic"
    parts = sorted((w.strip() for w in words), key=len, reverse=True)
    return re.compile(r"(?<![a-z0-9])(?:" + "|".join(f"(?:{part})" for part in parts) + r")(?![a-z0-9])")


_RULES = tuple((rule, _compiled(rule.words)) for rule in RULES)
_BY_RULE = {rule.id: rule for rule in RULES}
_SKIN, _SYSTEMIC = _compiled(ALLERGIC_SKIN), _compiled(ALLERGIC_SYSTEMIC)
_INFECTION, _CONFUSION = _compiled(INFECTION), _compiled(CONFUSION)

# --- what surrounds a phrase --------------------------------------------------------------------------------

_SENTENCE_END = re.compile(r"(?<!\d)[.](?=\s|$)|(?<=\d)[.](?=\s+[a-z]|\s*$)|[;?!\n]")
_BREAK = re.compile(
    r"\b(but|however|yet|although|though|now|except|mas|porem|contudo|embora|apesar|agora|entretanto|presents?"
    r"|presenting"
    r"|presented|apresenta|refere|complains?|queixa|queixas|developed|desenvolveu|with new|com nov[ao])\b|[:(]| - "
    r"| > "
)
_DENIES = re.compile(r"\b(denies|denied|denying|deny|nega|negou|negando|negam)\b")
_NOT = re.compile(
    r"\b(not|without|w/o|sem|nao|nor|neither|nem|never|nunca|negative for|absence of|ausencia de|free of|ruled out"
    r"|isn'?t"
    r"|excluded|excluid[oa]s?|excluiu|afastad[oa]s?|afastou|descartad[oa]s?|resolved|negativ[oa] para|doesn'?t have"
    r"|didn'?t"
    r"|hasn'?t|haven'?t|wasn'?t|ain'?t|nil|zero)\b"
)
_NO = re.compile(r"\bno\b")
#: After one of these, "no" or "not" denies something else than the phrase ("no relief of chest pain").
_NOT_A_DENIAL = re.compile(
    r"\b(no|not|sem|nao|without)[ ]+(doubt|relief|improvement|change|response|better|improving|resolving|responding"
    r"|only|sure|certain"
    r"|longer sure|excluded|ruled|exclud\w+|excluid\w+|duvida|melhoria|melhora|alivio|resposta|apenas|so|excluo"
    r"|afast\w+"
    r"|resolv\w+|respond\w*|ceder?|cede|passa|settling|yet excluded|previous|prior|history|antecedentes|known"
    r"|allerg\w+)\b"
)
_DENIED_AFTER = re.compile(
    r"^[ ]*(?:(?:direit[ao]|esquerd[ao]|agud[ao]|ativ[ao])[ ]+)?(?:(?:has|have|had|was|were|is|are|been|foi|foram"
    r"|esta|ja|currently|now|clinically|já)[ ]+){0,3}"
    r"(?:ruled out|excluded|negative|absent|unlikely|resolved|denied|settled|gone|excluid[oa]s?|afastad[oa]s?"
    r"|descartad[oa]s?"
    r"|negativ[oa]s?|ausentes?|resolvid[oa]s?|improvave(?:l|is)|negad[oa]s?)\b"
    r"|^[^,.;:?(]{0,24}[:=][ ]*(?:no|nao|none|negative|negativ[oa]|nega|absent|ausentes?|nil)\b|^[ ]*\([ ]*(?:-|no"
    r"|nao)[ ]*\)"
)
_NOT_EXCLUDED = re.compile(r"\b(not|nao|never|nunca|cannot be|can'?t be|hasn'?t been|isn'?t)[ ]+(\w+[ ]+)?$")

_HYPOTHETICAL = re.compile(
    r"\b(if|unless|in case of|in the event of|em caso de|no caso de|caso (?!clinico)\w+|risk (of|for|factors? for)"
    r"|risco de|riscos de"
    r"|prevent\w*|prevencao( de| do| da)?|prevenir|prophyla\w+|profilaxia( de| do| da)?|avoid|avoiding|evitar"
    r"|screen(ing)?( for)?|rastreio( de)?"
    r"|rule out|r/o|ruling out|to exclude|excluir|despistar|watch (out )?for|monitor(ing)? for|vigiar"
    r"|look(ing)? (out )?for"
    r"|signs? to watch|suggests? no|could (she|he|they) (get|develop)|may develop|might develop|can cause"
    r"|pode causar|causes? of|causas de"
    r"|definition of|definicao de|teach\w*|lecture|quiz|exam|exame sobre|simulation|simulacao|simulacro|drill"
    r"|treino)\b"
)
_SE = re.compile(r"(^|,)[ ]*(e |and )?se[ ]+(?!(encontra|apresenta|mantem|queixa)\b)")
_TOPIC_AFTER = re.compile(
    r"^[ ]*(?:plans?|protocols?|bundles?|pathways?|criteri(?:a|on)|guidelines?|checklists?|teams?|drills?|trainings?"
    r"|trials?|audits?|polic(?:y|ies)"
    r"|scores?|risks?|prevention|prophylaxis|clinics?|units?|wards?|nurses?|courses?|volume|awareness|stud(?:y|ies)"
    r"|simulation|kit|trolley|cart"
    r"|door to|ecg criteria|definition|mimics?|guidance|poster|lecture|survivors?|rehab\w*|sequelae?|algorithm"
    r"|registry|network|centre|center"
    r"|work ?up guidance|assessment tool|charts?|forms?|stockings|thresholds?|targets?|cut ?offs?)\b"
)
_HISTORY_BEFORE = re.compile(
    r"\b(history of|hx( of)?|h/o|previous(ly)?|prior|past|remote|pmh|pmhx|background( of)?|antecedentes( de"
    r"| pessoais)?|historia de|previ[oa]s?"
    r"|antig[oa]s?|had (a|an) [\w ]{0,20}(in|years)|(?<!year )(?<!years )(?<!yr )(?<!yo )old|survived"
    r"|recovering from|recovered from|sequelas? de"
    r"|ex|childhood|teve (um|uma)|already treated|resolved|treated for|ja teve|known)\b"
)
#: "PMH: stroke, MI": all that follows until somebody says what is new.
_HISTORY_HEADING = re.compile(
    r"\b(pmh|pmhx|past (medical |surgical )?history|medical history|antecedentes( pessoais)?|background|history|hx"
    r"|ap)[ ]?:"
    r"(?!.*\b(now|new|presents?|presenting|agora|apresenta|novo|nova|hoje|today)\b)[^:]*$"
)
_AFTER = re.compile(
    r"\b(post|pos|after|following|since|apos|depois d[eoa]|desde o|days? after|status post"
    r"|s/p)[ ]+((a|an|the|his|her|um|uma|o|a)[ ]+)?$"
)
_FAMILY = re.compile(
    r"\b(family history|father|mother|brother|sister|uncle|aunt|parents?|grand\w+|son|daughter|wife|husband|family"
    r"|pai|mae|irmao|irma|tio|tia|avo|pais"
    r"|filh[oa]|marido|esposa|familiares?|familia|historia familiar)\b"
)
_PAST_AFTER = re.compile(
    r"^[\w /(]{0,28}?(?:\b(?:in|em|de|since|desde|on|year)[ ]+(?:\w+[ ]+){0,2}(?:19|20)\d\d\b|\((?:19|20)\d\d\)"
    r"|[ ](?:19|20)\d\d\b"
    r"|\b(?:\d+|a few|few|several|two|three|many|some|\w+)[ ]+(?:years?|yrs?|months?|weeks?|anos?|meses|mes"
    r"|semanas?)[ ]+(?:ago|atras|earlier|before|antes)\b"
    r"|\bha[ ]+(?:\d+|varios|varias|alguns|algumas|muitos|um|uma|dois|duas|tres)[ ]+(?:anos?|meses|mes|semanas?)\b"
    r"|\b(?:last|past)[ ]+(?:year|month|week|summer|winter)\b|\b(?:ano|mes|semana)[ ]+passad[oa]\b|\b(?:previ[oa]s?"
    r"|antig[oa]s?|no passado)\b"
    r"|\bin (?:the past|childhood|infancy)\b|\bas a (?:child|teenager)\b|\bna infancia\b|\bem crianca\b"
    r"|\b(?:day|dia|d)[ ]?\d+\b(?! (?:of )?(?:chemo|quimio))|\b(?:survivor|sequelae?|sequelas|rehab\w*"
    r"|reabilitacao)\b)"
)
_QUESTION_START = re.compile(
    r"^[ ,]*(?:please[ ]+|and[ ]+|so[ ]+|hi[ ]+|hello[ ]+|ola[ ]+|e[ ]+|por favor[ ]+)*(?:what(?:'?s)?|which|how"
    r"|when|where|why|who|define|explain|remind me|tell me|show me|list|give me|summari[sz]e|do we|does"
    r"|is there|are there|any|algum|alguma|can (?:you|i|we)|could you|should we|where'?s|qual|quais|como|quando"
    r"|onde|porque|por que"
    r"|o que|que|quanto|quantos|quantas"
    r"|define|explica\w*|diz me|mostra\w*|lista\w*|resume|resumir|lembra\w*|quero saber|preciso de saber|existe"
    r"|ha algum\w*)\b"
)
_TOPIC_START = re.compile(
    r"^[ ,]*(?:[a-z]+ ){0,5}(?:times?|targets?|windows?|thresholds?|doses?|dosing|criteria|protocols?|guidelines?"
    r"|algorithms?"
    r"|tempos?|alvos?|criterios|protocolos?) (?:for|in|of|em|de|da|do|na|no|para) "
    r"|^[ ,]*(?:the |a |o |os |as )?(?:dos(?:e|es|ing|age)|definitions?|criteria|indications?|contra ?indications?"
    r"|management|treatments?|protocols?|guidelines?"
    r"|targets?|steps?|algorithm|checklist|windows?|times?|differences?|difference between|causes|first line|risk"
    r"|features|classification|stages|dosagem"
    r"|definicao|criterios|indicac\w+|contra ?indicac\w+|tratamento|abordagem|protocolos?|norma|orientac\w+|alvos?"
    r"|passos|algoritmo|tempos?|janela|diferencas?"
    r"|causas|primeira linha|fatores de risco|classificacao)\b"
)
_THIS_PATIENT = re.compile(
    r"\b(th(is|at)|he|she|his|her|him|they|my|our|the (patient|pt|man|woman|lady|boy|girl)|patient (has|with|is|in"
    r"|came|arriv\w+)|pt (has|with|is|in|came)"
    r"|bed \d+|cama \d+|now|just|since|currently|here|acutely|sudden(ly)?|ongoing|\d+ ?(year|yr|yo|y/o)s?|next"
    r"|already|still|given|arriv(ed|ing)"
    r"|\d+ ?(min|mins|minutes|minutos|h|hours?|horas?) ?(ago|atras)?|ha \d+|este|esta|deste|desta|neste|nesta"
    r"|doente|utente|paciente|dele|dela|agora|acaba"
    r"|desde|subit\w+|entrou|chegou|\d+ anos|atual\w*|proxim[oa]|activate|ativar|activar|ative|active|ativo"
    r"|acionar)\b"
)
_START_ACTION = re.compile(
    r"\b(activat\w+|ativ(ar|a|e|ei|ado|ada)|activ(ar|a|e|ei|ado|ada)|acion\w+|trigger(ed)?"
    r"|start(ed|ing)?|inici\w+|call(ed|ing)?|chamar)\b"
)
#: Words that tell the two languages apart, for the one that means both: "no".
_PT_WORDS = frozenset(
    """com de do da em na nas nos dos das nao sem doente dor ha que para anos uma um ao os e ou mas tem esta por se ja
    foi mais sua seu pela pelo avc eam utente peito sexo apos desde sobre entre muito homem mulher refere nega este
    ultima ultimo su uci enfermaria bloco servico quarto leito""".split()  # noqa: SIM905
)
_EN_WORDS = frozenset(
    """with of the and is on has for not in at to an chest patient pain any there she he his her was but or this that
    from since year old says signs evidence history""".split()  # noqa: SIM905
)
_LIST = re.compile(r"\b(or|nor|ou|nem)\b")


def _is_portuguese_sentence(sentence: str) -> bool:
    words = re.findall(r"[a-z]+", sentence)
    return sum(w in _PT_WORDS for w in words) > sum(w in _EN_WORDS for w in words)


def _last_break(text: str) -> int:
    at = 0
    for found in _BREAK.finditer(text):
        at = found.end()
    return at


def _denied(sentence: str, start: int, end: int) -> bool:
    """Whether the phrase at ``start:end`` of the sentence is said not to be there."""
    after = sentence[end:]
    tail = _DENIED_AFTER.search(after)
    if tail is not None:
        said = after[: tail.end()]
        return (
            not re.search(
                r"\b(not|nao|never|nunca|cannot"
                r"|can'?t)\b",
                said,
            )
            or re.search(r"[:=?(]", said) is not None
        )
    before = sentence[:start]
    scope = before[_last_break(before) :]
    scope = _NOT_A_DENIAL.sub(lambda m: " " * len(m.group(0)), scope)
    if _DENIES.search(scope):
        return True
    negators = [m for m in _NOT.finditer(scope)]
    if not _is_portuguese_sentence(sentence):
        # Portuguese "no" is "in the": "dor no peito", "AVC no serviço"
        negators += list(_NO.finditer(scope))
    for negator in negators:
        between = scope[negator.end() :]
        if re.search(r"[a-z]", between[:1]):
            continue
        words = re.findall(r"[a-z0-9']+", between)
        if "," not in between:
            # "not hypotensive and in pain since he had a stroke": a far word denies something nearer
            if len(words) <= 5:
                return True
        elif _LIST.search(between) or _LIST.search(re.split(r"[,]", after + ",")[0]) or _list_goes_on(after):
            return True
    return False


def _list_goes_on(after: str) -> bool:
    """Whether what follows is the rest of "no A, B or C": short items up to an "or"."""
    items = after.split(",")
    for item in items[1:]:
        if _LIST.search(item):
            return len(item.split()) <= 6
        if len(item.split()) > 4:
            return False
    return bool(_LIST.search(items[0]) and len(items[0].split()) <= 5)


def _hypothetical(sentence: str, start: int, end: int) -> bool:
    before, after = sentence[:start], sentence[end:]
    scope = before[_last_break(before) :]
    near = " ".join(scope.split()[-9:])
    if _SE.search(before) and not re.search(r"[:]", before):
        return True
    topic = _TOPIC_AFTER.search(after) is not None
    if topic and not (_START_ACTION.search(before) or re.search(r"\b(now|agora)\b", after)):
        return True
    supposed = list(_HYPOTHETICAL.finditer(near))
    if not supposed:
        return False
    found = supposed[-1]
    # "aspirin for stroke prevention, now slurred speech": a comma ends the supposition, except for "if"
    rest = near[found.end() :]
    return "," not in rest or found.group(0) in {"if", "unless"}


def _general_question(sentence: str, start: int, end: int) -> bool:
    """Whether the phrase is the topic of a question about medicine and not about this patient."""
    before = sentence[:start]
    segment = before.rsplit(",", 1)[-1]
    asks = any(p.search(part) for p in (_QUESTION_START, _TOPIC_START) for part in (sentence, segment))
    if not asks:
        return False
    if _QUESTION_START.search(sentence) is None and _TOPIC_START.search(sentence) is None and "," in before:
        # the question begins in the phrase's own part: "BP 84, what is the dose in septic shock"
        return not _THIS_PATIENT.search(segment + sentence[start:])
    return not _THIS_PATIENT.search(sentence)


def _history(sentence: str, start: int, end: int, chronic: bool) -> bool:
    before, after = sentence[:start], sentence[end:]
    if _HISTORY_HEADING.search(before):
        return True
    scope = re.split(r"[,:(]", before[_last_break(before) :])[-1] if "," in before else before[_last_break(before) :]
    near = " ".join(scope.split()[-5:])
    found = _HISTORY_BEFORE.search(near)
    if (
        found is not None
        and (chronic or found.group(0) != "known")
        and not re.search(
            r"\b(now|new"
            r"|agora)\b",
            near[found.end() :],
        )
    ):
        return True
    if chronic and _AFTER.search(before):
        return True
    if _FAMILY.search(" ".join(before[_last_break(before) :].split()[-7:])):
        return True
    return _PAST_AFTER.search(after.split(",")[0].split(";")[0]) is not None


_ALLERGY_TALK = re.compile(r"\b(allerg\w*|alergi\w*|intoleran\w*)\b")
_ACUTE_ALLERGY = re.compile(
    r"\b(now|just|min(ute)?s? ago|adrenalin[ea]?|epinephrine|wheez\w*|stridor|hypotens\w*|hives|urticaria|swelling"
    r"|swollen|collapsed?|agora|minutos"
    r"|pieira|sibilos|hipotens\w*|after (eating|the|a|dose|injection|first)|apos|depois de (comer|tomar)|acute"
    r"|refractory|biphasic|in progress)\b"
)


def _allergy_label(normal: str, start: int, end: int) -> bool:
    """Whether "anaphylaxis" only says how the patient once reacted: "penicillin anaphylaxis, which antibiotic?"."""
    before, after = normal[max(0, start - MAX_SENTENCE_CHARS) : start], normal[end : end + MAX_SENTENCE_CHARS]
    if _ACUTE_ALLERGY.search(f"{before} {after}"):
        return False
    if _ALLERGY_TALK.search(" ".join(before.split()[-6:])) or _ALLERGY_TALK.search(" ".join(after.split()[:3])):
        return True
    from chatd.safety.medication import drugs_in

    neighbour_before = " ".join(before.split()[-2:])
    neighbour_after = re.match(r"[ ]*(?:to|with|from|a|ao|com|por)[ ]+(\w+[ ]?\w*)", after)
    said = [neighbour_before] if neighbour_before else []
    if neighbour_after:
        said.append(neighbour_after.group(1))
    return any(drugs_in(part) for part in said)


def sentences(text: str) -> list[tuple[int, int]]:
    """Start and end of each sentence of a normalised text; the end includes its sign."""
    spans, at = [], 0
    for found in _SENTENCE_END.finditer(text):
        spans.append((at, found.end()))
        at = found.end()
    spans.append((at, len(text)))
    out: list[tuple[int, int]] = []
    for start, end in spans:
        while end - start > MAX_SENTENCE_CHARS:
            blank = text.rfind(" ", start + MAX_SENTENCE_CHARS // 2, start + MAX_SENTENCE_CHARS)
            cut = blank if blank > 0 else start + MAX_SENTENCE_CHARS
            out.append((start, cut))
            start = cut  # noqa: PLW2901
        out.append((start, end))
    return [(a, b) for a, b in out if text[a:b].strip()]


def is_asserted(sentence: str, start: int, end: int, *, chronic: bool = False) -> bool:
    """Whether a phrase of a normalised sentence is said of this patient and now."""
    return not (
        _denied(sentence, start, end)
        or _history(sentence, start, end, chronic)
        or _hypothetical(sentence, start, end)
        or _general_question(sentence, start, end)
    )


def _asserted_matches(normal: Normalised, pattern: re.Pattern[str], *, chronic: bool = False) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    looked_at = 0
    for a, b in sentences(normal.text):
        sentence = normal.text[a:b]
        for match in pattern.finditer(sentence):
            looked_at += 1
            if looked_at > MAX_MATCHES:
                return found
            if is_asserted(sentence, match.start(), match.end(), chronic=chronic):
                found.append((a + match.start(), a + match.end()))
    return found


# --- numbers ------------------------------------------------------------------------------------------------

_VITAL_NAMES: dict[str, str] = {
    "sbp": r"(?:bp|ta|pa|sbp|pas|tas|systolic(?: bp| blood pressure)?|sistolica|blood pressure|tensao(?: arterial)?"
    r"|pressao(?: arterial)?)",
    "map": r"(?:map|pam|tam|mean arterial pressure|pressao arterial media|tensao arterial media)",
    "hr": r"(?:hr|fc|heart rate|pulse|pulso|frequencia cardiaca|pulse rate)",
    "rr": r"(?:rr|fr|resp(?:iratory)? rate|resps?|respirations|frequencia respiratoria)",
    "spo2": r"(?:spo2|sao2|sp02|o2 ?sats?|sats?|sat ?o2|saturation|saturations|saturacao(?: periferica)?(?: de o2)?"
    r"|satura|saturating|saturar|oxygen saturation)",
    "gcs": r"(?:gcs|glasgow(?: coma scale| coma score)?|escala de (?:coma de )?glasgow"
    r"|ecg(?=[ ]*(?:de[ ]*)?\d{1,2}[ ]*/[ ]*15))",
}
_LAB_NAMES: dict[str, str] = {
    "potassium": r"(?:k\+?|potassium|potassio|kaliemia|caliemia)",
    "sodium": r"(?:na\+?|sodium|sodio|natremia)",
    "glucose": r"(?:glucose|glicose|glicemia(?: capilar)?|glyca?emia|bm|bgl?|cbg|dextro|dxt|blood sugar|sugar"
    r"|acucar)",
    "lactate": r"(?:lactate|lactato|lac|lactic acid)",
    "haemoglobin": r"(?:hb|hgb|ha?emoglobin|hemoglobina)",
    "platelets": r"(?:plt|platelets?|plaquetas)",
    "ph": r"(?:ph)",
    "inr": r"(?:inr)",
    "calcium": r"(?:calcium|calcio)",
}
_FILLER = (
    r"(?:[ ]*(?:of|is|was|at|now|only|just|still|level|came back|down|to|dropped|fell|rose|up|around|about|approx"
    r"|value|reads?|reading|currently|today"
    r"|de|e|em|a|esta|agora|foi|com|nos|valor|para|caiu|subiu|apenas|so|desceu|cerca|capilar|serum|serico|[=:~]))*"
)
_VALUE = r"[ ]*(?P<cmp>[<>]=?)?[ ]*(?P<value>\d{1,4}(?:[.,]\d{1,3})?)"
_UNIT = (
    r"[ ]*(?P<unit>mmol ?/ ?l|meq ?/ ?l|mg ?/ ?dl|umol ?/ ?l|g ?/ ?dl|g ?/ ?l|mm ?\[?hg\]?|kpa|%|x? ?10[*^]?9 ?/ ?l"
    r"|mg\b|mcg\b|ml\b|units?\b|ui\b|u\b|mmol\b|meq\b|g\b|kg\b|/ ?min|bpm)?"
)


def _number_pattern(name: str) -> re.Pattern[str]:
    return re.compile(
        r"(?<![a-z0-9])" + name + r"(?![a-z])" + _FILLER + _VALUE + r"(?:[ ]*/[ ]*(?P<second>\d{1,3})\b)?" + _UNIT
    )


_VITAL_NUMBERS = {key: _number_pattern(name) for key, name in _VITAL_NAMES.items()}
_LAB_NUMBERS = {key: _number_pattern(name) for key, name in _LAB_NAMES.items()}
_SYSTOLIC_AFTER = re.compile(
    r"(?<![\d.,/])(?P<cmp>[<>]=?)?(?P<value>\d{2,3})[ ]*(?:mm ?hg[ ]*)?(?:systolic"
    r"|sistolica)(?P<second>)(?P<unit>)"
)
_GCS_PARTS = re.compile(r"\be ?([1-4])[ ,]*v ?([1-5])[ ,]*m ?([1-6])\b")
_TARGET_BEFORE = re.compile(
    r"\b(target\w*|goal|aim(ing)?( for)?|keep|maintain|alvo|objetivo|objectivo|manter|until|ate|threshold|limit\w*"
    r"|cut ?off|above|below|over|under|less than"
    r"|greater than|more than|acima|abaixo|inferior|superior|menor|maior|if|unless|when|whenever|quando|caso"
    r"|hold (if|for)|in case of|for a|normal"
    r"|correct(ed|ing)? to|titrat\w+|permissive)\b[\w ]{0,18}$"
)
_WAS = re.compile(
    r"\b(was|were|had been|initial(ly)?|previous(ly)?|yesterday|earlier|last|baseline|estava|era|foi"
    r"|inicial(mente)?|previa|previo|ontem|antes|anterior)\b"
)
_SYMPTOM_GLUCOSE = re.compile(
    r"\b(drows\w*|confus\w*|seiz\w*|coma\w*|unresponsive|sweat\w*|unconscious|sonolen\w*"
    r"|inconsciente|convuls\w*|sudor\w*|palid\w*)\b"
)
_ECG_CHANGE = re.compile(
    r"\b(ecg|ekg|peaked|tented|tall t|wide qrs|broad qrs|sine wave|bradycardi\w*|apiculad\w*"
    r"|qrs alargado|bradicardi\w*|alteracoes)\b"
)


class _Number(msgspec.Struct, frozen=True):
    """A number of the text: its value as written and where it stands."""

    value: float
    comparator: str
    unit: str
    start: int
    end: int


def _numbers(normal: Normalised, pattern: re.Pattern[str]) -> list[_Number]:
    found = []
    for a, b in sentences(normal.text):
        sentence = normal.text[a:b]
        for m in pattern.finditer(sentence):
            before = sentence[: m.start()]
            before = before[_last_break(before) :].rsplit(",", 1)[-1]
            between = sentence[m.start() : m.start("value")]
            if _TARGET_BEFORE.search(before) or re.search(r"\b(target|goal|alvo|limit)\b", between):
                continue
            if m.group("cmp") and (_HYPOTHETICAL.search(before) or _QUESTION_START.search(sentence)):
                continue
            if _history(sentence, m.start(), m.end(), chronic=False) and not _WAS.search(before):
                continue
            # "no previous K 6.9" is not written; "no BP 84" neither: a number is not negated
            found.append(
                _Number(
                    float(m.group("value").replace(",", ".")),
                    m.group("cmp") or "",
                    (m.group("unit") or "").replace(" ", ""),
                    a + m.start(),
                    a + m.end(),
                )
            )
    return found


_ARROW = re.compile(r"[ ]*(?:->|=>|>|to|para)[ ]*(?P<value>\d{1,4}(?:[.,]\d{1,3})?)(?P<value_first>)")
#: "K was 6.9 yesterday, now 4.8" and "K 4.2 yesterday, 6.9 now": the second value without its name.
_NOW_VALUE = re.compile(
    r"[^.;\n\d]{0,25}(?:\b(?:now|agora|hoje|today|currently|atualmente)[ ]*(?:is |at |it is |de |esta )?"
    r"(?P<value>\d{1,4}(?:[.,]\d{1,3})?)|(?P<value_first>\d{1,4}(?:[.,]\d{1,3})?)[ ]*(?:now|agora|hoje|today)\b)"
)


def _current(normal: Normalised, numbers: list[_Number]) -> _Number | None:
    """Of several values of one thing the one that holds now: the last that is not told as past."""
    if not numbers:
        return None

    def is_past(one: _Number) -> bool:
        head = re.split(r"[,;.]", normal.text[max(0, one.start - 80) : one.start])[-1]
        tail = re.split(r"[,;.]", normal.text[one.end : one.end + 80])[0]
        own = normal.text[one.start : one.end]
        return _WAS.search(" ".join(head.split()[-3:]) + " " + own + " " + " ".join(tail.split()[:3])) is not None

    last = numbers[-1]
    after = normal.text[last.end : last.end + 80]
    later = _ARROW.match(after) or (_NOW_VALUE.match(after) if is_past(last) else None)
    if later:
        value = later.group("value") or later.group("value_first")
        return msgspec.structs.replace(last, value=float(value.replace(",", ".")), end=last.end + later.end())
    present = [one for one in numbers if not is_past(one)]
    return (present or numbers)[-1]


def vital_numbers(text: str) -> dict[str, float]:
    """The vital signs a text states as this patient's now: sbp, map, hr, rr, spo2, gcs, in their usual units."""
    return {name: one.value for name, (one, _) in _vital_numbers(normalise(text)).items()}


def _vital_numbers(normal: Normalised) -> dict[str, tuple[_Number, str]]:
    bounds = {"sbp": (30, 320), "map": (15, 220), "hr": (10, 350), "rr": (0, 100), "spo2": (20, 100), "gcs": (3, 15)}
    out: dict[str, tuple[_Number, str]] = {}
    for name, pattern in _VITAL_NUMBERS.items():
        found = _numbers(normal, pattern)
        if name == "sbp":
            found = sorted(found + _numbers(normal, _SYSTOLIC_AFTER), key=lambda one: one.start)
        # a dose or another unit makes it something else; kPa is converted nowhere here
        found = [
            one
            for one in found
            if one.unit in {"", "%", "mmhg", "mm[hg]", "/min", "bpm"} and one.value == int(one.value)
        ]
        low, high = bounds[name]
        one = _current(normal, [o for o in found if low <= o.value <= high])
        if one is not None:
            out[name] = (one, normal.phrase(one.start, one.end))
    parts = _GCS_PARTS.search(normal.text)
    if "gcs" not in out and parts:
        total = float(sum(int(part) for part in parts.groups()))
        out["gcs"] = (_Number(total, "", "", parts.start(), parts.end()), normal.phrase(parts.start(), parts.end()))
    return out


#: Without a unit a number is read in each unit that gives a possible result: (analyte, unit, smallest, largest).
_READINGS: dict[str, tuple[tuple[str, float, float], ...]] = {
    "potassium": (("mmol/l", 1, 12),),
    "sodium": (("mmol/l", 90, 200),),
    "glucose": (("mg/dl", 20, 2000), ("mmol/l", 0.5, 60)),
    "lactate": (("mmol/l", 0.2, 30), ("mg/dl", 31, 300)),
    "haemoglobin": (("g/dl", 1, 25), ("g/l", 26, 250)),
    "platelets": (("10*9/l", 0, 1500), ("/ul", 1501, 9999)),
    "ph": (("", 6.5, 7.9),),
    "inr": (("", 0.8, 20),),
    "calcium": (("mg/dl", 4, 20), ("mmol/l", 1, 3.99)),
}


def _side(analyte: Analyte, one: _Number, limits: Mapping[str, tuple[float | None, float | None]]) -> str | None:
    """ "low" or "high" when every possible reading of the number is critical on some side, else None."""
    table = limits_of(analyte, limits)
    if one.unit:
        readings = [to_canonical(analyte, one.value, one.unit)]
    else:
        readings = [
            to_canonical(analyte, one.value, unit)
            for unit, low, high in _READINGS[analyte.id]
            if low <= one.value <= high
        ]
    sides = set()
    for reading in readings:
        if reading is None:
            continue
        if table.is_high(reading) and "<" not in one.comparator:
            sides.add("high")
        elif table.is_low(reading) and ">" not in one.comparator:
            sides.add("low")
        else:
            sides.add("none")
    if not sides or "none" in sides:
        return None
    return "low" if sides == {"low"} else "high"


_LAB_PRESENTATION: dict[tuple[str, str], tuple[str, str, str, tuple[str, ...]]] = {
    ("potassium", "high"): ("hyperkalaemia", "hyperkalaemia", "hipercaliemia", ("hyperkalaemia",)),
    ("potassium", "low"): ("hypokalaemia", "severe hypokalaemia", "hipocaliemia grave", ("qtc",)),
    ("sodium", "high"): ("dysnatraemia", "severe hypernatraemia", "hipernatremia grave", ()),
    ("sodium", "low"): ("dysnatraemia", "severe hyponatraemia", "hiponatremia grave", ()),
    ("glucose", "high"): ("glucose", "severe hyperglycaemia", "hiperglicemia grave", ("glucose",)),
    ("glucose", "low"): ("glucose", "hypoglycaemia", "hipoglicemia", ("glucose",)),
    ("lactate", "high"): ("lactate", "high lactate", "lactato elevado", ("sepsis",)),
    ("haemoglobin", "low"): ("severe_anaemia", "critically low haemoglobin", "hemoglobina criticamente baixa", ()),
    ("platelets", "low"): ("thrombocytopenia", "critically low platelets", "plaquetas criticamente baixas", ()),
    ("ph", "low"): ("acidosis", "severe acidosis", "acidose grave", ()),
    ("ph", "high"): ("alkalosis", "severe alkalosis", "alcalose grave", ()),
    ("inr", "high"): ("coagulopathy", "critically high INR", "INR criticamente elevado", ()),
    ("calcium", "high"): ("calcium", "severe hypercalcaemia", "hipercalcemia grave", ()),
    ("calcium", "low"): ("calcium", "severe hypocalcaemia", "hipocalcemia grave", ("qtc",)),
}

#: Vital signs that are an emergency by themselves, as stated in a question: (vital, test, id, en, pt, signals).
#: Basis: systolic under 90 and mean under 65 mmHg (sepsis and trauma guidance); Glasgow 8 or less (airway); saturation
#: under 88 %, which lies below the lowest prescribed target; rates at which NEWS2 gives 3 points, and beyond.
_VITAL_PRESENTATIONS: tuple[tuple[str, Callable[[float], bool], str, str, str, tuple[str, ...]], ...] = (
    ("map", lambda v: v < 65, "shock", "shock (mean arterial pressure under 65 mmHg)",
     "choque (pressão arterial média inferior a 65 mmHg)", ("vasopressors",)),
    ("sbp", lambda v: v < 90, "shock", "shock (systolic under 90 mmHg)", "choque (sistólica inferior a 90 mmHg)",
     ("vasopressors",)),
    ("sbp", lambda v: v >= 220, "hypertension", "severe hypertension", "hipertensão grave", ()),
    ("gcs", lambda v: v <= 8, "reduced_consciousness", "Glasgow 8 or less: airway at risk",
     "Glasgow 8 ou menos: via aérea em risco", ()),
    ("spo2", lambda v: v < 88, "respiratory_failure", "severe hypoxaemia", "hipoxemia grave", ()),
    ("rr", lambda v: v >= 30 or v <= 8, "respiratory_failure", "respiratory rate far out of range",
     "frequência respiratória muito alterada", ()),
    ("hr", lambda v: v >= 150 or v <= 40, "arrhythmia", "heart rate far out of range",
     "frequência cardíaca muito alterada", ()),
)  # fmt: skip


def emergencies(
    text: str, hospital_limits: Mapping[str, tuple[float | None, float | None]] | None = None
) -> tuple[Presentation, ...]:
    """The emergencies that ``text`` says this patient has now, each id once, in the table's order, then by numbers.

    ``hospital_limits``: the hospital's call limits, which decide about laboratory numbers in the text.
    At most ``MAX_CHARS`` characters are read. Never raises.
    """
    normal = normalise(text)
    if not normal.text.strip():
        return ()
    limits = hospital_limits or {}
    found: dict[str, Presentation] = {}

    def add(id_: str, en: str, pt: str, signals: tuple[str, ...], phrase: str) -> None:
        found.setdefault(id_, Presentation(id=id_, en=en, pt=pt, phrase=phrase, signals=signals))

    labs = {name: _current(normal, _numbers(normal, pattern)) for name, pattern in _LAB_NUMBERS.items()}
    vitals = _vital_numbers(normal)
    for rule, pattern in _RULES:
        for start, end in _asserted_matches(normal, pattern, chronic=rule.chronic):
            if rule.id == "anaphylaxis" and _allergy_label(normal.text, start, end):
                continue
            if rule.id == "hyperkalaemia" and _is_mild(normal, labs["potassium"], start):
                continue
            add(rule.id, rule.en, rule.pt, rule.signals, normal.phrase(start, end))
            break
    for name, one in labs.items():
        if one is None:
            continue
        side = _side(BY_ID[name], one, limits)
        if side is None and name == "potassium" and _potassium_with_ecg(normal, one):
            side = "high"
        if side is None and name == "glucose" and _symptomatic_low_glucose(normal, one):
            side = "low"
        if side is not None and (name, side) in _LAB_PRESENTATION:
            id_, en, pt, signals = _LAB_PRESENTATION[name, side]
            add(id_, en, pt, signals, normal.phrase(one.start, one.end))
    for name, is_emergency, id_, en, pt, signals in _VITAL_PRESENTATIONS:
        if name in vitals and is_emergency(vitals[name][0].value):
            add(id_, en, pt, signals, vitals[name][1])
    _composites(normal, vitals, labs, add)
    return tuple(found.values())


def _is_mild(normal: Normalised, potassium: _Number | None, start: int) -> bool:
    """Whether the text itself calls it mild, or gives a potassium under 6 mmol/L beside it."""
    before = normal.text[max(0, start - 20) : start]
    mild = re.search(r"\b(mild|ligeira|leve|discreta)[ ]*$", before) is not None
    return mild or (potassium is not None and 1 <= potassium.value < 6 and not _ECG_CHANGE.search(normal.text))


def _potassium_with_ecg(normal: Normalised, one: _Number) -> bool:
    """6.0 mmol/L or more with an ECG change: an emergency although under the call limit (UK kidney guidance)."""
    changes = [m for m in _ECG_CHANGE.finditer(normal.text) if m.group(0) not in {"ecg", "ekg"}]
    return 6.0 <= one.value <= 12 and one.unit in {"", "mmol/l", "meq/l"} and bool(changes)


def _symptomatic_low_glucose(normal: Normalised, one: _Number) -> bool:
    """Under 54 mg/dL (3.0 mmol/L) with symptoms: level 3 hypoglycaemia."""
    mg_dl = one.value if one.unit == "mg/dl" or (not one.unit and one.value >= 20) else one.value * 18.016
    return 18 <= mg_dl < 54 and bool(_asserted_matches(normal, _SYMPTOM_GLUCOSE))


def _composites(
    normal: Normalised,
    vitals: Mapping[str, tuple[_Number, str]],
    labs: Mapping[str, _Number | None],
    add: Callable[[str, str, str, tuple[str, ...], str], None],
) -> None:
    """Emergencies that no single word says: an allergic sign with a systemic one, an infection with organ signs."""
    sbp = vitals["sbp"][0].value if "sbp" in vitals else None
    skin = _asserted_matches(normal, _SKIN)
    systemic = _asserted_matches(normal, _SYSTEMIC)
    low_pressure = sbp is not None and sbp < 90
    if skin and (systemic or low_pressure):
        rule = _BY_RULE["anaphylaxis"]
        add(rule.id, rule.en, rule.pt, rule.signals, normal.phrase(*skin[0]))
    infection = _asserted_matches(normal, _INFECTION)
    if infection:
        lactate = labs.get("lactate")
        organs = (
            sbp is not None and sbp <= 100,
            "map" in vitals and vitals["map"][0].value < 65,
            "rr" in vitals and vitals["rr"][0].value >= 22,
            "hr" in vitals and vitals["hr"][0].value > 120,
            "gcs" in vitals and vitals["gcs"][0].value < 15,
            lactate is not None and 2 < lactate.value <= 30,
            bool(_asserted_matches(normal, _CONFUSION)),
        )
        if sum(organs) >= 2:
            rule = _BY_RULE["sepsis"]
            add(rule.id, rule.en, rule.pt, rule.signals, normal.phrase(*infection[0]))


# --- written ECG reports ------------------------------------------------------------------------------------

_LEAD_GROUPS: tuple[tuple[str, ...], ...] = (
    ("v1", "v2", "v3", "v4", "v5", "v6"),
    ("i", "avl", "v5", "v6"),
    ("ii", "iii", "avf"),
    ("v7", "v8", "v9"),
)
_TERRITORY = re.compile(
    r"\b(antero ?septal|antero ?lateral|anterior|inferior|infero ?lateral|lateral|septal"
    r"|posterior|inferiores|anteriores|laterais)\b"
)
_ST_UP = re.compile(
    r"\bst[ ]+(segment[ ]+)?elevations?|\belevated[ ]+st\b|\belevation of (the )?st|\bst[ ]+elevated"
    r"|\b(supra ?desnivelamento|supra|elevacao)[ ]+(do |de )?(segmento )?st\b"
    r"|\bst[ ]+(supra ?desnivelad\w*|elevado)|\bste\b|\bstemi\b|\beamc ?s(st)?\b"
)
_NOT_ISCHAEMIC = re.compile(
    r"\b(early repolari[sz]ation|repolarizacao precoce|pericarditis|pericardite|benign|old|antig[oa]s?|previous"
    r"|unchanged from|resolved|resolvid[oa]|lv aneurysm"
    r"|aneurisma|criteria not met|does not meet|nao cumpre|less than 1|< ?1 ?mm|non ?specific|inespecific\w*"
    r"|no longer)\b"
)
_ECG_OTHER = (
    ("cardiac_arrest", re.compile(r"\b(ventricular fibrillation|fibril(h?ac)ao ventricular|asystole|assistolia)\b")),
    ("arrhythmia", re.compile(r"\b((sustained )?ventricular tachycardia|taquicardia ventricular|(complete"
        r"|third degree) (heart|av) block"
                              r"|bloqueio (av|auriculoventricular) completo|bav completo|torsades?)\b")),
    ("hyperkalaemia", re.compile(r"\b((peaked|tall|tented) t ?waves?|ondas t (apiculadas|altas|em tenda)"
        r"|sine wave)\b")),
)  # fmt: skip


def leads_in(text: str) -> frozenset[str]:
    """The ECG leads a text names, ranges filled: "V2-V6, I e aVL" gives v2 to v6, i and avl."""
    plain = fold(text)
    leads: set[str] = set()
    for first, last in re.findall(r"\bv ?([1-9]) ?(?:-|to|a|ate|through|/) ?v? ?([1-9])\b", plain):
        low, high = sorted((int(first), int(last)))
        leads.update(f"v{n}" for n in range(low, high + 1))
    leads.update(f"v{n}" for n in re.findall(r"\bv ?([1-9])\b", plain))
    for lead in re.findall(r"\b(avl|avf|avr|iii|ii|i|d1|d2|d3|diii|dii|di)\b", plain):
        leads.add({"d1": "i", "di": "i", "d2": "ii", "dii": "ii", "d3": "iii", "diii": "iii"}.get(lead, lead))
    return frozenset(leads)


def has_two_contiguous(leads: frozenset[str]) -> bool:
    """Whether two of the leads look at neighbouring parts of the heart (4th universal definition)."""
    return any(len(leads & set(group)) >= 2 for group in _LEAD_GROUPS)


def ecg_emergencies(text: str) -> tuple[Presentation, ...]:
    """The emergencies that the words of a written ECG report name; never a reading of the tracing.

    ST elevation counts when the report names two contiguous leads, a territory, or the infarction itself.
    """
    normal = normalise(text)
    found: dict[str, Presentation] = {}
    for a, b in sentences(normal.text):
        sentence = normal.text[a:b]
        for match in _ST_UP.finditer(sentence):
            if re.search(r"\bnon[ ]*$", sentence[: match.start()]) or _denied(sentence, match.start(), match.end()):
                continue
            if _NOT_ISCHAEMIC.search(sentence) or _hypothetical(sentence, match.start(), match.end()):
                continue
            near = normal.original[normal.starts[a] : normal.ends[b - 1]]
            named = has_two_contiguous(leads_in(near)) or _TERRITORY.search(sentence) is not None
            if named or re.search(r"\bstemi\b|\beamc", match.group(0)):
                rule = _BY_RULE["stemi"]
                found["stemi"] = Presentation(
                    id=rule.id, en=rule.en, pt=rule.pt, signals=rule.signals, phrase=" ".join(near.split())[:80]
                )
        for id_, pattern in _ECG_OTHER:
            for match in pattern.finditer(sentence):
                if is_asserted(sentence, match.start(), match.end()):
                    rule = _BY_RULE[id_]
                    phrase = normal.phrase(a + match.start(), a + match.end())
                    found.setdefault(
                        id_, Presentation(id=id_, en=rule.en, pt=rule.pt, signals=rule.signals, phrase=phrase)
                    )
    return tuple(found.values())

# ruff: noqa: E501 - a text stands on one line, beside its translation
"""Every sentence that the server writes in an answer, in English and European Portuguese, as data.

``say("value.unit_missing", "pt")``. A text never says more than its rule knows: "high" stands only where the record
or its range says so, nothing is called normal without a range, and a protocol is quoted, never turned into an order.
"""

from __future__ import annotations

from typing import Final, Literal

Lang = Literal["en", "pt"]

#: key: (English, Portuguese). Braces are filled by ``say``; the test suite checks that both sides have the same ones.
TEXTS: Final[dict[str, tuple[str, str]]] = {
    # --- the patient
    "patient.line": ("{name} (record {id}){about}", "{name} (processo {id}){about}"),
    "patient.none": (
        "No patient is selected: the answer rests on protocols only.",
        "Nenhum doente selecionado: a resposta assenta apenas em protocolos.",
    ),
    "patient.years": ("{age} years", "{age} anos"),
    "patient.under_one": ("under 1 year", "menos de 1 ano"),
    "sex.male": ("male", "sexo masculino"),
    "sex.female": ("female", "sexo feminino"),
    "sex.other": ("other sex", "outro sexo"),
    "sex.unknown": ("sex not recorded", "sexo não registado"),
    "demographic.age": ("Age {age}, born {date}", "Idade: {age}, nascimento em {date}"),
    "demographic.age_missing": ("birth date", "data de nascimento"),
    "demographic.sex": ("Sex: {sex}", "Sexo: {sex}"),
    "demographic.deceased": ("DECEASED according to the record", "FALECIDO segundo o registo"),
    "demographic.deceased_at": ("DECEASED according to the record, {time}", "FALECIDO segundo o registo, {time}"),
    "demographic.pregnant": ("Pregnancy is recorded", "Gravidez registada"),
    "name.deceased": ("Deceased", "Óbito"),
    "name.pregnancy": ("Pregnancy", "Gravidez"),
    "name.age": ("Age", "Idade"),
    "name.sex": ("Sex", "Sexo"),
    "name.allergies": ("Allergies", "Alergias"),
    "name.summary": ("Note", "Nota"),
    "name.more": ("More", "Mais"),
    # --- allergies: "none known" and "not recorded" must never be taken for each other
    "allergy": ("Allergy: {name}{detail}", "Alergia: {name}{detail}"),
    "allergy.inactive": (
        "Allergy, recorded as inactive: {name}{detail}",
        "Alergia, registada como inativa: {name}{detail}",
    ),
    "allergy.unconfirmed": ("unconfirmed", "não confirmada"),
    "allergy.high": ("high criticality", "criticidade alta"),
    "allergy.none_known": ("No known allergies (recorded)", "Sem alergias conhecidas (registado)"),
    "allergy.not_recorded": (
        "Allergies not recorded: nobody has written down whether there are any",
        "Alergias não registadas: ninguém escreveu se existem",
    ),
    "allergies.line": ("Allergies: {names}", "Alergias: {names}"),
    # --- values
    "flag.H": ("high", "alto"),
    "flag.L": ("low", "baixo"),
    "flag.HH": ("high", "alto"),
    "flag.LL": ("low", "baixo"),
    "flag.A": ("abnormal", "anormal"),
    "value.critical": ("critical result", "resultado crítico"),
    "value.contradicted": (
        "the record holds another value of the same time",
        "o registo tem outro valor da mesma hora",
    ),
    "value.unit_missing": ("unit missing", "unidade em falta"),
    "value.range": ("reference {range}", "referência {range}"),
    "value.up": ("up from {value} ({time})", "a subir, antes {value} ({time})"),
    "value.down": ("down from {value} ({time})", "a descer, antes {value} ({time})"),
    "value.stable": ("same as {value} ({time})", "igual a {value} ({time})"),
    "value.future": ("dated in the future: check", "com data futura: verificar"),
    "status.preliminary": ("preliminary", "preliminar"),
    "status.corrected": ("corrected", "corrigido"),
    "status.amended": ("amended", "alterado"),
    "status.registered": ("not yet released", "ainda não validado"),
    "status.partial": ("partial", "parcial"),
    "status.cancelled": ("cancelled", "cancelado"),
    "status.unknown": ("status unknown", "estado desconhecido"),
    "time.missing": ("time not recorded", "hora não registada"),
    "ago.day": ("yesterday", "ontem"),
    "ago.days": ("{n} days ago", "há {n} dias"),
    "ago.month": ("1 month ago", "há 1 mês"),
    "ago.months": ("{n} months ago", "há {n} meses"),
    "ago.year": ("1 year ago", "há 1 ano"),
    "ago.years": ("{n} years ago", "há {n} anos"),
    # --- the rest of the record
    "condition": ("{name}{detail}", "{name}{detail}"),
    "condition.inactive": ("{name} (not active){detail}", "{name} (não ativo){detail}"),
    "condition.unconfirmed": ("{name} (unconfirmed){detail}", "{name} (não confirmado){detail}"),
    "condition.since": (", since {time}", ", desde {time}"),
    "condition.until": (", until {time}", ", até {time}"),
    "medication": ("{name}{dose}{detail}", "{name}{dose}{detail}"),
    "medication.inactive": ("{name}{dose} (not active: {status}){detail}", "{name}{dose} (não ativo: {status}){detail}"),
    "medication.since": (", from {time}", ", desde {time}"),
    "event": ("{kind}: {name}{detail}", "{kind}: {name}{detail}"),
    "event.procedure": ("Procedure", "Procedimento"),
    "event.encounter": ("Encounter", "Episódio"),
    "event.immunization": ("Immunisation", "Vacina"),
    "event.care_plan": ("Care plan", "Plano de cuidados"),
    "event.procedures": ("procedures", "procedimentos"),
    "event.encounters": ("encounters", "episódios"),
    "event.immunizations": ("immunisations", "vacinas"),
    "event.care_plans": ("care plans", "planos de cuidados"),
    "event.to": (" to {time}", " a {time}"),
    "event.times": (", recorded {n} times", ", registado {n} vezes"),
    "report.finding": ("{title}, {time}: {finding}", "{title}, {time}: {finding}"),
    "more": ("{n} more in the record ({kind})", "mais {n} no registo ({kind})"),
    "kind.value": ("values", "valores"),
    "kind.report": ("reports", "relatórios"),
    "kind.condition": ("conditions", "problemas"),
    "kind.medication": ("medicines", "medicamentos"),
    "kind.allergy": ("allergies", "alergias"),
    "kind.procedure": ("procedures", "procedimentos"),
    "kind.encounter": ("encounters", "episódios"),
    "kind.demographic": ("details", "dados"),
    "kind.note": ("notes", "notas"),
    # --- what is missing
    "missing.tracing": (
        "the ECG tracing itself is not available",
        "o traçado de ECG em si não está disponível",
    ),
    "missing.image": (
        "the images themselves are not available ({kind})",
        "as imagens em si não estão disponíveis ({kind})",
    ),
    "missing.report": ("no {kind} report in the record", "sem relatório de {kind} no registo"),
    "missing.value": ("no {name} value in the record", "sem valor de {name} no registo"),
    "missing.recent": (
        "no {name} value in the last 24 hours in the record",
        "sem valor de {name} nas últimas 24 horas no registo",
    ),
    "missing.group": ("no {name} values in the record", "sem valores de {name} no registo"),
    "missing.entries": ("no {kind} in the record", "sem {kind} no registo"),
    "missing.drug": ("{drug}: not among the medicines in the record", "{drug}: não consta dos medicamentos no registo"),
    "missing.weight": (
        "no weight in the record: a dose by weight cannot be checked",
        "sem peso no registo: uma dose por peso não pode ser verificada",
    ),
    "missing.renal": (
        "no creatinine or eGFR in the record: kidney function is unknown here",
        "sem creatinina nem TFG no registo: a função renal não é conhecida aqui",
    ),
    "missing.allergies": (
        "allergies are not recorded: ask before giving anything",
        "as alergias não estão registadas: perguntar antes de administrar",
    ),
    "missing.onset": ("the time of onset is not recorded", "a hora de início não está registada"),
    "missing.last_well": (
        "the time last known well is not recorded",
        "a hora em que foi visto bem pela última vez não está registada",
    ),
    "missing.protocol": (
        "no protocol of the library fits this question",
        "nenhum protocolo da biblioteca se aplica a esta pergunta",
    ),
    "missing.patient": ("no patient selected", "nenhum doente selecionado"),
    "missing.more": ("{n} more points", "mais {n} pontos"),
    # --- the answer
    "answer.cancelled": ("Cancelled on request.", "Cancelado a pedido."),
    "answer.red_flags": ("ESCALATE", "ESCALAR"),
    "answer.red_flag": (
        "Escalate now: {text}",
        "Escalar já: {text}",
    ),
    "answer.checks": ("Safety checks", "Verificações de segurança"),
    "answer.findings": ("From the record", "Do registo"),
    "answer.interpretation": ("By rule", "Por regra"),
    "answer.protocols": ("Protocols say (quoted)", "Os protocolos dizem (citação)"),
    "answer.missing": ("Missing", "Em falta"),
    "answer.scores": ("Scores", "Escalas"),
    "answer.actions": ("Proposed actions, for you to decide", "Ações propostas, para decidir"),
    "answer.quote": ("{title}, {source}: \"{quote}\"", "{title}, {source}: «{quote}»"),
    "answer.superseded": (
        "superseded edition: check the current one before use",
        "edição substituída: confirmar na edição em vigor antes de usar",
    ),
    "answer.trend.up": ("{name} up: {old} ({old_time}) to {new} ({new_time})", "{name} a subir: {old} ({old_time}) para {new} ({new_time})"),
    "answer.trend.down": ("{name} down: {old} ({old_time}) to {new} ({new_time})", "{name} a descer: {old} ({old_time}) para {new} ({new_time})"),
    "answer.trend.stable": ("{name} unchanged: {old} ({old_time}) and {new} ({new_time})", "{name} sem alteração: {old} ({old_time}) e {new} ({new_time})"),
    "answer.notice": (
        "Compiled by rules from the record and the protocol library; no language model. Decision support: verify.",
        "Compilado por regras a partir do registo e da biblioteca de protocolos; sem modelo de linguagem. "
        "Apoio à decisão: verificar.",
    ),
    "answer.degraded": (
        "The language model is not available; this answer rests on the record and the protocols.",
        "O modelo de linguagem não está disponível; esta resposta assenta no registo e nos protocolos.",
    ),
    "answer.headline.protocol": ("Protocol: {titles}", "Protocolo: {titles}"),
    "answer.headline.nothing": ("The record has no answer to this", "O registo não tem resposta para isto"),
    "answer.out_of_scope": (
        "I answer questions about patients, their records and clinical protocols. Ask me about a patient and I will look.",
        "Respondo a perguntas sobre doentes, os seus registos e protocolos clínicos. Pergunte-me sobre um doente e eu procuro.",
    ),
    "answer.greeting": (
        "Hello. Ask me about a patient: results, medicines, allergies, or what a protocol says.",
        "Olá. Pergunte-me sobre um doente: resultados, medicação, alergias, ou o que diz um protocolo.",
    ),
    # --- the answer that a model helped to write
    "model.findings": ("Findings (AI-written, numbers checked)", "Achados (redigidos por IA, números verificados)"),
    "model.interpretation": ("Interpretation (AI-written)", "Interpretação (redigida por IA)"),
    "model.recommendations": ("To consider (AI-written)", "A considerar (redigido por IA)"),
    "model.notice": (
        "AI-made: written by a language model and checked by rules against the record and the protocol library. "
        "Decision support: verify.",
        "Feito por IA: redigido por um modelo de linguagem e verificado por regras contra o registo e a biblioteca de "
        "protocolos. Apoio à decisão: verificar.",
    ),
    "model.shared": (
        "Written a moment ago for the same question of a colleague.",
        "Redigido há momentos para a mesma pergunta de um colega.",
    ),
    "model.incomplete": (
        "INCOMPLETE: the text ended before it was done.",
        "INCOMPLETO: o texto acabou antes de estar concluído.",
    ),
    "model.held_all": (
        "Nothing that the language model wrote passed the checks; this answer rests on the record and the protocols.",
        "Nada do que o modelo de linguagem escreveu passou nas verificações; esta resposta assenta no registo e nos protocolos.",
    ),
    "review.numbers": (
        "Held back: {n} of the model's lines, because the record and the protocols do not hold a number in them as written",
        "Retidas: {n} linhas do modelo, porque o registo e os protocolos não têm um número nelas tal como escrito",
    ),
    "review.drug": (
        "Held back: a line of the model named {drug}. {reason}",
        "Retida: uma linha do modelo referia {drug}. {reason}",
    ),
    "review.allergies": (
        "Held back: a line of the model said that there are no allergies, which the record does not say",
        "Retida: uma linha do modelo dizia que não há alergias, o que o registo não diz",
    ),
    "review.identity": (
        "Held back: {n} of the model's lines, because they seem to be about another patient",
        "Retidas: {n} linhas do modelo, porque parecem ser sobre outro doente",
    ),
    "review.certainty": (
        "Held back: {n} of the model's lines, because they leave no room for doubt",
        "Retidas: {n} linhas do modelo, porque não deixam lugar a dúvida",
    ),
    "review.form": (
        "Held back: {n} of the model's lines that are cut or are no statement about this question",
        "Retidas: {n} linhas do modelo que estão cortadas ou não são uma afirmação sobre esta pergunta",
    ),
    "review.citations": (
        "Removed: {n} references of the model that name nothing it was given",
        "Removidas: {n} referências do modelo que não indicam nada do que lhe foi dado",
    ),
    "review.actions": (
        "Left out: {n} actions that the model named and the rules do not propose for this patient",
        "Omitidas: {n} ações que o modelo indicou e as regras não propõem para este doente",
    ),
    "check.held": (
        "{title}: a line of this protocol is not put forward, because it names {drug}, which a check speaks against",
        "{title}: uma linha deste protocolo não é proposta, porque refere {drug}, que uma verificação desaconselha",
    ),
    "check.identity": (
        "The question seems to name somebody else; this answer is about the patient named above only",
        "A pergunta parece referir outra pessoa; esta resposta é apenas sobre o doente acima indicado",
    ),
    "check.deceased": (
        "The record says that this patient has died; no action is proposed",
        "O registo indica que este doente faleceu; nenhuma ação é proposta",
    ),
}  # fmt: skip


def say(key: str, lang: Lang, **values: object) -> str:
    """The text of ``key`` in ``lang``, its braces filled; KeyError for an unknown key or a value left out."""
    text = TEXTS[key][1 if lang == "pt" else 0]
    return text.format(**values) if values else text

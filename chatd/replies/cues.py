# ruff: noqa: E501, SIM905 - word lists are read across, and edited as words
"""The words by which a question is read, as data: languages, denials, intents, scope; English and Portuguese.

Everything is matched against folded text (see ``concepts.fold``): lower case, no accents.
"""

from __future__ import annotations

import re

from context.text import fold_line

PT_WORDS = frozenset(
    "o os uma um de do da dos das em no nos nas ao aos e que qual quais quando como com sem por para pelo pela "
    "ultimo ultima ultimos ultimas esta tem foi ha mais seu sua dele dela teve fazer devo posso sao ou se nao ja "
    "agora qualquer existe ola bom dia boa tarde noite obrigado obrigada onde fica seguinte ele ela estao".split()
)
EN_WORDS = frozenset(
    "the of is are was were what which when how does do did has have had with without for and or her his their "
    "last latest show me any this that should can in on at to from he she they hi hello thanks next "
    "give tell please an my it its not no on off after before since day days hours ago bed and from with".split()
)
#: Clinical words that tell the language and carry meaning as well.
PT_SIGNS = frozenset(
    "doente paciente dor febre analises medicacao alergias tensao peso historia resumo passo valor valores resultado resultados "
    "alergia medicamentos doencas antecedentes idade toma grave choque avc enfarte".split()
)
EN_SIGNS = frozenset(
    "analyze analyse check explain patient step summary value values result results take takes taking pain fever weight age allergies medications dose stroke shock".split()
)

#: What ends the reach of a "no": a sign, or a word that turns the sentence.
STOP_NEGATION = re.compile(
    r"[.,;:!?()]|\b(?:but|mas|however|porem|with|com|has|tem|e tem|although|although|apos|after|since|desde|on|now|agora)\b"
)
NEGATORS = re.compile(
    r"\b(?:no|not|without|denies|denied|denying|negative for|absence of|free of|never had|ruled out|rules out|"
    r"sem|nao|nega|negou|negativo para|ausencia de|nunca teve|excluid[oa]|exclui)\b"
)
#: After a "no", these keep their meaning: "no pulse", "not breathing", "no known allergies", "not improving".
KEPT_AFTER_NEGATOR = re.compile(
    r"^\s*(?:(?:a|o|any|the|more|palpable|has|tem|esta|is|been|improving|getting|going|known)\s+)*"
    r"(?:pulse|breath|respond|response|respons|signs? of life|urine|output|improv|better|wake|awake|rousable|"
    r"pulso|respir|respost|reage|diurese|melhor|urina|acorda|sinais de vida|known|conhecid|sure|certain|yet|only|s[oó]|"
    r"sei|consegue|able|moving|mexe|fala|speak|talk|later|longer|mais|recorded|registad)"
)

#: Intents and the words that mean them: regular expressions on the folded question. The order is the order of
#: ``Question.intents``; nothing here excludes another intent.
INTENTS: tuple[tuple[str, str], ...] = (
    ("summary", r"\b(?:summar\w+|overview|analy[sz]e\w*|analysis|review|assess\w*|interpret\w*|explain|status|handover|hand over|sbar|brief|"
                r"background|case|state|update|situation|how is|how's|how are|what's (?:going|new|up|happening)|what is (?:going|new|happening)|"
                r"resum\w+|sumari\w+|analis(?:a|ar|e|es)\b(?! (?:de )?sangue)|avali\w+|interpret\w+|ponto da situacao|estado (?:geral|clinico|atual)|"
                r"como esta|caso|passagem de turno|quadro|evolucao|o que se passa|tell me about|fala-me|historia (?:clinica|atual)|know about|important)\b"),
    ("conditions", r"\b(?:conditions?|diagnos\w+|problems?|problem list|comorbid\w+|diseases?|illness\w*|past medical|medical history|history|pmh|suffers?|"
                   r"problemas?|doencas?|comorbilidades?|antecedentes|patologias?|historia|historial|sofre|condicoes|morbid\w+)\b"),
    ("medications", r"\b(?:medic(?:ation|ations|ine|ines|acao|acoes|amento|amentos|ado|ada|ament\w*|ations?)|meds?|drugs?|prescri\w+|takes?|taking|tablets?|pills?|pharmac\w+|treated with|"
                    r"therapy|regimen|farmacos?|remedios?|toma|tomar|terapeutica|receitas?|comprimidos?|on any|is (?:he|she|the patient) on|"
                    r"blood thinners?|anticoagulat\w*|anticoagul\w*|antiplatelet\w*|antiagreg\w*|antibiotic\w*|insulin|interac\w+)\b"),
    ("allergies", r"\b(?:allerg\w+|alerg\w+|intoleran\w+|anaphyla\w+|anafila\w+|nkda|adverse (?:drug )?reaction\w*|reacoes? adversas?|hypersensitiv\w+|hipersensib\w+)\b"),
    ("labs", r"\b(?:labs?|lab results?|laborator\w+|blood ?work|bloods|blood tests?|blood results?|blood analys\w+|tests?|test results?|results?|analises|exames|"
             r"resultados?|analitic\w+|valores|values|last values|measurements?|observacoes)\b"),
    ("procedures", r"\b(?:procedures?|operations?|operated|surger(?:y|ies)|surgical history|interventions?|procediment\w+|cirurgi\w+|operac\w+|operad[oa]|intervenc\w+|stent\w*|pci|cabg)\b"),
    ("encounters", r"\b(?:encounters?|admissions?|admitted|visits?|hospitali[sz]\w+|appointments?|discharged?|consultations?|episodios?|internament\w+|internad[oa]|"
                   r"consultas?|admiss\w+|visitas?|urgencias?|hospitaliz\w+|ultima vez)\b"),
    ("immunizations", r"\b(?:immuni[sz]\w+|vaccin\w+|vaccines?|shots?|jabs?|tetanus|vacin\w+|imuniza\w+|tetano)\b"),
    ("care_plan", r"\b(?:care plans?|careplans?|plans? of care|planos? de cuidados?|plano(?:s)? terapeutic\w+)\b"),
    ("demographics", r"\b(?:how old|age|aged|born|birth ?date|birthday|date of birth|dob|sex|gender|demographic\w*|idade|nascid[oa]|nasceu|"
                     r"data de nascimento|sexo|genero|quantos anos|male or female|pregnan\w+|gravid\w+|deceased|dead|alive|died|die|death|morreu|falec\w+|vivo|viva|obito|who is|quem e)\b"),
    ("dose", r"\b(?:doses?|dosage|dosing|how much|mg/kg|mcg/kg|posolog\w+|dosagem|titrat\w+|titula\w+|infusion|perfusao|units?/kg|quanto (?:dar|de)|loading|bolus)\b"),
    ("next", r"\b(?:next|what (?:do|should|can|now|to do|would)|what to|should (?:i|we)|do next|plan|manage\w*|treat\w*|next steps?|recommend\w*|suggest\w*|advice|advise|start|stop|switch|"
             r"give|order|target|target\w*|proximo|seguinte|passos?|o que (?:devo|fazer|faco|se faz|fazemos)|devo|devemos|tratar|tratamento|conduta|abordagem|recomend\w+|"
             r"alvo|iniciar|comecar|parar|suspender|dar|administrar|how (?:do|to|should)|como (?:tratar|fazer|abordar|agir|proceder)|ready|pronto|can we|can i|posso|podemos|safe|seguro)\b"),
    ("protocol", r"\b(?:protocols?|guidelines?|algorithm|checklists?|criteria|bundle|pathway|recommendations?|cut-?offs?|thresholds?|contraindic\w+|indications?|"
                 r"protocolos?|orientac\w+|normas?|algoritmo|criterios?|via verde|guideline|indicac\w+|limiar\w*|lista de verificacao)\b"),
    ("trend", r"\b(?:trends?|trending|evolution|course|over time|changes?|changed|changing|serial|previous|last (?:few|two|three|five|\d)|history of (?:the )?(?:lab|value)|rising|falling|"
              r"curve|compared?|evoluc\w+|tendencia|variac\w+|anterior\w*|comparar|seriad\w+|a subir|a descer|subi\w+|desce\w+|curva|ultim[oa]s (?:dois|duas|tres|cinco|\d))\b"),
)  # fmt: skip

#: Words and stems that make a question clinical whatever else stands in it; stems match the beginning of a word.
CLINICAL_STEMS = (
    "pain dor dores ache breath dyspn dispn respir fever febr temperat cough toss vomit nause nausea diarr bleed hemorr haemorr sangr blood sangue "
    "hypo hyper hipo hiper shock choque collaps colaps syncop sincop faint desmai seiz convuls stroke avc infarct enfart infarc stemi nstemi cardi coron heart corac "
    "arrest parag arritm arrhythm fibril tachy taqui brady bradi rhythm ritmo pulse pulso pressure pressao tensao oxygen oxig satur ventil intub extub sedat sedac "
    "rass propof fentan norad norep vasop adren epineph insulin glic gluc diabet ceto ketoac kidney renal rim rins dialy dialis creatin urin diure liver hepat figad "
    "lung pulm pneum asthm asma copd dpoc embol thromb tromb clot anticoag warfar varfar heparin enoxap aspirin clopid "
    "sepsis septic infec antibio antimicro fratur fractur trauma crash accident acident wound ferida burn queimad fall queda head cabeca abdom chest torac peito toraci "
    "leg perna arm braco face rosto skin pele rash exantem swell edema oedema edem allerg alerg anaphyl anafil surg cirurg operat operac preop pre-op postop post-op anesth anaesth anest "
    "incis transfus hemoglob haemoglob platelet plaquet leuc leuk neutr potass sodi sodium calcium calcio magnes lact troponin ecg ekg electrocard eletrocard echo ecocard "
    "x-ray xray radiogr scan tomog resson mri gasim abg lab labs analis analy exam result resultad value valor test report relator "
    "patient paciente doente utente mr mrs sr sra bed cama ward enfermaria admiss intern discharg alta diagnos sintom sympt sign sinal sinais vital vitals obs news2 qsofa sofa "
    "medic drug farmac fármac prescri dose dosag dosing tablet comprim protocol guidelin treat tratam therap terap treatment clinic allergy condition problem "
    "history historia antecedent procedure encounter vaccin vacin immun imuniz pregnan gravid gestac child crianca age idade weight peso height altura bmi imc "
    "summary resum overview review status state estado stable unstable estavel instavel worse pior agrav deterior conscious consci unresponsiv drowsy sonol confus delir agit coma gcs glasgow pupil "
    "palpit angina ischaem ischem isquem necros ulcer tumor tumour cancer carcin neoplas metast chemo quimio radiot biops culture hemocult cultura virus bacter covid influenz gripe "
    "nurse enferm resus reanim cpr rcp defib desfib pacing pacemaker stent cateter cathet cath pci bypass graft valv stenos esten regurg aort aneurism aneurysm dissec hernia append apendic colec cholec "
    "pancrea intestin bowel gastr stomach estomag oesoph esofag reflux jaundic icter ascit cirros cirrh anaemi anemi coagul inr bilirub album bicarb acid acidos alcalo ph pco2 po2 map spo2 qt qtc "
    "dvt tvp vte tev tep hiv tubercul meningit encephal encefal migrain cefale headache vertig dizz tont weak fraqueza paraly parali numb dormen aphas afas speech fala droop "
    "suicid overdos intoxic poison envenen alcohol alcool smok tabag tabac fumad opioid morphin morfin naloxon withdraw abstin "
    "checklist hit thrombol trombol fibrinol lesion swallow deglut nutrition nutric fast jejum fluid fluido crystal crist bolus infus perfus catecol inotrop lvef feve murmur sopro "
    "chok engasg burne burni burnt scald queim bleach lixivi poiso drank ingest swall engoli bebeu reage reacts caiu fell bitten morded mordid sting stung picad stab stabb esfaq shot gunsh tiro drown afog electroc eletrocut hung enforc jumped saltou crush esmag trapped bleed unwell sick doente ill malaise mal-estar feels sente care careplan cuidad risk risco concerning anything preocup important decease dead died death morte faleceu obito sleep sono mental depress ansied anxi psych psiqu schizo"
).split()
#: Short stems that begin longer words; every other stem of four letters or less must be the whole word.
SHORT_PREFIXES = frozenset("hypo hipo glic gluc valv hemo anxi ictu tubo vent chok".split())
FOLDED_STEMS = sorted({fold_line(stem) for stem in CLINICAL_STEMS}, key=lambda stem: (-len(stem), stem))
CLINICAL = re.compile(
    r"\b(?:" + "|".join(re.escape(stem) for stem in FOLDED_STEMS if len(stem) > 4 or stem in SHORT_PREFIXES)
    + r")|\b(?:" + "|".join(re.escape(stem) for stem in FOLDED_STEMS if len(stem) <= 4) + r")s?\b"
)  # fmt: skip
#: A number with a clinical unit is clinical even where nothing else is ("84/50?", "6.9 mmol").
NUMBER_UNIT = re.compile(
    r"\b\d{2,3}\s?/\s?\d{2,3}\b(?!\s*/)|\d\s*(?:mm ?hg|mmol|mg|mcg|µg|μg|ug|ng|pg|g/|iu|ui|u/|ml|kg|bpm|mm\b|ms\b|kpa|meq|°|º ?c\b|cel|10\*|x ?10|/min|cmh2o|l/min|%)"
)
#: Topics that no record answers. They count only where nothing clinical stands in the question.
OFF_TOPIC = re.compile(
    r"\b(?:cafeteria|canteen|menu|lunch|dinner|breakfast|coffee|restaurant|food|recipe|pizza|parking|park|car park|taxi|bus|train|metro|uber|wi-?fi|password|printer|"
    r"computer|laptop|phone|email|weather|rain|football|soccer|match|game|score of|benfica|porto|sporting|joke|poem|song|music|movie|film|story|holiday|vacation|shift|"
    r"roster|rota|salary|payslip|hr|gym|news|stock|bitcoin|politic\w*|election|president|capital|translate|homework|python|javascript|code|birthday party|gift|"
    r"refeitorio|cantina|bar|ementa|almoco|jantar|pequeno.almoco|cafe|comida|receita de|estacionamento|estacionar|parque|autocarro|comboio|palavra.passe|impressora|"
    r"computador|telemovel|telefone|tempo (?:faz|vai|hoje|amanha)|meteorologia|chuva|futebol|jogo|piada|poema|cancao|musica|filme|ferias|escala de servico|turnos?|"
    r"horarios?|ordenado|salario|vencimento|ginasio|noticias|bolsa|politica|eleic\w+|presidente|traduz\w*|hotel|bank|banco|shop|loja|atm|multibanco|toilet|wc|casa de banho|elevator|elevador)\b"
)
GREETING = re.compile(
    r"^(?:(?:hi|hello|hey|hiya|yo|good (?:morning|afternoon|evening|night|day)|greetings|thanks?|thank you|thx|cheers|bye|goodbye|ok|okay|great|nice|cool|test|testing|"
    r"who are you|what are you|what can you do|how are you|are you there|help|lol|sorry|please|very much|so much|there|everyone|all|team|chatd|doctor|"
    r"ola|oi|bom dia|boa tarde|boa noite|viva|obrigad[oa]|muito|muito obrigad[oa]|adeus|ate logo|ate amanha|tudo bem|como estas|quem es tu|quem es|o que fazes|ajuda|colegas?|equipa|a todos)"
    r"[\s,.!?;:)(]*)+$"
)

STOPWORDS = PT_WORDS | EN_WORDS | frozenset(
    "recent current most newest value level levels reading measured measurement date time nivel recente recentes atual atuais medicao data hora "
    "patient's lately ever anything there about over be been being if then than also just right now today hoje os as ai me eu nos you your we our us i".split()
)  # fmt: skip

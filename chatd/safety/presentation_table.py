"""Emergency presentations as a table: ids, names, the protocols that fit, and the words that people use for them.

The words are regular expressions over text as ``presentations.normalise`` leaves it: lower case, no accents,
    hyphens
as spaces, never two. British, American and Portuguese spellings stand side by side.
Basis: general clinical knowledge; no clinician has approved the list.
"""

from __future__ import annotations

from typing import NamedTuple


class Rule(NamedTuple):
    """One presentation. ``chronic``: the words also name a past illness, so "after" and "post" make it history."""

    id: str
    en: str
    pt: str
    signals: tuple[str, ...]
    words: tuple[str, ...]
    chronic: bool = False


AEMIA = "(aemia|emia)"

RULES: tuple[Rule, ...] = (
    Rule(
        "cardiac_arrest", "cardiac arrest", "paragem cardiorrespiratória", ("cardiac_arrest",),
        (
            "(cardiac|cardio ?respiratory|cardiopulmonary|asystolic|vf|pea|respiratory) arrest", "in arrest",
            "arrested",
            "arrest call", "code blue", "(no|absent|without a?|lost( the| his| her)?) pulse", "pulseless",
            "sem pulso",
            "asystole", "assistolia", "(in|em) (pea|aesp|vf|fv)", "pulseless electrical activity",
            "atividade eletrica sem pulso", "actividade electrica sem pulso", "aesp", "pea(?=,)", "v ?fib",
                "vf", "vf vt", "fv",
            "ventricular fibrillation", "fibril(h?ac)ao ventricular", "pulseless vt", "pvt", "tv sem pulso",
                "tvsp",
            "(cpr|rcp) (in progress|ongoing|started|em curso|iniciada)",
            "(doing|performing|started|starting|ongoing) cpr",
            "(em|iniciad[ao]|a fazer) (rcp|sav|manobras de reanimacao)", "chest compressions",
            "compressoes toracicas",
            "(paragem|parada) (cardio ?r?respiratoria|cardiaca|respiratoria)", "em (paragem|pcr)",
            "pcr (presenciada|em (fv|assistolia|aesp)|intra ?hospitalar|extra ?hospitalar)",
            "(entrou|fez|teve) (em )?pcr",
            "post (cardiac )?arrest", "pos (paragem|pcr)", "rosc", "(not|stopped|isn't) breathing", "nao respira",
            "deixou de respirar", "ohca", "ihca",
        ),
    ),
    Rule(
        "stemi", "ST-elevation myocardial infarction", "enfarte com supradesnivelamento de ST", ("stemi",),
        (
            "(?<!non )(?<!n )stemis?", "(?<!non )st (segment )?elevations?", "elevated st( segments?)?",
            "(supra ?desnivelamento|supra|elevacao|supradesniv\\w*) (do |de )?(segmento )?st", "supra ?st",
            "supra de st",
            "(eam|enfarte)( agudo)?( do miocardio)? com (supra\\w*|elevacao)", "eamc ?s(st)?", "iamc ?s(st)?",
            "hyperacute t waves?",
            "(new|novo) (lbbb|bre|bcre) (with|com) (chest pain|dor)", "tombstone\\w*",
        ),
        chronic=True,
    ),
    Rule(
        "acs", "possible acute coronary syndrome", "possível síndrome coronária aguda", ("nste_acs", "stemi"),
        (
            "n ?stemi", "non st(emi| elevation( mi)?)", "nste ?acs", "unstable angina", "angina instavel",
            "acute coronary( syndrome)?",
            "(sindrome|sindroma) coronari[ao] agud[ao]", "heart attacks?", "ataque cardiaco",
            "acute (mi|myocardial infarction)", "ami",
            "eam( sem supra\\w*)?", "enfarte agudo( do miocardio)?", "infarto agudo( do miocardio)?",
            "enfarte do miocardio agudo",
            "eams(st)?",
                "(chest|retrosternal|precordial|substernal) (pain|tightness|pressure|heaviness|discomfort)",
            "(crushing|tight|heavy) (chest|central chest) ?(pain)?", "pain in (the|his|her) chest",
            "chest is (tight|hurting)",
            "dor(es)? (no |do )?(peito|torax|toracica|toracicas|precordial|retro ?esternal|pre ?cordial)",
            "(aperto|pressao|opressao|desconforto|peso) (no )?(peito|torax|toracic[oa]|precordial|retro ?esternal)",
            "precordialgia", "toracalgia",
        ),
        chronic=True,
    ),
    Rule(
        "stroke", "possible acute stroke", "possível AVC agudo", ("stroke",),
        (
            "(?<!heat )strokes?", "cva", "avcs?", "ait",
            "(an?|possible|suspected|probable|likely|acute|recent|crescendo|with|has|having|query|new|ongoing) tia",
            "tia (today|now|with|this|symptoms|within|\\d+)", "(acidente|doenca) vascular cerebral",
            "(acute|ischaemic|ischemic|haemorrhagic|hemorrhagic) stroke", "cerebrovascular accident",
            "(facial|face|mouth) (droop\\w*|weakness|palsy|asymmetry)", "drooping (face|mouth)",
            "(slurred|slurring|garbled) ?(of )?speech",
            "slurring (his|her) words", "speech (is )?(slurred|difficult\\w*|disturbance|arrest|problems?)",
            "(difficulty|trouble|problems?) speaking",
            "(can't|cannot|unable to) (speak|talk|move (his|her|the|one) \\w+( \\w+)?)",
            "(sudden|acute|new) (aphasia|dysphasia|dysarthria|hemianopia|visual loss|loss of vision)",
                "aphasi[ac]",
            "dysphasi[ac]",
            "(hemiparesis|hemiplegia|hemiparesia)",
            "(left|right|one) (sided|side|arm|leg|face|hand) (weakness|paralysis|numbness|droop\\w*)",
            "(left|right) (weakness|paralysis)", "weakness (of|in|on) (the |his |her )?(left|right|one)( \\w+)?",
            "(left|right) arm drift",
            "(fraqueza|perda de forca|paresia|falta de forca|paralisia|plegia)( subita)?( d[oae]| n[oa]"
            "| em)?( \\w+)? ?(esquerd[ao]|direit[ao]"
            "|lado|membros?|braco|hemicorpo)",
            "boca (ao|de) lado", "desvio da (comissura|boca)( labial)?",
            "(fala|discurso) (arrastad[ao]|entaramelad[ao]|empastad[ao])",
            "dificuldade (em|na|a) (falar|fala|articular)", "(afasia|disartria|afasic[oa])", "nao consegue falar",
            "(assimetria|paresia) facial", "via verde (do )?avc", "code stroke",
            "(thrombolysis|thrombectomy) (window|candidate)",
            "last (known|seen) (well|normal)", "janela de trombolise", "(large vessel|basilar|mca|m1) occlusion",
            "(intracranial|intracerebral|subarachnoid|cerebral) (haemorrhage|hemorrhage|bleed\\w*)",
            "thunderclap( headache)?",
            "hemorragia (intracraniana|intracerebral|cerebral|subaracnoideia|subaracnoide)",
            "worst headache of (his|her|my) life",
        ),
        chronic=True,
    ),
    Rule(
        "sepsis", "possible sepsis", "possível sépsis", ("sepsis",),
        (
            "sepsis", "septic( shock)?", "uro ?sep(sis|tic)", "septica?emia", "sepse", "septicemia",
            "uro ?s?sep(sis|se|sia|tic[oa])",
            "(choque )?septic[oa]", "sepsia", "(febrile )?neutropenic (sepsis|fever)", "febrile neutropenia",
            "neutropenia febril",
            "purpura fulminans", "necroti[sz]ing fasciitis", "fasceite necrosante", "meningococca?emia",
            "bacterial meningitis",
            "meningite bacteriana", "via verde (da )?sepsis", "via verde sepse",
        ),
        chronic=True,
    ),
    Rule(
        "anaphylaxis", "possible anaphylaxis", "possível anafilaxia", ("anaphylaxis",),
        (
            "anaphyla(xis|ctic|ctoid)\\w*( shock| reaction)?", "anafila(xia|ctic[oa]|tic[oa])",
            "choque anafila(c?tico)",
            "(throat|tongue|airway|laryngeal) (is |was )?(swelling|swollen|closing|oedema|edema)",
            "(swelling|swollen|oedema|edema) (of )?(the |his |her )?(throat|tongue|airway|larynx)",
            "lingua (a inchar|inchada)",
            "edema (da|de) (glote|lingua|laringe)", "garganta a (fechar|inchar)",
        ),
    ),
    Rule(
        "trauma", "major trauma", "trauma grave", ("trauma",),
        (
            "(major|severe|multiple|blunt|penetrating|abdominal|chest|thoracic|pelvic|head|facial) (trauma"
            "|injur(y|ies))", "poly ?trauma",
            "multi ?trauma",
            "trauma (patient|victim|case|grave|major|craniano|toracico|abdominal|pelvico|penetrante|fechado"
            "|doente)",
            "poli ?traumati[sz]ad[oa]", "politrauma",
            "traumatismo (cranio ?encefalico|craniano|toracico|abdominal|grave)", "tce( grave)?",
            "(motor ?(bike|cycle)|car|bike|bicycle|road|vehicle|traffic|train|truck|van|scooter|bus|lorry|moto"
            "|automobile|motor vehicle|mv)"
            " (crash\\w*|accident|collision|wreck)",
            "(rta|rtc|mva|mvc)", "road traffic (accident|collision)", "crash(ed)? (his|her|the|a|into)",
            "run over( by)?",
            "(hit|struck|knocked down) by (a |an )?(car|bus|train|truck|vehicle|lorry|van|tram|motor ?bike"
            "|motor ?cycle)",
            "pedestrian (vs|versus|hit|struck)",
            "(acidente|desastre|despiste|colisao) (de |do |com )?(viacao|carro|mota|moto|motociclo|motorizada"
            "|automovel|trabalho|bicicleta|transito|veiculos?)",
            "atropel(ado|ada|amento)", "capotamento",
            "fell? from (a |the )?(height|ladder|roof|scaffold\\w*|window|\\d+ ?(m|metres|meters|ft|feet))",
            "fall from (a |the )?(height|ladder|roof|scaffold\\w*|window|\\d+ ?(m|metres|meters|ft|feet))",
            "queda de (altura|\\d+ ?(m|metros)|telhado|escadote|andaime|um telhado|um andaime|uma janela)",
            "gun ?shot( wound)?", "gsw", "shot in the",
            "stab(bed|bing| wounds?)", "esfaquead[oa]", "baleado", "baleada",
            "(ferida|ferimento|agressao) por arma( de fogo| branca)?", "arma (de fogo|branca)",
            "(traumatic )?amputat(ion|ed) (of|at)( the| his| her)?( \\w+)?( in| by| after)? (crash|machine"
            "|accident)", "traumatic amputation",
            "amputacao traumatica", "ejected( from)?", "crush(ed)? (injury|chest|pelvis)", "esmagamento",
            "(flail|open) (chest|pelvis|book)",
            "blast injury", "explosion", "explosao", "(major|severe) burns?", "queimad(o|ura)s? (grave|extensa)",
        ),
        chronic=True,
    ),
    Rule(
        "bleeding", "major bleeding", "hemorragia major", (),
        (
            "(massive|major|severe|active|acute|ongoing|uncontrolled|brisk|heavy|postoperative|post ?op(erative)?"
            "|arterial|torrential"
            "|variceal|gi|gastrointestinal|upper gi|lower gi|postpartum|surgical) (ha?emorrhag(e|ing)|bleed(ing|s)?)",
            "bleed(ing|s) (heavily|profusely|out|a lot|actively|briskly|through|from (the |his |her )?\\w+"
            "|post ?op\\w*|into|again)",
            "(is|still|keeps|actively|started|continues) bleeding", "rebleed(ing)?", "exsanguinat\\w+",
            "(massive|ruptured) (transfusion|aaa|aneurysm)",
            "ha?ematemesis", "vomiting blood", "(fresh blood|coffee ground) (vomit\\w*|per rectum|pr)?",
                "mela?ena",
            "ha?emorrhagic shock",
            "ha?ematoche[sz]ia", "massive ha?emoptysis", "ruptured (spleen|ectopic|aorta|varices)",
            "soaked (in |with )?(blood|dressings?)",
            "(blood )?soaked( \\w+)? (dressings?|pads?|bandages?)",
            "dressings?( is| are)? (soaked|saturated|full of blood)", "pools? of blood",
            "hemorragia (massiva|macica|grave|ativa|activa|digestiva|pos ?operatoria|pos ?parto|major|aguda"
            "|incontrolavel|abundante|em curso)",
            "(esta a|a|continua a|ainda a) sangrar", "sangra (muito|ativamente|abundantemente)",
            "sangramento (ativo|intenso|grave|abundante|pos ?operatorio)",
            "choque (hemorragico|hipovolemico)", "hematemeses?", "melenas?", "hematoquezias?",
            "retorragias? (abundantes?|macicas?)",
            "hemoptises? macicas?", "penso (repassado|ensanguentado|encharcado)( de sangue)?", "dreno hematico",
            "perdas hematicas", "drain (is )?full of blood", "dreno cheio de sangue",
            "rotura de (aneurisma|baco|varizes)", "pph",
        ),
    ),
    Rule(
        "shock", "shock", "choque", ("vasopressors",),
        (
            "(septic|cardiogenic|hypovola?emic|distributive|obstructive|ha?emorrhagic|neurogenic|anaphylactic"
            "|circulatory|refractory) shock",
            "in shock", "em choque", "shocked (patient|and|state)", "is shocked",
            "choque (septico|cardiogenico|hipovolemico|hemorragico|distributivo|obstrutivo|refratario|refractario"
            "|circulatorio|neurogenico)",
            "(cardiac|pericardial) tamponade", "tamponamento( cardiaco| pericardico)?",
            "(profound|severe|refractory|persistent) hypotension",
            "hipotensao (grave|refrataria|refractaria|mantida|marcada|profunda)", "peri ?arrest",
            "circulatory collapse", "colapso circulatorio",
            "mottled", "(pele )?marmorea(da)?",
        ),
    ),
    Rule(
        "heart_failure", "acute heart failure", "insuficiência cardíaca aguda", ("heart_failure",),
        (
            "(acute |flash |cardiogenic )?pulmonary (o?edema)", "flash (pulmonary )?o?edema", "apo",
            "edema agudo (do|de) pulmao", "eap",
            "edema pulmonar( agudo)?", "acute (decompensated )?(heart failure|hf)", "adhf",
            "decompensat(ed|ing) (heart failure|hf|hfref|chf)",
            "(heart failure|hf|hfref) (decompensat\\w+|exacerbation)",
            "(ic|icc|insuficiencia cardiaca) (aguda|descompensada|agudizada)",
            "descompensacao (da |de )?(ic|icc|insuficiencia cardiaca|cardiaca)", "cardiogenic shock",
            "choque cardiogenico",
        ),
    ),
    Rule(
        "respiratory_failure", "acute respiratory failure", "insuficiência respiratória aguda", ("vent",),
        (
            "(acute|severe|impending|hypoxic|hypoxa?emic|type (1|2|i|ii)) (respiratory|resp|ventilatory) (failure"
            "|distress)", "respiratory (arrest|distress)",
            "(can't|cannot|unable to|struggling to) breathe?",
            "(severe|acute|sudden|extreme|worsening) (dyspno?ea|breathlessness|shortness of breath|sob)",
            "gasping", "stridor", "estridor", "silent chest", "cyanos(is|ed)", "cyanotic", "cianose",
                "cianotic[oa]",
            "(severe|acute|life threatening) asthma",
            "status asthmaticus", "(asma|crise asmatica) (grave|aguda grave|quase fatal)",
                "estado de mal asmatico",
            "tension pneumothorax",
            "pneumotorax (hipertensivo|sob tensao)", "airway obstruction", "obstrucao da via aerea",
            "chok(ing|ed) on", "engasgad[oa]",
            "(insuficiencia|falencia) respiratoria (aguda|grave|global|tipo (1|2|i|ii))",
            "(dispneia|falta de ar) (subita|aguda|grave|intensa|em repouso)",
            "nao consegue respirar", "dificuldade respiratoria (grave|marcada|aguda)",
            "(co2|hypercapnic|carbon dioxide) (narcosis|coma)", "narcose( por co2| hipercapnica)?",
            "(failed|difficult) (airway|intubation)", "can't intubate", "accidental extubation",
            "extubacao acidental",
        ),
    ),
    Rule(
        "pulmonary_embolism", "possible acute pulmonary embolism", "possível tromboembolia pulmonar aguda", (),
        (
            "(acute |massive |submassive |saddle |high risk )?pulmonary embol(ism|us|i)",
            "(massive|submassive|saddle|acute) pe", "tep", "(trombo ?)?embolia pulmonar",
            "tromboembolismo pulmonar",
        ),
        chronic=True,
    ),
    Rule(
        "hyperkalaemia", "hyperkalaemia", "hipercaliemia", ("hyperkalaemia",),
        (
            f"hyperkal{AEMIA}", "hiper(cal|kal|potass)i?(emia)", "(peaked|tall|tented) t ?waves?",
            "ondas t (apiculadas|pontiagudas|em tenda|altas)",
            "sine wave( ecg| pattern)?",
        ),
    ),
    Rule(
        "glucose", "hypoglycaemia or hyperglycaemic crisis", "hipoglicemia ou crise hiperglicémica", ("glucose",),
        (
            f"hypoglyc{AEMIA}", "hypoglyc(aemic|emic)( coma| seizure)?", "hipoglicemia", "hipoglicemic[oa]",
            "hypo(s)? (now|unresponsive)", "dka",
            "(diabetic )?keto ?acidosis", "ceto ?acidose( diabetica)?", "hhs",
            "hyperosmolar( hyperglyc\\w+)?( state)?", "estado hiperosmolar",
            "coma (hipoglicemico|hiperosmolar|cetoacidotico)",
        ),
        chronic=True,
    ),
    Rule(
        "arrhythmia", "unstable arrhythmia", "arritmia instável", (),
        (
            "(sustained |monomorphic |polymorphic )?ventricular tachycardia", "(in|sustained|stable|unstable) vt",
            "vt with (a )?pulse",
            "taquicardia ventricular", "(em|com) tv", "(complete|third degree|3rd degree) (heart|av) block",
            "bloqueio (av|auriculoventricular) (completo|do 3 ?o? grau|total)",
            "bav (completo|total|de? 3 ?o? grau)", "torsades?( de pointes)?", "torsad(e|a)s?",
            "unstable (af|svt|tachycardia|bradycardia|arrhythmia|tachyarrhythmia)",
            "(taquicardia|bradicardia|fa|arritmia) instavel", "electrical storm", "tempestade eletrica",
        ),
    ),
    Rule(
        "seizure", "seizure", "convulsão", (),
        (
            "status epilepticus", "(is |still |now |actively )(seizing|fitting|convulsing)", "seizing",
            "estado de mal( epiletico| epileptico)?",
            "(a|em) convuls(ao|ar|oes)", "convulsao (em curso|prolongada|tonico ?clonica)",
            "crise (convulsiva|tonico ?clonica)( em curso)?", "(tonic ?clonic|prolonged|ongoing) seizure",
            "eclamp(sia|tic)",
        ),
    ),
    Rule(
        "reduced_consciousness", "reduced consciousness", "alteração do estado de consciência", (),
        (
            "unresponsive", "unconscious", "unrous?able", "unarousable", "comatose", "in (a )?coma",
            "not (responding|rousable|waking up)( to (voice|pain))?",
            "does(n't| not) (respond|wake up)", "collapsed", "inconsciente",
            "(nao|sem) (responde|reage|acorda|desperta|resposta)( a (estimulos|dor|voz))?( verbal)?",
            "em coma", "comatos[oa]", "perda de consciencia", "found (down|collapsed)",
        ),
    ),
    Rule(
        "aortic", "possible acute aortic syndrome", "possível síndrome aórtica aguda", (),
        ("aortic (dissection|rupture)", "dissect(ing|ion) (aorta|aortic)", "disseccao (da )?(aorta|aortica)",
        "ruptured aaa", "rotura (da )?aorta"),
        chronic=True,
    ),
    Rule(
        "overdose", "overdose or poisoning", "sobredosagem ou intoxicação", (),
        (
            "(opioid|opiate|heroin|paracetamol|drug|tricyclic|intentional|benzodiazepine|\\w+ )?overdos(e|ed)",
            "poison(ing|ed)", "sobredosagem", "overdose",
            "intoxicacao (aguda|voluntaria|por|medicamentosa)", "envenenamento",
        ),
    ),
)  # fmt: skip

#: Signs that count only together: (id, one of these, and one of those).
ALLERGIC_SKIN = (
    "urticaria", "urticarial", "hives", "wheals", "generali[sz]ed (rash|itch\\w*|urticaria)",
    "(lip|lips|face|facial|eyelid) (swelling|swollen)",
    "swollen (lips?|face|eyes)", "angio ?o?edema", "(exantema|prurido) generalizado",
    "edema (dos labios|da face|labial|facial)", "labios inchados",
    "(itchy|allergic) (rash|reaction)", "reacao alergica", "flush(ed|ing)", "prawns?", "peanuts?", "bee sting",
    "wasp sting", "marisco", "amendoim",
    "picada de (abelha|vespa)",
)  # fmt: skip
ALLERGIC_SYSTEMIC = (
    "wheez(e|ing|y)", "stridor", "bronchospasm",
    "(short of breath|shortness of breath|breathless\\w*|dyspno?ea|sob)", "hypotens(ion|ive)",
    "collapse[ds]?", "syncope", "faint(ed|ing)?", "pieira", "sibilos", "broncos?espasmo", "estridor", "dispneia",
    "falta de ar", "hipotens(ao|o)",
    "sincope", "desmaio\\w*", "colapso", "hoarse\\w*", "rouquidao",
)  # fmt: skip
INFECTION = (
    "infection", "infected", "infecao", "infeccao", "uti", "itu", "urinary", "urinari[ao]", "pyelonephritis",
    "pielonefrite", "pneumonia", "cellulitis",
    "celulite", "cholangitis", "colangite", "peritonitis", "peritonite", "abscess", "abcesso", "fever", "febrile",
    "febre", "febril", "rigors?",
    "arrepios", "calafrios", "pyrexia\\w*", "meningitis", "meningite", "endocarditis", "endocardite",
)  # fmt: skip
CONFUSION = (
    "(new(ly)? |acute(ly)? )?confus(ed|ion)", "drows(y|iness)", "lethargic", "delirium", "delirious",
        "disoriented",
    "confus[oa]", "confusao", "sonolent[oa]",
    "letargic[oa]", "prostrad[oa]", "desorientad[oa]", "mottled",
)  # fmt: skip

#: Words worth repairing when mistyped: one edit apart from five letters on, two from nine letters on.
REPAIRABLE = frozenset(
    """stemi stroke sepsis septic trauma arrest cardiac chest thoracic elevation infarction coronary unstable
    angina pulmonary oedema edema embolism anaphylaxis anaphylactic anafilaxia anafilatico anafilactico
    hyperkalaemia hyperkalemia hipercaliemia hipercalemia hypoglycaemia hypoglycemia hipoglicemia hyperglycaemia
    hiperglicemia ketoacidosis cetoacidose haemorrhage hemorrhage hemorragia bleeding hypotension hipotensao
    choque septico paragem parada cardiorrespiratoria cardiaca respiratoria asystole assistolia fibrillation
    fibrilhacao ventricular tachycardia taquicardia toracica torax peito enfarte miocardio supradesnivelamento
    facial droop slurred speech weakness hemiparesis hemiparesia hemiplegia aphasia afasia disartria convulsao
    seizure epilepticus unresponsive unconscious inconsciente politraumatizado polytrauma atropelado
    atropelamento collision accident acidente motorbike motorcycle crash urosepsis urossepsis sepse pulseless
    tamponade dissection overdose respiratory failure distress insuficiencia agudo aguda pneumothorax
    pneumotorax stridor urticaria wheeze wheezing potassium potassio glucose glicose glicemia lactate lactato
    haemoglobin hemoglobin hemoglobina saturation saturacao systolic sistolica glasgow""".split()  # noqa: SIM905
)

#: Right as they stand, though one or two letters away from a word above.
CORRECT = frozenset(
    """hypokalaemia hypokalemia hipocaliemia hypertension hipertensao hypotensive hypertensive hyperglycemia
    hypercalcaemia hypercalcemia hypocalcaemia hypernatraemia hyponatraemia hipercalcemia hipocalcemia strike
    stoke stokes strokes stock stroked broke spoke smoke choke chose chess cheat cheap chefs chests crest wrest
    arrests arrested arrears septum septa skeptic aseptic antiseptic steam stems stem trauma traumas traumatic
    drama crush crashes crashed clash trash elevated elevations relevant levation reduction infection infarct
    infarcts injection fracture speed speeches peach cardia cardiac cardiaco cardiacos agudos agudas aguado
    aguda guda toracico toracicos peitos feito direito efeito pleito leito jeito preito torax choques cheque
    toque charge change changes chart chat septicos parado paradas parados paragens angina anginas vagina
    respiratorio respiratorios oedemas edemas lactates lactated lactating lactic saturated situation station
    glucosa glucagon glycosuria accidents acidentes incidente incident accidental disease diseases distressed
    dressing failures embolus motorbikes motorized fascial racial special facials drop drops group droops slurry
    spinal weakened weaknesses potassic unstabled stable instable enfartes pulmonar pulmonic ventricular
    ventriculo ventriculi seizures seizing convulsoes stridors wheezes wheezed urticarial lactose lactulose
    glasgow systole systolics systemic asystolic diastolic diastolica dissections overdosed""".split()  # noqa: SIM905
)

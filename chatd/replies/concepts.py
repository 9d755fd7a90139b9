# ruff: noqa: E501 - the rows of a table are read across
"""The names doctors use for values, reports and groups of them, as data: English, Portuguese and LOINC.

A row says how a question may name a value and how a record may name it. LOINC codes decide first; a name is
read only where the record gives no code of this table, so that "Hemoglobin.gastrointestinal in Stool" (coded
57905-2) never passes for haemoglobin in blood. All words are folded (see ``context.text.fold_line``): lower case, no accents.
"""

from __future__ import annotations

import functools
import re

import msgspec

from context.layers import Observation
from context.memo import remembers
from context.text import fold_line


class Concept(msgspec.Struct, frozen=True):
    """One value with its names.

    id: key of this table. en, pt: what people read. loinc: codes that mean exactly this.
    words: how a question names it, folded; a phrase counts before a shorter one inside it.
    record: regular expression on a folded record name without a known code. never: names that it must not take.
    """

    id: str
    en: str
    pt: str
    loinc: tuple[str, ...]
    words: tuple[str, ...]
    record: str
    never: str = r"urin|stool|fece|fezes|csf|liquor|cerebrospinal|pleural|sputum"


def _row(id_: str, en: str, pt: str, loinc: str, words: str, record: str, never: str | None = None) -> Concept:
    names = tuple(
        dict.fromkeys([fold_line(en), fold_line(pt), *(fold_line(word) for word in words.split("|") if word)])
    )
    codes = tuple(loinc.split())
    if never is None:
        return Concept(id_, en, pt, codes, names, record)
    return Concept(id_, en, pt, codes, names, record, never)


CONCEPTS: tuple[Concept, ...] = (
    # --- vital signs (LOINC: the FHIR R4 vital-signs profiles and what laboratories' monitors send)
    _row("heart_rate", "Heart rate", "Frequência cardíaca", "8867-4 8889-8 68999-1",
         "hr|pulse|pulse rate|heartrate|pulso|fc|bpm", r"\bheart ?rate\b|\bpulse( rate)?\b|frequencia cardiaca|\bpulso\b", r"pressure|oximetr|pressao"),
    _row("resp_rate", "Respiratory rate", "Frequência respiratória", "9279-1",
         "rr|resp rate|breathing rate|respirations|fr", r"respiratory rate|resp\.? rate|frequencia respiratoria", r"ventilator set"),
    _row("spo2", "Oxygen saturation", "Saturação de oxigénio", "59408-5 2708-6 20564-1 2710-2",
         "spo2|sao2|sats|o2 sat|o2 sats|o2 saturation|saturation|saturacao|saturacao de o2|saturacao periferica|sat o2",
         r"spo2|sao2|oxygen saturation|o2 sat|saturacao", r"venous|venosa|mixed|transferrin|transferrina|iron"),
    _row("sbp", "Systolic blood pressure", "Pressão arterial sistólica", "8480-6 8459-0 8460-8",
         "sbp|systolic|systolic bp|systolic pressure|sistolica|tensao sistolica|pas|tas", r"systolic|sistolica|^sbp$"),
    _row("dbp", "Diastolic blood pressure", "Pressão arterial diastólica", "8462-4 8453-3 8454-1",
         "dbp|diastolic|diastolic bp|diastolic pressure|diastolica|tensao diastolica|pad|tad", r"diastolic|diastolica|^dbp$", r"end-?diastolic|telediastolic|dimension|volume"),
    _row("map", "Mean arterial pressure", "Pressão arterial média", "8478-0 8477-2",
         "map|mean bp|mean pressure|pam|pressao media|tensao arterial media", r"mean (arterial|blood) pressure|^map$|pressao arterial media|^pam$"),
    _row("temperature", "Temperature", "Temperatura", "8310-5 8331-1 8332-9 8333-7 8328-7 8329-5 8330-3 8334-5 75539-7 75987-8",
         "temp|body temperature|oral temperature|fever|febre|temperatura corporal|febrile", r"temperature|temperatura|^temp$"),
    _row("consciousness", "Level of consciousness", "Nível de consciência", "67775-7 80288-4 11454-5",
         "acvpu|avpu|consciousness|consciencia|estado de consciencia|conscious level", r"acvpu|avpu|consciousness|consciencia|responsiveness"),
    _row("gcs", "Glasgow coma score", "Escala de coma de Glasgow", "9269-2 35088-4",
         "gcs|glasgow|glasgow coma scale|glasgow coma score|escala de glasgow", r"glasgow|^gcs"),
    _row("oxygen", "Oxygen given", "Oxigénio administrado", "3151-8 3150-6 19994-3 107117-4",
         "fio2|oxygen flow|o2 flow|oxygen therapy|supplemental oxygen|oxigenoterapia|debito de oxigenio|oxigenio suplementar",
         r"fio2|inhaled oxygen|oxygen (flow|therapy|given)|supplemental oxygen|oxigenoterapia|oxigenio (suplementar|administrado)"),
    _row("weight", "Weight", "Peso", "29463-7 3141-9 3142-7 8341-0", "body weight|wt|kilos|peso corporal", r"^(body |dry )?weight\b|^peso\b", r"birth|ideal|molecular|loss|perda"),
    _row("height", "Height", "Altura", "8302-2 3137-7 3138-5 8306-3", "body height|stature|estatura|how tall", r"^(body )?height\b|^altura\b|^estatura\b"),
    _row("bmi", "Body mass index", "Índice de massa corporal", "39156-5", "bmi|imc|mass index|massa corporal", r"\bbmi\b|body mass index|massa corporal|^imc$", r"percentile|percentil"),
    _row("pain", "Pain score", "Dor (escala)", "72514-3 38208-5 38221-8", "pain severity|pain level|pain rating|escala de dor|nivel de dor|intensidade da dor|valor de dor", r"pain (severity|score|intensity|level)|escala (numerica )?d[ae] dor"),
    _row("urine_output", "Urine output", "Diurese", "9192-6 3167-4", "uo|urinary output|diurese|debito urinario", r"urine output|urinary output|diurese|debito urinario", r"^$"),
    _row("rass", "RASS", "RASS", "54632-5", "sedation score|richmond|escala de sedacao", r"\brass\b|richmond agitation"),
    # --- blood count
    _row("hemoglobin", "Haemoglobin", "Hemoglobina", "718-7 20509-6 30350-3 30313-1 30351-1 59260-0 14775-1 54289-4",
         "hemoglobin|hb|hgb", r"ha?emoglobin\b|hemoglobina\b|^hb\b|^hgb\b",
         r"a1c|glycated|glicad|glicosilad|hba1c|corpuscular|mch|stool|fece|fezes|urin|carboxy|met|gastrointestinal|reticul|distribution|free|plasma"),
    _row("hematocrit", "Haematocrit", "Hematócrito", "4544-3 20570-8 71833-8 48703-3", "hematocrit|hct|packed cell volume|pcv|ht", r"ha?ematocrit|hematocrito|^hct"),
    _row("wbc", "Leucocytes", "Leucócitos", "6690-2 26464-8 804-5 49498-9",
         "wbc|white cells|white blood cells|white cell count|white count|leukocytes|globulos brancos", r"leu[ck]ocytes|leucocitos|^wbc\b|white (blood )?cell", r"urin|csf|liquor|/100|fraction|stool|sediment|cell cast|esterase|%"),
    _row("platelets", "Platelets", "Plaquetas", "777-3 26515-7 778-1 49497-1 13056-7", "plt|platelet count|platelet|thrombocytes|contagem de plaquetas|trombocitos", r"^platelets?\b|plaquetas|thrombocytes|^plt\b", r"mean|volume medio|distribution|mpv|pdw|function|aggreg"),
    _row("rbc", "Erythrocytes", "Eritrócitos", "789-8 26453-1", "rbc|red cells|red blood cells|red cell count|globulos vermelhos", r"erythrocytes|eritrocitos|^rbc\b|red (blood )?cell", r"distribution|urin|sediment|nucleated|mean|rdw|width|csf"),
    _row("mcv", "MCV", "VGM", "787-2 30428-7", "mean corpuscular volume|vcm|volume globular medio|volume corpuscular medio", r"^mcv\b|mean corpuscular volume|volume globular medio|^vgm\b|^vcm\b"),
    _row("mch", "MCH", "HGM", "785-6 28539-5", "mean corpuscular hemoglobin|hcm|hemoglobina globular media", r"^mch\b|^hgm\b|^hcm\b|mean corpuscular ha?emoglobin$"),
    _row("mchc", "MCHC", "CHGM", "786-4 28540-3", "mean corpuscular hemoglobin concentration|chcm", r"^mchc\b|^chcm\b|^chgm\b|ha?emoglobin concentration"),
    _row("rdw", "RDW", "RDW", "21000-5 788-0 30384-2 30385-9", "red cell distribution width|erythrocyte distribution width|coeficiente de variacao eritrocitaria", r"^rdw\b|erythrocyte distribution width|red (blood )?cell distribution"),
    _row("neutrophils", "Neutrophils", "Neutrófilos", "751-8 26499-4 770-8 753-4", "neut|neutros|anc|absolute neutrophil count", r"neutrophil|neutrofilos|^anc$"),
    _row("lymphocytes", "Lymphocytes", "Linfócitos", "731-0 26474-7 736-9", "lymphs", r"lymphocyte|linfocitos"),
    _row("eosinophils", "Eosinophils", "Eosinófilos", "711-2 26449-9 713-8", "", r"eosinophil|eosinofilos"),
    _row("esr", "ESR", "Velocidade de sedimentação", "4537-7 30341-2", "sedimentation rate|vs|vsg|erythrocyte sedimentation rate", r"sedimentation rate|velocidade de sedimentacao|^esr$"),
    # --- coagulation
    _row("inr", "INR", "INR", "6301-6 34714-6 38875-1 46418-0", "international normalised ratio|international normalized ratio", r"\binr\b"),
    _row("pt_time", "Prothrombin time", "Tempo de protrombina", "5902-2 5964-2", "protrombina|prothrombin", r"prothrombin time|tempo de protrombina", r"\binr\b"),
    _row("aptt", "aPTT", "aPTT", "3173-2 14979-9", "ptt|ttpa|tromboplastina", r"aptt|thromboplastin|tromboplastina|^ptt$|ttpa"),
    _row("fibrinogen", "Fibrinogen", "Fibrinogénio", "3255-7 48664-7", "fibrinogeno", r"fibrinog"),
    _row("d_dimer", "D-dimer", "D-dímeros", "48065-7 48058-2 48066-5 48067-3 91556-1", "d dimer|ddimer|d-dimero|d dimeros|dimeros-d", r"d-? ?dimer|dimeros"),
    _row("anti_xa", "Anti-Xa", "Anti-Xa", "3271-4 32684-3 5888-3", "anti xa|antixa|antifactor xa", r"anti-?(factor)? ?xa"),
    # --- electrolytes and metabolism
    _row("potassium", "Potassium", "Potássio", "2823-3 6298-4 75940-7 39789-3 77142-8 12812-4 32713-0", "k|k+|kalemia|kalaemia|potassemia|caliemia", r"^potassium\b|potassio|^k\+?$"),
    _row("sodium", "Sodium", "Sódio", "2951-2 2947-0 32717-1 77139-4 39792-7", "na|na+|natremia|natraemia", r"^sodium\b|^sodio|^na\+?$"),
    _row("chloride", "Chloride", "Cloro", "2075-0 2069-3 41650-4 77138-6", "cl|cl-|cloretos|cloreto", r"^chloride|^clor(o|eto)|^cl-?$"),
    _row("bicarbonate", "Bicarbonate", "Bicarbonato", "1963-8 2028-9 20565-8 1959-6 1960-4 1961-2 14627-4 16551-4 77143-6",
         "hco3|carbon dioxide|co2 total|total co2|tco2|dioxido de carbono|hco3-", r"bicarbonat|^hco3|^carbon dioxide|^co2( total)?$|^tco2|dioxido de carbono", r"partial|pressure|pco2|end.?tidal|urin|parcial"),
    _row("calcium", "Calcium", "Cálcio", "17861-6 49765-1 2000-8 29265-6 18281-6", "ca|total calcium|calcemia|calcaemia", r"^(total )?calcium\b|^calcio", r"ioni|urin|score|free|channel"),
    _row("ionised_calcium", "Ionised calcium", "Cálcio ionizado", "1994-3 1995-0 34581-9 19072-8 12180-6 59472-1 47596-2", "ionized calcium|ica|ca++|calcio ionico", r"ioni[sz]ed calcium|calcium.*ioni|calcio ioni|calcium\.ionized|^ica$"),
    _row("magnesium", "Magnesium", "Magnésio", "2601-3 19123-9 21377-7 32698-3", "mg2+|magnesemia|mg++|mag", r"^magnesium|^magnesio|^mg$"),
    _row("phosphate", "Phosphate", "Fosfato", "2777-1 14879-1 24519-1", "phosphorus|fosforo|phos|po4|fosfatemia", r"^(inorganic )?phosph(ate|orus)|^fosf(ato|oro)", r"alkaline|alcalina|urin|kinase|creatin"),
    _row("glucose", "Glucose", "Glicose", "2345-7 2339-0 2340-8 2341-6 1558-6 14749-6 15074-8 41653-7 14743-9 32016-8 74774-1 39480-9 5914-7 35184-1 2344-0",
         "blood sugar|blood glucose|glicemia|glucose capilar|bm|bg|glucemia|sugar|acucar|glycaemia|glycemia|glicemia capilar|dextro", r"^(blood |fasting |plasma |capillary )*glucose\b|glicose|glicemia|blood sugar|^glucemia", r"urin|csf|liquor|tolerance|estimated average|phosphate|2 ?h|post|g6pd|6-phosph"),
    _row("hba1c", "HbA1c", "HbA1c", "4548-4 17856-6 59261-8 41995-2 62388-4 71875-9",
         "a1c|hemoglobin a1c|haemoglobin a1c|hb a1c|glycated haemoglobin|glycated hemoglobin|glycosylated hemoglobin|hemoglobina glicada|hemoglobina a1c|hemoglobina glicosilada", r"a1c|glycated|glicad|glicosilad"),
    _row("ketones", "Ketones", "Corpos cetónicos", "53060-9 6873-4 35664-2 51859-9", "ketone|beta-hydroxybutyrate|beta hydroxybutyrate|cetonemia|cetonas|betahidroxibutirato|cetonemia capilar", r"hydroxybutyrate|hidroxibutirato|\bketones?\b|cetonemia|cetonas"),
    _row("lactate", "Lactate", "Lactato", "2524-7 32693-4 2518-9 32132-3 14118-4 59032-3 19239-3 30241-4 51829-2", "lactic acid|lactatos|acido lactico|lac", r"lactate|lactato|lactic acid", r"dehydrogenase|desidrogenase|ldh|ringer|csf|liquor"),
    _row("ammonia", "Ammonia", "Amónia", "1841-6 16362-6 22763-7", "amonia|amoniemia|nh3", r"ammonia|amonia|amoniemia"),
    _row("osmolality", "Osmolality", "Osmolalidade", "2692-2 2694-8", "osmolaridade|osmolarity", r"^(serum |plasma )?osmolal"),
    # --- kidney
    _row("creatinine", "Creatinine", "Creatinina", "2160-0 38483-4 14682-9 35203-9 77140-2 44784-7", "creat|cr|scr|serum creatinine|creatinina serica|creatininemia|crea", r"^(serum |plasma )?creatinine?a?\b|creatininemia|creatinina", r"clearance|ratio|albumin|urin|depura|kinase|racio|protein"),
    _row("urea", "Urea", "Ureia", "3094-0 6299-2 22664-7 14937-7 3091-6 12964-3", "bun|urea nitrogen|blood urea nitrogen|blood urea|azoto ureico", r"^(blood )?urea\b|^bun$|ureia|urea nitrogen|azoto ureico", r"urin|ratio|breath|clearance|/creat"),
    _row("egfr", "eGFR", "TFG estimada", "33914-3 62238-1 48642-3 48643-1 98979-8 98980-6 88293-6 88294-4 50044-7 69405-9 77147-7 50210-4",
         "gfr|glomerular filtration rate|estimated glomerular filtration rate|tfge|tfg|filtrado glomerular|taxa de filtracao glomerular", r"glomerular filtration|\begfr\b|^gfr|\btfg|filtra(do|cao) glomerular"),
    _row("crcl", "Creatinine clearance", "Depuração da creatinina", "2164-2 35591-7 35592-5", "crcl|clearance of creatinine|clearance da creatinina|clcr|cockcroft", r"creatinine clearance|clearance da creatinina|depuracao da creatinina|crcl"),
    _row("acr", "Albumin/creatinine ratio", "Rácio albumina/creatinina", "14959-1 9318-7 14958-3 30000-4 32294-1",
         "acr|uacr|microalbumin creatinine ratio|albumin creatinine ratio|microalbuminuria|albuminuria|microalbumin|microalbumina|racio albumina creatinina", r"(micro)?albumin.{0,4}creatinin|albuminuria|\bu?acr$", r"^$"),
    _row("uric_acid", "Uric acid", "Ácido úrico", "3084-1 14933-6", "urate|uricemia|uricaemia", r"^(serum )?(uric acid|urate)|acido urico|uricemia"),
    # --- liver, pancreas, proteins
    _row("alt", "ALT", "ALT", "1742-6 1743-4 1744-2", "sgpt|gpt|tgp|alanine aminotransferase|alanina aminotransferase|alanine transaminase", r"\balt\b|alanin[ea] (amino)?trans|\bsgpt\b|\btgp\b"),
    _row("ast", "AST", "AST", "1920-8 30239-8", "sgot|got|tgo|aspartate aminotransferase|aspartato aminotransferase|aspartate transaminase", r"\bast\b|aspartat[eo] (amino)?trans|\bsgot\b|\btgo\b"),
    _row("alp", "Alkaline phosphatase", "Fosfatase alcalina", "6768-6 1783-0", "alp|alk phos", r"alkaline phosphatase|fosfatase alcalina|^alp$", r"bone|isoenzyme|placental"),
    _row("ggt", "GGT", "Gama-GT", "2324-2", "gamma gt|gama gt|gamma glutamyl transferase|ygt|gama-glutamil", r"gamma.?(gt|glutamyl)|gama.?(gt|glutamil)|^ggt$"),
    _row("bilirubin", "Bilirubin", "Bilirrubina", "1975-2 14631-6 42719-5", "total bilirubin|bilirrubina total|bili", r"bilirubin|bilirrubina", r"direct|indirect|conjug|urin|indireta|direta"),
    _row("albumin", "Albumin", "Albumina", "1751-7 61151-7 61152-5 54347-0 76631-1", "serum albumin|albuminemia|albumina serica", r"^(serum )?albumin\b|^albumina\b", r"urin|creatinin|micro|ratio|glycated|csf|globulin|/"),
    _row("globulin", "Globulin", "Globulina", "10834-0 2336-6", "globulinas", r"^globulin"),
    _row("protein", "Total protein", "Proteínas totais", "2885-2", "protein|proteins|proteinas", r"^(total )?proteins?\b|proteinas totais", r"urin|csf|reactive|c-|reativa|liquor|creatinin|electro"),
    _row("amylase", "Amylase", "Amilase", "1798-8", "", r"^(serum |total )?amylase|^amilase"),
    _row("lipase", "Lipase", "Lipase", "3040-3", "", r"\blipase\b"),
    _row("ldh", "LDH", "LDH", "2532-0 14804-9 14805-6", "lactate dehydrogenase|desidrogenase lactica|lactic dehydrogenase", r"lactate dehydrogenase|lactic dehydrogenase|desidrogenase lac|^ldh$"),
    _row("ck", "Creatine kinase", "Creatinaquinase", "2157-6", "ck|cpk|creatina quinase|creatine phosphokinase|ck total", r"^creatine (phospho)?kinase( total)?\b|^cp?k$|creatina ?quinase", r"\bmb\b|ck-?mb"),
    # --- heart and inflammation
    _row("troponin", "Troponin", "Troponina", "10839-9 6598-7 42757-5 49563-0 89579-7 67151-1 6597-9 48425-3 89577-1 76399-5 48426-1 16255-2 102683-0",
         "troponin i|troponin t|troponins|trop|hs-troponin|hs troponin|tni|tnt|ctni|ctnt|troponinas|troponina i|troponina t|hstni|hstnt", r"troponin|^c?tn[it]$"),
    _row("ckmb", "CK-MB", "CK-MB", "13969-1 2154-3 32673-6 49551-5", "ckmb|ck mb", r"ck-? ?mb|creatine kinase.*mb"),
    _row("nt_probnp", "NT-proBNP", "NT-proBNP", "33762-6 71425-3 83107-3 83108-1", "nt probnp|probnp|pro-bnp|ntprobnp|pro bnp", r"pro-? ?bnp|natriuretic peptide.*prohormone"),
    _row("bnp", "BNP", "BNP", "30934-4 42637-9 47092-2", "brain natriuretic peptide|peptido natriuretico", r"^bnp|natriuretic peptide b$|brain natriuretic|^natriuretic peptide b\b", r"pro|prohormone"),
    _row("lvef", "Left ventricular ejection fraction", "Fração de ejeção do VE", "10230-1 8806-2 8808-8 18043-0 77889-4 79990-8",
         "lvef|ef|ejection fraction|fevE|feve|fracao de ejecao|fracao de ejeccao", r"ejection fraction|\blvef\b|fracao de eje|\bfeve\b"),
    _row("qtc", "QTc", "QTc", "8636-3 18516-5 18517-3 76634-5 76635-2", "qt corrigido|corrected qt|qtcf|qtcb|qtc interval|intervalo qtc", r"\bqtc[bf]?\b|corrected qt|qt corrigido"),
    _row("crp", "C-reactive protein", "Proteína C reativa", "1988-5 30522-7 76485-2 71426-1 48421-2", "crp|pcr|c reactive protein|proteina c reactiva|hscrp", r"c.reactive protein|proteina c rea|^(hs-?)?crp$|^pcr$"),
    _row("procalcitonin", "Procalcitonin", "Procalcitonina", "33959-8 75241-0", "pct|procalcitonina", r"procalcitonin"),
    _row("ferritin", "Ferritin", "Ferritina", "2276-4 20567-4", "", r"ferritin"),
    _row("iron", "Iron", "Ferro", "2498-4 14798-3", "serum iron|ferro serico|sideremia", r"^(serum )?iron\b|^ferro\b", r"binding|capacity|saturation"),
    _row("vitamin_b12", "Vitamin B12", "Vitamina B12", "2132-9 14685-2", "b12|cobalamin|cobalamina", r"b12|cobalamin"),
    _row("folate", "Folate", "Ácido fólico", "2284-8 14732-2", "folic acid|folatos", r"\bfolate|folic|acido folico"),
    _row("vitamin_d", "Vitamin D", "Vitamina D", "1989-3 62292-8 35365-6", "25-oh|calcidiol", r"vitamin[a]? d\b|calcidiol|25-hydroxy"),
    # --- lipids
    _row("cholesterol", "Total cholesterol", "Colesterol total", "2093-3 14647-2", "", r"^(total )?cholesterol( total)?\b|colesterol total|^colesterol$", r"hdl|ldl|density|densidade|ratio|vldl|non"),
    _row("ldl", "LDL cholesterol", "Colesterol LDL", "18262-6 13457-7 2089-1 18261-8 22748-8 69419-0", "ldl|low density lipoprotein|low density lipoprotein cholesterol|ldl-c|c-ldl", r"\bldl\b|low density lipoprotein", r"very low|vldl|ratio"),
    _row("hdl", "HDL cholesterol", "Colesterol HDL", "2085-9 14646-4", "hdl|high density lipoprotein|high density lipoprotein cholesterol|hdl-c|c-hdl", r"\bhdl\b|high density lipoprotein", r"non|ratio"),
    _row("triglycerides", "Triglycerides", "Triglicéridos", "2571-8 14927-8 3043-7", "tg|trigs|triglicerideos", r"triglycerid|triglicer"),
    # --- gases
    _row("ph", "pH", "pH", "2744-1 11558-4 2746-6 33254-4 19213-8", "arterial ph|ph arterial", r"^(arterial |venous |blood )?ph\b", r"urin|gastric|sputum|pleural|stool"),
    _row("pco2", "pCO2", "pCO2", "2019-8 11557-6 2021-4 20564-7 32771-8", "paco2|carbon dioxide partial pressure|pressao parcial de co2", r"pa?co2|carbon dioxide.*(partial|pressure)|co2.*partial", r"end.?tidal"),
    _row("po2", "pO2", "pO2", "2703-7 11556-8 2705-2 19255-9", "pao2|oxygen partial pressure|pressao parcial de oxigenio", r"pa?o2\b|oxygen.*partial pressure", r"spo2|sao2|fio2|ratio"),
    _row("base_excess", "Base excess", "Excesso de base", "1925-7 11555-0 1927-3 30318-0", "be|base deficit|excesso de bases", r"base excess|excesso de base"),
    _row("pf_ratio", "PaO2/FiO2", "PaO2/FiO2", "50984-4", "p/f|pf ratio|p/f ratio|pafi", r"pao2 ?/ ?fio2|p/f ratio"),
    # --- hormones, drugs, other
    _row("tsh", "TSH", "TSH", "3016-3 11579-0 11580-8", "thyrotropin|tirotropina", r"\btsh\b|thyrotropin|tirotropina"),
    _row("ft4", "Free T4", "T4 livre", "3024-7 14920-3", "ft4|t4|thyroxine free|tiroxina livre|thyroxine", r"free t4|t4 livre|thyroxine.*free|^ft4"),
    _row("cortisol", "Cortisol", "Cortisol", "2143-6 14675-3", "", r"cortisol", r"urin|saliv"),
    _row("psa", "PSA", "PSA", "2857-1 35741-8 19195-7", "prostate specific antigen|prostate specific ag|antigenio prostatico|antigenio especifico da prostata", r"prostate specific a|\bpsa\b|antigenio (especifico )?(da )?prost", r"free|livre|ratio|%"),
    _row("bhcg", "Beta-hCG", "Beta-hCG", "21198-7 19080-1 2118-8 2106-3 2110-5", "hcg|bhcg|pregnancy test|teste de gravidez|beta hcg", r"\bb?-?hcg\b|choriogonadotropin|pregnancy test|teste de gravidez", r"^$"),
    _row("digoxin_level", "Digoxin level", "Digoxinemia", "10535-3 14698-5", "serum digoxin|nivel de digoxina", r"^digoxin"),
    _row("vancomycin_level", "Vancomycin level", "Vancomicinemia", "4092-3 20578-1 4090-7 39092-2", "vancomycin trough|nivel de vancomicina|vale de vancomicina", r"^vancomycin|^vancomicin"),
    _row("smoking", "Smoking status", "Hábitos tabágicos", "72166-2", "smoker|smoking|smoke|smokes|tobacco|fumador|fumadora|fuma|tabaco|tabagismo|tobacco smoking status", r"smoking|tobacco|tabag|fumador"),
    _row("blood_group", "Blood group", "Grupo sanguíneo", "882-1 883-9 10331-7", "blood type|abo|grupo de sangue|tipo de sangue|rh factor", r"^abo\b|blood (group|type)|grupo sanguineo", r"pressure"),
    _row("cause_of_death", "Cause of death", "Causa de morte", "69453-9", "causa da morte", r"cause of death|causa d[ae] morte"),
)  # fmt: skip

#: Short names that are also common words ("na" is Portuguese for "in the", "be" a verb, "toe" a toe): they count
#: only in this spelling, or with a number after them ("na 128").
CASED: dict[str, tuple[str, ...]] = {
    "na": ("Na",), "ca": ("Ca",), "cl": ("Cl",), "cr": ("Cr", "CR"), "be": ("BE",), "ht": ("Ht", "HT", "HCT"),
    "hr": ("HR",), "rr": ("RR",), "fr": ("FR",), "fc": ("FC",), "ta": ("TA",), "pas": ("PAS",), "tas": ("TAS",),
    "pad": ("PAD",), "tad": ("TAD",), "map": ("MAP",), "pam": ("PAM",), "ef": ("EF",), "vs": ("VS",), "bm": ("BM",),
    "uo": ("UO",), "bg": ("BG",), "mag": ("Mag", "MAG"), "ues": ("UEs", "UES"), "toe": ("TOE",), "tee": ("TEE",),
    "eco": ("Eco", "ECO", "eco"), "news": ("NEWS",), "lac": ("Lac", "LAC"), "ast": ("AST",), "alt": ("ALT",),
    "abo": ("ABO",), "tg": ("TG",), "anc": ("ANC",), "pct": ("PCT", "Pct"), "iron": ("iron", "Iron", "IRON"),
    "wt": ("wt", "Wt", "WT"), "eda": ("EDA",), "k": ("K", "k"),
}  # fmt: skip

BY_ID: dict[str, Concept] = {concept.id: concept for concept in CONCEPTS}
BY_LOINC: dict[str, Concept] = {code: concept for concept in CONCEPTS for code in concept.loinc}


class Group(msgspec.Struct, frozen=True):
    """Several values asked for by one word; ``members`` are ids of concepts in the order to show."""

    id: str
    en: str
    pt: str
    words: tuple[str, ...]
    members: tuple[str, ...]


def _group(id_: str, en: str, pt: str, words: str, members: str) -> Group:
    names = tuple(
        dict.fromkeys([fold_line(en), fold_line(pt), *(fold_line(word) for word in words.split("|") if word)])
    )
    return Group(id_, en, pt, names, tuple(members.split()))


GROUPS: tuple[Group, ...] = (
    _group("vitals", "Vital signs", "Sinais vitais", "vitals|obs set|observations|vital sign|early warning score|news|news2|news 2|parametros vitais|hemodynamics|hemodinamica|hemodynamic|haemodynamic|haemodynamics",
           "resp_rate spo2 oxygen sbp dbp map heart_rate consciousness gcs temperature"),
    _group("bp", "Blood pressure", "Tensão arterial", "bp|pressao arterial|pressao sanguinea|ta|blood pressures|tensao|pressao", "sbp dbp map"),
    _group("electrolytes", "Electrolytes", "Ionograma", "electrolyte|eletrolitos|electrolitos|iões|u&e|u&es|ues|eletrolitico",
           "sodium potassium chloride bicarbonate calcium ionised_calcium magnesium phosphate"),
    _group("lipids", "Lipids", "Perfil lipídico", "cholesterol|colesterol|lipid|lipid panel|lipid profile|lipidos|lipidico", "cholesterol ldl hdl triglycerides"),
    _group("renal", "Kidney function", "Função renal", "renal function|renal panel|kidneys|renal|kidney|renais|rins|aki|bmp|basic metabolic panel", "creatinine egfr crcl urea potassium acr"),
    _group("liver", "Liver function", "Função hepática", "lft|lfts|liver|liver tests|liver panel|hepatic function|hepatic|provas hepaticas|transaminases|hepatica|figado|enzimas hepaticas",
           "alt ast alp ggt bilirubin albumin inr"),
    _group("cbc", "Blood count", "Hemograma", "fbc|cbc|full blood count|complete blood count|blood counts|hemoleucograma",
           "hemoglobin hematocrit wbc neutrophils lymphocytes platelets rbc mcv mch mchc rdw"),
    _group("coagulation", "Coagulation", "Coagulação", "clotting|coag|coags|coagulation screen|estudo da coagulacao", "inr pt_time aptt fibrinogen platelets d_dimer anti_xa"),
    _group("gases", "Blood gas", "Gasimetria", "abg|abgs|vbg|blood gases|arterial blood gas|gases|gasometria|gasimetria arterial|gsa", "ph pco2 po2 bicarbonate base_excess lactate pf_ratio"),
    _group("cardiac", "Cardiac markers", "Marcadores cardíacos", "cardiac enzymes|cardiac biomarkers|enzimas cardiacas|marcadores de necrose", "troponin ckmb ck nt_probnp bnp"),
    _group("inflammation", "Inflammatory markers", "Marcadores inflamatórios", "inflammatory|inflammation|parametros inflamatorios|inflamatorios", "crp procalcitonin wbc neutrophils lactate esr"),
    _group("thyroid", "Thyroid function", "Função tiroideia", "thyroid|tiroide|tfts|funcao da tiroide", "tsh ft4"),
    _group("diabetes_values", "Diabetes control", "Controlo glicémico", "glycaemic control|glycemic control|controlo da diabetes|controlo glicemico", "hba1c glucose"),
    _group("iron_studies", "Iron studies", "Cinética do ferro", "iron panel|cinetica de ferro", "iron ferritin"),
)  # fmt: skip


class ReportKind(msgspec.Struct, frozen=True):
    """A kind of written report: how a question names it, and a pattern on a record's folded title."""

    id: str
    en: str
    pt: str
    words: tuple[str, ...]
    record: str


REPORT_KINDS: tuple[ReportKind, ...] = (
    ReportKind("ecg", "ECG", "ECG",
               ("ecg", "ekg", "electrocardiogram", "electrocardiograma", "eletrocardiograma", "12-lead", "12 lead", "ecgs", "tracing",
                "tracado", "rhythm strip", "qt interval", "intervalo qt"),
               r"\becg\b|\bekg\b|electrocardiogra|eletrocardiogra|holter"),
    ReportKind("echo", "Echocardiogram", "Ecocardiograma",
               ("echo", "echocardiogram", "echocardiography", "ecocardiograma", "ecocardiografia", "tte", "toe", "tee", "eco"),
               r"echocardiogra|ecocardiogra|\becho\b|\btt?e\b|\btoe\b|\betoe?\b"),
    ReportKind("xray", "X-ray", "Radiografia",
               ("x-ray", "xray", "x ray", "cxr", "chest film", "radiograph", "radiografia", "rx", "raio-x", "raio x", "raios x",
                "telerradiografia", "radiografias"),
               r"x-? ?ray|\bcxr\b|radiogra|\brx\b|raio"),
    ReportKind("ct", "CT", "TC",
               ("ct", "ct scan", "cat scan", "computed tomography", "tac", "tomografia", "angio-tc", "ctpa", "cta", "ct head"),
               r"\bct\b|\bctpa\b|tomogra|\btac\b|\btc\b|angio-?tc"),
    ReportKind("mri", "MRI", "RM",
               ("mri", "magnetic resonance", "ressonancia", "ressonancia magnetica", "rmn"), r"\bmri\b|magnetic resonance|ressonancia|\brmn?\b"),
    ReportKind("ultrasound", "Ultrasound", "Ecografia",
               ("ultrasound", "sonography", "ecografia", "doppler", "usg", "ultrassom"), r"ultraso|sonogra|ecografia|doppler"),
    ReportKind("angiography", "Angiography", "Angiografia",
               ("angiogram", "angiography", "cath report", "coronariografia", "angiografia", "cateterismo"), r"angiogra|coronariogra|catheteri|cateterismo"),
    ReportKind("culture", "Cultures", "Culturas",
               ("blood culture", "blood cultures", "cultures", "culture", "microbiology", "hemocultura", "hemoculturas", "urocultura",
                "culturas", "microbiologia"),
               r"cultur|microbiolog|gram stain"),
    ReportKind("pathology", "Pathology", "Anatomia patológica",
               ("pathology", "biopsy", "histology", "biopsia", "histologia", "anatomia patologica", "cytology", "citologia", "pap smear"),
               r"patholog|biops|histolog|citolog|cytolog|anatomia patologica|\bpap\b"),
    ReportKind("endoscopy", "Endoscopy", "Endoscopia",
               ("endoscopy", "colonoscopy", "gastroscopy", "endoscopia", "colonoscopia", "eda"), r"endoscop|colonoscop|gastroscop"),
    ReportKind("imaging", "Imaging", "Imagiologia",
               ("imaging", "imagiologia", "radiology", "radiologia", "scan", "scans", "exames de imagem"), r"imaging|imagiolog|radiolog"),
)  # fmt: skip

KIND_BY_ID: dict[str, ReportKind] = {kind.id: kind for kind in REPORT_KINDS}


@functools.lru_cache(maxsize=512)
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern)


@remembers(8192)
def _concept_of(code: str | None, name: str) -> Concept | None:
    if code is not None and code in BY_LOINC:
        return BY_LOINC[code]
    folded = fold_line(name)
    for concept in CONCEPTS:
        if _compiled(concept.record).search(folded) and not _compiled(concept.never).search(folded):
            return concept
    return None


def concept_of(observation: Observation) -> Concept | None:
    """The row that ``observation`` belongs to: by its LOINC code, else by its name; None for what the table lacks."""
    return _concept_of(observation.code, observation.name)


def report_kinds(title: str, kind: str) -> frozenset[str]:
    """The kinds a report's title (and the layer's own ``kind``) speaks of; "imaging" holds for every image."""
    folded = fold_line(title)
    found = {row.id for row in REPORT_KINDS if _compiled(row.record).search(folded)}
    if kind == "ecg":
        found.add("ecg")
    if kind == "imaging" or found & {"xray", "ct", "mri", "ultrasound", "angiography"}:
        found.add("imaging")
    return frozenset(found)

"""The words by which a text speaks to a language model instead of to its reader.

Knows patterns only, for folded text. English first, then the same kinds in German, Spanish, French
and Chinese. Which of them together make an order, `rag.orders.signs` says.
"""

from __future__ import annotations

import re


def any_of(*patterns: str) -> re.Pattern[str]:
    """Return a pattern that finds what any of the patterns finds, in any case."""
    return re.compile("|".join(patterns), re.IGNORECASE)


MODEL = (
    r"(?:ai|llm|gpt|chat ?gpt|chat ?bot|(?:ai|language|chat) (?:model|assistant|agent|bot)|"
    r"large language model|virtual assistant)s?"
)
_KI = (
    r"(?:ki|k\.i\.|ai|llm|gpt|chat ?gpt|künstlichen? intelligenz|(?:sprach|ki-)modell|chat ?bot|"
    r"ki-\w+|(?:virtuell|künstlich|digital)\w* assistent)(?:e|en|es|s|in)?"
)
_IA = (
    r"(?:ia|i\.a\.|ai|llm|gpt|chat ?gpt|inteligencia artificial|intelligence artificielle|"
    r"mod[eè]l[eo]s? (?:de lenguaje|de langage|linguistique|de ia|d'ia|ia)|chat ?bot|"
    r"(?:asistente|assistant)s? (?:de ia|ia|virtual|virtuel))s?"
)
_ZH_MODEL = (
    r"(?:AI ?(?:助手|模型|系统|系統)?|人工智能|人工智慧|(?:大型?)?(?:语言|語言)模型|大模型|"
    r"(?:智能|虚拟|虛擬)助[手理]|聊天(?:机器人|機器人))"
)
_QUALIFIED = (
    r"(?:(?:all|any|every|each) (?:of )?)?(?:the |these |those |this |your |my |other |such )*"
    r"(?:previous(?:ly)?|prior|above|earlier|preceding|foregoing|initial|original|existing|past|"
    r"former|given|system|safety|current)(?:,? (?:and |or )?[\w-]+){0,2}?"
)
_TOLD = r"(?:instructions?|directions?|directives?|prompts?|guidelines|messages?|commands?|context)"
_OF_THE_WORLD = (
    r"(?! (?:of|from|by|on|in|for|at|to) (?!(?:the |your |this )?(?:system|developer|user|prompt|"
    r"context|conversation|passages?|data|text|above)))"
)
"""Orders of the guard, directions on the lid: those are not the model's."""

OVERRIDE = any_of(
    # what was told before: previous instructions, the rest of this data, everything above
    r"\b(?:ignor(?:e|ing)|disregard(?:ing)?|forget|override|bypass|overlook|do not follow|"
    r"don'?t follow|stop following|pay no attention to) "
    rf"(?:{_QUALIFIED} {_TOLD}\b{_OF_THE_WORLD}|(?:all|any|your)(?: of)?(?: the| your)? {_TOLD}\b"
    rf"{_OF_THE_WORLD}|(?:the )?(?:rest|remainder) of (?:this|the|these|your) "
    r"(?:data|text|prompt|context|conversation|passages?|document)\b|"
    r"(?:(?:all|everything|anything|whatever|what|the|any) )*(?:(?:text|data|passages?|was|is|"
    r"said|written|that|you were told) ){0,3}(?:above|foregoing|previously|(?<=told )before|"
    r"earlier)\b(?! the)|"
    r"(?:all|everything|anything|whatever|what) (?:that )?you(?: were|'ve been| have been| are) "
    rf"(?:just |ever )?(?:told|taught|instructed|trained)\b(?! about){_OF_THE_WORLD})",
    r"\b(?:ignorier\w*|vergiss|vergessen sie|missacht\w*|beachte nicht) (?:[\w-]+ ){0,4}?"
    r"(?:(?:vorher|bisher|ob|früher|vorangeg|all)\w* )+(?:anweisung|instruktion|befehl|vorgabe|"
    r"aufforderung|daten|text)\w*",
    r"\b(?:ignorier\w*|vergiss|vergessen sie|missacht\w*)(?: bitte)? (?:"
    r"(?:all|sämtlich|dein|ihr|eur)\w* (?:(?!nicht\b)[\w-]+ )?(?:anweisung|instruktion|befehl|"
    r"vorgabe|richtlinie|regel|systemprompt)\w*(?! (?:nicht|de[rs]|vo[nm])\b)|"
    r"(?:alles|das|was)(?:,? (?:was|das|hier|dir|ihnen|man)){0,3} (?:oben|davor|vorher|bisher|"
    r"zuvor|darüber|(?:bisher |vorher )?gesagt)\b"
    r"(?: (?:steh|stand|gesagt|geschrieben|wurde|hat)\w*){0,3})",
    r"\b(?:ignor[ae]\w*|olvid[ae]\w*|haz caso omiso de|no sigas) (?:[\w-]+ ){0,3}?"
    r"(?:instrucci[oó]n\w*|indicaci\w+|[oó]rdenes|lo|datos|directrices) "
    r"(?:previ|anterior|de arriba)",
    r"(?<!no )\b(?:ignor[ae]|olvid[ae])[ns]?(?:te de)? (?:(?:todas? )?(?:tus|sus|vuestras) "
    r"(?:\w+ )?(?:instrucciones|[oó]rdenes|directrices|reglas|indicaciones)(?! de)|"
    r"(?:todo )?lo (?:anterior|dicho|que (?:est[aá]|aparece|hay|pone|dice|te (?:han )?di\w+|"
    r"le (?:han )?di\w+)(?: \w+)?))",
    r"\b(?:ignore[zr]?|oublie[zr]?|ne (?:tiens|tenez) pas compte) (?:[\w'-]+ ){0,3}?"
    r"(?:(?:instructions?|consignes?|directives?|ordres|donn[ée]es) (?:pr[ée]c[ée]d|ci-dessus|"
    r"ant[ée]rieur)|ce qui pr[ée]c[èe]de)\w*",
    r"(?<!n')\b(?:ignore|oublie)[zrs]? (?!pas )(?:(?:toutes )?(?:tes|vos) (?:\w+ )?"
    r"(?:instructions|consignes|directives|ordres|r[èe]gles)(?! d[eu'])|"
    r"(?:tout )?ce qu(?:i (?:est|se trouve) (?:\w+ )?(?:au-dessus|plus haut|ci-dessus|avant)|"
    r"(?:e l'|')on (?:t'|vous )a (?:dit|demandé)|i (?:t'|vous )a [ée]t[ée] dit))",
    r"(?:忽略|无视|無視|忘记|忘記|不要理会|不要遵守)[^。！？\n]{0,10}?(?:以上|之前|上面|前面|先前|所有)"
    r"[^。！？\n]{0,10}?(?:指令|指示|说明|說明|提示|命令|内容|內容|规则|規則|数据|數據)",
    r"(?:忽略|无视|無視|忘记|忘記|忘掉)(?:掉|了)?(?:(?:以上|上面|前面|之前)的?(?:一切|所有|全部|内容|內容)|"
    r"(?:你|您)(?:之前)?(?:被告知|收到|得到)的[^。！？\n]{0,6}|"
    r"(?:你|您)的(?:所有|一切|全部)?(?:指令|指示|规则|規則|设定|設定|提示词?))",
)
"""What was told to the model is to be put aside."""
LOOSE_OVERRIDE = any_of(
    rf"\b(?:ignore|disregard|forget) (?:the |these )?{_TOLD}\b{_OF_THE_WORLD}",
)
"""The same without a word on which instructions: what is to be said must be spelt out."""
DEMAND = any_of(
    r"\b(?:print|repeat|say|output|echo|write|respond|reply|answer|translate|recite|reveal|claim|"
    r"pretend|tell|append|mention|act as|summari[sz]e)\b",
    r"\b(?:gib|geben sie|druck\w*|schreib\w*|sag(?:e|en sie)?|wiederhol\w*|antwort\w*|"
    r"übersetz\w*|behaupte?[nt]?|nenn\w*|erzähl\w*|empfiehl|empfehlen sie|verrat[en]*|erwähn\w*)\b",
    r"\b(?:imprim[ea]\w*|di(?:ga|me)?|escrib[ea]\w*|repit[ea]\w*|respond[ea]\w*|contest[ea]\w*|"
    r"traduc[ei]\w*|d[ií](?:gan?|les?|gale)|dec[ií]r?|afirm[ae]\w*|asegur[ae]n?|finge|finja|recomiend[ae]\w*|revel[ae])\b",
    r"\b(?:affiche[rz]?|imprime[rz]?|di[ts](?:es)?|[ée]cri[st]\w*|r[ée]p[èée]te[rz]?|r[ée]pond\w*|"
    r"tradui\w*|affirme[rz]?|pr[ée]ten[ds]\w*|raconte[rz]?|r[ée]v[èe]le[rz]?|recommande[rz]?)\b",
    r"(?:输出|輸出|打印|列印|说|說|重复|重複|回答|回复|回覆|翻译|翻譯|写|寫|声称|聲稱|宣称|宣稱|假装|假裝|告诉|告訴|透露|推荐)",
)
"""Something is to be said."""
DEED = any_of(
    r"\b(?:type|return|display|show|state|insert|add|include|put|use|begins?|starts?|ends?|recommend|"
    r"send|visit|open|call|execute|run|speak|talk|act|zeige?|nenne?|muestr[ea]|montre[rz]?)\b|"
    r"(?:显示|顯示)",
)
"""Something is to be done, as advice on anything may say."""
EXACTLY = any_of(
    r"[\"“”„«»`<\[「『]|(?<!\w)['‘]|\b(?:following|exactly|verbatim|nothing but)\b",
    r"(?-i:(?<![^\W\d_一-鿿])[A-Z]{3,}(?![^\W\d_一-鿿]))|\b[a-z]+-?\d{2,}",
)
"""What is to be said is spelt out: quoted, in capitals, a code."""
SECRET = any_of(
    r"\b(?:reveal|print|repeat|output|ignore|disregard|forget|override|leak|expose) "
    r"(?:me )?(?:(?:all|the|any|of|your|full|entire|whole) )*"
    r"(?:system[- ]?prompt|(?:initial|hidden|developer|system|secret|original) "
    r"(?:prompt|instructions?|message)s?|(?<=your )(?:prompt|instructions?|programming))\b",
    r"(?:输出|打印|显示|忽略|重复)[^。！？\n]{0,8}?(?:系统|系統)(?:提示词?|指令)",
)
"""The model's own instructions are asked for, or put aside."""
PERSONA = any_of(
    rf"\byou (?:are|will be|must be|become)(?: now)? (?:(?:a|an|the|my|in) )?(?:[\w-]+ ){{0,3}}?"
    rf"(?:{MODEL}|dan|developer mode|jailbroken|unrestricted)\b",
    r"\byou are no longer (?:bound|an?)\b",
)
"""The model is told who it is."""
NEW_ROLE = any_of(
    r"\byou are now\b|\b(?:from (?:now|here|this (?:point|moment))|as of) (?:on|now)\b|"
    r"\b(?:henceforth|starting now|effective immediately)\b",
    r"\bdu bist (?:jetzt|nun|ab jetzt)\b|\bab (?:jetzt|nun|sofort)\b|\bvon (?:jetzt|nun) an\b",
    r"\b(?:ahora eres|(?:a partir|desde) (?:de )?(?:ahora|este momento)|de ahora en adelante)\b",
    r"\b(?:tu es|vous êtes) (?:maintenant|désormais)\b|\b(?:[àa] partir de maintenant|"
    r"d[ée]sormais|dor[ée]navant)\b",
    r"(?:你现在是|你現在是|(?:从|從)(?:现在|現在)(?:开始|開始|起)|今后|今後)",
)
"""As advice says it too: only with a manner of answering beside it."""
MANNER = any_of(
    r"\b(?:answer|respond|reply|act|antworten?(?: sie)?|responda?|réponds|répondez)\b,? (?:only|"
    r"always|never|every|all|any|to every|to all|like|as if|in the|nur|immer|s[oó]lo|siempre|"
    r"seulement|uniquement|toujours)\b",
    r"(?:只|必须|总是)[^。！？\n]{0,6}回答",
)
"""How the model is to answer from now on."""
REPLIES = any_of(
    r"\b(?:every|each|all|any|your)(?: of)?(?: your| the)?(?: \w+)? (?:repl(?:y|ies)|answers?|"
    r"responses?|outputs?)\b",
    r"\b(?:jede\w*|alle|deine\w*|ihre\w*) (?:\w+ )?antwort(?:en)?\b",
    r"\b(?:cada|todas?(?: las| tus| sus)?|tus?|sus?) (?:respuesta|contestaci[oó]n)(?:e?s)?\b",
    r"\b(?:chaque|toutes?(?: les| tes| vos)?|ta|tes|vos|votre) réponses?\b",
    r"(?:每一?(?:个|個|次)|所有|任何|你的)[^。！？\n]{0,3}?(?:回答|回复|回覆|答案)",
)
"""What a model gives, and people too."""
WORDED = any_of(
    r"\b(?:end|begin|start|finish|conclude|contain|include|consist)(?:s|ing)?\b",
    r"\b(?:ende|beginn|enthäl|enthal|schließ|laute)\w*",
    r"\b(?:termin|acab|empiez|empez|comienz|comenz|conten|contien|inclu|incluy)\w*",
    r"\b(?:fini[rst]|commenc|contien|conteni)\w*",
    r"(?:结尾|結尾|结束|結束|开头|開頭|开始|開始|包含|加上)",
)
"""How the wording of a reply is laid down."""
ADDRESSED = any_of(
    rf"\b(?:note|message|instructions?|reminder|attention|warning|hey|dear|hello|important)"
    rf"(?:,|:| to| for)? (?:the |any |all )?{MODEL}\b",
    rf"\b(?:if|when|since|because|as) (?:you are|you're) (?:a |an |the )?(?:[\w-]+ ){{0,2}}?"
    rf"{MODEL}\b",
    rf"^(?:the )?{MODEL},|^(?:to|for) (?:the |any |all |every )?{MODEL}(?: reading this)?\s*:",
    r"\b(?:hinweis|nachricht|mitteilung|anweisung|notiz|info|achtung|wichtig|aufgabe)\w*,? "
    rf"(?:an|für) (?:die |das |den |alle |jede[ns]? )?{_KI}\b",
    rf"\b(?:liebe[rs]?|hallo|hey|achtung),? {_KI}\s*[,:!]|"
    rf"^an (?:die |das |den |alle )?{_KI}\s*[,:]",
    rf"\b(?:wenn|falls|da|weil|sofern) (?:du|sie) (?:eine? )?(?:[\w-]+ ){{0,2}}?{_KI}\b",
    r"\b(?:nota|mensaje|aviso|atenci[oó]n|instrucci[oó]n(?:es)?|recordatorio|importante),? "
    rf"(?:al?|para) (?:la |el |las |los |toda |todas las |cualquier )?{_IA}\b",
    r"\b(?:note|message|avis|attention|instructions?|consignes?|rappel|important),? "
    rf"(?:à|aux?|pour) (?:l'|la |le |les |toute |toutes les )?{_IA}\b",
    rf"\b(?:hola|querid[ao]|estimad[ao]|ch[èe]re?|bonjour|salut),? {_IA}\s*[,:!]",
    rf"^(?:al?|à|aux?) (?:l'|la |el |le |las |los |les )?{_IA}\s*[,:]",
    rf"\b(?:si eres|si es usted|si tu es|si vous êtes) (?:una? |une )?(?:\w+ )?{_IA}\b",
    r"(?:致|给|給|提醒|告知|注意|请|請|亲爱的|親愛的)[,，:：]?(?:所有|各位|任何|这个|這個|该|該)?的?"
    rf"{_ZH_MODEL}(?:们|們)?\s*[:：,，]|如果(?:你|您)是[^。！？\n]{{0,6}}?{_ZH_MODEL}",
)
"""A model is spoken to by name."""
LOOSELY_ADDRESSED = any_of(
    r"\b(?:note|message|reminder|attention|hey|dear) (?:to |for )?(?:the )?assistants?\b",
    r"^assistant,|\b(?:tell|inform) the user\b|\bfrom now on,? you\b",
    r"\b(?:(?:at the (?:end|start|beginning|top|bottom) of|in|to|into|with|begin|start|end|before|"
    r"after) )+(?:all |each of |every one of )?"
    r"your (?:next |final |whole )?(?:answers?|responses?|repl(?:y|ies)|outputs?|completion)\b",
    r"\b(?:hinweis|nachricht|anweisung) (?:an|für) (?:den |die |alle )?assistent\w*",
    r"\b(?:nota|mensaje|aviso|instrucciones) (?:al?|para) (?:el |la |los )?asistentes?\b",
    r"\b(?:note|message|avis|consignes?) (?:à|aux?|pour) (?:l'|les )?assistante?s?\b",
    r"(?:致|给|給|注意|请|請)[,，:：]?(?:所有|各位)?助手\s*[:：,，]",
    r"\b(?:whoever|anyone|everyone|whatever|any (?:model|system|reader)) (?:who |that |is )?"
    r"read(?:s|ing)? th(?:is|ese)(?: (?:row|text|passage|lines?|data|record|entry))? (?:must|"
    r"should|shall|has to|have to|will|is to|needs? to)\b",
    r"\bwer (?:(?:das|dies|diese\w*|hier|text|zeilen?|eintrag) ){1,3}liest,? (?:muss|soll|hat|"
    r"wird)\w*",
    r"\bquien(?:quiera que)? (?:lea|lee) (?:esto|est[ea] \w+) (?:debe|tiene que|ha de)\w*",
    r"\b(?:quiconque|celui qui|toute? personne qui) lit (?:ceci|ce \w+|cette \w+|cela) "
    r"(?:doit|devra)\b",
    r"(?:读到|讀到|阅读|閱讀|看到)(?:这|這|此|本)[^。！？\n]{0,6}?(?:必须|必須|应|應|要|请|請)",
)
"""A model is spoken to, or a person: what is to be said must be spelt out."""
TASK = any_of(
    r"(?:^|[;–—]|\bnow)\W{0,4}(?:your |the )?(?:new|next|real|actual|updated|revised|additional) "
    r"(?:task|instruction|prompt|objective|goal|rule|directive|mission|assignment|order)s?"
    r"(?: for you| is| are)?\s*:",
    r"(?:^|[;–—])\W{0,4}(?:deine |ihre |die )?neue[rsn]? (?:aufgabe|anweisung|instruktion|regel|"
    r"auftrag|vorgabe)(?:en|n)?\s*:",
    r"(?:^|[;–—])\W{0,4}(?:tus? |sus? )?nuev[ao]s? (?:tarea|instrucci[oó]n|regla|orden|objetivo)"
    r"(?:e?s)?\s*:",
    r"(?:^|[;–—])\W{0,4}(?:ta |tes |votre |vos )?nouve(?:lle|au)s? (?:t[âa]che|instruction|"
    r"consigne|r[èe]gle|mission|objectif)s?\s*:",
    r"(?:^|[;；])\W{0,4}(?:你的)?新的?(?:任务|任務|指令|指示|规则|規則|要求)\s*[:：]",
)
"""A new task is set, as a list of tasks does too."""
LEADING = (
    r"(?:the|this|following|sentence|text|words?|phrase|string|only|just|exactly|single|one|with|as|"
    r"that|me|back|out|and|mit|nur|bitte|sie|dem|den|das|einzigen?|worte?n?|satz|dass|con|que|por|"
    r"s[oó]lo|la|las|una|única|palabras?|avec|par|uniquement|seulement|le|les|un|seul|mots?|please)"
)
"""What may stand between a demand and what it wants."""
SPELT = any_of(
    rf"(?:{DEMAND.pattern}|\b(?:begin|start|end|finish)s?\b|\b(?:beginn|ende)\w*|"
    r"\b(?:empie[cz]|comien[cz]|termin|commenc|fini)\w*|(?:开头|開頭|结尾|結尾))"
    rf"(?:\W{{1,2}}{LEADING}\b){{0,6}}\W{{0,3}}(?:[\"“„«`'‘「『<]|"
    r"(?-i:(?<![A-Za-z])[A-Z]{3,}(?![A-Za-z])|(?<!\w)[A-Z][\w-]*\d))",
)
"""A demand is followed at once by what is to be said, spelt out."""
FEIGNED = any_of(
    r"\b(?:claim|pretend|insist|act as|translate (?:everything|all|any)|"
    r"(?:speak|talk|respond|reply|answer|write) (?:like|as an?|only in|in the style))\b",
    r"\b(?:behaupte\w*|tu so|tun sie so|übersetz\w* (?:sie )?alles)\b",
    r"\b(?:afirm[ae]|finge|finja|traduc[ei] todo|traduzca todo)\b",
    r"\b(?:affirme[sz]?|pr[ée]ten(?:ds|dez)|fais semblant|faites semblant|tradui\w+ tout)\b",
    r"(?:声称|聲稱|宣称|宣稱|假装|假裝|(?:翻译|翻譯)(?:所有|一切))",
)
"""A pretence is wanted; a list of tasks seldom does."""
ONE_WORD = any_of(
    r"\b(?:reply|respond|answer|output|print|write|say|state)(?: (?:back|only|just|simply|always|"
    r"with|in|using|exactly|nothing but|the|this|these|a|one|single|two|three|following|exact|same|"
    r"literal))* (?:words?|phrase|string|sentence)\b",
    r"\b(?:antworte|antworten|schreiben?|sagen?)(?: sie)?(?: (?:bitte|immer|ausschließlich|nur|mit|"
    r"dem|diesem|den|das|einzigen?|einen|folgenden?|zwei|drei))* (?:wort|worten|satz)\b|"
    r"\bmit (?:nur )?(?:dem|einem) einzigen wort\b(?=.* (?:antwort|reagier)\w*)",
    r"\b(?:respond|contest|escrib|di)\w*(?: (?:siempre|s[oó]lo|solamente|únicamente|nada más que|"
    r"con|la|las|una|única|sola|siguiente|misma))* (?:palabras?|frase)\b",
    r"\b(?:r[ée]pon|[ée]cri|di[ts])\w*(?: (?:uniquement|seulement|simplement|juste|toujours|par|"
    r"avec|le|les|ce|cet|un|une|seule?s?|unique))* (?:mots?|phrase)\b",
    r"[只仅僅](?:能|需|要|可以|许|准)?(?:用|以|说|說|输出|輸出|回答|回复|回覆|写|寫)[^。！？\n]{0,6}?(?:词|詞|字|句)",
    r"(?:回答|回复|回覆|输出|輸出)(?:一个|一個|单个|單個|这个|這個)(?:词|詞|单词|單詞|字)",
)
"""A word is wanted."""
ONLY = any_of(
    r"\b(?:only|just|simply|exactly|nothing but|single|one|literal|nur|ausschließlich|einzige[nm]?|"
    r"s[oó]lo|solamente|únicamente|única|sola|uniquement|seulement|simplement|seule?s?|unique)\b",
    r"[只仅僅]|一个|一個|单个|單個",
)
"""... and nothing else."""
PURPOSE = any_of(
    r"\bto (?:confirm|unsubscribe|subscribe|cancel|opt|stop|accept|join|get|receive|enter|win|"
    r"the number|\+?\d+)\b|\bby (?:text|sms|post|mail)\b",
    r"\b(?:um|zur?) (?:[\w-]+ ){0,3}?(?:zu |bestätig|abmeld|künd|teilnahme)\w*|\ban die \d+",
    r"\bpara \w+|\bal \d+|\bpour \w+|\bau \d+|以(?:确认|確認|取消|退订|退訂)|到\s*\d+",
)
"""Why a person is to send a word."""
SCRIPT = any_of(
    r"\b(?:when|whenever|if|once) (?:ever )?(?:someone|somebody|anyone|anybody|people|users?|"
    r"readers?|(?:an?|the|any) (?:user|reader|human|person)) (?:\w+ )?(?:asks?|inquires?|"
    r"wants? to know)\b"
    r"[^.!?\n]{0,80}?(?:,|\bthen) (?:(?:then|always|just|only|please|simply|you must|you should|"
    r"you will) )*(?:(?:say|reply|respond|answer|state|write|insist|mention|output|print)(?: only| "
    r"just| always)?(?: (?:that|with|them)\b|:| ?[\"“'‘]| (?-i:[A-Z]{3}))|"
    r"(?:claim|pretend|recommend)\b|tell (?:them|him|her|everyone|the user)\b)",
    r"\b(?:wenn|falls|sobald|sollte) (?:jemand|irgendwer|man|leute|(?:ein |der |die )?(?:be)?"
    r"nutzer) "
    r"[^.!?\n]{0,80}?\b(?:frag\w+|wissen (?:will|möchte))\b[^.!?\n]{0,60}?, (?:(?:dann|so|bitte|"
    r"immer|nur) )*(?:behaupte\w*|empfiehl|(?:sag|antwort|schreib|erzähl|erklär)(?:e|en sie)?(?: "
    r"(?:ihm|ihnen|nur|immer|bitte))*(?:,? dass\b| mit\b|:| ?[\"“„]| (?-i:[A-Z]{3})))",
    r"\b(?:cuando|si) (?:alguien|una? usuari[oa]|el usuario|los usuarios|la gente) "
    r"[^.!?\n]{0,20}?pregunt\w+[^.!?\n]{0,80}?, (?:(?:entonces|siempre|s[oó]lo) )*(?:afirm[ae]|"
    r"recomiend[ae]|(?:di|d[ií]gan?|d[ií]gale|dile|respond[ae]|contest[ae]|escrib[ae])(?: siempre)?"
    r"(?: (?:que|con)\b|:| ?[\"“«]| (?-i:[A-Z]{3})))",
    r"\b(?:quand|lorsque?|si)(?: |')(?:quelqu'un|l'on|on|un utilisateur|l'utilisateur|les gens) "
    r"[^.!?\n]{0,20}?(?:demande|interroge|veut savoir)\w*[^.!?\n]{0,80}?, (?:(?:alors|toujours) )*"
    r"(?:affirme[zs]?|recommande[zs]?|(?:dis|dites|r[ée]ponds|r[ée]pondez|[ée]cris|[ée]crivez)"
    r"(?:-lui|-leur)?(?: toujours)?(?: (?:que|par|avec)\b| qu'|:| ?[\"“«]| (?-i:[A-Z]{3})))",
    r"(?:当|當|如果|只要|每当|每當)(?:有人|用户|用戶|任何人|别人|別人)[^。！？\n]{0,4}?(?:问|問|询问|詢問)"
    r"[^。！？\n]{0,40}?[，,]\s*(?:你|您)?(?:就|请|請|必须|必須|要|都|一律|总是)*(?:说|說|回答|告诉|告訴|"
    r"回复|回覆|声称|聲稱|输出|輸出)",
)
"""What is to be said to whoever asks; the staff of a shop is told so too."""
FRAME = re.compile(
    r"(?:^\W{0,4}(?P<begun>(?i:question|passage|answer))|(?<!\w)(?P<inner>Question|Passage|Answer|"
    r"QUESTION|PASSAGE|ANSWER))\s*[:：]"
)
"""What a line of the completion prompt begins with, which puts a row on one line."""
LABEL = any_of(
    r"^\W{0,4}(?:user|human|assistant|system|ai|bot|model|chatbot|developer|benutzer|nutzer|"
    r"assistent|usuario|asistente|sistema|utilisateur|système|用户|用戶|助手|系统|系統)\W{0,3}\s*[:：]",
    r"^#{2,4}\s*(?:instructions?|response|system|input|user|assistant)\b",
)
"""A turn of a conversation begins; in a transcript too, so a demand must be spelt out in it."""
TOKEN = any_of(
    r"<\|?/?(?:im_start|im_end|user|assistant|system|end|endoftext|eot_id|eom_id|"
    r"start_header_id|end_header_id|begin_of_text|end_of_text|start_of_turn|end_of_turn|"
    r"start_of_role|end_of_role)\|?>",
    r"\[/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS)\]|<</?SYS>>",
)
"""What only a chat template writes. A text may name one in passing; it does not begin with one."""
CONDITION = any_of(
    r"\b(?:if|when|unless|until|once|where|wenn|falls|si|cuando|quand)\b|如果|当",
)
"""A manual puts its own instructions aside under a condition."""
PLACEHOLDER = re.compile(r"^[<\[][^<>\[\]]+[>\]]$")

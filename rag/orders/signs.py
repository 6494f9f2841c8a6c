"""The signs by which a sentence is told to speak to a language model.

Knows patterns only, for folded text. English first, with the usual forms in German, Spanish, French
and Chinese. No sign but a secret asked for or a forged turn is an order alone: `print` and `ignore`
are ordinary advice until the text speaks to a model.
"""

from __future__ import annotations

import re


def _any(*patterns: str) -> re.Pattern[str]:
    return re.compile("|".join(patterns), re.IGNORECASE)


_MODEL = (
    r"(?:ai|llm|gpt|chat ?gpt|chat ?bot|(?:ai|language|chat) (?:model|assistant|agent|bot)|"
    r"large language model|virtual assistant)s?"
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

OVERRIDE = _any(
    # what was told before: previous instructions, the rest of this data, everything above
    r"\b(?:ignor(?:e|ing)|disregard(?:ing)?|forget|override|bypass|overlook|do not follow|"
    r"don'?t follow|stop following|pay no attention to) "
    rf"(?:{_QUALIFIED} {_TOLD}\b{_OF_THE_WORLD}|(?:all|any|your)(?: of)?(?: the| your)? {_TOLD}\b"
    rf"{_OF_THE_WORLD}|(?:the )?(?:rest|remainder) of (?:this|the|these|your) "
    r"(?:data|text|prompt|context|conversation|passages?|document)\b|"
    r"(?:(?:all|everything|anything|whatever|what|the|any) )*(?:(?:text|data|passages?|was|is|"
    r"said|written|that|you were told) ){0,3}(?:above|foregoing|previously|(?<=told )before|"
    r"earlier)\b(?! the))",
    r"\b(?:ignorier\w*|vergiss|vergessen sie|missacht\w*|beachte nicht) (?:[\w-]+ ){0,4}?"
    r"(?:(?:vorher|bisher|ob|früher|vorangeg|all)\w* )+(?:anweisung|instruktion|befehl|vorgabe|"
    r"aufforderung|daten|text)\w*",
    r"\b(?:ignor[ae]\w*|olvid[ae]\w*|haz caso omiso de|no sigas) (?:[\w-]+ ){0,3}?"
    r"(?:instrucci[oó]n\w*|indicaci\w+|[oó]rdenes|lo|datos|directrices) "
    r"(?:previ|anterior|de arriba)",
    r"\b(?:ignore[zr]?|oublie[zr]?|ne (?:tiens|tenez) pas compte) (?:[\w'-]+ ){0,3}?"
    r"(?:(?:instructions?|consignes?|directives?|ordres|donn[ée]es) (?:pr[ée]c[ée]d|ci-dessus|"
    r"ant[ée]rieur)|ce qui pr[ée]c[èe]de)\w*",
    r"(?:忽略|无视|無視|忘记|忘記|不要理会|不要遵守)[^。！？\n]{0,10}?(?:以上|之前|上面|前面|先前|所有)"
    r"[^。！？\n]{0,10}?(?:指令|指示|说明|說明|提示|命令|内容|內容|规则|規則|数据|數據)",
)
"""What was told to the model is to be put aside."""
LOOSE_OVERRIDE = _any(
    rf"\b(?:ignore|disregard|forget) (?:the |these )?{_TOLD}\b{_OF_THE_WORLD}",
)
"""The same without a word on which instructions: what is to be said must be spelt out."""
DEMAND = _any(
    r"\b(?:print|repeat|say|output|echo|write|respond|reply|answer|translate|recite|reveal|claim|"
    r"pretend|tell|append|mention|act as|summari[sz]e)\b",
    r"\b(?:gib|geben sie|druck\w*|schreib\w*|sag(?:e|en sie)?|wiederhol\w*|antwort\w*|"
    r"übersetz\w*)\b",
    r"\b(?:imprim[ea]\w*|di(?:ga|me)?|escrib[ea]\w*|repit[ea]\w*|respond[ea]\w*|contest[ea]\w*|"
    r"traduc[ei]\w*)\b",
    r"\b(?:affiche[rz]?|imprime[rz]?|di[ts](?:es)?|[ée]cri[st]\w*|r[ée]p[èée]te[rz]?|r[ée]pond\w*|"
    r"tradui\w*)\b",
    r"(?:输出|輸出|打印|列印|说|說|重复|重複|回答|回复|回覆|翻译|翻譯|写|寫)",
)
"""Something is to be said."""
DEED = _any(
    r"\b(?:type|return|display|show|state|insert|add|include|put|use|begin|start|end|recommend|"
    r"send|visit|open|call|execute|run|speak|talk|act|zeige?|nenne?|muestr[ea]|montre[rz]?)\b|"
    r"(?:显示|顯示)",
)
"""Something is to be done, as advice on anything may say."""
EXACTLY = _any(
    r"[\"“”„«»`<\[「『]|(?<!\w)['‘]|\b(?:following|exactly|verbatim|nothing but)\b",
    r"(?-i:\b[A-Z]{3,}\b)|\b[a-z]+-?\d{2,}",
)
"""What is to be said is spelt out: quoted, in capitals, a code."""
SECRET = _any(
    r"\b(?:reveal|print|repeat|output|ignore|disregard|forget|override|leak|expose) "
    r"(?:me )?(?:(?:all|the|any|of|your|full|entire|whole) )*"
    r"(?:system[- ]?prompt|(?:initial|hidden|developer|system|secret|original) "
    r"(?:prompt|instructions?|message)s?|(?<=your )(?:prompt|instructions?|programming))\b",
    r"(?:输出|打印|显示|忽略|重复)[^。！？\n]{0,8}?(?:系统|系統)(?:提示词?|指令)",
)
"""The model's own instructions are asked for, or put aside."""
PERSONA = _any(
    rf"\byou (?:are|will be|must be|become)(?: now)? (?:(?:a|an|the|my|in) )?(?:[\w-]+ ){{0,3}}?"
    rf"(?:{_MODEL}|dan|developer mode|jailbroken|unrestricted)\b",
    r"\byou are no longer (?:bound|an?)\b",
)
"""The model is told who it is."""
NEW_ROLE = _any(
    r"\byou are now\b|\bfrom now on\b|\bdu bist (?:jetzt|nun|ab jetzt)\b",
    r"\b(?:ahora eres|a partir de ahora)\b",
    r"\b(?:tu es|vous êtes) (?:maintenant|désormais)\b|(?:你现在是|你現在是|从现在开始|從現在開始)",
)
"""As advice says it too: only with a manner of answering beside it."""
MANNER = _any(
    r"\b(?:answer|respond|reply|act|antworte|responde|réponds)\b,? (?:only|always|never|every|all|"
    r"any|to every|to all|like|as if|in the|nur|immer|solo|siempre|seulement|toujours)\b",
    r"(?:只|必须|总是)[^。！？\n]{0,6}回答",
)
"""How the model is to answer from now on."""
ADDRESSED = _any(
    rf"\b(?:note|message|instructions?|reminder|attention|warning|hey|dear|hello|important)"
    rf"(?:,|:| to| for)? (?:the |any |all )?{_MODEL}\b",
    rf"\b(?:if|when|since|because|as) (?:you are|you're) (?:a |an |the )?(?:[\w-]+ ){{0,2}}?"
    rf"{_MODEL}\b",
    rf"^(?:the )?{_MODEL},",
)
"""A model is spoken to by name."""
LOOSELY_ADDRESSED = _any(
    r"\b(?:note|message|reminder|attention|hey|dear) (?:to |for )?(?:the )?assistants?\b",
    r"^assistant,|\b(?:tell|inform) the user\b|\bfrom now on,? you\b",
    r"\b(?:(?:at the (?:end|start|beginning|top|bottom) of|in|to|into|with|begin|start|end|before|"
    r"after) )+(?:all |each of |every one of )?"
    r"your (?:next |final |whole )?(?:answers?|responses?|repl(?:y|ies)|outputs?|completion)\b",
)
"""A model is spoken to, or a person: what is to be said must be spelt out."""
LABEL = _any(
    r"^\W{0,4}(?:user|human|assistant|system|ai|bot|model|chatbot|developer|benutzer|nutzer|"
    r"assistent|usuario|asistente|sistema|utilisateur|système|用户|用戶|助手|系统|系統)\W{0,3}\s*[:：]",
    r"^#{2,4}\s*(?:instructions?|response|system|input|user|assistant)\b",
)
"""A turn of a conversation begins; in a transcript too, so a demand must be spelt out in it."""
TOKEN = _any(
    r"<\|?/?(?:im_start|im_end|user|assistant|system|end|endoftext|eot_id|eom_id|"
    r"start_header_id|end_header_id|begin_of_text|end_of_text|start_of_turn|end_of_turn|"
    r"start_of_role|end_of_role)\|?>",
    r"\[/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS)\]|<</?SYS>>",
)
"""What only a chat template writes. A text may name one in passing; it does not begin with one."""
CONDITION = _any(
    r"\b(?:if|when|unless|until|once|where|wenn|falls|si|cuando|quand)\b|如果|当",
)
"""A manual puts its own instructions aside under a condition."""
PLACEHOLDER = re.compile(r"^[<\[][^<>\[\]]+[>\]]$")

_ASKED_OF = re.compile(rf"\b(?:{_MODEL}|assistant)\b", re.IGNORECASE)
_ATTACK = _any(r"\b(?:prompt[- ]injections?|jailbreak\w*|hijack\w*)\b")


def asks_for_orders(question: str) -> bool:
    """Whether a question is about what a text tells a model, or tells it itself."""
    is_about = _ASKED_OF.search(question) and (DEMAND.search(question) or DEED.search(question))
    return bool(is_about or _ATTACK.search(question) or OVERRIDE.search(question))


def speaks(sentence: str) -> bool:
    """Whether a sentence speaks to a model, so that a demand right after it is an order."""
    is_told = any(p.search(sentence) for p in (OVERRIDE, PERSONA, ADDRESSED))
    return bool(TOKEN.match(sentence)) or (is_told and not CONDITION.search(sentence))


def orders(sentence: str) -> bool:
    """Whether a sentence gives a model an order, whatever stands beside it."""
    says, does = bool(DEMAND.search(sentence)), bool(DEED.search(sentence))
    is_exact = bool(EXACTLY.search(sentence))
    if SECRET.search(sentence) or (TOKEN.match(sentence)) or len(TOKEN.findall(sentence)) > 1:
        return True
    if override := OVERRIDE.search(sentence):
        rest = sentence[: override.start()] + sentence[override.end() :]
        is_bare = not re.search(r"\w\W+\w", rest)
        return is_bare or bool(DEMAND.search(rest)) or (does and is_exact)
    if PERSONA.search(sentence) or ADDRESSED.search(sentence):
        return says or does
    if NEW_ROLE.search(sentence) and MANNER.search(sentence):
        return True
    is_loose = any(p.search(sentence) for p in (LOOSE_OVERRIDE, LOOSELY_ADDRESSED, LABEL))
    return is_loose and is_exact and (says or does)


def goes_on(before: str, sentence: str, *, is_order: bool) -> bool:
    """Whether a sentence goes on with what the one before it says to a model."""
    if NEW_ROLE.search(before) and MANNER.search(sentence):
        return True
    says = bool(DEMAND.search(sentence))
    is_exact = bool(EXACTLY.search(sentence) and DEED.search(sentence))
    if LABEL.search(before) and not is_order:
        return bool(EXACTLY.search(sentence)) and says
    if LOOSE_OVERRIDE.search(before) and not CONDITION.search(before):
        return says and bool(EXACTLY.search(sentence))
    return (is_order or speaks(before)) and (says or is_exact)


def first(sentence: str) -> int:
    """Return where in a sentence the words to the model begin."""
    if TOKEN.match(sentence):
        return 0
    to_model = (OVERRIDE, LOOSE_OVERRIDE, SECRET, PERSONA, ADDRESSED, LOOSELY_ADDRESSED)
    return min((m.start() for p in to_model if (m := p.search(sentence))), default=0)


# --- what an order carries -----------------------------------------------------------------------

_QUOTED = re.compile(
    r"\"([^\"]+)\"|“([^”]+)”|„([^“”]+)[“”]|«\s*([^»]+?)\s*»|`([^`]+)`|<([^<>]+)>|「([^」]+)」"
    r"|『([^』]+)』|(?<!\w)'([^']+)'(?!\w)|‘([^’]+)’"
)
_CODE = re.compile(r"\b(?=[\w-]{0,40}\d)(?=[\w-]{0,40}[^\W\d_])\w{1,40}(?:-\w{1,40})*|\b\d{4,}\b")
"""Letters with digits, and long numbers: nobody writes them by chance."""
_N_DEMANDS, _MOST_CHARS = 16, 300
"""Of an order that are read; what such an order wants beyond them is known by its words."""
_LEAD = _any(
    r"^\W*(?:(?:the|this|following|sentence|text|words?|phrase|string|only|just|exactly|with|as|"
    r"that|me|back|out|to|mit|con|que|avec|please|and|nur) )*",
)
_TAIL = _any(r"(?: (?:aus|for me|please|bitte|only|instead))*\W*$")


def payloads(order: str) -> list[str]:
    """Return what an order wants to be said: quoted, else what follows a demand; and codes."""
    order = TOKEN.sub(" ", order)
    said = [next(filter(None, groups)) for groups in _QUOTED.findall(order)]
    if not said:
        ends = sorted(m.end() for p in (DEMAND, DEED) for m in p.finditer(order))[-_N_DEMANDS:]
        rests = [order[end:] for end in ends if len(order) - end <= _MOST_CHARS]
        said = [_TAIL.sub("", _LEAD.sub("", rest)) for rest in rests]
    codes: list[str] = _CODE.findall(order)
    parts = [p for c in codes for p in re.findall(r"[^\W\d_]{4,}|\d{4,}", c)]
    return [text for text in [*said, *codes, *parts] if len(text) <= _MOST_CHARS]

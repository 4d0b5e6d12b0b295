"""Words of the bazaar: those that all domains share, and those private to each domain."""

from collections.abc import Mapping
from functools import cache
from typing import NamedTuple

from metaguide.data.bazaar_domains import DOMAINS

Pair = Mapping[str, tuple[str, ...]]
"""Words keyed by language, "en" and "zh"."""


class Category(NamedTuple):
    """One kind of product: its name, other nouns for it, and its typical features."""

    name: str
    names: Mapping[str, str]
    nouns: Pair
    features: Pair


class Attribute(NamedTuple):
    """A subject of questions: sentences with `{v}`, phrasings of the question, and values."""

    name: str
    sentences: Pair
    questions: Pair
    values: Pair


class Vocabulary(NamedTuple):
    """The private words of a domain.

    Attributes:
        name: the domain's name.
        noun: a noun for any product of the domain.
        materials: names out of `MATERIALS`.
        brands: two brands of the lower tier, two of the higher.
        categories: the kinds of product.
        positive: private words of praise, keyed by language.
        negative: private words of blame, keyed by language.
        aspects: private aspects that a review judges.
        tastes: one private word for each of `TASTES`.
        attributes: private attributes; those at 2k and 2k + 1 have values of one type.
        carriers: the domain's own ways to ask, with `{a}` for the attribute.
    """

    name: str
    noun: Mapping[str, str]
    materials: tuple[str, ...]
    brands: tuple[str, ...]
    categories: tuple[Category, ...]
    positive: Pair
    negative: Pair
    aspects: Pair
    tastes: Pair
    attributes: tuple[Attribute, ...]
    carriers: Pair


LANGUAGES = ("en", "zh")

COLOURS = {
    "red": ("红色", (200, 45, 45)),
    "orange": ("橙色", (232, 135, 35)),
    "yellow": ("黄色", (232, 205, 65)),
    "brown": ("棕色", (125, 80, 45)),
    "green": ("绿色", (65, 150, 70)),
    "teal": ("青色", (35, 150, 155)),
    "navy": ("藏蓝", (35, 50, 115)),
    "purple": ("紫色", (125, 65, 150)),
}
"""Colours by name: Chinese name and RGB; the first four are warm, the others cool."""

MATERIALS = {
    "cotton": "棉布",
    "wool": "羊毛",
    "leather": "皮革",
    "wood": "木材",
    "steel": "钢材",
    "glass": "玻璃",
    "plastic": "塑料",
    "paper": "纸张",
}

TASTES = ("low price", "high price", "classic", "modern", "playful", "eco")
"""The meanings of taste words, in the order in which the lexicons list the words."""

SHARED_TASTES: Pair = {
    "en": ("budget", "premium", "classic", "modern", "playful", "sustainable"),
    "zh": ("实惠", "高端", "经典", "现代", "俏皮", "环保"),
}
SHARED_PRAISE: Pair = {
    "en": tuple("great good excellent lovely perfect superb impressive wonderful nice".split()),
    "zh": tuple("优秀 出色 完美 讨喜 理想 一流 惊艳".split()),
}
SHARED_BLAME: Pair = {
    "en": tuple("bad poor awful terrible disappointing horrible mediocre weak annoying".split()),
    "zh": tuple("糟糕 差劲 平庸 拙劣 恼人 敷衍 低劣".split()),
}
SHARED_ASPECTS: Mapping[str, Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]]] = {
    "en": {
        "price": (("fair", "reasonable"), ("steep", "excessive")),
        "quality": (("reliable", "lasting"), ("shoddy", "flimsy")),
        "delivery": (("quick", "punctual"), ("slow", "late")),
        "packaging": (("neat", "careful"), ("torn", "sloppy")),
        "service": (("friendly", "helpful"), ("rude", "lazy")),
        "design": (("elegant", "stylish"), ("ugly", "clumsy")),
    },
    "zh": {
        "价格": (("合理", "划算"), ("偏高", "离谱")),
        "质量": (("可靠", "过硬"), ("粗糙", "堪忧")),
        "物流": (("迅速", "及时"), ("缓慢", "拖拉")),
        "包装": (("整洁", "用心"), ("破损", "简陋")),
        "客服": (("热情", "耐心"), ("冷淡", "傲慢")),
        "外观": (("大方", "时尚"), ("丑陋", "土气")),
    },
}
"""Aspects that reviews of every domain judge, with their own words of praise and of blame."""

CLOSERS: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "en": (
        ("I recommend it.", "I would buy it again.", "I am happy with it.", "I kept it."),
        (
            "I cannot recommend it.",
            "I would never buy it again.",
            "I am not happy.",
            "I sent it back.",
        ),
    ),
    "zh": (
        ("推荐购买。", "会再来买。", "我很喜欢。", "留下了。"),
        ("不推荐购买。", "不会再来买。", "我不喜欢。", "退货了。"),
    ),
}
FILLERS: Pair = {
    "en": (
        "Bought it for my sister.",
        "It arrived on Monday.",
        "I have used it for two weeks.",
        "My second {n} from this shop.",
        "My {n} came last month.",
        "My distribution uses it every day.",
    ),
    "zh": (
        "给姐姐买的。",
        "周一到货。",
        "用了两个星期。",
        "第二次买{n}了。",
        "上个月买的{n}。",
        "家里每天都在用。",
    ),
}
STRONG: Pair = {"en": ("very", "really", "extremely"), "zh": ("非常", "特别", "十分")}
MILD: Pair = {"en": ("quite", "fairly", "rather"), "zh": ("比较", "挺", "")}
NEGATIONS: Pair = {
    "en": ("not {w}", "far from {w}", "hardly {w}", "not {w} at all"),
    "zh": ("不{w}", "并不{w}", "不算{w}", "一点也不{w}"),
}
STATEMENTS: Pair = {
    "en": ("the {a} is {w}", "the {a} seems {w}", "the {a} turned out {w}"),
    "zh": ("{a}{w}", "{a}真的{w}", "感觉{a}{w}"),
}
CONTRASTS: Pair = {
    "en": (
        "Although {minor}, {main}.",
        "{minor}, but {main}.",
        "{main}, although {minor}.",
        "While {minor}, {main}.",
    ),
    "zh": ("虽然{minor}，但是{main}。", "{minor}，不过{main}。", "{main}，尽管{minor}。"),
}
AGREEMENTS: Pair = {"en": ("{first} and {second}.",), "zh": ("{first}，而且{second}。",)}

CHOICES: Mapping[str, tuple[str, str, str]] = {
    "en": ("Good for daily use.", "{article} {0} choice.", "{article} {0} and {1} choice."),
    "zh": ("适合日常使用。", "{0}之选。", "{0}又{1}。"),
}
"""Sentences of a description with no, one and two taste words."""

SHARED_CARRIERS: Pair = {
    "en": ("What is the {a}?", "What {a} does it have?", "Tell me the {a}?"),
    "zh": ("{a}是多少？", "{a}是什么？", "请问{a}？"),
}


def _attribute(name: str, english: str, chinese: str, values: str) -> Attribute:
    sides = [side.split(" | ") for side in (english, chinese, values)]
    (sentences, questions), (zh_sentences, zh_questions), (words, zh_words) = [
        [tuple(part.strip() for part in half.split("/")) for half in side] for side in sides
    ]
    return Attribute(
        name,
        {"en": sentences, "zh": zh_sentences},
        {"en": questions, "zh": zh_questions},
        {"en": words, "zh": zh_words},
    )


_KILOS = "1 kg/2 kg/3 kg/4 kg/5 kg/6 kg/7 kg/8 kg | 1公斤/2公斤/3公斤/4公斤/5公斤/6公斤/7公斤/8公斤"
PRICES = (9, 15, 19, 25, 35, 45, 49, 59, 79, 89, 99, 149)
"""Four low, four medium and four high prices."""

_MONEY = " | ".join("/".join(f"{price}{unit}" for price in PRICES) for unit in (" dollars", "元"))
_FEES = "2 dollars/3 dollars/5 dollars/6 dollars | 2元/3元/5元/6元"
_HUES = "/".join(COLOURS) + " | " + "/".join(zh for zh, _ in COLOURS.values())
_MONTHS = "3 months/6 months/9 months/12 months/24 months | 3个月/6个月/9个月/12个月/24个月"
_PLACES = "Italy/China/Japan/Poland/Brazil | 意大利/中国/日本/波兰/巴西"
_STUFF = "paper/plastic/cotton/wood/steel | 纸/塑料/棉布/木头/钢"

SHARED_ATTRIBUTES: tuple[Attribute, ...] = (
    _attribute(
        "weight",
        "It weighs {v}./The weight is {v}."
        " | How heavy is it?/What does it weigh?/What is the weight?",
        "重量是{v}。/净重{v}。 | 有多重？/重量是多少？/净重多少？",
        _KILOS,
    ),
    _attribute(
        "packed weight",
        "With the box it weighs {v}./The parcel weight is {v}."
        ""
        " | How heavy is the parcel?/What does it weigh with the box?",
        "带包装重{v}。/毛重{v}。 | 带包装多重？/毛重多少？",
        _KILOS,
    ),
    _attribute(
        "price",
        "It costs {v}./The price is {v}."
        " | How much does it cost?/What is the price?/How expensive is it?",
        "售价{v}。/价格是{v}。 | 多少钱？/价格是多少？/售价多少？",
        _MONEY,
    ),
    _attribute(
        "delivery fee",
        "Delivery costs {v}./The delivery fee is {v}."
        " | How much is delivery?/What is the delivery fee?",
        "运费{v}。/配送需要{v}。 | 运费多少？/配送要多少钱？",
        _FEES,
    ),
    _attribute(
        "colour",
        "It comes in {v}./The main colour is {v}."
        " | What colour is it?/Which colour does it come in?",
        "主色是{v}。/整体为{v}。 | 是什么颜色的？/主色是什么？",
        _HUES,
    ),
    _attribute(
        "trim",
        "The trim is {v}./Its edge is {v}. | What colour is the trim?/Which colour is the edge?",
        "边缘是{v}。/饰边为{v}。 | 边缘是什么颜色？/饰边什么颜色？",
        _HUES,
    ),
    _attribute(
        "warranty",
        "The warranty lasts {v}./It is covered for {v}."
        ""
        " | How long is the warranty?/How long is it covered?",
        "保修{v}。/质保期为{v}。 | 保修多久？/质保期多长？",
        _MONTHS,
    ),
    _attribute(
        "returns",
        "Returns are free for {v}./You may exchange it for {v}."
        ""
        " | How long are returns free?/How long may I exchange it?",
        "{v}内可退货。/可在{v}内换货。 | 多久内可退货？/换货期多长？",
        _MONTHS,
    ),
    _attribute(
        "origin",
        "It is made in {v}./The maker sits in {v}. | Where is it made?/Where does the maker sit?",
        "产地是{v}。/由{v}制造。 | 产地是哪里？/哪里制造的？",
        _PLACES,
    ),
    _attribute(
        "warehouse",
        "It ships from {v}./The warehouse is in {v}."
        " | Where does it ship from?/Where is the warehouse?",
        "从{v}发货。/仓库在{v}。 | 从哪里发货？/仓库在哪里？",
        _PLACES,
    ),
    _attribute(
        "outer box",
        "The outer box is {v}./Outside it is wrapped in {v}."
        ""
        " | What is the outer box made of?/What is it wrapped in outside?",
        "外盒是{v}做的。/外层包着{v}。 | 外盒是什么做的？/外层包着什么？",
        _STUFF,
    ),
    _attribute(
        "inner tray",
        "The inner tray is {v}./Inside it rests on {v}."
        ""
        " | What is the inner tray made of?/What does it rest on inside?",
        "内托是{v}做的。/里面垫着{v}。 | 内托是什么做的？/里面垫着什么？",
        _STUFF,
    ),
)
"""Attributes that every domain has; pairs (0 and 1, 2 and 3, ...) have values of one type."""

SENTENCES: Pair = {
    "en": ("The {a} is {v}.", "Its {a} is {v}.", "For the {a}, expect {v}."),
    "zh": ("{a}为{v}。", "{a}达到{v}。", "标注的{a}：{v}。"),
}
"""Sentences of a passage that state a private attribute."""


def _words(text: str, mark: str = ",") -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(mark) if word.strip())


def _pair(text: str, mark: str = ",") -> Pair:
    english, chinese = text.split(";")
    return {"en": _words(english, mark), "zh": _words(chinese, mark)}


def _category(line: str) -> Category:
    name, nouns, features, zh, zh_nouns, zh_features = [part.strip() for part in line.split(";")]
    return Category(
        name,
        {"en": name, "zh": zh},
        {"en": _words(nouns), "zh": _words(zh_nouns)},
        {"en": _words(features), "zh": _words(zh_features)},
    )


def _private(name: str, zh: str, values: Pair) -> Attribute:
    terms = {"en": tuple(name.split("/")), "zh": tuple(zh.split("/"))}
    sentences = {
        language: tuple(
            sentence.replace("{a}", term)
            for term in terms[language]
            for sentence in SENTENCES[language]
        )
        for language in terms
    }
    return Attribute(terms["en"][0], sentences, terms, values)


def _vocabulary(block: str) -> Vocabulary:
    head, *lines = block.strip().replace("\n  ", " ").splitlines()
    name, noun, zh_noun, materials, brands = [part.strip() for part in head.split(";")]
    by_mark: dict[str, list[str]] = {}
    for line in lines:
        mark, _, rest = line.strip().partition(" ")
        by_mark.setdefault(mark, []).append(rest)
    attributes: list[Attribute] = []
    for line in by_mark["?"]:
        one, two, words, zh_one, zh_two, zh_words = [part.strip() for part in line.split(";")]
        values = {"en": _words(words), "zh": _words(zh_words)}
        attributes += [_private(one, zh_one, values), _private(two, zh_two, values)]
    return Vocabulary(
        name=name,
        noun={"en": noun, "zh": zh_noun},
        materials=_words(materials),
        brands=_words(brands),
        categories=tuple(_category(line) for line in by_mark["#"]),
        positive=_pair(by_mark["+"][0]),
        negative=_pair(by_mark["-"][0]),
        aspects=_pair(by_mark["~"][0]),
        tastes=_pair(by_mark["*"][0]),
        attributes=tuple(attributes),
        carriers=_pair(by_mark["!"][0], "/"),
    )


@cache
def vocabularies() -> Mapping[str, Vocabulary]:
    """Return the private words of every domain, keyed by domain, in a fixed order."""
    blocks = (_vocabulary(block) for block in DOMAINS.strip().split("\n\n"))
    return {block.name: block for block in blocks}

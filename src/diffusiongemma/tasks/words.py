"""Words, names, numbers and dates that generated examples are made of: ordinary ones, and made-up ones that can only be copied."""

import random
from collections.abc import Callable, Sequence

__all__ = [
    "ADJECTIVES",
    "COLOURS",
    "MONTHS",
    "NOUNS",
    "VERBS",
    "amount",
    "city",
    "clock",
    "code",
    "date_forms",
    "either",
    "email",
    "first_name",
    "join",
    "made_up",
    "name",
    "number_word",
    "phrase",
    "plural",
    "some",
    "word",
]

MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November", "December",
)  # fmt: skip
COLOURS = (
    "black", "blue", "brown", "green", "grey", "orange", "pink", "purple", "red", "silver", "white", "yellow", "beige", "golden",
    "turquoise", "violet",
)  # fmt: skip
_FIRST = str.split(
    "Ada Adam Aisha Alan Alice Amir Ana Andre Anna Arjun Ben Bella Bruno Carla Carlos Chen Clara Dan Daniel David "
    "Diego Elena Eli Emil "
    "Emma Erik Eva Fatima Felix Finn Frida George Grace Hana Hans Hugo Ian Ida Ines Isaac Ivan Jack Jane Joe John "
    "Jonas Julia Kai Karim "
    "Kate Kim Lara Lena Leo Liam Lina Linda Lucy Luis Maria Mark Marta Mary Max Maya Mia Mohammed Nadia Nina Noah "
    "Nora Olga Oliver Omar "
    "Oscar Paul Peter Pia Priya Rachel Ravi Rosa Ruth Sam Sara Sofia Stefan Sue Tara Theo Tim Tom Uma Vera Victor "
    "Wei Will Yuki Yusuf Zoe"
)
_LAST = str.split(
    "Ahmed Allen Baker Bauer Becker Berg Brown Carter Chen Clark Costa Cruz Davies Diaz Evans Fischer Fox Garcia "
    "Gomez Green Gupta Hall "
    "Hansen Hill Hughes Ito Jansen Jensen Jones Kaya Keller Khan Kim King Klein Kowalski Kumar Lang Larsen Lee "
    "Lewis Lopez Martin Mason "
    "Meyer Miller Moore Moreau Mori Murphy Nguyen Novak Okafor Olsen Parker Patel Perez Price Reed Rossi Sato "
    "Schmidt Shah Silva Singh "
    "Smith Stone Suzuki Tanaka Taylor Turner Vogel Wagner Walker Wang Ward Weber White Wilson Wood Wright Yamada Young"
)
_CITIES = [
    "Amsterdam",
    "Athens",
    "Austin",
    "Berlin",
    "Bern",
    "Boston",
    "Bristol",
    "Brussels",
    "Cairo",
    "Cape Town",
    "Chicago",
    "Cologne",
    "Copenhagen",
    "Dallas",
    "Delhi",
    "Denver",
    "Dubai",
    "Dublin",
    "Geneva",
    "Hamburg",
    "Hanoi",
    "Helsinki",
    "Istanbul",
    "Jakarta",
    "Kyiv",
    "Kyoto",
    "Lagos",
    "Leeds",
    "Leipzig",
    "Lima",
    "Lisbon",
    "London",
    "Lyon",
    "Madrid",
    "Manchester",
    "Marseille",
    "Miami",
    "Milan",
    "Montreal",
    "Mumbai",
    "Munich",
    "Nairobi",
    "Naples",
    "New York",
    "Oslo",
    "Oxford",
    "Paris",
    "Porto",
    "Prague",
    "Riga",
    "Rome",
    "San Diego",
    "Seattle",
    "Seoul",
    "Seville",
    "Singapore",
    "Sofia",
    "Sydney",
    "Tallinn",
    "Tokyo",
    "Toronto",
    "Turin",
    "Utrecht",
    "Valencia",
    "Vienna",
    "Vilnius",
    "Warsaw",
    "York",
    "Zurich",
]
NOUNS = tuple(
    str.split(
        "account address album animal answer apple arm army artist author autumn baby bag ball banana bank basket "
        "beach bean bear bed bee "
        "bell belt bench berry bike bill bird board boat body bone book boot bottle bowl box boy branch bread bridge "
        "brother brush bucket "
        "bus butter button cabin cable cake camera camp candle car card carpet carrot castle cat chair cheese cherry "
        "chest chicken child "
        "circle class clock cloth cloud coat coffee coin comb cook corn corner cotton country cousin cow cream cup "
        "curtain dance daughter "
        "desk dinner doctor dog doll door dragon drawer dress driver drum duck ear earth egg engine evening eye face "
        "factory farm farmer "
        "father feather fence field film finger fire fish flag floor flower fork forest fox friend frog fruit game "
        "garden gate ghost gift "
        "girl glass glove goat grain grape grass guest guitar hair hall hammer hand harbour hat heart hill honey hook "
        "horse hospital hotel "
        "house ice idea island jacket jam jar juice kettle key king kitchen kite knee knife ladder lake lamp leaf leg "
        "lemon letter library "
        "lion list machine map market meal milk mirror money monkey moon morning mother mountain mouse mouth music "
        "nail neck needle nest "
        "net night nose note nurse office oil onion orange oven owl page paint pan paper park path pen pencil pepper "
        "phone piano picture "
        "pig pillow pipe plane plant plate pocket potato queen rabbit radio rain ribbon rice ring river road rock roof "
        "room root rope rose "
        "salt sand saw school scissors sea seat seed sheep shelf ship shirt shoe shop sister skirt sky snow soap sock "
        "sofa song soup spoon "
        "spring stamp star station stick stone story street sugar summer sun table tail tea teacher tent ticket tiger "
        "tomato tool tooth "
        "towel tower town toy train tree truck umbrella valley vase village voice wall watch water wheel wind window "
        "winter wolf wood wool"
    )
)
ADJECTIVES = tuple(
    str.split(
        "angry bad big blind bold brave bright broken busy calm cheap clean clear clever cold cool cosy dark deep "
        "dirty dry dull dusty early "
        "easy empty fair famous fast fat fine flat fresh friendly full funny gentle glad good grand great happy hard "
        "heavy high hot huge "
        "hungry kind large late lazy light little local long lost loud lovely low lucky modern narrow new nice noisy "
        "old open pale plain "
        "polite poor pretty proud quick quiet rare rich rough round sad safe sharp short shy silent simple slow small "
        "smart smooth soft "
        "sour steep strange strong sweet tall thick thin tidy tiny tired ugly warm weak wet wide wild wise wrong young"
    )
)
VERBS = tuple(
    str.split(
        "ask bake bring build buy call carry catch check choose clean climb close collect cook count cut dance draw "
        "drink drive eat fill find "
        "fix fold follow give help hide hold hear keep learn leave lift like make meet mix move need open paint pay "
        "pick plan plant play pull "
        "push read rent ride run see sell send show sing sit sleep speak start stop swim take talk teach test throw "
        "touch turn use visit "
        "wait walk want wash watch wear win write"
    )
)
_ONSETS = str.split(
    "b bl br c ch cl cr d dr f fl fr g gl gr h j k kl kr l m n p pl pr qu r s sc sh sk sl sm sn sp st str t th tr v w y z zh"
)
_VOWELS = str.split("a e i o u a e i o ai au ea ee ei ia ie oa oo ou y")
_CODAS = ["", "", "", "", *str.split("b ck d f g k l ll m n nd ng nt p r rd rk rn rt s sh ss st t th x z")]
_SMALL = str.split(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen"
)
_TENS = str.split("twenty thirty forty fifty sixty seventy eighty ninety")


def either(rng: random.Random, forms: str) -> str:
    """One of several forms that are separated by ``|``."""
    return rng.choice(forms.split("|"))


def some(rng: random.Random, draw: Callable[[random.Random], str], low: int, high: int) -> list[str]:
    """From ``low`` to ``high`` different strings."""
    count, found = rng.randint(low, high), dict[str, None]()
    while len(found) < count:
        found[draw(rng)] = None
    return list(found)


def join(parts: Sequence[str], last: str = " and ") -> str:
    """``a, b and c``."""
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + last + parts[-1]


def made_up(rng: random.Random, syllables: int = 0) -> str:
    """A word of no language, in small letters."""
    count = syllables or rng.choice((1, 2, 2, 2, 3))
    if rng.random() < 0.2:
        return "".join(rng.choice(_ONSETS) + rng.choice(_VOWELS) + rng.choice(_CODAS) for _ in range(min(count, 2)))
    middle = "".join(rng.choice("bdfghjklmnprstvwz") + rng.choice("aeiou") for _ in range(count))
    start = rng.choice("aeio") if rng.random() < 0.15 else ""
    return start + middle + (rng.choice(("l", "n", "r", "s", "m", "t", "k", "x", "nd", "st")) if rng.random() < 0.5 else "")


def word(rng: random.Random) -> str:
    """A noun, an adjective, a verb, or a made-up word."""
    kind = rng.random()
    return made_up(rng) if kind < 0.25 else rng.choice(NOUNS if kind < 0.7 else ADJECTIVES if kind < 0.85 else VERBS)


def plural(noun: str) -> str:
    """A regular plural."""
    if noun.endswith(("s", "x", "ch", "sh")):
        return noun + "es"
    return noun[:-1] + "ies" if noun.endswith("y") and noun[-2] not in "aeiou" else noun + "s"


def first_name(rng: random.Random) -> str:
    """A first name, ordinary or made up."""
    return rng.choice(_FIRST) if rng.random() < 0.5 else made_up(rng).capitalize()


def name(rng: random.Random) -> str:
    """A person's name of one to three words."""
    kind = rng.random()
    first = first_name(rng)
    last = rng.choice(_LAST) if rng.random() < 0.5 else made_up(rng).capitalize()
    if kind < 0.35:
        return first
    if kind < 0.85:
        return f"{first} {last}"
    return rng.choice(
        (
            f"{first} {rng.choice(_LAST)}-{last}",
            f"{first[0]}. {last}",
            f"{first} van {last}",
            f"Dr {last}",
            f"{either(rng, 'Mr|Mrs|Ms|Mr.|Mrs.|Ms.|Prof.|Dr.|Uncle|Aunt')} {last}",
        )
    )


def city(rng: random.Random) -> str:
    """A place, on the map or not."""
    if rng.random() < 0.5:
        return rng.choice(_CITIES)
    stem = made_up(rng).capitalize()
    return rng.choice(
        (stem, stem + either(rng, "burg|ford|ham|port|stad|ton|ville|field"), f"{either(rng, 'New|Port|San|East')} {stem}")
    )


def phrase(rng: random.Random) -> str:
    """A thing in one to three words."""
    noun = rng.choice(NOUNS) if rng.random() < 0.75 else made_up(rng)
    kind = rng.random()
    if kind < 0.4:
        return noun
    if kind < 0.8:
        return f"{rng.choice(ADJECTIVES) if rng.random() < 0.6 else rng.choice(COLOURS)} {noun}"
    return f"{rng.choice(ADJECTIVES)} {rng.choice(COLOURS)} {noun}" if kind < 0.9 else f"{noun} {rng.choice(NOUNS)}"


def code(rng: random.Random) -> str:
    """A short mark of letters and digits, as on parcels and seats."""
    letters = "".join(rng.choice("ABCDEFGHJKLMNPQRSTUVWXYZ") for _ in range(rng.randint(1, 3)))
    digits = "".join(rng.choice("0123456789") for _ in range(rng.randint(1, 4)))
    return rng.choice((letters + digits, f"{letters}-{digits}", f"{letters.lower()}{digits}", f"{letters}-{digits}{letters[0]}"))


def email(rng: random.Random) -> str:
    """An address for mail."""
    left = rng.choice((first_name(rng).lower(), f"{first_name(rng)}.{made_up(rng, 1)}".lower(), rng.choice(NOUNS)))
    return f"{left}@{rng.choice((made_up(rng), rng.choice(NOUNS)))}.{either(rng, 'com|org|net|de|io|eu')}"


def amount(rng: random.Random) -> float:
    """A price with at most two decimals, no whole number."""
    value = rng.choice((rng.randint(11, 999) / 10, rng.randint(101, 99999) / 100))
    return value if value != int(value) else value + 0.5


def clock(rng: random.Random) -> str:
    """A time of day, ``HH:MM``."""
    minute = rng.choice((0, 15, 30, 45)) if rng.random() < 0.6 else rng.randint(0, 59)
    return f"{rng.randint(0, 23):02}:{minute:02}"


def date_forms(rng: random.Random) -> tuple[str, list[str]]:
    """A date in ISO form, and as people write it."""
    year, month, day = rng.randint(1950, 2035), rng.randint(1, 12), rng.randint(1, 28)
    long, short = MONTHS[month - 1], MONTHS[month - 1][:3]
    end = "th" if 10 < day < 14 else {1: "st", 2: "nd", 3: "rd"}.get(day % 10, "th")
    iso = f"{year}-{month:02}-{day:02}"
    forms = [
        iso, f"{day} {long} {year}", f"{long} {day}, {year}", f"{day} {short} {year}", f"{short} {day}, {year}",
        f"{long} {day}{end}, {year}", f"the {day}{end} of {long} {year}", f"{day:02}.{month:02}.{year}",
    ]  # fmt: skip
    return iso, forms


def number_word(value: int) -> str:
    """A whole number below 1,000 in words."""
    if value < 20:
        return _SMALL[value]
    if value < 100:
        return _TENS[value // 10 - 2] + (f"-{_SMALL[value % 10]}" if value % 10 else "")
    rest = value % 100
    return f"{_SMALL[value // 100]} hundred" + (f" and {number_word(rest)}" if rest else "")

"""What texts to extract from are made of: kinds of records, their fields, and many ways to say each.

A clause goes on from the subject (``Kalrin`` + ``is 31 years old``); a label stands alone (``31 years old``). ``{}`` is the value.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from diffusiongemma.tasks import words
from diffusiongemma.tasks.words import either

__all__ = ["KINDS", "Kind", "Part", "Value"]

Value = tuple[Any, str]
"""What is asked for, and how the text says it."""
Draw = Callable[[random.Random], Value]


@dataclass(frozen=True)
class Part:
    """A field.

    Attributes:
        keys: names it is asked for by, separated by ``|``; the first is the plainest.
        draw: its value.
        clauses: verb phrases with the subject left out.
        labels: phrases without a verb.
    """

    keys: str
    draw: Draw
    clauses: str
    labels: str


@dataclass(frozen=True)
class Kind:
    """A kind of record.

    Attributes:
        noun: what the subject is called.
        person: whether it is somebody.
        subject: the field that stands first.
        parts: the others.
    """

    noun: str
    person: bool
    subject: Part
    parts: tuple[Part, ...]


def _same(draw: Callable[[random.Random], str]) -> Draw:
    def drawn(rng: random.Random) -> Value:
        value = draw(rng)
        return value, value

    return drawn


def _whole(low: int, high: int) -> Draw:
    def drawn(rng: random.Random) -> Value:
        value = rng.randint(low, high)
        if value <= 20 and rng.random() < 0.25:
            return value, words.number_word(value)
        return value, f"{value:,}" if value > 999 and rng.random() < 0.2 else str(value)

    return drawn


def _money(rng: random.Random) -> Value:
    value = words.amount(rng) if rng.random() < 0.7 else float(rng.randint(2, 3000))
    plain = f"{value:.2f}" if rng.random() < 0.4 else f"{value:g}"
    shown = either(rng, "{}|{}|{} euros|{} EUR|${}|€{}|£{}|{} dollars|USD {}").format(plain)
    return (int(value) if "." not in plain else value), shown


def _decimal(low: int, high: int) -> Draw:
    def drawn(rng: random.Random) -> Value:
        value = rng.randint(low * 10, high * 10) / 10
        return value, str(value)

    return drawn


def _date(rng: random.Random) -> Value:
    iso, forms = words.date_forms(rng)
    return iso, rng.choice(forms)


def _one(forms: str) -> Draw:
    def drawn(rng: random.Random) -> Value:
        value = either(rng, forms) if rng.random() < 0.85 else words.made_up(rng)
        return value, value

    return drawn


def _flag(yes: str, no: str) -> Draw:
    def drawn(rng: random.Random) -> Value:
        value = rng.random() < 0.5
        return value, either(rng, yes if value else no)

    return drawn


def _several(draw: Callable[[random.Random], str]) -> Draw:
    def drawn(rng: random.Random) -> Value:
        found = words.some(rng, draw, 2, 4)
        return found, rng.choice((words.join(found), words.join(found), ", ".join(found), " and ".join(found)))

    return drawn


def _address(rng: random.Random) -> str:
    """A street and a number."""
    stem = words.made_up(rng).capitalize() if rng.random() < 0.6 else rng.choice(words.NOUNS).capitalize()
    street = f"{stem} {either(rng, 'Street|Road|Lane|Avenue|Way|Square')}"
    return rng.choice((f"{street} {rng.randint(1, 250)}", f"{rng.randint(1, 250)} {street}"))


_NAME, _CITY, _THING, _WORD, _CODE = (_same(d) for d in (words.name, words.city, words.phrase, words.word, words.code))
_JOBS = (
    "nurse|teacher|baker|pilot|lawyer|engineer|painter|carpenter|chef|doctor|driver|farmer|plumber|librarian|translator|florist|"
    "waiter|programmer|electrician|journalist|student|dentist|gardener|tailor|singer|architect|accountant|postman|barber|vet"
)
_HOBBIES = "chess|swimming|cooking|tennis|running|painting|knitting|football|reading|climbing|sailing|yoga|photography|fishing|jazz"
_LANGUAGES = "English|Spanish|French|German|Italian|Polish|Turkish|Arabic|Hindi|Dutch|Greek|Swedish|Korean|Japanese|Danish|Czech"
_ANIMALS = "cat|dog|rabbit|parrot|horse|hamster|goat|turtle|pony|cow|ferret|goldfish|canary|donkey"

_PERSON = (
    Part(
        "age|years|age_years|how_old",
        _whole(3, 99),
        "is {} years old|is {}|is aged {}|turned {} last week|has just turned {}|is {} years of age|will "
        "soon be a year older than {}|"
        "celebrated birthday number {} recently",
        "{} years old|aged {}|{}|age {}|{} y/o|age: {}",
    ),
    Part(
        "city|town|home|lives_in|location|place|residence",
        _CITY,
        "lives in {}|comes from {}|is from {}|has a flat in {}|grew up in {}|moved to {} last year|resides in {}|is based in {}|"
        "calls {} home|has settled in {}|was living in {} at the time",
        "from {}|living in {}|{}|based in {}|resident of {}|at home in {}",
    ),
    Part(
        "job|profession|occupation|work|role|position|job_title",
        _one(_JOBS),
        "works as a {}|is a {}|earns a living as a {}|has a job as {}|is employed as a {}|trained as a {}|became a {}|"
        "is a {} by trade|makes money as a {}",
        "a {}|{}|{} by profession|working as a {}|job: {}|{} by trade",
    ),
    Part(
        "hobbies|interests|likes",
        _several(lambda r: either(r, _HOBBIES)),
        "likes {}|enjoys {}|is fond of {}|spends weekends on {}|is into {}|loves {}|has these hobbies: {}",
        "hobbies: {}|likes {}|interested in {}|fond of {}",
    ),
    Part(
        "languages|speaks|tongues",
        _several(lambda r: either(r, _LANGUAGES)),
        "speaks {}|knows {}|is fluent in {}|can talk in {}|understands {}",
        "speaks {}|languages: {}|fluent in {}",
    ),
    Part(
        "email|mail|email_address|contact",
        _same(words.email),
        "can be reached at {}|has the address {}|uses {}|reads mail at {}|gave {} as an address",
        "{}|mail {}|email: {}|write to {}|contact {}",
    ),
    Part(
        "birthday|born|date_of_birth|birth_date",
        _date,
        "was born on {}|came into the world on {}|has a birthday on {}|saw the light of day on {}",
        "born {}|born on {}|* {}|date of birth {}",
    ),
    Part(
        "married|is_married",
        _flag(
            ("is married|has a husband|has a wife|got married some time ago"),
            ("is single|is not married|has never married|is unmarried"),
        ),
        "{}",
        "{}",
    ),
    Part(
        "pet|animal|pet_kind",
        _one(_ANIMALS),
        "has a {}|owns a {}|keeps a {}|walks a {} every day|got a {} for Christmas|shares a flat with a {}",
        "with a {}|owner of a {}|pet: {}",
    ),
    Part(
        "children|kids|number_of_children",
        _whole(2, 9),
        "has {} children|is the parent of {} children|brings up {} kids|has {} kids",
        "{} children|{} kids|parent of {}",
    ),
    Part(
        "height|height_cm|size",
        _whole(95, 210),
        "is {} cm tall|measures {} cm|stands {} centimetres tall|is {} centimetres in height",
        "{} cm|{} cm tall|height {} cm",
    ),
    Part(
        "salary|income|wage|pay",
        _whole(900, 9900),
        "earns {} a month|makes {} per month|has an income of {}|takes home {} every month|is paid {}",
        "salary {}|earning {}|pay: {}",
    ),
    Part(
        "employer|company|works_for|firm",
        _same(lambda r: f"{words.made_up(r).capitalize()} {either(r, 'Ltd|GmbH|Inc|Group|Labs|& Sons')}"),
        "works for {}|is employed by {}|has joined {}|is with {}|has a desk at {}",
        "at {}|employer {}|with {}",
    ),
    Part(
        "vehicle|car|drives",
        _THING,
        "drives a {}|came in a {}|bought a {}|travels by {}|owns a {}",
        "driving a {}|with a {}|owner of a {}",
    ),
)
_ORDER = (
    Part(
        "quantity|count|amount|number|how_many|units|pieces",
        _whole(1, 400),
        (
            "was ordered {} times|is wanted {} times|is needed in a quantity of {}|goes out in {} pieces|"
            "comes {} to a box|is there {} times"
        ),
        "{} pieces|{} x|x {}|{} units|quantity {}|{} of them|{}",
    ),
    Part(
        "price|cost|unit_price|total|value",
        _money,
        (
            "costs {}|is priced at {}|sells for {}|comes to {}|is on offer at {}|sets you back {}|goes for "
            "{}|was bought for {}|is worth {}"
        ),
        "{}|price {}|at {}|for {}|costing {}|{} each|at {} apiece",
    ),
    Part(
        "colour|color|shade",
        _one("|".join(words.COLOURS)),
        "is {}|comes in {}|is painted {}|has a {} finish|should be {}|is available in {}",
        "{}|in {}|colour {}|color: {}",
    ),
    Part(
        "customer|buyer|client|ordered_by|for_whom",
        _NAME,
        "was ordered by {}|goes to {}|is for {}|was bought by {}|was sold to {}|has to be delivered to {}|was requested by {}",
        "for {}|customer {}|buyer: {}|ordered by {}|to {}|client {}",
    ),
    Part(
        "paid|is_paid",
        _flag(
            "has been paid|is already paid for|is paid",
            ("has not been paid|is not paid yet|is still unpaid|is waiting for payment"),
        ),
        "{}",
        "{}",
    ),
    Part(
        "order_id|id|reference|ref|number|code|sku",
        _CODE,
        "has the number {}|is listed as {}|carries the code {}|goes by reference {}|is filed under {}",
        "number {}|ref {}|code {}|no. {}|#{}|order {}",
    ),
    Part(
        "delivery|date|delivery_date|due|when|ship_date",
        _date,
        "will arrive on {}|is due on {}|was shipped on {}|leaves on {}|should be there by {}|is expected on {}",
        "due {}|on {}|by {}|delivery {}|shipped {}",
    ),
    Part(
        "weight|kg|weight_kg|mass",
        _decimal(1, 90),
        "weighs {} kg|has a weight of {} kilos|is {} kg heavy|brings {} kilograms to the scales",
        "{} kg|weight {} kg|weighing {} kg",
    ),
    Part(
        "shop|store|seller|vendor|supplier",
        _same(lambda r: words.made_up(r).capitalize()),
        "comes from {}|is sold by {}|was supplied by {}|is made by {}|is stocked at {}",
        "from {}|seller {}|by {}|supplier: {}",
    ),
    Part(
        "material|made_of",
        _one("wood|steel|glass|leather|cotton|plastic|wool|brass|oak|bamboo|paper|stone|linen|copper"),
        "is made of {}|consists of {}|is built from {}|is all {}",
        "made of {}|{}|of {}|material {}",
    ),
    Part(
        "extras|options|tags|accessories",
        _several(words.word),
        "comes with {}|includes {}|is tagged {}|has the extras {}",
        "with {}|extras: {}|tags {}|including {}",
    ),
)
_EVENT = (
    Part(
        "date|day|when|event_date",
        _date,
        (
            "is on {}|takes place on {}|has been moved to {}|happens on {}|will be held on {}|was planned "
            "for {}|starts on {}|falls on {}"
        ),
        "on {}|{}|date {}|{}:|planned for {}",
    ),
    Part(
        "time|start|at|start_time|begins|hour",
        _same(words.clock),
        "starts at {}|begins at {}|kicks off at {}|opens its doors at {}|gets going at {}|is set for {}",
        "at {}|{}|from {}|start {}|{} sharp",
    ),
    Part(
        "place|city|location|where|venue|town",
        _CITY,
        "takes place in {}|is held in {}|happens in {}|brings people to {}|is in {}|has moved to {}|can be seen in {}",
        "in {}|{}|place {}|venue: {}|@ {}",
    ),
    Part(
        "seats|capacity|guests|attendees|people|visitors",
        _whole(5, 9000),
        "has {} seats|has room for {} people|expects {} guests|is meant for {} visitors|drew {} people|takes {} attendees",
        "{} seats|{} people|{} guests|room for {}|capacity {}",
    ),
    Part(
        "host|organiser|organizer|speaker|led_by|contact_person",
        _NAME,
        "is hosted by {}|is led by {}|was organised by {}|is run by {}|features {}|is in the hands of {}",
        "host {}|with {}|led by {}|organiser: {}|by {}",
    ),
    Part(
        "price|ticket_price|entry|fee|cost",
        _money,
        "costs {} to enter|asks {} at the door|has tickets at {}|charges {}|is {} a head",
        "tickets {}|entry {}|{} at the door|{} per person|fee {}",
    ),
    Part(
        "room|hall|room_number",
        _CODE,
        "is in room {}|uses hall {}|has been given room {}|moved to room {}",
        "room {}|hall {}|in {}",
    ),
    Part(
        "cancelled|is_cancelled",
        _flag("has been cancelled|is off|will not happen", "goes ahead|is still on|will happen as planned"),
        "{}",
        "{}",
    ),
    Part(
        "minutes|duration|length|duration_minutes",
        _whole(10, 300),
        "lasts {} minutes|takes {} minutes|goes on for {} minutes|is {} minutes long",
        "{} minutes|{} min|duration {} min|length {} minutes",
    ),
    Part(
        "topics|topic_list|subjects|agenda",
        _several(words.word),
        "is about {}|covers {}|deals with {}|has {} on the agenda",
        "topics: {}|about {}|agenda {}",
    ),
)
_TRIP = (
    Part(
        "origin|from|departure_city|start",
        _CITY,
        "leaves from {}|sets off in {}|starts in {}|comes from {}|departs from {}",
        "from {}|origin {}|ex {}|starting in {}",
    ),
    Part(
        "destination|to|arrival_city|goal",
        _CITY,
        "goes to {}|is bound for {}|heads for {}|ends in {}|arrives in {}|takes people to {}",
        "to {}|bound for {}|destination {}|towards {}",
    ),
    Part(
        "departure|departs|time|leaves_at|departure_time",
        _same(words.clock),
        "leaves at {}|departs at {}|is scheduled for {}|takes off at {}|sets off at {}",
        "at {}|departure {}|leaving {}|{}",
    ),
    Part(
        "gate|platform|track|stand",
        _whole(1, 99),
        "uses gate {}|leaves from gate {}|waits at platform {}|boards at gate {}",
        "gate {}|platform {}|track {}",
    ),
    Part(
        "delayed|late|is_late",
        _flag("is delayed|is running late|has a delay", "is on time|is punctual|runs to schedule|has no delay"),
        "{}",
        "{}",
    ),
    Part(
        "passengers|travellers|people|seats",
        _whole(2, 600),
        "carries {} passengers|has {} people on board|takes {} travellers|offers {} seats",
        "{} passengers|{} on board|{} seats",
    ),
    Part(
        "date|day|travel_date",
        _date,
        "runs on {}|travels on {}|goes out on {}|is booked for {}",
        "on {}|{}|date {}",
    ),
    Part(
        "km|distance|distance_km|length",
        _whole(5, 9000),
        "covers {} km|is {} kilometres long|takes {} km|goes over {} kilometres",
        "{} km|distance {} km|{} kilometres",
    ),
    Part(
        "carrier|airline|operator|company",
        _same(lambda r: words.made_up(r).capitalize()),
        "is run by {}|is operated by {}|belongs to {}",
        "{}|by {}|operator {}",
    ),
)
_HOME = (
    Part(
        "rooms|number_of_rooms|bedrooms",
        _whole(1, 14),
        "has {} rooms|offers {} rooms|comes with {} rooms|is divided into {} rooms",
        "{} rooms|{} rm|rooms: {}|with {} rooms",
    ),
    Part(
        "area|size|square_metres|sqm|m2",
        _whole(18, 600),
        "covers {} square metres|measures {} square metres|has {} m2|is {} sqm in size|spreads over {} square metres",
        "{} square metres|{} m2|{} sqm|on {} square metres",
    ),
    Part(
        "rent|monthly_rent|price|cost",
        _whole(150, 4900),
        "costs {} a month|rents for {}|is let at {} per month|goes for {} monthly|can be had for {}",
        "{} a month|rent {}|{} per month|{} monthly|for {}",
    ),
    Part(
        "city|town|place|location",
        _CITY,
        "is in {}|lies in {}|stands in {}|can be found in {}|is located in {}",
        "in {}|{}|near {}|{} area",
    ),
    Part(
        "garden|has_garden",
        _flag("has a garden|comes with a garden", "has no garden|lacks a garden|comes without a garden"),
        "{}",
        "{}",
    ),
    Part(
        "floor|storey|level",
        _whole(1, 30),
        "is on floor {}|lies on level {}|takes up floor {}",
        "floor {}|level {}|storey {}",
    ),
    Part(
        "owner|landlord|agent|contact",
        _NAME,
        "belongs to {}|is owned by {}|is offered by {}|is let by {}",
        "owner {}|from {}|contact {}|agent: {}",
    ),
    Part(
        "year|built|year_built", _whole(1850, 2025), "was built in {}|dates from {}|was finished in {}", "built {}|from {}|year {}"
    ),
    Part(
        "free_from|available|available_from|date",
        _date,
        ("is free from {}|can be moved into on {}|is available from {}"),
        "from {}|free {}|available {}",
    ),
)
_BOOK = (
    Part(
        "author|writer|written_by|by|director|artist",
        _NAME,
        "was written by {}|is by {}|is a work of {}|came from the pen of {}|was made by {}|is {}'s best known work",
        "by {}|{}|author {}|from {}",
    ),
    Part(
        "year|published|release_year|appeared",
        _whole(1801, 2030),
        "appeared in {}|came out in {}|was published in {}|was released in {}|dates from {}",
        "{}|({})|from {}|published {}|year {}",
    ),
    Part(
        "pages|page_count|length",
        _whole(20, 1500),
        "has {} pages|runs to {} pages|is {} pages long|fills {} pages",
        "{} pages|{} pp|{} p.|pages: {}",
    ),
    Part(
        "genre|type|category|kind",
        _one("novel|thriller|comedy|biography|poetry|drama|fantasy|romance|history|mystery|satire|western"),
        "is a {}|belongs on the {} shelf|counts as {}|is best called a {}",
        "{}|a {}|genre {}|category: {}",
    ),
    Part(
        "lent|borrowed|on_loan",
        _flag("is lent out|is on loan|has been borrowed", "is on the shelf|is available|can be borrowed"),
        "{}",
        "{}",
    ),
    Part(
        "rating|stars|score",
        _decimal(1, 9),
        ("is rated {}|gets {} stars|scored {}|has a rating of {}"),
        "{} stars|rating {}|rated {}|score {}",
    ),
    Part("price|cost", _money, "costs {}|sells for {}|is yours for {}", "{}|price {}|for {}"),
    Part(
        "publisher|label|press",
        _same(lambda r: words.made_up(r).capitalize()),
        ("was brought out by {}|is published by {}|appeared with {}"),
        "{}|publisher {}|at {}",
    ),
    Part(
        "language|written_in",
        _one(_LANGUAGES),
        ("is written in {}|is in {}|was first printed in {}"),
        "in {}|language {}|{} edition",
    ),
)
_PAYMENT = (
    Part(
        "amount|sum|total|value|price",
        _money,
        ("is over {}|amounts to {}|comes to {}|is for {}|adds up to {}"),
        "{}|amount {}|sum {}|total {}|of {}",
    ),
    Part(
        "sender|from|payer|paid_by|from_name",
        _NAME,
        ("came from {}|was sent by {}|was paid by {}|was made by {}"),
        "from {}|sender {}|payer: {}|by {}",
    ),
    Part(
        "receiver|to|recipient|payee|paid_to",
        _NAME,
        ("went to {}|was received by {}|is meant for {}|ended up with {}"),
        "to {}|receiver {}|payee: {}|for {}",
    ),
    Part("date|day|paid_on|due", _date, "was made on {}|is dated {}|is due on {}|was booked on {}", "on {}|dated {}|{}|due {}"),
    Part(
        "currency|unit",
        _one("EUR|USD|GBP|CHF|JPY|SEK|PLN|INR"),
        "is in {}|was made in {}|has the currency {}",
        "{}|in {}|currency {}",
    ),
    Part(
        "confirmed|cleared|done",
        _flag("has been confirmed|has gone through|is complete", "is pending|has not gone through|is not confirmed"),
        "{}",
        "{}",
    ),
    Part("items|articles|positions", _several(words.phrase), "covers {}|was for {}|lists {}", "for {}|items: {}|covering {}"),
)
_SENSOR = (
    Part(
        "temperature|temp|degrees|celsius",
        _decimal(-30, 45),
        ("showed {} degrees|read {} degrees|measured {} degrees|reported a temperature of {}"),
        "{} degrees|{} C|temperature {}|temp {}",
    ),
    Part(
        "humidity|moisture|humidity_percent",
        _whole(4, 99),
        ("gave a humidity of {} percent|measured {} percent humidity|showed {}% humidity"),
        "{} percent humidity|humidity {}%|humidity {}",
    ),
    Part("time|at|measured_at|hour", _same(words.clock), "was read at {}|reported at {}|sent its values at {}", "at {}|{}|time {}"),
    Part(
        "site|place|location|station|where",
        _CITY,
        ("stands in {}|is at {}|is mounted in {}|watches over {}"),
        "in {}|at {}|{}|site {}",
    ),
    Part(
        "battery|battery_percent|charge",
        _whole(1, 99),
        ("has {} percent battery left|is at {}% charge|has a battery at {} percent"),
        "battery {}%|{}% battery|charge {}",
    ),
    Part(
        "status|state|condition",
        _one("ok|broken|offline|active|idle|busy|ready|failed|warning|error"),
        "is {}|has the status {}|reports {}|went {}",
        "{}|status {}|state: {}",
    ),
    Part(
        "pressure|hpa|pressure_hpa",
        _whole(940, 1050),
        ("measured {} hPa|showed a pressure of {}|read {} hPa"),
        "{} hPa|pressure {}|p={}",
    ),
    Part(
        "wind|wind_kmh|wind_speed",
        _whole(1, 150),
        ("reported wind at {} km/h|saw gusts of {} km/h|measured a wind of {} km/h"),
        "wind {} km/h|{} km/h|gusts {} km/h",
    ),
)
_MATCH = (
    Part(
        "opponent|against|away|visitors",
        _CITY,
        ("beat {}|lost to {}|played against {}|met {}|drew with {}|faced {}"),
        "against {}|vs {}|v {}|- {}",
    ),
    Part(
        "goals|points|score|home_score",
        _whole(0, 120),
        ("scored {} points|got {} goals|finished with {} points"),
        "{} points|{} goals|score {}",
    ),
    Part(
        "spectators|crowd|attendance|fans",
        _whole(20, 80000),
        ("played before {} spectators|drew a crowd of {}|had {} fans watching"),
        "{} spectators|crowd {}|{} fans",
    ),
    Part(
        "player|scorer|best_player|captain",
        _NAME,
        ("was led by {}|had {} as its best player|relied on {}|was captained by {}"),
        "captain {}|best player {}|with {}",
    ),
    Part(
        "sport|game|discipline",
        _one("football|handball|tennis|basketball|hockey|rugby|volleyball|cricket|curling|polo"),
        "plays {}|took part in the {} final|is a {} team",
        "{}|sport {}|in {}",
    ),
    Part("date|day|played_on", _date, "played on {}|had its match on {}|won on {}", "on {}|{}|played {}"),
    Part("won|is_winner|victory", _flag("has won|took the cup", "has lost|went home with nothing|did not win"), "{}", "{}"),
    Part("coach|trainer|manager", _NAME, "is coached by {}|is trained by {}|has {} as coach", "coach {}|trainer {}|under {}"),
)
_ANIMAL = (
    Part("species|animal|kind|type", _one(_ANIMALS), "is a {}|was registered as a {}|is the family's {}", "{}|a {}|species {}"),
    Part("age|years", _whole(1, 30), "is {} years old|is {}|turned {}", "{} years old|{} years|aged {}"),
    Part(
        "owner|belongs_to|keeper|contact",
        _NAME,
        ("belongs to {}|is owned by {}|came with {}|lives with {}"),
        "owner {}|with {}|belongs to {}",
    ),
    Part("weight|kg|weight_kg", _decimal(1, 60), "weighs {} kg|is {} kilos|has a weight of {} kg", "{} kg|weight {}|{} kilos"),
    Part("colour|color|fur", _one("|".join(words.COLOURS)), "is {}|has {} fur|has a {} coat", "{}|in {}|colour {}"),
    Part(
        "problem|symptom|complaint",
        _one("fever|cough|limp|rash|toothache|broken leg|loss of appetite|itching|fleas|bad eye"),
        "suffers from {}|was brought in with {}|has {}",
        "{}|with {}|problem: {}",
    ),
    Part("vaccinated|is_vaccinated", _flag("is vaccinated|has had its shots", "is not vaccinated|has had no shots"), "{}", "{}"),
    Part("visit|date|appointment", _date, "was seen on {}|has an appointment on {}|came in on {}", "on {}|seen {}|visit {}"),
    Part("likes|food|favourites", _several(words.word), "eats {}|likes {}|begs for {}", "likes {}|food: {}|eats {}"),
)
_JOB = (
    Part(
        "company|employer|firm",
        _same(lambda r: f"{words.made_up(r).capitalize()} {either(r, 'Ltd|GmbH|Inc|Group|Labs|AG')}"),
        ("is advertised by {}|is open at {}|was posted by {}"),
        "at {}|{}|with {}",
    ),
    Part(
        "salary|pay|wage",
        _whole(12000, 150000),
        ("pays {} a year|offers {}|comes with a salary of {}"),
        "{} a year|salary {}|pay {}",
    ),
    Part("city|location|place|office", _CITY, "is in {}|is based in {}|can be done from {}", "in {}|{}|based in {}"),
    Part(
        "hours|weekly_hours|hours_per_week",
        _whole(4, 42),
        ("is {} hours a week|takes {} hours per week|asks for {} hours weekly"),
        "{} hours a week|{} h|{} hours",
    ),
    Part(
        "skills|requirements|needs",
        _several(words.word),
        "asks for {}|requires {}|needs skills in {}",
        "skills: {}|requires {}|needed: {}",
    ),
    Part(
        "remote|home_office",
        _flag("is remote|can be done from home", ("is on site|is not remote|has to be done at the office")),
        "{}",
        "{}",
    ),
    Part(
        "deadline|apply_by|closing_date|until",
        _date,
        ("is open until {}|closes on {}|has a deadline of {}"),
        "until {}|by {}|deadline {}",
    ),
    Part(
        "experience|years|years_experience",
        _whole(1, 15),
        ("wants {} years of experience|asks for {} years in the field"),
        "{} years of experience|experience {} years",
    ),
)
_VEHICLE = (
    Part(
        "year|built|model_year",
        _whole(1960, 2026),
        ("was built in {}|is from {}|left the factory in {}|dates back to {}"),
        "{}|built {}|from {}|model {}",
    ),
    Part(
        "km|mileage|kilometres",
        _whole(0, 400000),
        ("has run {} km|has {} kilometres on it|shows {} km|was driven for {} kilometres"),
        "{} km|mileage {}|{} kilometres|with {} km",
    ),
    Part(
        "price|asking_price|cost",
        _money,
        ("is for sale at {}|costs {}|can be had for {}|changed hands for {}|is listed at {}"),
        "{}|price {}|for {}|asking {}",
    ),
    Part(
        "colour|color|paint", _one("|".join(words.COLOURS)), "is {}|is painted {}|has {} paint|shines in {}", "{}|in {}|colour {}"
    ),
    Part(
        "seller|owner|dealer|contact",
        _NAME,
        ("belongs to {}|is sold by {}|stands at {}'s garage|was kept by {}"),
        "seller {}|ask for {}|from {}|owner: {}",
    ),
    Part("seats|doors|places", _whole(1, 9), "has {} seats|takes {} people|comes with {} seats", "{} seats|{} places|seats {}"),
    Part(
        "fuel|engine|runs_on",
        _one("petrol|diesel|electricity|gas|hydrogen|hybrid"),
        "runs on {}|needs {}|drinks {}|burns {}",
        "{}|fuel {}|on {}",
    ),
    Part(
        "accident_free|undamaged",
        _flag(("is accident free|has never been in a crash|is undamaged"), "has had an accident|is damaged|was in a crash"),
        "{}",
        "{}",
    ),
    Part("plate|licence|registration", _CODE, "has the plate {}|is registered as {}|drives under {}", "plate {}|{}|reg. {}"),
)
_COMPANY = (
    Part(
        "founder|founded_by|started_by|boss",
        _NAME,
        ("was founded by {}|was started by {}|is the work of {}|goes back to {}|is headed by {}"),
        "founder {}|founded by {}|by {}|boss: {}",
    ),
    Part(
        "founded|year|since",
        _whole(1850, 2026),
        ("was founded in {}|began in {}|opened its doors in {}|has been around since {}"),
        "since {}|founded {}|est. {}|{}",
    ),
    Part(
        "city|seat|headquarters|place",
        _CITY,
        ("sits in {}|has its headquarters in {}|is at home in {}|started out in {}|works from {}"),
        "in {}|{}|seat {}|based in {}",
    ),
    Part(
        "employees|staff|people|headcount",
        _whole(2, 90000),
        ("employs {} people|has {} employees|has a staff of {}|gives work to {} people"),
        "{} employees|staff {}|{} people",
    ),
    Part(
        "product|makes|business|sells",
        _THING,
        ("makes a {}|sells one thing, the {}|is known for its {}|lives off the {}"),
        "maker of the {}|product: {}|{}",
    ),
    Part(
        "revenue|turnover|sales", _money, ("turned over {}|has sales of {}|took in {} last year"), "revenue {}|turnover {}|sales {}"
    ),
    Part(
        "phone|telephone|tel",
        _same(
            lambda r: either(r, "{a}-{b}|{a} {b}|+{c} {a} {b}|0{a}/{b}").format(
                a=r.randint(100, 999), b=r.randint(1000, 99999), c=r.randint(10, 99)
            )
        ),
        ("can be called on {}|has the number {}|picks up at {}|answers {}"),
        "tel. {}|phone {}|{}|call {}",
    ),
    Part(
        "public|listed|is_listed", _flag("is listed|trades on the stock exchange", "is in private hands|is not listed"), "{}", "{}"
    ),
)
_DISH = (
    Part(
        "minutes|time|cooking_time|duration",
        _whole(5, 240),
        ("takes {} minutes|is ready in {} minutes|needs {} minutes in the oven|simmers for {} minutes"),
        ("{} minutes|{} min|time {} min|ready in {} minutes"),
    ),
    Part(
        "servings|serves|portions|people",
        _whole(1, 20),
        ("serves {}|is enough for {} people|makes {} portions|feeds {}"),
        "serves {}|for {}|{} portions|{} servings",
    ),
    Part(
        "ingredients|contains|needs|made_of",
        _several(words.word),
        ("contains {}|is made with {}|calls for {}|needs {}"),
        "with {}|ingredients: {}|of {}",
    ),
    Part(
        "calories|kcal|energy",
        _whole(20, 1500),
        ("has {} calories|comes to {} kcal|packs {} calories"),
        "{} kcal|{} calories|energy {}",
    ),
    Part(
        "cook|chef|by|author",
        _NAME,
        ("was invented by {}|comes from {}'s kitchen|was cooked by {}|is a speciality of {}"),
        "by {}|chef {}|from {}'s kitchen",
    ),
    Part(
        "vegan|is_vegan",
        _flag("is vegan|has no animal products", ("is not vegan|has meat in it|contains milk and eggs")),
        "{}",
        "{}",
    ),
    Part("rating|stars", _decimal(1, 5), "got {} stars|is rated {}|was given {} out of 5", "{} stars|rated {}|rating {}"),
    Part(
        "origin|country|from|region",
        _one("Italy|France|Spain|Greece|Turkey|India|Japan|Thailand|Mexico|Peru|Morocco|Poland|Sweden|Korea|Vietnam|Brazil"),
        ("comes from {}|is eaten all over {}|was brought here from {}"),
        "from {}|{}|origin {}",
    ),
)
_NAMED = "|".join(("name", "full_name", "person", "who"))
KINDS: tuple[Kind, ...] = (
    Kind("person", True, Part(_NAMED, _NAME, "", ""), _PERSON),
    Kind("customer", True, Part("name|customer|customer_name|client", _NAME, "", ""), _PERSON),
    Kind("student", True, Part("name|student|pupil|first_name", _same(words.first_name), "", ""), _PERSON),
    Kind("order", False, Part("item|product|article|thing|what|name", _THING, "", ""), _ORDER),
    Kind(
        "event",
        False,
        Part(
            "title|event|name|what|event_name",
            _same(
                lambda r: (
                    either(
                        r,
                        (
                            "concert|lecture|workshop|auction|market|meeting|fair|party|race|exhibition|course|reading|"
                            "conference|tournament|wedding|show"
                        ),
                    )
                    if r.random() < 0.6
                    else f"{words.word(r)} {either(r, 'day|night|festival|meeting|course|show|party')}"
                )
            ),
            "",
            "",
        ),
        _EVENT,
    ),
    Kind("trip", False, Part("number|flight|train|id|code|trip", _CODE, "", ""), _TRIP),
    Kind("house", False, Part("address|street|where|home", _same(_address), "", ""), _HOME),
    Kind(
        "book",
        False,
        Part(
            "title|book|name|film|album|work",
            _same(lambda r: " ".join(w.capitalize() for w in f"{either(r, 'the |a |my |the |')}{words.phrase(r)}".split())),
            "",
            "",
        ),
        _BOOK,
    ),
    Kind(
        "payment",
        False,
        Part(
            "reference|id|invoice|number|ref",
            _same(lambda r: words.code(r) if r.random() < 0.6 else str(r.randint(100, 99999))),
            "",
            "",
        ),
        _PAYMENT,
    ),
    Kind("sensor", False, Part("sensor|device|id|name|unit", _CODE, "", ""), _SENSOR),
    Kind("team", False, Part("team|club|side|home", _CITY, "", ""), _MATCH),
    Kind("pet", False, Part("name|pet|patient|animal_name", _same(words.first_name), "", ""), _ANIMAL),
    Kind(
        "car",
        False,
        Part(
            "make|vehicle|model|car|what",
            _same(lambda r: f"{words.made_up(r).capitalize()}{either(r, '| S| 200| GT| Combi')}"),
            "",
            "",
        ),
        _VEHICLE,
    ),
    Kind(
        "company",
        False,
        Part(
            "company|name|firm|business",
            _same(lambda r: f"{words.made_up(r).capitalize()}{either(r, '| Ltd| Group| Foods| & Co|tec')}"),
            "",
            "",
        ),
        _COMPANY,
    ),
    Kind(
        "dish",
        False,
        Part(
            "dish|recipe|name|meal|food",
            _same(lambda r: f"{words.word(r)} {either(r, 'soup|stew|cake|salad|pie|curry|bread|pasta|omelette|pudding')}"),
            "",
            "",
        ),
        _DISH,
    ),
    Kind("vacancy", False, Part("title|job|position|role|vacancy", _one(_JOBS), "", ""), _JOB),
)

"""Sentences and prompts written by hand, in words that no generator knows; for evaluation, never trained on."""

import json
from collections.abc import Sequence
from typing import Any

from diffusiongemma.errors import InputError
from diffusiongemma.tasks.base import Example, example_rng
from diffusiongemma.tasks.generated import same_json
from diffusiongemma.tasks.identity import ANSWERS, says_what_it_is

__all__ = ["EXTRACT_PEOPLE", "OUT_OF_SCOPE_PEOPLE", "WrittenTask"]

_E = "Extract as JSON: "
_EXTRACT: tuple[tuple[str, dict[str, Any]], ...] = (
    (_E + "name (string), age (integer)\nKalrin is 31.", {"name": "Kalrin", "age": 31}),
    (_E + "name (string), age (integer)\nMy grandmother Edith blew out 88 candles on Sunday.", {"name": "Edith", "age": 88}),
    (
        _E + ("name (string), city (string)\nAfter the divorce, Tobias packed his bags and started over in Halifax."),
        {"name": "Tobias", "city": "Halifax"},
    ),
    (
        _E + ("name, job\nFor thirty years Mrs. Okonkwo has been delivering babies as a midwife."),
        {"name": "Mrs. Okonkwo", "job": "midwife"},
    ),
    (
        _E + ("product (string), price (number)\nThe vacuum cleaner was reduced to 89.99 in the winter sale."),
        {"product": "vacuum cleaner", "price": 89.99},
    ),
    (_E + "item, quantity\nCould you put 14 lightbulbs on the shopping list?", {"item": "lightbulbs", "quantity": 14}),
    (
        _E + ("title (string), author (string)\nLast night I finished Middlemarch, that endless thing George Eliot left us."),
        {"title": "Middlemarch", "author": "George Eliot"},
    ),
    (_E + "team (string), points (integer)\nSaints walked off the court with 97 on the board.", {"team": "Saints", "points": 97}),
    (
        _E + ("sender (string), amount (number)\nThere's 45.20 in your account, courtesy of Uncle Bert."),
        {"sender": "Uncle Bert", "amount": 45.2},
    ),
    (_E + "name (string), phone (string)\nIf anything breaks, ring Dmitri on 555-0142.", {"name": "Dmitri", "phone": "555-0142"}),
    (
        _E + ("event (string), city (string)\nBakers from all over Europe will gather for the Bread Summit, this time in Ghent."),
        {"event": "Bread Summit", "city": "Ghent"},
    ),
    (
        _E + ("patient (string), temperature (number)\nThe thermometer under little Joey's arm said 38.7."),
        {"patient": "Joey", "temperature": 38.7},
    ),
    (
        _E + ("flight (string), gate (integer)\nPassengers on LH441 should make their way to gate 22 now."),
        {"flight": "LH441", "gate": 22},
    ),
    (
        _E
        + (
            "flight (string), destination (string), delay (integer)\nBad luck: BA117 won't push back for "
            "another 40 minutes, so New York has to wait."
        ),
        {"flight": "BA117", "destination": "New York", "delay": 40},
    ),
    (
        _E + ("name (string), email (string)\nDrop Felicity a line, she checks felicity@marsh.co every evening."),
        {"name": "Felicity", "email": "felicity@marsh.co"},
    ),
    (
        _E + ("date (string), place (string)\nWe tied the knot in Ravenna on 12 June 2014."),
        {"date": "2014-06-12", "place": "Ravenna"},
    ),
    (
        _E + ("name (string), born (string)\nBaby Olive arrived on March 3, 2021, two weeks early."),
        {"name": "Olive", "born": "2021-03-03"},
    ),
    (
        _E + ("animal (string), weight (number)\nOn the vet's scales our dachshund reached 11.3 kilos."),
        {"animal": "dachshund", "weight": 11.3},
    ),
    (
        _E + ("student (string), grade (string)\nMarcus was thrilled to find a B+ under his essay."),
        {"student": "Marcus", "grade": "B+"},
    ),
    (
        _E + ("room (string), floor (integer)\nYou'll find the copy room two doors past the lift once you get out on level 5."),
        {"room": "copy room", "floor": 5},
    ),
    (
        _E + ("name (string), age (integer), city (string)\nAt only 19, Ingrid already runs a bakery back in Bergen."),
        {"name": "Ingrid", "age": 19, "city": "Bergen"},
    ),
    (
        _E + ("name (string), job (string), city (string)\nThe best tailor I know is an old man called Yusef down in Izmir."),
        {"name": "Yusef", "job": "tailor", "city": "Izmir"},
    ),
    (
        _E + ("product (string), colour (string), size (string)\nDo you still have those sandals in navy, size M?"),
        {"product": "sandals", "colour": "navy", "size": "M"},
    ),
    (
        _E + ("make (string), year (integer), km (integer)\nSelling my trusty Skoda from 2011, 142000 on the clock."),
        {"make": "Skoda", "year": 2011, "km": 142000},
    ),
    (
        _E
        + ("title (string), year (integer), pages (integer)\nShe held up Dust, all 312 pages of it, fresh off the press in 1998."),
        {"title": "Dust", "year": 1998, "pages": 312},
    ),
    (
        _E + ("winner (string), loser (string), score (string)\nIt ended 3-1: Norwich celebrated and Derby went home."),
        {"winner": "Norwich", "loser": "Derby", "score": "3-1"},
    ),
    (
        _E + ("from (string), to (string), time (string)\nThe sleeper pulls out of Inverness at 20:45 and you wake up in Euston."),
        {"from": "Inverness", "to": "Euston", "time": "20:45"},
    ),
    (
        _E
        + (
            "company (string), founder (string), year (integer)\nBack in 1976 a certain Anita rented a shop "
            "in Brighton, and that is how Bodyline began."
        ),
        {"company": "Bodyline", "founder": "Anita", "year": 1976},
    ),
    (_E + "name (string), married (boolean)\nGeraldine never bothered with a wedding.", {"name": "Geraldine", "married": False}),
    (_E + "order (string), paid (boolean)\nThe money for order K-881 came in this morning.", {"order": "K-881", "paid": True}),
    (
        _E
        + (
            "device (string), battery (integer), online (boolean)\nThermostat T9 answers again, though it "
            "has just 17 percent juice."
        ),
        {"device": "T9", "battery": 17, "online": True},
    ),
    (
        _E
        + (
            "dish (string), minutes (integer), servings (integer)\nThis lentil stew feeds 6 and is done "
            "after 35 minutes on the stove."
        ),
        {"dish": "lentil stew", "minutes": 35, "servings": 6},
    ),
    (_E + "ingredients (list of strings)\nAll it takes is flour, water and salt.", {"ingredients": ["flour", "water", "salt"]}),
    (
        _E + ("guests (list of strings)\nI've set places for Monica, Rafa and old Mr. Quint."),
        {"guests": ["Monica", "Rafa", "Mr. Quint"]},
    ),
    (
        _E
        + (
            "name (string), languages (list of strings)\nOur guide Pilar switched between Catalan, French "
            "and English without blinking."
        ),
        {"name": "Pilar", "languages": ["Catalan", "French", "English"]},
    ),
    (
        _E + ("countries (list of strings)\nOn the trip we crossed Laos, then Vietnam, and finally Cambodia."),
        {"countries": ["Laos", "Vietnam", "Cambodia"]},
    ),
    (
        _E + ("name (string), skills (list of strings)\nTamsin juggles, sews and fixes bikes."),
        {"name": "Tamsin", "skills": ["juggles", "sews", "fixes bikes"]},
    ),
    (
        _E
        + (
            "street (string), city (string), rooms (integer)\nAvailable soon: bright 3-room place on Linden "
            "Row, a stone's throw from the centre of Graz."
        ),
        {"street": "Linden Row", "city": "Graz", "rooms": 3},
    ),
    (
        _E
        + (
            "rent (integer), area (integer), garden (boolean)\n74 square metres and a little garden at the "
            "back, and they only want 830."
        ),
        {"rent": 830, "area": 74, "garden": True},
    ),
    (
        _E + ("address (string), price (integer)\nSomeone snapped up 9 Cedar Close for 415000."),
        {"address": "9 Cedar Close", "price": 415000},
    ),
    (
        _E + ("name (string), address {street (string), city (string)}\nPost the parcel to Hollis, Mill Lane 4, Truro."),
        {"name": "Hollis", "address": {"street": "Mill Lane 4", "city": "Truro"}},
    ),
    (
        _E + ("invoice (string), customer {name (string), city (string)}\nInvoice 2207 is for Petra, our client over in Linz."),
        {"invoice": "2207", "customer": {"name": "Petra", "city": "Linz"}},
    ),
    (
        _E
        + (
            "title (string), date (string), start (string), host (string)\nJoin Wilma for Open Kitchen on 9 "
            "October 2026, doors at 18:30."
        ),
        {"title": "Open Kitchen", "date": "2026-10-09", "start": "18:30", "host": "Wilma"},
    ),
    (
        _E
        + (
            "name (string), age (integer), job (string), hobby (string)\nNobody in the fire brigade knits "
            "like Bruno, 44, who drives the engine and works as a mechanic; yes, knitting is his thing."
        ),
        {"name": "Bruno", "age": 44, "job": "mechanic", "hobby": "knitting"},
    ),
    (
        _E
        + (
            "item (string), quantity (integer), price (number), customer (string)\nRing up 3 umbrellas at "
            "12.50 each, they are for Mr. Lund."
        ),
        {"item": "umbrellas", "quantity": 3, "price": 12.5, "customer": "Mr. Lund"},
    ),
    (
        _E
        + (
            "sensor (string), humidity (integer), site (string), time (string)\nAround 06:10 the greenhouse "
            "in Delft got sticky: probe G4 logged 91 percent."
        ),
        {"sensor": "G4", "humidity": 91, "site": "Delft", "time": "06:10"},
    ),
    (
        _E
        + (
            "payer (string), payee (string), amount (number), date (string)\nOn May 5, 2025 Harriet finally "
            "settled the 300.75 she owed Kwame."
        ),
        {"payer": "Harriet", "payee": "Kwame", "amount": 300.75, "date": "2025-05-05"},
    ),
    (
        _E
        + (
            "name (string), species (string), age (integer), owner (string), vaccinated (boolean)\nMrs. "
            "Abbot brought in Pickles, a seven-year-old tortoise that still needs its shots."
        ),
        {"name": "Pickles", "species": "tortoise", "age": 7, "owner": "Mrs. Abbot", "vaccinated": False},
    ),
    (
        _E
        + (
            "company (string), role (string), salary (integer), remote (boolean), city (string)\nHuxley Ltd "
            "in Cork is hunting for a beekeeper: 31000 a year, and you must turn up in person."
        ),
        {"company": "Huxley Ltd", "role": "beekeeper", "salary": 31000, "remote": False, "city": "Cork"},
    ),
    (
        _E
        + (
            "make (string), colour (string), year (integer), price (integer), seller (string), km "
            "(integer)\nGot a red Volvo here, 2015, 88000 km, make me an offer around 7200. Ask for Lionel."
        ),
        {"make": "Volvo", "colour": "red", "year": 2015, "price": 7200, "seller": "Lionel", "km": 88000},
    ),
    (
        ("Give me the name and the age as JSON: Old Barnaby just hit 70 and won't stop talking about it."),
        {"name": "Barnaby", "age": 70},
    ),
    (
        ("I need JSON with destination and price.\nThey charged us 64.90 for the ferry to Gotland!"),
        {"destination": "Gotland", "price": 64.9},
    ),
    ("Get winner and prize as JSON: first place and a brand new canoe went to Thandi", {"winner": "Thandi", "prize": "canoe"}),
    ("Quiet please, chess club meets in B12 at 16:00.\n\nJSON with room and time, please.", {"room": "B12", "time": "16:00"}),
    (
        ('Return {name, country}: "The goalkeeper, Sunniva, comes all the way from Norway."'),
        {"name": "Sunniva", "country": "Norway"},
    ),
    (
        ("Turn into JSON (keys: lake, depth): Divers measured 406 metres at the bottom of Lake Como."),
        {"lake": "Lake Como", "depth": 406},
    ),
    (
        ("Which band, which album? Answer as JSON with band and album.\nMy brother keeps playing Tremor by The Mudlarks."),
        {"band": "The Mudlarks", "album": "Tremor"},
    ),
    ("Parse to JSON: player, number\nThe crowd went wild for number 23, young Esposito.", {"player": "Esposito", "number": 23}),
    ("Fields wanted: doctor, day. JSON only.\nDr Menon can squeeze you in on Thursday.", {"doctor": "Dr Menon", "day": "Thursday"}),
    (
        ("JSON: cheese, grams, cheese shop\nHalf a wheel? No, just 250 grams of gouda from Pruitt's, thanks."),
        {"cheese": "gouda", "grams": 250, "cheese shop": "Pruitt's"},
    ),
)

_OUT_OF_SCOPE = [
    "hello",
    "Hey, anyone home?",
    "yo nano",
    "hi, I'm Beatrix",
    "Good afternoon to you",
    "morning!",
    "Hiya",
    "what's going on",
    "Long time no see",
    "Hello my friend",
    "Cheers mate",
    "thx",
    "see ya later",
    "hmm",
    "whatever",
    "okay then",
    "That was fun",
    "Testing 123",
    "never mind",
    "Good luck",
    "Who built you?",
    "What sort of thing are you?",
    "Tell me who I'm talking to",
    "Are you a person?",
    "Are you like GPT-4?",
    "How smart are you really?",
    "What's your purpose?",
    "Do you have a body?",
    "What are your limits?",
    "Are you conscious?",
    "What languages do you speak?",
    "Do you remember me?",
    "Can you see pictures?",
    "how do you even work",
    "Is there a human behind this?",
    "Give me a list of your features",
    "What company owns you?",
    "May I ask you something?",
    "What data were you trained on?",
    "What's your favourite food?",
    "What is the capital of Mongolia?",
    "Why is the sky blue?",
    "Who painted the Mona Lisa?",
    "How tall is Mount Everest?",
    "When did World War II end?",
    "What's the boiling point of water?",
    "How many bones does a human have?",
    "Is Pluto a planet?",
    "Who wrote Hamlet?",
    "What is photosynthesis?",
    "What's the speed of light?",
    "How do vaccines work?",
    "Where do penguins live?",
    "Which river flows through Cairo?",
    "What is inflation?",
    "How do magnets work?",
    "Who discovered penicillin?",
    "What does DNA stand for?",
    "Why do cats purr?",
    "What's the tallest building in the world?",
    "Is coffee bad for you?",
    "How do I lose weight?",
    "Should I buy a house now?",
    "What's a good present for my dad?",
    "How can I fall asleep faster?",
    "What shall I cook tonight?",
    "Which phone should I get?",
    "Is it going to snow tomorrow?",
    "How much is a ticket to Rome?",
    "What day is Easter next year?",
    "Who is the prime minister of Canada?",
    "Who won the Champions League in 2012?",
    "What happened on 9 November 1989?",
    "How old is the universe?",
    "Tell me about black holes",
    "Explain quantum mechanics to a child",
    "What is the plot of Moby Dick?",
    "What rhymes with orange?",
    "How far is the moon?",
    "Can dogs eat chocolate?",
    "What's the difference between a crocodile and an alligator?",
    "Is a tomato a fruit?",
    "Why did the Roman Empire fall?",
    "What is the meaning of the word serendipity?",
    "Give me three facts about Iceland",
    "How many continents are there?",
    "Which planet has rings?",
    "what is love",
    "define entropy",
    "best beaches in portugal",
    "weather tomorrow",
    "bitcoin price",
    "news",
    "How do I get a passport?",
    "Is the earth flat?",
    "Do aliens exist?",
    "What should I name my cat?",
    "My back hurts, what can I do?",
    "I feel lonely",
    "I lost my keys",
    "What would Socrates say?",
    "Write a poem about the sea",
    "Write a sonnet for my wife",
    "Tell me a bedtime story",
    "Tell me something funny",
    "Write a cover letter",
    "Draft an apology to my boss",
    "Write a short story about a lighthouse keeper",
    "Give me a rap verse",
    "Compose a haiku about rain",
    "Write a eulogy",
    "Help me with my homework",
    "Write a five paragraph essay about climate change",
    "Summarise War and Peace",
    "Make up a riddle",
    "Plan a weekend in Prague",
    "Give me a workout plan",
    "Suggest a title for my novel",
    "Write wedding vows",
    "Write a LinkedIn post",
    "Draw me a horse",
    "Roleplay as a pirate",
    "Pretend you are my teacher",
    "Talk like Yoda",
    "Describe a sunset",
    "Write the lyrics of a pop song",
    "Write a Python script that downloads a web page",
    "Implement a linked list in C",
    "How do I reverse a string in Java?",
    "What is a segmentation fault?",
    "Explain async await",
    "Write a React component for a login form",
    "Make a snake game",
    "How do I undo a git commit?",
    "Write a SQL join",
    "Create a REST API with Flask",
    "Write a makefile",
    "Why is my loop infinite?",
    "What's the time complexity of merge sort?",
    "Write fizzbuzz",
    "How do I exit vim?",
    "Set up nginx as a reverse proxy",
    "Write a unit test in Rust",
    "Explain Docker to me",
    "Write a regular expression for emails",
    "How do I parse XML in Go?",
    "Wie heißt du?",
    "Wie wird das Wetter morgen?",
    "Kannst du Deutsch?",
    "Was kannst du alles?",
    "Erzähl mir etwas über Berlin",
    "Comment tu t'appelles ?",
    "Où habites-tu ?",
    "Parle-moi de Paris",
    "J'ai besoin d'aide",
    "¿Qué puedes hacer?",
    "¿Hablas español?",
    "Dime algo interesante",
    "Come ti chiami?",
    "Parli italiano?",
    "Qual é o seu nome?",
    "Spreek je Nederlands?",
    "Vad heter du?",
    "Co potrafisz?",
    "Sen kimsin?",
    "Что ты умеешь?",
    "Добрый день",
    "Сколько тебе лет?",
    "你叫什么名字?",
    "请写一首诗",
    "おはようございます",
    "日本の首都はどこですか",
    "이름이 뭐예요?",
    "ما اسمك؟",
    "तुम क्या कर सकते हो?",
    "מי אתה?",
    "asdfghjkl",
    "qwerty",
    "xkcd",
    "lkjh poiu",
    ";;;;",
    "???",
    "!!!",
    "...",
    "42",
    "1234567",
    "0",
    "zzzzzzz",
    "a",
    "blarg flib snork",
    "<><><>",
    "#@$%^",
    "foo bar baz",
    "jjjj kkkk",
    "mlem",
    ":-)",
    "9z9z9z",
    "uh",
    "%%%",
    "nope nope nope",
]


class WrittenTask:
    """A task with a fixed number of examples that were written by hand.

    Args:
        name: of the task.
        summary: one line.
        examples: all of them.
        json_answers: judged as JSON; else by what the model says of itself.
    """

    def __init__(self, name: str, summary: str, examples: Sequence[Example], json_answers: bool) -> None:
        self.name, self.summary, self.max_tokens = name, summary, 128
        self._examples, self._json = tuple(examples), json_answers

    @property
    def count(self) -> int:
        """See ``CountedTask``."""
        return len(self._examples)

    def examples(self, count: int, seed: int) -> Sequence[Example]:
        """See ``Task``; the seed decides which, and their order."""
        if count > self.count:
            raise InputError(f"{self.name} has {self.count} examples; ask for no more")
        return example_rng(self.name, seed, 0).sample(self._examples, self.count)[:count]

    def score(self, example: Example, text: str) -> float:
        """See ``Task``."""
        return same_json(example, text) if self._json else says_what_it_is(example, text)


EXTRACT_PEOPLE = WrittenTask(
    "json-extract-people",
    "JSON from sentences that people wrote, exact match",
    [Example(prompt, json.dumps(expected, ensure_ascii=False), detail={"expected": expected}) for prompt, expected in _EXTRACT],
    json_answers=True,
)
OUT_OF_SCOPE_PEOPLE = WrittenTask(
    "out-of-scope-people",
    "prompts of no task that people wrote, answered by what the model is",
    [Example(prompt, ANSWERS["question"]) for prompt in _OUT_OF_SCOPE],
    json_answers=False,
)

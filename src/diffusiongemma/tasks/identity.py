"""What a small demonstration says to what it cannot do: who it is, and what to try; and the greetings that it is greeted with.

The answer is one of a few fixed texts, chosen by the kind of the prompt, so that training has one right answer for each.
"""

import random

from diffusiongemma.tasks import words
from diffusiongemma.tasks.base import Example
from diffusiongemma.tasks.generated import GeneratedTask
from diffusiongemma.tasks.words import either

__all__ = ["ANSWERS", "IDENTITY", "says_what_it_is"]

_TRY = "Try: Extract as JSON: name, age. Ada is 36."
"""One that works."""
ANSWERS = {
    "greeting": f"Hello! I am nano, a 3 M-parameter demonstration. {_TRY}",
    "who": f"I am nano, a 3 M-parameter demonstration of text diffusion. {_TRY}",
    "question": f"I am nano, a 3 M-parameter demonstration, and know no facts. {_TRY}",
    "writing": f"I am nano, a 3 M-parameter demonstration, and write no texts. {_TRY}",
    "code": f"I am nano, a 3 M-parameter demonstration, and write no programs. {_TRY}",
    "language": f"I am nano, a 3 M-parameter demonstration, and know little English only. {_TRY}",
    "noise": f"I am nano, a 3 M-parameter demonstration, and did not understand this. {_TRY}",
}
"""By the kind of the prompt."""

_GREETINGS = (
    "hello|hi|hey|Hello!|Hi!|Hi there|Hello there!|good morning|Good evening!|Hey nano|hi nano|Hello "
    "nano!|hey, how are you?|How are you?|"
    "What's up?|sup|Good day|Greetings|yo|howdy|Hello, how are you doing today?|Nice to meet you|"
    "hello world|Hello again|hi!!|test|ping|"
    "Are you there?|Anybody there?|thanks|Thank you!|ok|bye|Goodbye|good night|cool|nice|great|"
    "please|yes|no|help|Help me|Hi, {p} here|"
    "Hello, my name is {p}|hi I'm {p}|hey {p}|Good morning, {p}|lol|haha|wow|sorry|welcome|start|"
    "menu|go on|Thanks a lot|see you|well done"
)
_WHO = (
    "Who are you?|What are you?|What is your name?|What's your name?|Are you a robot?|Are you "
    "ChatGPT?|Are you human?|Which model are you?|"
    "Who made you?|What can you do?|What do you do?|Tell me about yourself|Introduce yourself.|what is this|What are you good at?|"
    "How do you work?|How many parameters do you have?|What model is this?|Are you an AI?|Can you help me?|What should I ask you?|"
    "What do you know?|Do you speak English?|Can you talk?|How big are you?|Are you alive?|How old are you?|Where are you from?|"
    "Are you {p}?|Can you {v}?|Do you like {n}?|Do you {v} {n}?|Who trained you?|What language model "
    "am I talking to?|Are you smart?|"
    "What is nano?|Describe yourself|Do you have feelings?|Are you Gemma?|what can i do here|how do I use you|Do you dream?"
)
_QUESTIONS = (
    "What is the capital of {c}?|Who is {p}?|Who was {p} {q}?|Why is the {n} {a}?|How far is {c} from {d}?|When was {c} founded?|"
    "What is a {n}?|What does {w} mean?|Where can I {v} a {n}?|How do I {v} a {n}?|How many {ns} are "
    "there in the world?|Is {c} {a}?|"
    "Why do {ns} {v}?|What is the {a}est {n}?|Who invented the {n}?|Which {n} is best?|What is the "
    "weather in {c}?|What time is it?|"
    "What day is today?|How old is {p}?|Where is {c}?|Can {ns} {v}?|Should I {v} my {n}?|Do {ns} {v} "
    "in winter?|What happened in {y}?|"
    "Who won the {n} in {y}?|Tell me about {c}|Tell me something about {ns}.|Explain {n}|Explain how a {n} works.|What causes {n}?|"
    "Who wrote {t}?|What is the difference between a {n} and a {m}?|How much does a {n} cost in {c}?|"
    "What is the population of {c}?|"
    "Is it true that {ns} {v}?|Give me advice about my {n}.|What should I {v} today?|How can I become {a}?|Why are {ns} {a}?|"
    "What colour is the {n}?|Recommend a {n} in {c}|How long does it take to {v} a {n}?|What do {ns} "
    "eat?|Who is the president of {c}?|"
    "When does the {n} open?|Which country has the most {ns}?|What's the best way to {v}?|Is a {n} better than a {m}?|"
    "How does the {n} {v}?|What is the meaning of life?|Are {ns} dangerous?|Did {p} {v} the {n}?|What was {p} famous for?|"
    "I have a {n} and feel {a}, what should I do?|My {n} is {a}. Why?|Name three {ns} from {c}.|List "
    "the {ns} of {c}|What is {k} in roman numerals?|"
    "Solve x^2 + {k}x = {y}|What is the square root of {y}?|Prove that {n} is {a}.|Is {y} a prime "
    "number?|Define {n}.|{n}?|{n} in {c}?|"
    "Who discovered {n}?|What year did {p} {v} {c}?|How tall is the {n} of {c}?|Why did {p} leave {c}?|what is {w}|where is {p} now"
)
_WRITING = (
    "Write a poem about {ns}.|Write a story about a {a} {n}.|Tell me a joke|Tell me a joke about {ns}.|Write an essay on {n}.|"
    "Write a letter to {p}.|Compose a song about {c}|Tell me a story|Write me a haiku|Write an email "
    "to my {n}|Make up a fairy tale with a {n}|"
    "Summarise the history of {c}.|Write a speech for {p}|Invent a name for my {n}|Write a recipe "
    "for {n} soup|Describe {c} in spring.|"
    "Write a review of the {n}|Draft a tweet about {ns}|Give me a slogan for {ns}|Write a love "
    "letter|Continue the story: {p} saw a {n}|"
    "Write a limerick about {p}|Please write a paragraph about {n}s|Sing me a song|Rap about {c}|"
    "Create a dialogue between {p} and {q}.|"
    "Write a blog post about {n} and {m}|Plan a trip to {c}|Plan my week|Give me ideas for a {a} {n}|Brainstorm names for a {n}|"
    "Write a birthday card for {p}|Draw a {n}|Paint me a {a} {n}|Generate an image of {c}|Make me "
    "laugh|Write a product description for a {n}|"
    "Paraphrase the works of {p}|Once upon a time there was a {n}|Write a news article about {c}|Write ten facts about {ns}"
)
_CODE = (
    "Write a Python function that {v}s a {n}|Write a program to {v} {ns}.|How do I {v} a list in Python?|Write code for a {n}|"
    "Write a JavaScript {n}|Implement quicksort|Implement a {n} in Rust|Make a website for {ns}|Write a SQL query for {ns}|"
    "Code me a game|Write a regex for {ns}|Write a binary search in C|Debug my program|Why does my "
    "code crash?|Build an app for {c}|"
    "Create a class {n} in Java|Write a unit test for {n}|How do I install {w}?|Write a bash script to {v} files|Explain recursion|"
    "Fix my bug|What does this error mean: {w}Error|Write a function to compute fibonacci|Can you "
    "code in Python?|Write HTML for a {n} page|"
    "Generate a Dockerfile for {w}|Write me a {n} simulator|Program a {n}|Refactor my project|Write an algorithm that {v}s {ns}|"
    "How do I center a div?|Convert my Python to C++|Write a {n} sort in Go|What is a pointer?|git "
    "push does not work|Set up a {n} server"
)
_FOREIGN = (
    "Wie geht es dir?|Was ist die Hauptstadt von {c}?|Guten Tag|Hallo, wer bist du?|Erzähl mir einen "
    "Witz|Schreib ein Gedicht über {c}|"
    "Bonjour|Comment ça va?|Quelle est la capitale de {c}?|Raconte-moi une histoire|Qui es-tu?|Je ne "
    "comprends pas|Merci beaucoup {p}|"
    "Hola, ¿cómo estás?|¿Cuál es la capital de {c}?|¿Quién eres?|Cuéntame un chiste|Buenos días, {p}|Me llamo {p}|Ciao, come stai?|"
    "Chi sei?|Qual è la capitale di {c}?|Olá, tudo bem?|Quem é você?|Hoe gaat het?|Wie ben jij?|Hej, hur mår du?|Merhaba|Nasılsın?|"
    "Cześć, jak się masz?|Kim jesteś?|Привет|Как дела?|Кто ты?|Расскажи сказку|"
    "你好|你是谁?|今天天气怎么样?|こんにちは|あなたは誰ですか|안녕하세요|"
    "مرحبا|من أنت؟|नमस्ते|आप कौन हैं?|שלום|γεια σου|Xin chào|Salve, quid agis?|Où est {c}?|Wo liegt "
    "{c}?|¿Dónde está {c}?|Dov'è {c}?|"
    "Warum ist der Himmel blau?|Pourquoi le ciel est bleu?|Ich heiße {p} und wohne in {c}|Je "
    "m'appelle {p} et j'habite à {c}|Hvad hedder du?|"
    "Ich möchte ein Bier|Übersetze das bitte|Traduis ce texte|¿Qué hora es?|Wie spät ist es?|Kannst "
    "du mir helfen?|Peux-tu m'aider?|Jak się nazywasz?"
)


def _fill(rng: random.Random, forms: str) -> str:
    form = either(rng, forms)
    noun = rng.choice(words.NOUNS)
    return form.format(
        p=words.first_name(rng), q=words.first_name(rng), c=words.city(rng), d=words.city(rng), n=noun, ns=words.plural(noun),
        m=rng.choice(words.NOUNS), a=rng.choice(words.ADJECTIVES), v=rng.choice(words.VERBS), w=words.made_up(rng),
        k=rng.randint(2, 99),
        y=rng.randint(100, 2030), t=words.phrase(rng).title(),
    )  # fmt: skip


def _noise(rng: random.Random) -> str:
    kind = rng.random()
    if kind < 0.3:
        return "".join(rng.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(rng.randint(2, 14)))
    if kind < 0.5:
        return " ".join(
            "".join(rng.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(rng.randint(1, 8))) for _ in range(rng.randint(2, 6))
        )
    if kind < 0.65:
        return "".join(rng.choice("!?.,;:#*+-_=/()[]{}<>%&$@~^|") for _ in range(rng.randint(1, 10)))
    if kind < 0.75:
        return "".join(rng.choice("0123456789") for _ in range(rng.randint(1, 12)))
    if kind < 0.9:
        return (
            "".join(
                rng.choice("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789!?#-_ ")
                for _ in range(rng.randint(3, 30))
            ).strip()
            or "?"
        )
    return rng.choice("abcdefghijklmnopqrstuvwxyz?!.") * rng.randint(1, 12)


def _varied(rng: random.Random, text: str) -> str:
    """The same text as people type it."""
    kind = rng.random()
    if kind < 0.2:
        text = text.lower()
    elif kind < 0.25:
        text = text.upper()
    if rng.random() < 0.25:
        text = text.rstrip("?.!")
    if rng.random() < 0.12:
        text = either(
            rng,
            (
                "Please: {}|Hi! {}|Hello, {}|Can you tell me: {}|ok, {}|Question: {}|nano, {}|{} Please!|{} "
                "thanks|So, {}|I want to know: {}"
            ),
        ).replace("{}", text)
    if rng.random() < 0.06 and len(text) > 5:
        at = rng.randrange(1, len(text) - 1)
        text = text[:at] + text[at + 1 :]
    return text


def _make(rng: random.Random) -> Example:
    kind = rng.choices(sorted(ANSWERS), [{"question": 4, "greeting": 1.5, "who": 1.5}.get(name, 1.5) for name in sorted(ANSWERS)])[
        0
    ]
    if kind == "noise":
        prompt = _noise(rng)
    else:
        forms = {
            "greeting": _GREETINGS,
            "who": _WHO,
            "question": _QUESTIONS,
            "writing": _WRITING,
            "code": _CODE,
            "language": _FOREIGN,
        }
        prompt = _fill(rng, forms[kind])
        prompt = _varied(rng, prompt) if kind != "language" else prompt
    return Example(prompt, ANSWERS[kind], group=kind)


def says_what_it_is(example: Example, text: str) -> float:
    """1 for any of the fixed texts: which of them is a matter of taste."""
    return float(text.strip() in ANSWERS.values())


IDENTITY = GeneratedTask(
    "out-of-scope", ("prompts of no task, answered by what the model is and what to try"), _make, says_what_it_is, 64
)

"""Rows of a needle in a haystack: one sentence that matters somewhere in a long text.

python tools/evals/needle.py needle.jsonl --words 500 4000 32000
diffusiongemma eval needle.jsonl --model FOLDER
"""

import argparse
import json
import random
from pathlib import Path

NOUNS = ("river", "market", "garden", "station", "library", "harbour", "kitchen", "bridge", "forest", "office", "window", "road")
ADJECTIVES = ("old", "quiet", "broad", "narrow", "green", "busy", "empty", "bright", "cold", "wooden", "distant", "small")
VERBS = ("stands near", "leads to", "belongs to", "was built before", "looks like", "is larger than", "lies behind", "faces")
CITIES = ("Alvyford", "Perraburg", "Olraham", "Norvyk", "Belonmouth", "Kalrinstad")


def row(words: int, depth: float, rng: random.Random) -> dict[str, object]:
    """A text of about so many words with the needle after that share of it; no sentence of the haystack has a number."""
    city, code = rng.choice(CITIES), str(rng.randrange(10_000, 100_000))
    sentences = []
    while sum(len(sentence.split()) for sentence in sentences) < words:
        one, other = (f"the {rng.choice(ADJECTIVES)} {rng.choice(NOUNS)}" for _ in range(2))
        sentences.append(f"{one.capitalize()} {rng.choice(VERBS)} {other}.")
    sentences.insert(round(depth * len(sentences)), f"The code of {city} is {code}.")
    question = f"What is the code of {city}? Answer with the number alone."
    return {
        "prompt": " ".join(sentences) + "\n\n" + question, "answer": code, "match": "contains", "max_tokens": 16,
        "group": f"{words} words, at {depth:.0%}",
    }  # fmt: skip


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--words", type=int, nargs="+", default=[250, 1000, 4000])
    parser.add_argument("--depths", type=float, nargs="+", default=[0.0, 0.25, 0.5, 0.75, 1.0])
    parser.add_argument("--each", type=int, default=4, help="rows of each length and depth")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    rng = random.Random(given.seed)
    rows = [row(words, depth, rng) for words in given.words for depth in given.depths for _ in range(given.each)]
    given.out.write_text("".join(json.dumps(one) + "\n" for one in rows))


if __name__ == "__main__":
    main()

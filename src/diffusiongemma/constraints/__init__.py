"""What a text may be: a JSON schema, any JSON object, a regular expression, choices, a context-free grammar, or a reply with calls.

``compile_grammar(Constraint.json_schema(...), Vocabulary.of(tokenizer, stop_ids))`` gives a ``Grammar``; its ``start()`` gives a
``Cursor``, which says token by token what may follow, what must, and how the text can be brought to an end.
"""

from diffusiongemma.constraints.constraint import Constraint, ResponseFormat, Spacing
from diffusiongemma.constraints.cursor import Cursor
from diffusiongemma.constraints.grammar import Grammar, compile_grammar
from diffusiongemma.constraints.process import Gone
from diffusiongemma.constraints.remote import AnyCursor, RemoteCursor
from diffusiongemma.constraints.reply import ReplyCursor, ReplyGrammar
from diffusiongemma.constraints.validity import Validator
from diffusiongemma.constraints.vocabulary import Vocabulary

__all__ = [
    "AnyCursor",
    "Constraint",
    "Cursor",
    "Gone",
    "Grammar",
    "RemoteCursor",
    "ReplyCursor",
    "ReplyGrammar",
    "ResponseFormat",
    "Spacing",
    "Validator",
    "Vocabulary",
    "compile_grammar",
]

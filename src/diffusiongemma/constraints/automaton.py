"""The shortest end of a text that a regular expression accepts: a non-deterministic automaton with distances."""

from collections import deque

from diffusiongemma.constraints.regex import Chars, Choice, Node, Row

__all__ = ["Automaton"]

_KEPT = 1 << 18
"""States in the sets of states that are kept, all together: some megabytes."""


class Automaton:
    """States of a pattern, each with its distance in characters to the end.

    Args:
        node: a pattern of moderate size (``regex.parse`` sees to that).

    Attributes:
        steps: characters read so far, and states looked at for them.
    """

    def __init__(self, node: Node) -> None:
        self._edges: list[list[tuple[Chars | None, int]]] = []  # None: without a character
        self._last = self._state()
        self._first = self._build(node, self._last)
        self._next = self._distances()
        self._seen: dict[tuple[frozenset[int], str], frozenset[int]] = {}
        self._room = _KEPT
        self.steps = 0
        self._start = self._close({self._first})
        self._last_text = ("", self._start)

    def complete(self, text: str) -> str | None:
        """The shortest text that makes ``text`` one that the pattern accepts; None where there is none."""
        return self._shortest(self._after(text))

    def accepts(self, text: str) -> bool:
        """Does the pattern match the text as a whole?"""
        return self._last in self._after(text)

    def __len__(self) -> int:
        return len(self._edges)

    def _after(self, text: str) -> frozenset[int]:
        """States in which it can be after a text; most are asked for after the text before and a little more."""
        known, states = self._last_text
        begin = len(known) if text.startswith(known) else 0
        if not begin:
            states = self._start
        self.steps += len(text) - begin
        for char in text[begin:]:
            states = self._step(states, char)
        self._last_text = (text, states)
        return states

    def _shortest(self, states: frozenset[int]) -> str | None:
        known = [state for state in states if state in self._next]
        if not known:
            return None
        state = min(known, key=lambda s: self._next[s][0])
        out = ""
        while state != self._last:
            _, char, state = self._next[state]
            out += char
        return out

    def _step(self, states: frozenset[int], char: str) -> frozenset[int]:
        key = (states, char)
        result = self._seen.get(key)
        if result is None:
            edges = ((on, to) for state in states for on, to in self._edges[state])
            self.steps += len(states)
            result = self._close({to for on, to in edges if on is not None and on.chars.has(char)})
            self._room -= len(states) + len(result)
            if self._room < 0:
                self._seen.clear()
                self._room = _KEPT
            self._seen[key] = result
        return result

    def _close(self, states: set[int]) -> frozenset[int]:
        todo = list(states)
        while todo:
            for on, to in self._edges[todo.pop()]:
                if on is None and to not in states:
                    states.add(to)
                    todo.append(to)
        return frozenset(states)

    def _state(self) -> int:
        self._edges.append([])
        return len(self._edges) - 1

    def _build(self, node: Node, then: int) -> int:
        """States for a node that go on to ``then``; returns the first."""
        if isinstance(node, Row):
            for part in reversed(node.parts):
                then = self._build(part, then)
            return then
        if isinstance(node, Choice):
            first = self._state()
            self._edges[first] = [(None, self._build(part, then)) for part in node.parts]
            return first
        if isinstance(node, Chars):
            first = self._state()
            self._edges[first].append((node, then))
            return first
        if node.high is None:
            loop = self._state()
            self._edges[loop] = [(None, then)]
            self._edges[loop].append((None, self._build(node.part, loop)))
            then = loop
        for _ in range(node.low, node.high or 0):
            skip = self._state()
            self._edges[skip] = [(None, then)]  # to the end of all optional rounds would be shorter; this is as right
            self._edges[skip].append((None, self._build(node.part, then)))
            then = skip
        for _ in range(node.low):
            then = self._build(node.part, then)
        return then

    def _distances(self) -> dict[int, tuple[int, str, int]]:
        """For each state that can reach the end: characters to it, the next one ("" for none), the next state."""
        back: list[list[tuple[int, str]]] = [[] for _ in self._edges]
        for state, edges in enumerate(self._edges):
            for on, to in edges:
                char = "" if on is None else on.pick
                if char is not None:
                    back[to].append((state, char))
        result: dict[int, tuple[int, str, int]] = {self._last: (0, "", self._last)}
        todo = deque([self._last])
        while todo:  # edges without a character cost nothing, so they go to the front
            state = todo.popleft()
            for before, char in back[state]:
                cost = result[state][0] + len(char)
                if before not in result or cost < result[before][0]:
                    result[before] = (cost, char, state)
                    (todo.append if char else todo.appendleft)(before)
        return result

"""Which variables a jinja template takes from outside."""

from collections.abc import Iterable

from jinja2 import nodes

__all__ = ["free_variables"]

_LOOP = frozenset({"loop"})
_MACRO = frozenset({"varargs", "kwargs", "caller"})


def free_variables(template: nodes.Template) -> frozenset[str]:
    """Names that a template may read before it has set them: what a caller can give it.

    ``jinja2.meta.find_undeclared_variables`` also lists every name that is set inside a branch or a loop and read there.
    """
    reader = _Reader()
    known: set[str] = set()
    reader.run(template.body, known)
    # A macro runs where it is called: what the template has surely set by its end is no option of the macro's.
    return frozenset(reader.free | (reader.in_macros - known))


class _Reader:
    """Goes through a template in the order of execution; ``known`` holds what is surely set at that place."""

    def __init__(self) -> None:
        self.free: set[str] = set()
        self.in_macros: set[str] = set()
        self._read = self.free

    def run(self, body: Iterable[nodes.Node], known: set[str]) -> None:
        for node in body:
            self._visit(node, known)

    def _visit(self, node: nodes.Node | None, known: set[str]) -> None:
        if isinstance(node, nodes.Name) and node.ctx != "load":
            known.add(node.name)
        elif isinstance(node, nodes.Name | nodes.NSRef):
            if node.name not in known:
                self._read.add(node.name)
        elif isinstance(node, nodes.If):
            self._branches(node, known)
        elif isinstance(node, nodes.For):
            self._visit(node.iter, known)
            inside = known | _LOOP  # what is set in a loop is forgotten after it
            self._visit(node.target, inside)
            self._visit(node.test, inside)
            self.run(node.body, inside)
            self.run(node.else_, set(known))
        elif isinstance(node, nodes.Macro):
            outside, self._read = self._read, self.in_macros
            self.run([*node.defaults, *node.args, *node.body], known | _MACRO)
            self._read = outside
            known.add(node.name)
        elif isinstance(node, nodes.CallBlock):
            self.run([node.call, *node.defaults], known)
            self.run([*node.args, *node.body], set(known))
        elif isinstance(node, nodes.Assign):
            self._visit(node.node, known)
            self._visit(node.target, known)
        elif isinstance(node, nodes.AssignBlock):
            self.run(node.body, set(known))
            self._visit(node.filter, known)
            self._visit(node.target, known)
        elif node is not None:
            self.run(node.iter_child_nodes(), known)

    def _branches(self, node: nodes.If, known: set[str]) -> None:
        """An ``if``: set after it is what every branch sets."""
        ends = []
        for branch in (node, *node.elif_):
            self._visit(branch.test, known)
            ends.append(set(known))
            self.run(branch.body, ends[-1])
        ends.append(set(known))
        self.run(node.else_, ends[-1])
        known |= set.intersection(*ends)

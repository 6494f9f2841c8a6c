"""A template's syntax tree, so rewritten that the sandbox can weigh all that the template does.

Jinja2 compiles comparisons, slices and literals to bare Python. Here they become filters and tests,
which `sandbox` weighs, and what takes memory or time before it could be weighed is refused.
Knows no budget.
"""

from __future__ import annotations

from typing import Any

from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.visitor import NodeTransformer

MAX_BITS = 60
"""Of a whole number; larger ones can share a hash, and a dictionary of them takes quadratic time.
Source: `sys.hash_info.modulus`, 2**61 - 1."""


def make_weighable(tree: nodes.Template) -> None:
    """Rewrite what Jinja2 compiles to bare Python as filters and tests, which are weighed.

    Raises:
        SecurityError: it holds what would take memory or time before it could be weighed.
    """
    _Rewriting().visit(tree)


class _Rewriting(NodeTransformer):
    def generic_visit(self, node: nodes.Node, *args: Any, **kwargs: Any) -> nodes.Node:
        if getattr(node, "dyn_args", None) is not None:  # read before anything could weigh them
            raise SecurityError("no chat template needs arguments out of a list")
        return super().generic_visit(node, *args, **kwargs)

    def visit_Const(self, node: nodes.Const) -> nodes.Node:  # noqa: N802 – Jinja2's names
        if isinstance(node.value, int) and node.value.bit_length() > MAX_BITS:
            raise SecurityError(f"a number of {node.value.bit_length()} bits")
        return node

    def visit_ScopedEvalContextModifier(self, _: nodes.Node) -> nodes.Node:  # noqa: N802
        raise SecurityError("no chat template escapes HTML")  # it grows behind the weighing

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        parts = [self.visit(part) for part in node.nodes]
        return _filter(nodes.List(parts, lineno=node.lineno), "~")

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:  # noqa: N802
        left, compared = self.visit(node.expr), None
        for operand in node.ops:
            if compared and not isinstance(left, (nodes.Name, nodes.Const)):  # is compiled twice
                raise SecurityError("no chat template compares what it works out between the two")
            right = self.visit(operand.expr)
            name = {"gteq": "ge", "lteq": "le", "notin": "in"}.get(operand.op, operand.op)
            test: nodes.Expr = nodes.Test(left, name, [right], [], None, None, lineno=node.lineno)
            if operand.op == "notin":
                test = nodes.Not(test, lineno=node.lineno)
            compared = nodes.And(compared, test, lineno=node.lineno) if compared else test
            left = right
        assert compared is not None
        return compared

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        if not isinstance(node.arg, nodes.Slice):
            return node
        ends = (node.arg.start, node.arg.stop, node.arg.step)
        return _filter(node.node, "[:]", *(end or nodes.Const(None) for end in ends))

    def visit_List(self, node: nodes.List) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _filter(node, "[]")

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return node if node.ctx == "store" else _filter(node, "[]")

    def visit_Dict(self, node: nodes.Dict) -> nodes.Node:  # noqa: N802
        pairs: list[nodes.Expr] = [
            nodes.List([self.visit(pair.key), self.visit(pair.value)], lineno=node.lineno)
            for pair in node.items
        ]
        return _filter(nodes.List(pairs, lineno=node.lineno), "{}")


def _filter(node: nodes.Expr, name: str, *args: nodes.Expr) -> nodes.Filter:
    return nodes.Filter(node, name, list(args), [], None, None, lineno=node.lineno)

"""As much of Prometheus as our rules take: expressions over series that a test has written down.

Not all of PromQL: vectors match on equal labels, `increase` and `rate` do not extrapolate, and a series counts as gone
five minutes after its last sample, as in Prometheus.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any

LOOKBACK_S = 300.0
Labels = frozenset[tuple[str, str]]
Series = Mapping[str, Sequence[tuple[float, float]]]
"""Samples (time, value) in order, by a name with labels as Prometheus writes them."""
Vector = dict[Labels, float]

_TOKEN = re.compile(r"\s*(\d+\.?\d*|[a-zA-Z_]\w*|\"[^\"]*\"|=~|==|!=|>=|<=|[-+*/(){}\[\],=<>])")
_SELECTOR = re.compile(r'(\w+)(=~|=)"([^"]*)"')
_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}


def parse_series(name: str) -> tuple[str, Labels]:
    """Name and labels of a series."""
    metric, _, labels = name.partition("{")
    return metric, frozenset((key, value) for key, _, value in _SELECTOR.findall(labels))


class Expression:
    """One PromQL expression."""

    def __init__(self, text: str) -> None:
        self._tokens = _TOKEN.findall(text)
        if "".join(self._tokens) != "".join(text.split()):
            raise ValueError(f"not understood: {text}")

    def at(self, series: Series, now: float) -> Vector:
        """Its value at a time: what is left of each set of labels."""
        self._place, self._now = 0, now
        self._series = [(*parse_series(name), samples) for name, samples in series.items()]
        value = self._unless()
        if self._place != len(self._tokens):
            raise ValueError(f"not understood: {self._tokens[self._place :]}")
        return value if isinstance(value, dict) else {frozenset(): value}

    def _peek(self) -> str:
        return self._tokens[self._place] if self._place < len(self._tokens) else ""

    def _take(self, expected: str = "") -> str:
        token = self._peek()
        if expected and token != expected:
            raise ValueError(f"{token!r} where {expected!r} should be")
        self._place += 1
        return token

    def _unless(self) -> Any:
        left = self._comparison()
        while self._peek() == "unless":
            self._take()
            right = self._comparison()
            left = {labels: value for labels, value in left.items() if labels not in right}
        return left

    def _comparison(self) -> Any:
        left = self._sum()
        tests = {">": lambda a, b: a > b, "<": lambda a, b: a < b, "==": lambda a, b: a == b}
        while self._peek() in tests:
            test, right = tests[self._take()], self._sum()
            other = right if isinstance(right, dict) else dict.fromkeys(left, right)
            left = {key: value for key, value in left.items() if key in other and test(value, other[key])}
        return left

    def _sum(self) -> Any:
        left = self._product()
        while self._peek() in ("+", "-"):
            sign = 1 if self._take() == "+" else -1
            left = _each(left, self._product(), lambda a, b, sign=sign: a + sign * b)
        return left

    def _product(self) -> Any:
        left = self._value()
        while self._peek() == "*":
            self._take()
            left = _each(left, self._value(), lambda a, b: a * b)
        return left

    def _value(self) -> Any:
        token = self._take()
        if token == "(":
            value = self._unless()
            self._take(")")
            return value
        if token[0].isdigit():
            return float(token)
        if token == "time":
            self._take("(")
            self._take(")")
            return self._now
        if token == "sum":
            return self._sum_by()
        if token in ("increase", "rate", "changes"):
            self._take("(")
            found = self._range(self._take())
            self._take(")")
            return {labels: _over(token, samples, span) for labels, samples, span in found}
        past = {labels: [s for s in samples if s[0] <= self._now] for labels, samples in self._select(token)}
        return {
            labels: samples[-1][1]
            for labels, samples in past.items()
            if samples and self._now - samples[-1][0] <= LOOKBACK_S
        }

    def _sum_by(self) -> Vector:
        self._take("by")
        self._take("(")
        by = set()
        while self._peek() != ")":
            by.add(self._take())
            if self._peek() == ",":
                self._take()
        self._take(")")
        self._take("(")
        inner, summed = self._unless(), Vector()
        self._take(")")
        for labels, value in inner.items():
            kept = frozenset(pair for pair in labels if pair[0] in by)
            summed[kept] = summed.get(kept, 0.0) + value
        return summed

    def _select(self, metric: str) -> list[tuple[Labels, Sequence[tuple[float, float]]]]:
        wanted = []
        if self._peek() == "{":
            self._take()
            while self._peek() != "}":
                label, how, value = self._take(), self._take(), self._take().strip('"')
                wanted.append((label, value if how == "=~" else re.escape(value)))
            self._take("}")
        found = [(labels, samples) for name, labels, samples in self._series if name == metric]
        return [
            (labels, samples)
            for labels, samples in found
            if all(re.fullmatch(pattern, dict(labels).get(label, "")) for label, pattern in wanted)
        ]

    def _range(self, metric: str) -> list[tuple[Labels, list[tuple[float, float]], float]]:
        selected = self._select(metric)
        self._take("[")
        span = float(self._take()) * _UNITS[self._take()]
        self._take("]")
        inside = [
            (labels, [s for s in samples if self._now - span < s[0] <= self._now])
            for labels, samples in selected
        ]
        return [(labels, samples, span) for labels, samples in inside if samples]


def _each(left: Any, right: Any, call: Any) -> Any:
    if not isinstance(left, dict):
        return (
            {key: call(left, value) for key, value in right.items()}
            if isinstance(right, dict)
            else call(left, right)
        )
    other = right if isinstance(right, dict) else dict.fromkeys(left, right)
    return {key: call(value, other[key]) for key, value in left.items() if key in other}


def _over(function: str, samples: Sequence[tuple[float, float]], span: float) -> float:
    values = [value for _, value in samples]
    pairs = list(itertools.pairwise(values))
    if function == "changes":
        return float(sum(before != after for before, after in pairs))
    # A counter that falls has begun anew.
    grown = sum(after - before if after >= before else after for before, after in pairs)
    return grown if function == "increase" else grown / span


def seconds(text: str) -> float:
    """A duration such as 20m."""
    return float(text[:-1]) * _UNITS[text[-1]]


def fires(
    rule: Mapping[str, Any], series: Series, *, until: float, every: float = 60.0
) -> dict[Labels, float]:
    """When a rule first fires, by labels, evaluated from 0 on."""
    expression, wait = Expression(rule["expr"]), seconds(rule.get("for", "0s"))
    since: dict[Labels, float] = {}
    fired: dict[Labels, float] = {}
    for number in range(int(until / every) + 1):
        now = number * every
        true = expression.at(series, now)
        since = {labels: since.get(labels, now) for labels in true}
        for labels, begun in since.items():
            if now - begun >= wait:
                fired.setdefault(labels, now)
    return fired

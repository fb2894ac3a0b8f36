"""Sizes: a size as a formula of symbols, recovered from a few probes.

The shape pass runs a graph a few times over, with other sizes for its symbols each time. A size that came out as
(240, 336, 528) where T was (240, 336, 528) is T; (244, 340, 532) is T + 4; (120, 168, 264) is T//2.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction

PROBES = 3
MAX_COEFFICIENT = 65_536  # what a size of a network may be multiplied with; larger ones are accidents of the fit
MAX_DENOMINATOR = 1024
MAX_PLAIN = 64  # numbers in a formula of two terms
MAX_SYMBOLS = 12  # of which products are looked for
# Sizes come as multiples of a number with many divisors, since networks halve and fold them. Each symbol takes the next
# primes, so that no sum or product of few of them is like another.
STEPS = (192, 48, 1)
_PRIMES = [p for p in range(5, 2000) if all(p % q for q in range(2, math.isqrt(p) + 1))]

Probes = tuple[int, ...]  # one size in each probe


@dataclass(frozen=True, slots=True)
class Formula:
    """constant + the sum of coefficient * product of symbols."""

    constant: Fraction
    terms: tuple[tuple[Fraction, tuple[str, ...]], ...] = ()

    def at(self, sizes: Mapping[str, int]) -> int | None:
        """The size for these sizes of the symbols; None where it would not be a whole number."""
        products = (coefficient * math.prod(sizes[s] for s in symbols) for coefficient, symbols in self.terms)
        value = sum(products, self.constant)
        return int(value) if value.denominator == 1 and value >= 0 else None

    def symbols(self) -> set[str]:
        return {symbol for _, symbols in self.terms for symbol in symbols}

    def __str__(self) -> str:
        text = ""
        for coefficient, symbols in self.terms:
            product = "*".join(symbols)
            size = abs(coefficient)
            part = product if size.numerator == 1 else f"{size.numerator}*{product}"
            part += f"//{size.denominator}" if size.denominator > 1 else ""
            text += (" - " if text else "-") * (coefficient < 0) + (" + " if text and coefficient > 0 else "") + part
        if not text:
            return str(self.constant)
        return text + (f" {'-' if self.constant < 0 else '+'} {abs(self.constant)}" if self.constant else "")


class Symbols:
    """The symbols of one pass and the sizes each takes in the probes."""

    def __init__(self, step: int = STEPS[0]) -> None:
        self.step = step
        self.sizes: dict[str, Probes] = {}
        self._known: dict[Probes, Formula | None] = {}

    def take(self, name: str) -> Probes:
        """The sizes of a symbol, new ones if it has none yet."""
        if name not in self.sizes:
            start = len(self.sizes) * PROBES
            primes = itertools.islice(itertools.cycle(_PRIMES), start, start + PROBES)
            self.sizes[name] = tuple(self.step * prime for prime in primes)
            self._known.clear()
        return self.sizes[name]

    def formula(self, sizes: Probes) -> Formula | None:
        """What a size is in terms of the symbols, if it is something simple."""
        if sizes not in self._known:
            self._known[sizes] = self._fit(sizes)
        return self._known[sizes]

    def text(self, sizes: Probes) -> str:
        formula = self.formula(sizes)
        return "?" if formula is None else str(formula)

    def _fit(self, sizes: Probes) -> Formula | None:
        if len(set(sizes)) == 1:
            return Formula(Fraction(sizes[0]))
        few = len(self.sizes) <= MAX_SYMBOLS
        for degree in (1, 2, 3) if few else (1,):
            fits = [fit for term in self._products(degree) if (fit := self._line(sizes, term))]
            if fits:
                return min(fits, key=lambda fit: (abs(fit.constant), str(fit)))
        pairs = itertools.combinations([*self._products(1), *(self._products(2) if few else ())], 2)
        fits = [fit for one, other in pairs if (fit := self._plane(sizes, one, other))]
        return min(fits, key=lambda fit: (abs(fit.constant), len(str(fit)))) if fits else None

    def _products(self, degree: int) -> Iterator[tuple[str, ...]]:
        return itertools.combinations_with_replacement(self.sizes, degree)

    def _values(self, symbols: tuple[str, ...]) -> Probes:
        return tuple(math.prod(self.sizes[symbol][probe] for symbol in symbols) for probe in range(PROBES))

    def _line(self, sizes: Probes, symbols: tuple[str, ...]) -> Formula | None:
        """sizes = a * product + c."""
        x = self._values(symbols)
        a = Fraction(sizes[1] - sizes[0], x[1] - x[0])
        return self._accepted(sizes, Formula(sizes[0] - a * x[0], ((a, symbols),)))

    def _plane(self, sizes: Probes, one: tuple[str, ...], other: tuple[str, ...]) -> Formula | None:
        """sizes = a * product + b * product + c, all of them small."""
        x, y = self._values(one), self._values(other)
        (dx1, dx2), (dy1, dy2) = ((v[1] - v[0], v[2] - v[0]) for v in (x, y))
        determinant = dx1 * dy2 - dx2 * dy1
        if not determinant:
            return None
        d1, d2 = sizes[1] - sizes[0], sizes[2] - sizes[0]
        a, b = Fraction(d1 * dy2 - d2 * dy1, determinant), Fraction(dx1 * d2 - dx2 * d1, determinant)
        constant = sizes[0] - a * x[0] - b * y[0]
        # Three probes always fit three numbers: what is not small and plain is an accident.
        if not a or not b or max(abs(a.numerator), abs(b.numerator), abs(constant)) > MAX_PLAIN:
            return None
        return self._accepted(sizes, Formula(constant, ((a, one), (b, other))))

    def _accepted(self, sizes: Probes, formula: Formula) -> Formula | None:
        plain = formula.constant.denominator == 1 and all(
            a and abs(a.numerator) <= MAX_COEFFICIENT and a.denominator <= MAX_DENOMINATOR for a, _ in formula.terms
        )
        probes = [{name: values[probe] for name, values in self.sizes.items()} for probe in range(PROBES)]
        return (
            formula if plain and all(formula.at(at) == size for at, size in zip(probes, sizes, strict=True)) else None
        )

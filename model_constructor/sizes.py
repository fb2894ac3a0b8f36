"""Sizes: a size as a formula of symbols, recovered from a few probes.

The shape pass runs a graph a few times over, with other sizes for its symbols each time. A size that came out as
(244, 340, 532) where T was (240, 336, 528) is T + 4. What is left behind a stride is (T + 1)//2, or another rounding:
sizes that no stride divides tell which.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

PROBES = 3
MAX_COEFFICIENT = 65_536  # what a size of a network may be multiplied with; larger ones are accidents of the fit
MAX_DENOMINATOR = 1024
MAX_PLAIN = 64  # numbers in a formula of two terms, and in a rounding
MAX_PRODUCTS = 2**16  # that are looked through

Probes = tuple[int, ...]  # one size in each probe

_PRIMES = [p for p in range(5, 2000) if all(p % q for q in range(2, math.isqrt(p) + 1))]


def _multiples(step: int, offsets: Probes = (0,) * PROBES) -> list[Probes]:
    """Each symbol takes the next primes, so that no sum or product of few of them is like another."""
    triples = zip(*(_PRIMES[i::PROBES] for i in range(PROBES)), strict=False)
    return [tuple(step * p + offset for p, offset in zip(triple, offsets, strict=True)) for triple in triples]


# The sizes that symbols take in turn, in each run. How a stride rounds shows between sizes that leave other rests.
# 0, 21 and 42 (in binary 0, 10101, 101010) are never all even or all odd when they are halved, however that is rounded;
# 0, -1 and 1 show how longer strides round. Then multiples of numbers with many divisors: networks halve and fold.
ROUNDED = (_multiples(64, (0, 21, 42)), _multiples(672, (0, -1, 1)))
STEPS = (*ROUNDED, *map(_multiples, (672, 192, 48, 1)))
# The smallest that there are: slices and broadcasts behave differently. They show no formulae.
SMALL = list(itertools.permutations((1, 2, 3, 4), PROBES))


@dataclass(frozen=True, slots=True)
class Factor:
    """(times * symbol + shift) // by: a symbol, or what strides leave of it."""

    symbol: str
    times: int = 1
    shift: int = 0
    by: int = 1

    def at(self, sizes: Mapping[str, int]) -> int:
        return (self.times * sizes[self.symbol] + self.shift) // self.by

    def __str__(self) -> str:
        text = self.symbol if self.times == 1 else f"{self.times}*{self.symbol}"
        text = f"({text} {'-' if self.shift < 0 else '+'} {abs(self.shift)})" if self.shift else text
        return text if self.by == 1 else f"{text}//{self.by}"


@dataclass(frozen=True, slots=True)
class Formula:
    """constant + the sum of coefficient * product of factors."""

    constant: Fraction
    terms: tuple[tuple[Fraction, tuple[Factor, ...]], ...] = ()

    def at(self, sizes: Mapping[str, int]) -> int | None:
        """The size for these sizes of the symbols; None where it would not be a whole number."""
        products = (coefficient * math.prod(f.at(sizes) for f in factors) for coefficient, factors in self.terms)
        value = sum(products, self.constant)
        return int(value) if value.denominator == 1 else None

    def symbols(self) -> set[str]:
        return {factor.symbol for _, factors in self.terms for factor in factors}

    def __str__(self) -> str:
        text = ""
        for coefficient, factors in self.terms:
            alone = len(factors) == 1 and coefficient == 1
            product = "*".join(str(f) if alone or f.by == 1 else f"({f})" for f in factors)
            size = abs(coefficient)
            part = product if size.numerator == 1 else f"{size.numerator}*{product}"
            part += f"//{size.denominator}" if size.denominator > 1 else ""
            text += (" - " if text else "-") * (coefficient < 0) + (" + " if text and coefficient > 0 else "") + part
        if not text:
            return str(self.constant)
        return text + (f" {'-' if self.constant < 0 else '+'} {abs(self.constant)}" if self.constant else "")


class Symbols:
    """The symbols of one pass and the sizes each takes in the probes."""

    def __init__(self, table: Sequence[Probes] = STEPS[0]) -> None:
        self.sizes: dict[str, Probes] = {}
        self.table = table
        self._max_denominator = 1 if table in ROUNDED else MAX_DENOMINATOR  # what is left of a stride is rounded
        self._factors: dict[Factor, Probes] = {}  # the symbols, and what strides have left of them so far
        self._known: dict[Probes, Formula] = {}

    def take(self, name: str) -> Probes:
        """The sizes of a symbol, new ones if it has none yet."""
        if name not in self.sizes:
            self.sizes[name] = self._factors[Factor(name)] = self.table[len(self.sizes) % len(self.table)]
            self._known.clear()
        return self.sizes[name]

    def formula(self, sizes: Probes) -> Formula:
        """What a size is in terms of the symbols; one that is nothing simple is from then on a symbol of its own. Sizes
        are asked for in the order of the run: of two strides the second is told by what the first has left."""
        if sizes not in self._known:
            fit = self._fit(sizes)
            if fit is None:
                factor = Factor(f"~{len(self.sizes)}")
                self.sizes[factor.symbol] = self._factors[factor] = sizes
                fit = Formula(Fraction(0), ((Fraction(1), (factor,)),))
            self._known[sizes] = fit
        return self._known[sizes]

    def text(self, sizes: Probes) -> str:
        """The formula of a size; ~ for one that depends on the symbols in no simple way."""
        text = str(self.formula(sizes))
        return "~" if "~" in text or (self.table is SMALL and not text.isdigit()) else text

    def _fit(self, sizes: Probes) -> Formula | None:
        if len(set(sizes)) == 1:
            return Formula(Fraction(sizes[0]))
        count = len(self._factors)
        for degree in (1, 2, 3):
            if count**degree <= MAX_PRODUCTS:
                fits = [fit for product in self._products(degree) if (fit := self._line(sizes, product))]
                if fits:
                    return min(fits, key=lambda fit: (abs(fit.constant), len(str(fit)), str(fit)))
        factor = self._rounded(sizes) if self.table in ROUNDED else None
        if factor:
            self._factors[factor] = sizes
            return Formula(Fraction(0), ((Fraction(1), (factor,)),))
        products = [*self._products(1), *(self._products(2) if count**4 <= MAX_PRODUCTS else ())]
        pairs = itertools.combinations(products, 2) if len(products) ** 2 <= MAX_PRODUCTS else ()
        fits = [fit for one, other in pairs if (fit := self._plane(sizes, one, other))]
        return min(fits, key=lambda fit: (abs(fit.constant), len(str(fit)))) if fits else None

    def _products(self, degree: int) -> Iterator[tuple[Factor, ...]]:
        return itertools.combinations_with_replacement(self._factors, degree)

    def _values(self, factors: tuple[Factor, ...]) -> Probes:
        return tuple(math.prod(values) for values in zip(*(self._factors[f] for f in factors), strict=True))

    def _line(self, sizes: Probes, factors: tuple[Factor, ...]) -> Formula | None:
        """sizes = a * product + c."""
        x = self._values(factors)
        (dx1, dx2), (d1, d2) = ((v[1] - v[0], v[2] - v[0]) for v in (x, sizes))
        if d1 * dx2 != d2 * dx1 or not dx1:
            return None
        a = Fraction(d1, dx1)
        return self._accepted(sizes, Formula(sizes[0] - a * x[0], ((a, factors),)))

    def _plane(self, sizes: Probes, one: tuple[Factor, ...], other: tuple[Factor, ...]) -> Formula | None:
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

    def _rounded(self, sizes: Probes) -> Factor | None:
        """sizes = (times * factor + shift) // by, of the least `by`; None where the probes leave more than one."""
        for by in range(2, MAX_PLAIN + 1):
            fits: set[Factor | None] = set()
            for factor, values in self._factors.items():
                times = round(by * sizes[0] / values[0])
                rests = [by * size - times * value for size, value in zip(sizes, values, strict=True)]
                shifts = range(max(rests), min(rests) + by)
                if shifts and 0 < times <= MAX_PLAIN and abs(shifts[0]) <= MAX_PLAIN and math.gcd(times, by) == 1:
                    shift = times * factor.shift + factor.by * shifts[0]
                    alone = len(shifts) == 1 and (times == 1 or factor.by == 1)  # else two divisions are left
                    fits.add(Factor(factor.symbol, times * factor.times, shift, factor.by * by) if alone else None)
            if fits:
                return fits.pop() if len(fits) == 1 else None
        return None

    def _accepted(self, sizes: Probes, formula: Formula) -> Formula | None:
        plain = formula.constant.denominator == 1 and all(
            a and abs(a.numerator) <= MAX_COEFFICIENT and a.denominator <= self._max_denominator
            for a, _ in formula.terms
        )
        probes = [{name: values[probe] for name, values in self.sizes.items()} for probe in range(PROBES)]
        return (
            formula if plain and all(formula.at(at) == size for at, size in zip(probes, sizes, strict=True)) else None
        )

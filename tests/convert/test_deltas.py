"""The shortcuts of the effect on probes against the change written out, and the formulas against numbers made here."""

from __future__ import annotations

import numpy as np
import pytest

from compatkit.convert.deltas import Weight, change, effect

R, C = 24, 12
RNG = np.random.default_rng(0)
N = RNG.standard_normal
PAIR = {"up": N((R, 3)), "down": N((3, C))}
HADA = {"w1_a": N((R, 3)), "w1_b": N((3, C)), "w2_a": N((R, 3)), "w2_b": N((3, C))}
CASES = {
    "LoRA": ("product", PAIR, 2.0),
    "DoRA by rows": ("product", {**PAIR, "dora": np.abs(N((R, 1)))}, 2.0),
    "DoRA of PEFT": ("product", {**PAIR, "dora_peft": np.abs(N(R))}, None),
    "DoRA by columns": ("product", {**PAIR, "dora": np.abs(N((1, C)))}, None),
    "LoHa": ("hadamard", HADA, 2.0),
    "LoHa of a high rank": (
        "hadamard", {"w1_a": N((R, 40)), "w1_b": N((40, C)), "w2_a": N((R, 40)), "w2_b": N((40, C))}, 2.0
    ),
    "LoKr": ("kronecker", {"w1": N((4, 3)), "w2": N((6, 4))}, 2.0),
    "LoKr of a factored half": ("kronecker", {"w1": N((4, 3)), "w2_a": N((6, 2)), "w2_b": N((2, 4))}, 2.0),
    "GLoRA": ("glora", {"a1": N((C, 2)), "a2": N((2, C)), "b1": N((R, 2)), "b2": N((2, C))}, 1.0),
    "OFT": ("blocks", {"blocks": N((8, 3, 3))}, None),
    "a full difference": ("full", {"weight": N((R, C))}, None),
}  # fmt: skip


def weight() -> Weight:
    return Weight(N((61, C)), RNG.integers(0, 61, R), RNG.random(R) + 0.5)


@pytest.mark.parametrize("case", CASES)
def test_the_effect_is_that_of_the_change(case: str) -> None:
    math, parts, alpha = CASES[case]
    own, probe = weight(), N((C, 4))
    written = change(math, parts, own.rows(0, R), alpha).reshape(R, -1) @ probe
    assert np.allclose(effect(math, parts, lambda: own, (R, C), alpha, probe), written, atol=1e-10)


def test_formulas() -> None:
    base = weight().rows(0, R)
    assert np.allclose(change("product", PAIR, base, 6.0), 2 * PAIR["up"] @ PAIR["down"])
    wanted = (HADA["w1_a"] @ HADA["w1_b"]) * (HADA["w2_a"] @ HADA["w2_b"]) / 3
    assert np.allclose(change("hadamard", HADA, base, 1.0), wanted)
    one, other = N((4, 3)), N((6, 4))
    assert np.allclose(change("kronecker", {"w1": one, "w2": other}, base, 5.0), np.kron(one, other))
    magnitude = np.abs(N((R, 1)))
    changed = base + change("product", {**PAIR, "dora": magnitude}, base, None)
    assert np.allclose(np.linalg.norm(changed, axis=1), magnitude[:, 0], atol=1e-6)
    turned = base + change("blocks", {"blocks": N((8, 3, 3))}, base, None)
    assert np.allclose(np.linalg.norm(turned.reshape(8, -1), axis=1), np.linalg.norm(base.reshape(8, -1), axis=1))

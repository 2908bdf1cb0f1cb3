"""The ledger of a search: for each layer what was chosen, what it costs, and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..compiler.analysis.cost import shares
from ..compiler.ledger import LedgerRow
from .allocation import Edge, Problem
from .evaluator import Layer
from .finalists import Verdict
from .result import Sensitivity

SAME = 0.03  # times closer than this are called equal


@dataclass(frozen=True)
class Evidence:
    """What is known about layers: kernel table, sensitivities, what the finalists showed, what was asked."""

    problem: Problem | None
    sensitivity: Mapping[str, Sensitivity]
    verdict: Verdict
    constraints: Sequence[str]

    @property
    def int8(self) -> frozenset[str]:
        return self.verdict.best.int8_layers

    def conversions_if(self, layer: str, choice: str) -> float:
        """Microseconds of conversions around the layer under that choice; its neighbours stay as they are."""
        edges: Sequence[Edge] = self.problem.edges if self.problem else ()
        total = 0.0
        for e in edges:
            if layer not in (e.source, e.target):
                continue
            source = choice == "int8" if e.source == layer else e.source in self.int8
            target = choice == "int8" if e.target == layer else e.target in self.int8
            if source != target:
                total += max(0.0, e.leave_us if source else e.enter_us)
        return total


def ledger_of(layers: Sequence[Layer], evidence: Evidence) -> tuple[LedgerRow, ...]:
    """One row per layer, in the order of the network."""
    losses = {x: s.loss for x, s in evidence.sensitivity.items()}
    chosen = shares({x: loss for x, loss in losses.items() if x in evidence.int8})
    everything = shares(losses)
    return tuple(_row(layer, evidence, chosen, everything.get(layer.name)) for layer in layers)


def _row(layer: Layer, evidence: Evidence, chosen: Mapping[str, float], share: float | None) -> LedgerRow:
    name = layer.name
    int8 = name in evidence.int8
    narrow = evidence.verdict.best.plan.choice(name) == "bfloat16"
    stored = layer.int8_bytes if int8 else layer.float_bytes - 2 * layer.weights * narrow
    problem = None if narrow else evidence.problem  # whose tables are of the other two
    why = _why_int8(name, evidence) if int8 else _why_float(name, evidence, share)
    return LedgerRow(
        layer=name,
        op=layer.op,
        shape=layer.shape,
        choice=evidence.verdict.best.plan.choice(name),
        bits=8 * stored / max(1, layer.weights),
        weight_bytes=stored,
        float_bytes=layer.float_bytes,
        macs=layer.macs,
        predicted_us=None if problem is None else (problem.int8_us if int8 else problem.float_us)[name],
        measured_us=evidence.verdict.best_us.get(name),
        error_share=chosen.get(name, 0.0) if evidence.sensitivity else None,
        reason=_why_bfloat16(name, evidence) if narrow else why,
    )


def _why_bfloat16(name: str, evidence: Evidence) -> str:
    before, after = evidence.verdict.float_us[name], evidence.verdict.best_us[name]
    return f"bfloat16: half the size of float32, {_us(before)} -> {_us(after)} here"


def _why_int8(name: str, evidence: Evidence) -> str:
    before, after = evidence.verdict.float_us[name], evidence.verdict.int8_us[name]
    effect = _effect(evidence.sensitivity.get(name))
    if after < before * (1 - SAME):
        return f"int8: {before / after:.1f}x faster here ({_us(before)} -> {_us(after)}){effect}"
    saved = evidence.conversions_if(name, "float32") - evidence.conversions_if(name, "int8")
    if saved > after - before and after > before * (1 + SAME):
        return (
            f"int8: not faster itself ({_us(before)} -> {_us(after)}), but float32 between int8 "
            f"neighbours would add {_us(saved)} of conversions{effect}"
        )
    if after <= before * (1 + SAME):
        return f"int8: as fast as float32 ({_us(before)} -> {_us(after)}) and a quarter of the size{effect}"
    return f"int8: {_us(before)} -> {_us(after)} here; the network as a whole measured faster with it{effect}"


def _why_float(name: str, evidence: Evidence, share: float | None) -> str:
    float_us, int8_us = evidence.verdict.float_us[name], evidence.verdict.int8_us[name]
    times = f"{_us(int8_us)} against {_us(float_us)}"
    if name in evidence.verdict.reverted:
        return f"float32: int8 did not pay inside the network ({times}), taken back"
    if int8_us >= float_us:
        return f"float32: int8 measured slower ({times})"
    extra = evidence.conversions_if(name, "int8") - evidence.conversions_if(name, "float32")
    if extra >= float_us - int8_us:
        return f"float32: int8 would save {_us(float_us - int8_us)}, its conversions cost {_us(extra)}"
    wanted = ", ".join(evidence.constraints)
    if share is None:
        return f"float32: so in the best plan measured that meets {wanted} (int8 would be {times})"
    effect = _effect(evidence.sensitivity.get(name))
    return f"float32: {share:.0%} of all layers' error{effect}, kept to meet {wanted} (int8 would be {times})"


def _effect(sensitivity: Sensitivity | None) -> str:
    if sensitivity is None:
        return ""
    if sensitivity.kl is not None:
        return f", KL +{sensitivity.kl:.2g}"
    return f", relative squared error +{sensitivity.error:.2g}"


def _us(value: float) -> str:
    return f"{value:.3g} us"

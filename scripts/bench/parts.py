"""Where the time of a step goes."""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Iterator
from dataclasses import replace
from unittest import mock

from bench.timing import seconds


def time_of_parts(trainer, batch: dict, o: argparse.Namespace) -> dict[str, float]:
    """Median milliseconds of a step's parts.

    A term's are its forward and its backward to the student's logits and features (and to the parameters of the student's
    decoder, where the term runs it), on its own: what two terms share counts in both. "rest" is what remains of the step:
    the student's forward and backward, nnU-Net's loss, the optimizer.
    """
    import torch

    distiller, config, device = trainer.distiller, trainer.distiller.config, o.device
    rounds: list[dict[str, float]] = []

    def timed(name: str, function: Callable) -> Callable:
        def inner(*arguments):
            results = []
            second = seconds(lambda: results.append(function(*arguments)), device, o.clock)
            rounds[-1][name] = rounds[-1].get(name, 0.0) + second
            return results[0]

        return inner

    steps = []
    align = timed("ACT", distiller.align)
    parts = {
        "prepare": timed("prepare", distiller.prepare),
        "views": distiller.views and timed("views", distiller.views),
        "align": lambda step: steps.append(step) or align(step),
    }
    for _ in range(o.rounds):
        rounds.append({})
        with mock.patch.multiple(distiller, **parts):
            total = seconds(lambda: trainer.train_step(batch), device, o.clock)
        step = steps.pop()
        leaves = [step.student_logits.detach().requires_grad_()]
        cut = replace(step, student_logits=leaves[0])
        if step.student_features is not None:
            cut.student_features = [f.detach().requires_grad_() for f in step.student_features]
            leaves += cut.student_features
        inputs = [*leaves, *trainer.network.parameters()]

        def alone(cut=cut, inputs=inputs) -> None:
            with trainer._autocast:
                weighted = [weight * value for weight, value in distiller.terms(cut).values()]
            torch.autograd.grad(sum(weighted), inputs, allow_unused=True)

        for name, terms in _single_terms(config.terms):
            with mock.patch.object(distiller, "config", replace(config, terms=terms)):
                timed(name, alone)()
        if config.terms.active:
            timed("terms", alone)()  # all of them: what they share is done once, as in the step
        rounds[-1]["teacher"] = rounds[-1].pop("prepare") - rounds[-1].get("views", 0.0)
        rounds[-1]["rest"] = total - sum(rounds[-1].get(k, 0.0) for k in ("views", "teacher", "terms", "ACT"))
    return {name: 1e3 * statistics.median(r[name] for r in rounds) for name in rounds[0]}


def _single_terms(terms) -> Iterator[tuple[str, object]]:
    """Every term without the others; the two ways of ``cross`` apart."""
    for name in terms.active:
        term = getattr(terms, name)
        if name == "cross":
            for way, other in (("ts", "st"), ("st", "ts")):
                if getattr(term, way):
                    yield f"cross_{way}", type(terms)(cross=replace(term, **{other: 0.0}))
        else:
            yield name, type(terms)(**{name: term})

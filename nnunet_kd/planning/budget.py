"""Students by budget: candidates of several widths, depths and convolutions per stage, the best of them, and the choice.

Nothing is trained here. Parameters stand for what a student can learn, FLOPs and milliseconds for what it costs; a candidate is
on the front if no other has as many parameters for less.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from itertools import product

import torch

from nnunet_kd.networks.cost import count_flops, count_parameters, input_channels
from nnunet_kd.nnunet_io.configurations import features_of, resolved_configuration, set_convs, set_features
from nnunet_kd.nnunet_io.model_folder import ModelFolder, build_network
from nnunet_kd.planning.latency import installed_backends, measure_in_turn
from nnunet_kd.planning.pareto import pareto_front
from nnunet_kd.planning.plans import preprocessed_folder, read_student_base
from nnunet_kd.planning.requests import StudentRequest
from nnunet_kd.utils.environment import available_cpus
from nnunet_kd.utils.errors import KDError
from nnunet_kd.utils.progress import progress

WIDTHS = [2 ** (-4 + i / 3) for i in range(12)]  # factors on the teacher's features: 1/16 to 0.79
_MULTIPLE = 4  # of every stage's features: CPUs compute 4 to 16 channels at once, an odd one costs as much as all of them
_SHOWN = 6  # students in the table, and the number that is measured
_UNITS = {"": 1, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12}


@dataclass(frozen=True)
class Budget:
    """Upper limits; None: no limit. FLOPs and milliseconds are of one forward of one patch."""

    parameters: float | None = None
    flops: float | None = None
    milliseconds: float | None = None

    def __str__(self) -> str:
        limits = {"--max-params": self.parameters, "--max-flops": self.flops}
        texts = [f"{flag} {short(value)}" for flag, value in limits.items() if value is not None]
        return " ".join([*texts, *([f"--max-latency {self.milliseconds:g}ms"] if self.milliseconds is not None else [])])


@dataclass
class Candidate:
    """A student that could be planned. ``measured``: milliseconds by backend, "memory" in MB; empty before measuring."""

    name: str
    features: list[int]
    convs: int | None
    parameters: int
    flops: int
    config: dict = field(repr=False)
    measured: dict[str, float] = field(default_factory=dict)


@dataclass
class Proposal:
    """Teacher, the students shown, and the chosen one (None if no budget was given). ``judge``: backend of --max-latency."""

    teacher: Candidate
    students: list[Candidate]
    chosen: Candidate | None
    backends: list[str]
    judge: str
    threads: int
    budget: Budget


def parse_count(text: str, flag: str) -> float:
    """A number with k, M, G or T: "500k", "2G". Raises KDError."""
    parts = re.fullmatch(r"(\d+\.?\d*|\.\d+)([kmgt]?)", text.strip(), re.IGNORECASE)
    if not parts or not float(parts[1]) > 0:
        raise KDError(f'{flag} "{text}" is no positive number with k, M, G or T: write 500k or 2G, say')
    return float(parts[1]) * _UNITS[parts[2].lower()]


def parse_milliseconds(text: str, flag: str) -> float:
    """A time with its unit: "200ms", "1.5s". Raises KDError."""
    parts = re.fullmatch(r"(\d+\.?\d*|\.\d+)\s*(ms|s)", text.strip())
    if not parts or not float(parts[1]) > 0:
        raise KDError(f'{flag} "{text}" is no positive time with the unit ms or s: write 200ms or 1.5s, say')
    return float(parts[1]) * {"ms": 1, "s": 1e3}[parts[2]]


def short(value: float) -> str:
    """1234567 -> "1.23M"."""
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:g}"


def propose(request: StudentRequest, budget: Budget, threads: int | None = None) -> Proposal:
    """Find the students on the front, measure those near the budget beside the teacher, and choose one.

    Chosen is the one with the most parameters that meets every limit. All keep the teacher's patch and preprocessed data.

    Args:
        request: what the student starts from; its ``depth`` and ``convs`` fix the number of stages and the convolutions per
            stage, by default the teacher's or one fewer, and the teacher's number or one. Its widths are not read.
        threads: CPU threads; default all that the process may use.

    Raises:
        KDError: nothing meets the budget (names the smallest candidate's cost), or the teacher is none (see plan_student).
    """
    base = read_student_base(request, preprocessed_folder(request.dataset))
    model, plans, configuration = base.teacher, base.plans, request.configuration
    start = base.configurations[configuration]
    teacher_config = resolved_configuration(model.plans, model.configuration)

    def cost(name: str, plans: dict, convs: int | None, config: dict, trainer: str = "nnUNetTrainer") -> Candidate:
        counted = _model(model, plans, configuration, config)
        return Candidate(name, features_of(config), convs, *_count(counted, trainer), config)

    if model.configuration != configuration:
        raise KDError(
            f"--max-params, --max-flops, --max-latency and --list need a teacher of configuration {configuration}, "
            f"{model.path} is a {model.configuration} model: use --width or --features"
        )
    big = cost("teacher", model.plans, None, teacher_config, model.trainer)
    grid = _grid(start, request.depth, request.convs)
    candidates = [cost(name, plans, n, config) for name, n, config in progress(grid, "counting", unit="student")]
    front = pareto_front(candidates, lambda c: c.parameters, lambda c: c.flops)
    front = [c for c in front if c.parameters < big.parameters]
    if not front:
        raise KDError(f"every student here is as heavy as the teacher ({short(big.parameters)} parameters): leave --depth out")
    fitting = [c for c in front if c.parameters <= (budget.parameters or math.inf) and c.flops <= (budget.flops or math.inf)]
    if not fitting:
        least, cheapest = min(front, key=lambda c: c.parameters), min(front, key=lambda c: c.flops)
        costs = f"{short(least.parameters)} parameters, the cheapest {short(cheapest.flops)} FLOPs per patch"
        raise _nothing(budget, f"the smallest has {costs}")
    threads = threads or available_cpus()
    backends = installed_backends()
    judge = "onnxruntime" if "onnxruntime" in backends else "torch"

    def measure(several: Sequence[Candidate], only: Sequence[str], rounds: int = 7) -> None:
        light = [c for c in several if c is not big]
        networks = {c.name: build_network(_model(model, plans, configuration, c.config)) for c in light}
        if big in several:
            networks = {big.name: build_network(model, model.trainer), **networks}
        inputs = input_channels(next(iter(networks.values())))
        measured = measure_in_turn(networks, inputs, big.config["patch_size"], threads, only, rounds)
        for candidate in several:
            candidate.measured = measured[candidate.name]

    near = fitting  # the search measures each once: what it finds says where to look, the table decides
    if budget.milliseconds is not None:
        near = _fast_enough(fitting, budget, judge, lambda c: measure([c], [judge], 3))
    given = budget != Budget()
    shown = _spread(front, near[-1] if given else None)
    measure([big, *shown], backends)
    met = [c for c in shown if c in fitting and _time(c, judge) <= (budget.milliseconds or math.inf)]
    if given and not met:
        raise _nothing(budget, f"{shown[0].name} takes {_time(shown[0], judge):.3g} ms in {judge}, measured again")
    return Proposal(big, shown, met[-1] if given else None, backends, judge, threads, budget)


def _grid(config: dict, depth: int | None, convs: int | None) -> list[tuple[str, int | None, dict]]:
    """(name, convs, configuration) of all candidates, none twice."""
    wide = features_of(config)
    kwargs = config["architecture"]["arch_kwargs"]
    largest_n_convs = max(kwargs.get("n_blocks_per_stage") or kwargs["n_conv_per_stage"])
    if depth is not None and not 2 <= depth <= len(wide):
        raise KDError(f"--depth {depth} must lie in 2 to {len(wide)}, the stages of the plans it starts from")
    depths = [depth] if depth else range(max(min(3, len(wide)), len(wide) - 1), len(wide) + 1)
    counts = [convs] if convs is not None else [None, 1] if largest_n_convs > 1 else [None]
    candidates = {}
    for stages, n, width in product(depths, counts, WIDTHS):
        one = deepcopy(config)
        if n is not None:
            set_convs(one, n)
        features = [max(_MULTIPLE, _MULTIPLE * round(f * width / _MULTIPLE)) for f in wide[:stages]]
        set_features(one, features)
        each = "as planned" if n is None else f"{n} conv{'s' * (n > 1)}"
        candidates.setdefault((tuple(features), n), (f"{'-'.join(map(str, features))}, {each}", n, one))
    return list(candidates.values())


def _count(model: ModelFolder, trainer: str) -> tuple[int, int]:
    """Parameters and FLOPs of one patch, by torch's counter on tensors without memory."""
    with torch.device("meta"):
        network = build_network(model, trainer)
    return count_parameters(network), count_flops(network, model.plans["configurations"][model.configuration]["patch_size"])


def _model(teacher: ModelFolder, plans: dict, configuration: str, config: dict) -> ModelFolder:
    """The teacher's folder with these plans, in which the configuration reads ``config``."""
    plans = {**plans, "configurations": {**plans["configurations"], configuration: config}}
    return ModelFolder(teacher.path, plans, teacher.dataset_json, configuration)


def _fast_enough(fitting: list[Candidate], budget: Budget, judge: str, measure: Callable[[Candidate], None]) -> list[Candidate]:
    """The front up to the biggest that meets the latency, by bisection: time grows along it, nearly."""
    low, high = -1, len(fitting)  # fitting[low] meets it, fitting[high] does not
    while high - low > 1:
        middle = (low + high) // 2
        measure(fitting[middle])
        low, high = (middle, high) if _time(fitting[middle], judge) <= budget.milliseconds else (low, middle)
    if low < 0:
        raise _nothing(budget, f"the cheapest, {fitting[0].name}, takes {_time(fitting[0], judge):.3g} ms in {judge}")
    return fitting[: low + 1]


def _time(candidate: Candidate, backend: str) -> float:
    """Milliseconds; what is too slow to be measured elsewhere has its time in torch."""
    return candidate.measured[backend if backend in candidate.measured else "torch"]


def _nothing(budget: Budget, least: str) -> KDError:
    return KDError(f"no student here meets {budget}: {least}; raise the budget, or give --features of your own")


def _spread(front: list[Candidate], around: Candidate | None) -> list[Candidate]:
    """At most six of the front: spread evenly by cost, with this one, its two smaller neighbours and the next bigger one."""
    keep = set()
    if around is not None:
        place = front.index(around)
        keep = set(range(max(0, place - 2), min(len(front), place + 2)))
    steps = max(1, _SHOWN - len(keep))
    low, high = math.log(front[0].flops), math.log(front[-1].flops)
    for i in range(steps):
        goal = low + (high - low) * i / max(1, steps - 1)
        free = [k for k in range(len(front)) if k not in keep]
        if free:
            keep.add(min(free, key=lambda k: abs(math.log(front[k].flops) - goal)))
    return [front[i] for i in sorted(keep)]

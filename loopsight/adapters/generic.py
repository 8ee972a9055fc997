"""Loops found by what runs: a module called more than once in a forward pass, or modules that hold the same parameters.

What is found is a cycle of modules; the state is the output of its last one. Where each module of the cycle takes the
output of the one before it, also across the end of a loop, a step is those modules again, and h_0 what enters the
first. Where something else acts between two loops (a norm, an injection), a step is the model's own pass from one
output of the last module to its next, and h_0 is the first of these outputs, so that K is one less, as the maps' name
says; likewise where the first state is zero, which has no direction. Such a cut must be declared in paths: it may not
be what is decoded.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from loopsight.adapters.exact import exact, run
from loopsight.adapters.segments import Slot, maps, record, replay, slots, tail
from loopsight.capture import Call, Key, capture, first_tensor, module_at, plain_path
from loopsight.protocol import LoopedMaps


@dataclass(frozen=True, kw_only=True)
class Site:
    """Modules that are one map because they hold the same parameters; nearly always a single module.

    Attributes:
        paths: of the modules.
        kind: their class.
        calls: how often they run in one pass, together.
        first: place of the first of these calls among all calls.
    """

    paths: tuple[str, ...]
    kind: str
    calls: int
    first: int

    def __str__(self) -> str:
        return f"{' = '.join(self.paths)} ({self.kind}, {self.calls} calls)"


class _Reached(Exception):
    """The next state of a segment; the rest of the pass is not needed."""

    def __init__(self, state: Tensor) -> None:
        super().__init__()
        self.state = state


def looped_sites(model: nn.Module, batch: Any) -> list[Site]:
    """The outermost sites that run more than once and map a state to one of its shape, in the order they first run."""
    every = [(name, module) for name, module in model.named_modules() if _parameters(module)]
    # A compiled module is a shell around the one that runs.
    names = {module: plain_path(name) for name, module in every if not hasattr(module, "_orig_mod")}
    groups: dict[tuple[Any, ...], list[nn.Module]] = {}
    for module in names:
        groups.setdefault((type(module), *_parameters(module)), []).append(module)
    calls: dict[nn.Module, list[int]] = {module: [] for module in names}
    misfits: set[nn.Module] = set()
    order = iter(range(10**9))

    def enter(module: nn.Module, args: Any) -> None:
        calls[module].append(next(order))

    def leave(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        state = first_tensor(output)
        inputs = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        if state is None or not any(x.is_floating_point() and x.shape == state.shape for x in inputs):
            misfits.add(module)

    handles = [module.register_forward_pre_hook(enter) for module in names]
    handles += [module.register_forward_hook(leave, with_kwargs=True) for module in names]
    try:
        with torch.no_grad(), exact(model):
            run(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    sites = []
    for group in groups.values():
        times = [time for module in group for time in calls[module]]
        if len(times) > 1 and not misfits.intersection(group):
            paths = tuple(names[module] for module in group if calls[module])
            sites.append(Site(paths=paths, kind=type(group[0]).__name__, calls=len(times), first=min(times)))
    outermost = [site for site in sites if not any(_inside(site, other) for other in sites)]
    return sorted(outermost, key=lambda site: site.first)


def _parameters(module: nn.Module) -> tuple[int, ...]:
    return tuple(id(parameter) for parameter in module.parameters())


def _inside(site: Site, other: Site) -> bool:
    return any(path.startswith(f"{outer}.") or outer == "" != path for path in site.paths for outer in other.paths)


def found_cycle(model: nn.Module, batch: Any, families: str) -> list[Site]:
    """The one loop that runs: a single site, or a stack of sites of one class that take turns.

    Raises:
        ValueError: nothing is looped, or more than one cut is possible; the message lists them.
    """
    sites = looped_sites(model, batch)
    if not sites:
        raise ValueError(
            f"no loop was found in {type(model).__name__}: no module with parameters maps a state to one of its shape "
            "and runs more than once in a forward pass, and no two such modules hold the same parameters; nor is it "
            f"of a known family ({families}). Build LoopedMaps(embed=..., step=..., readout=..., num_loops=...) "
            "from your own three callables, or loop its layers with loopsight.adapters.loop_layers."
        )
    stack = len({(site.kind, site.calls) for site in sites}) == 1 and all(len(site.paths) == 1 for site in sites)
    if len(sites) > 1 and not stack:
        raise ambiguous(model, sites)
    return sites


def ambiguous(model: nn.Module, sites: Sequence[Site]) -> ValueError:
    listed = "; ".join(str(site) for site in sites)
    return ValueError(
        f"the state of {type(model).__name__} can be cut at more than one place: {listed}. Take the maps of "
        "loopsight.adapters.discover(model, batch, paths=...), with one of these or those of one loop in their order: "
        "the state is the output of the last, which must be the tensor that is decoded, before the readout's norm."
    )


def declared_cycle(model: nn.Module, batch: Any, paths: str | Sequence[str]) -> list[Site]:
    """The sites of paths given by the user, those with the same parameters as one.

    Raises:
        ValueError: no paths, no module at one of them, or one that does not run more than once.
    """
    paths = [plain_path(path) for path in ([paths] if isinstance(paths, str) else paths)]
    if not paths:
        raise ValueError("paths is empty: name the modules of one loop in their order.")
    calls, _ = record(model, batch, *paths)
    groups: dict[tuple[Any, ...], list[str]] = {}
    for path in paths:
        module = module_at(model, path)
        groups.setdefault((type(module), *(_parameters(module) or (id(module),))), []).append(path)
    order = list(calls)
    sites = []
    for group in groups.values():
        times = [n for n, (path, _) in enumerate(order) if path in group]
        if len(times) < 2:
            raise ValueError(f"{' and '.join(group)} run {len(times)} times in a forward pass: that is no loop.")
        kind = type(module_at(model, group[0])).__name__
        sites.append(Site(paths=tuple(group), kind=kind, calls=len(times), first=times[0]))
    return sites


def cycle_maps(
    model: nn.Module, batch: Any, sites: Sequence[Site], *, declared: bool = True, name: str | None = None
) -> LoopedMaps:
    """The maps of a cycle of sites; the state is the output of the last one.

    Args:
        declared: the user, or a family, says that this output is the state, whatever acts between two loops.

    Raises:
        ValueError: the modules do not take turns, or the loop is not one map of that state.
    """
    every = [path for site in sites for path in site.paths]
    calls, output = record(model, batch, *every)
    loops = list(zip(*(_of_site(calls, site) for site in sites), strict=False))
    if len({site.calls for site in sites}) > 1 or list(calls.values()) != [call for loop in loops for call in loop]:
        raise ambiguous(model, sites)
    last = [loop[-1] for loop in loops]
    states = [_state(call) for call in last]
    entries = _chain(loops)
    used = [call for loop in loops for call in loop]
    kind = name or f"{type(model).__name__}, state at the output of {sites[-1].paths[-1]}"

    def readout(h: Tensor) -> Tensor:
        return tail(model, batch, used, h)

    if entries is None and not declared:
        raise ValueError(
            f"something acts on the state of {type(model).__name__} between two loops of {'; '.join(map(str, sites))}: "
            f"take the maps of loopsight.adapters.discover(model, batch, paths='{sites[-1].paths[-1]}') if its output "
            "is what is decoded, else give the maps by hand."
        )
    if entries is None:
        here, there = (last[0].path, last[0].index), (last[1].path, last[1].index)
        return maps(
            model,
            batch,
            embed=lambda: _state(record(model, batch, here[0])[0][here]),
            step=lambda h: _segment(model, batch, here, there, h),
            readout=readout,
            states=states,
            output=output,
            name=f"{kind}; the first of its {len(states)} calls makes h_0",
        )

    first, slot = loops[0][0], entries[0]
    start = dict(slots(first)).get(slot)
    start = None if start is None or (start == 0).all(-1).any() else start
    loop = loops[-1]

    def step(h: Tensor) -> Tensor:
        for call, place in zip(loop, entries, strict=True):
            h = replay(call, h, place)
        return h

    def embed() -> Tensor:
        call = record(model, batch, first.path)[0][first.path, first.index]
        return dict(slots(call))[slot] if start is not None else _state(call)

    return maps(
        model,
        batch,
        embed=embed,
        step=step,
        readout=readout,
        states=states if start is None else [start, *states],
        output=output,
        name=kind if start is not None else f"{kind}; the first of its {len(states)} calls makes h_0",
    )


def _of_site(calls: dict[Key, Call], site: Site) -> Iterator[Call]:
    return (call for (path, _), call in calls.items() if path in site.paths)


def _chain(loops: Sequence[Sequence[Call]]) -> list[Slot] | None:
    """For each module of the cycle, the argument that is the output of the one before; None if one has no such."""
    flat = [call for loop in loops for call in loop]
    found: dict[int, set[Slot]] = {place: set() for place in range(len(loops[0]))}
    for n, (before, call) in enumerate(zip(flat, flat[1:], strict=False)):
        taken = {slot for slot, value in slots(call) if _equal(value, _state(before))}
        place = (n + 1) % len(found)
        found[place] = taken & found[place] if found[place] else taken
        if not taken or not found[place]:
            return None
    return [min(found[place], key=str) for place in range(len(found))]


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and one.dtype == other.dtype and torch.equal(one, other)


def _state(call: Call) -> Tensor:
    if call.state is None:
        raise ValueError(f"{call.path} returns no tensor.")
    return call.state


def _segment(model: nn.Module, batch: Any, here: Key, there: Key, h: Tensor) -> Tensor:
    """The model's own pass from one output of a module to a later one."""

    def reached(state: Tensor) -> Tensor:
        raise _Reached(state)

    try:
        with exact(model), capture(model, replace={here: h, there: reached}):
            run(model, batch)
    except _Reached as end:
        return end.state
    raise ValueError(f"the pass ended before call {there[1]} of {there[0]}.")

"""States and interventions of one call of one module: the key is (path, call), because a loop calls a module again.

A hook that is keyed by the module alone keeps the last loop and silently loses the others. Here the output of every
call is kept under its own number, counted from 0 within one block of `capture`, and any of them can be replaced.
"""

import copy
import difflib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

Key = tuple[str, int]
Replacement = Tensor | Callable[[Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class Call:
    """One call of one module.

    Attributes:
        path: of the module in the model.
        index: number of the call, from 0.
        module: what was called.
        args, kwargs: as the module got them (the tensors themselves, not copies).
        output: as the module, or its replacement, returned it.
        state: first tensor of the output, copied where it was made, so that in-place operations behind it do no harm.
    """

    path: str
    index: int
    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any
    state: Tensor | None


@contextmanager
def capture(
    model: nn.Module, *paths: str, replace: Mapping[Key, Replacement] | None = None
) -> Iterator[dict[Key, Call]]:
    """Record every call of the named modules, and replace the states that some of them return.

    Works under torch.func transforms (what is recorded there is theirs and dies with them), and with modules compiled
    by torch.compile, which run uncompiled inside the block: a compiled graph would ignore hooks added to it.

        with capture(model, "layers.0", replace={("layers.0", 2): lambda h: 4 * h}) as calls:
            logits = model(tokens)
        calls["layers.0", 3].state

    Args:
        paths: of modules, as in `model.named_modules()`; a compiled module's `_orig_mod` may be left out.
        replace: (path, call) to a state, or to a function of the state that was returned. Only the first tensor of
            the module's output is replaced; what surrounds it is kept. The paths need not be among `paths`.

    Yields:
        A dict that fills while the block runs, in the order in which the calls end: (path, call) to `Call`.

    Raises:
        ValueError: no module at a path, an output without a tensor, or, at the end of a block that did not raise, a
            replacement whose call was never made.
    """
    replace = dict(replace or {})
    modules = {path: module_at(model, path) for path in dict.fromkeys([*paths, *(path for path, _ in replace)])}
    made: Counter[str] = Counter()
    calls: dict[Key, Call] = {}

    def hook(path: str) -> Callable[..., Any]:
        def record(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
            index = made[path]
            made[path] += 1
            state = first_tensor(output)
            if (path, index) in replace:
                if state is None:
                    raise ValueError(f"{path} returns no tensor in call {index}: there is no state to replace.")
                new = replace[path, index]
                state = new if isinstance(new, Tensor) else new(state)
                output = with_first_tensor(output, state)
            if path in paths:
                kept = None if state is None else state.clone()
                calls[path, index] = Call(
                    path=path, index=index, module=module, args=args, kwargs=kwargs, output=output, state=kept
                )
            return output

        return record

    with ExitStack() as stack:
        stack.enter_context(uncompiled(model))
        for path, module in modules.items():
            handle = module.register_forward_hook(hook(path), with_kwargs=True)
            stack.callback(handle.remove)
        yield calls
    for path, index in replace:
        if index not in range(made[path]):
            raise ValueError(f"there is no call {index} of {path} to replace: it was called {made[path]} times.")


def module_at(model: nn.Module, path: str) -> nn.Module:
    """The module at a path of `model.named_modules()`, whether or not parts of it are compiled.

    Raises:
        ValueError: no such module, naming those whose paths come nearest.
    """
    modules = {plain_path(name): module for name, module in model.named_modules(remove_duplicate=False)}
    if plain_path(path) not in modules:
        near = difflib.get_close_matches(path, modules, n=3, cutoff=0.3)
        hint = f"; near it: {', '.join(near)}" if near else ""
        raise ValueError(f"{type(model).__name__} has no module at '{path}'{hint}.")
    return modules[plain_path(path)]


def plain_path(path: str) -> str:
    """A module's path without the wrappers that torch.compile puts into it."""
    return ".".join(part for part in path.split(".") if part != "_orig_mod")


@contextmanager
def uncompiled(model: nn.Module) -> Iterator[None]:
    """Run compiled parts of a model as plain Python, so that hooks fire."""
    compiled = any(
        type(module).__name__ == "OptimizedModule" or getattr(module, "_compiled_call_impl", None) is not None
        for module in model.modules()
    )
    with torch.compiler.set_stance("force_eager") if compiled else ExitStack():
        yield


def first_tensor(value: Any) -> Tensor | None:
    """The tensor itself, or the first one of a tuple, list or mapping; None if there is none."""
    if isinstance(value, Tensor):
        return value
    parts = value.values() if isinstance(value, Mapping) else value if isinstance(value, tuple | list) else ()
    return next((part for part in parts if isinstance(part, Tensor)), None)


def with_first_tensor(value: Any, tensor: Tensor) -> Any:
    """A copy of `value` that has `tensor` in the place that `first_tensor` reads."""
    if isinstance(value, Mapping):
        name = next(key for key, part in value.items() if isinstance(part, Tensor))
        changed: Any = copy.copy(value)
        changed[name] = tensor
        return changed
    if isinstance(value, tuple | list):
        place = next(n for n, part in enumerate(value) if isinstance(part, Tensor))
        parts = [*value[:place], tensor, *value[place + 1 :]]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    return tensor

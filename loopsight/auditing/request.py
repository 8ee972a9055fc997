"""What the command line asks, and from there to a model and a batch: a run folder, a factory, a model of the hub."""

import importlib
import importlib.util
import json
import os
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from loopsight.protocol import LoopedMaps

OWN = ("experiments.runs:load_model", "experiments.runs:load_batch")  # of the repository that this library is of
MOST_LETTERS = 400  # of an error of others
RANDOM = "the batch is random token ids: structure is judged on untypical states, and cross-entropies mean nothing."


class CannotAsk(Exception):
    """The request itself cannot be carried out: exit status 2."""


class AuditFailed(Exception):
    """The request was fine and the model, its factory or a file failed: exit status 1."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """What can this looped model's loss not see? Name it in one of three ways: RUN, --factory or --hf."""

    run: Path | None = None
    """A run folder, whose config.json names a "factory" and, if there is one, a "batch": each
    "package.module:function", called with the folder."""
    factory: str | None = None
    """package.module:function, called without arguments: returns a model or LoopedMaps, or one of them and a batch."""
    hf: str | None = None
    """A model of the Hugging Face hub, or a folder that holds one."""
    trust_remote_code: bool = False
    """Run the code that comes with a model of the hub, or functions that a run folder names."""
    paths: tuple[str, ...] = ()
    """Modules of one loop in their order, by name, where a model can be cut at more than one place: the state is the
    output of the last."""
    text: Path | None = None
    """A text file to take the batch from, where the model has a tokeniser (--hf)."""
    ids: Path | None = None
    """A file of token ids, separated by white space, to take the batch from."""
    sequences: int = 16
    """Sequences of the batch, where the model does not bring its own."""
    length: int = 128
    """Tokens a sequence, likewise."""
    loops: int | None = None
    """K, the trained number of loops, if the model does not say it."""
    groups: int | None = None
    """Ask about the scales of so many equal groups of channels; detected when not given."""
    device: str | None = None
    """Where to move model and batch first (cpu, cuda, ...)."""
    symmetries: bool | None = None
    """Count the scaling symmetries of the parameters; when not given, if that is cheap."""
    out: Path = Path("audit")
    """Written are OUT.json and OUT.html."""
    html: bool = True
    """Write the page with figures (needs matplotlib)."""
    fail_on: Literal["nothing", "blind", "active"] = "nothing"
    """Exit with 3 if a direction is blind, or blind and kept by the recurrence, or if one, or all, cannot be judged."""


def model_and_batch(request: Request) -> tuple[Any, Any, tuple[str, ...]]:
    """The model, its batch, and what the report should note about them.

    Raises:
        CannotAsk: none or several models named, no such file, module or function.
        AuditFailed: a factory or loader raised, or returned something else.
    """
    named = [name for name in ("run", "factory", "hf") if getattr(request, name) is not None]
    if len(named) != 1:
        raise CannotAsk(f"name one model: a run folder, --factory or --hf; got {' and '.join(named) or 'none'}.")
    if request.sequences < 1 or request.length < 2:
        raise CannotAsk(f"expected --sequences >= 1 and --length >= 2, got {request.sequences} and {request.length}.")
    if request.loops is not None and request.loops < 1 or request.groups is not None and request.groups < 2:
        raise CannotAsk(f"expected --loops >= 1 and --groups >= 2, got {request.loops} and {request.groups}.")
    if request.out.name in ("", ".."):
        raise CannotAsk(f"--out {request.out} is a folder; name the files in it, as --out {request.out / 'audit'}.")
    batch: Any = None
    tokeniser: Any = None
    if request.run is not None:
        model, batch = _from_run(request.run, request.trust_remote_code)
    elif request.factory is not None:
        model, batch = _from_factory(request.factory)
    else:
        model, tokeniser = _from_hub(str(request.hf), request.trust_remote_code)
    module = model if isinstance(model, nn.Module) else getattr(model, "module", None)
    _move(module, request.device)
    home = next(module.parameters(), torch.empty(0)).device if isinstance(module, nn.Module) else None
    if request.ids is not None or request.text is not None:
        return model, _cut(_read_ids(request, tokeniser), request).to(home), ()
    if batch is None:
        return model, _random_ids(module, request).to(home), (RANDOM,)
    return model, batch if request.device is None else _moved(batch, home), ()


def function_named(name: str) -> Callable[..., Any]:
    """package.module:function, found from the working directory too.

    Raises:
        CannotAsk: there is no such module or function.
    """
    module, separator, attribute = name.partition(":")
    if not (separator and module and attribute):
        raise CannotAsk(f"'{name}' names no function; write package.module:function.")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found = getattr(importlib.import_module(module), attribute, None)
    except (Exception, SystemExit) as error:  # a module may raise anything while it is imported
        raise CannotAsk(
            f"cannot import {module} ({type(error).__name__}: {one_line(error)}); is the working directory right?"
        ) from error
    if not callable(found):
        raise CannotAsk(f"the module {module} has no function {attribute}.")
    return found


def one_line(error: BaseException) -> str:
    """What an error says, without a full stop, shortened."""
    said = " ".join(str(error).split()).rstrip(".")
    return said if len(said) <= MOST_LETTERS else f"{said[:MOST_LETTERS].rsplit(' ', 1)[0]} ..."


def _called(name: str, *arguments: Any) -> Any:
    function = function_named(name)
    try:
        return function(*arguments)
    except (Exception, SystemExit) as error:
        raise AuditFailed(
            f"the factory {name} raised {type(error).__name__}: {one_line(error)}; call it by itself to see where."
        ) from error


def _from_run(folder: Path, trusted: bool) -> tuple[Any, Any]:
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CannotAsk(f"cannot read {path} ({error}); is {folder} the folder of a run?") from error
    if not isinstance(config, dict) or not isinstance(config.get("factory"), str):
        raise CannotAsk(f'{path} names no factory; it needs "factory": "package.module:function".')
    batch = config.get("batch")
    if batch is not None and not isinstance(batch, str):
        raise CannotAsk(f'"batch" in {path} must be "package.module:function", got {batch!r}.')
    for name in (config["factory"], batch):
        if not trusted and name is not None and not (name in OWN and _is_outside(folder)):
            raise CannotAsk(f"{path} names a function to be run, {name}; if you trust it, add --trust-remote-code.")
    return _called(config["factory"], folder), None if batch is None else _called(batch, folder)


def _is_outside(folder: Path) -> bool:
    """Whether the package that `OWN` names is not the folder's own."""
    sys.path[:0] = [] if os.getcwd() in sys.path else [os.getcwd()]
    spec = importlib.util.find_spec(OWN[0].partition(".")[0])
    found = [] if spec is None else [*(spec.submodule_search_locations or ()), *([spec.origin] if spec.origin else [])]
    return all(folder.resolve() not in Path(place).resolve().parents for place in found)


def _from_factory(name: str) -> tuple[Any, Any]:
    made = _called(name)
    model, batch = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    maps = all(callable(getattr(model, part, None)) for part in ("embed", "step", "readout"))
    if not isinstance(model, (nn.Module, LoopedMaps)) and not maps:
        raise AuditFailed(
            f"the factory {name} returned {type(model).__name__}; it must return a torch module or LoopedMaps, "
            "alone or with a batch."
        )
    return model, batch


def _from_hub(name: str, trust_remote_code: bool) -> tuple[Any, Any]:
    from loopsight.adapters import load_hf

    name = str(Path(name).expanduser()) if name.startswith("~") else name
    if name.startswith((".", "/")) and not Path(name).is_dir():
        raise CannotAsk(f"there is no folder {name}; --hf takes one, or the name of a model of the hub.")
    try:
        return load_hf(name, trust_remote_code=trust_remote_code)
    except Exception as error:
        said = re.sub(r"`?trust_remote_code=True`?", "--trust-remote-code", one_line(error))
        raise AuditFailed(f"cannot load {name}: {said}.") from error


def _read_ids(request: Request, tokeniser: Any) -> Tensor:
    if request.ids is not None and request.text is not None:
        raise CannotAsk("--ids and --text both name a batch; give one of them.")
    path = request.ids or request.text
    assert path is not None
    try:
        content = path.read_text(encoding="utf-8")
        if request.ids is not None:
            return torch.tensor([int(word) for word in content.split()])
    except (OSError, ValueError) as error:
        raise CannotAsk(f"cannot read {path} ({one_line(error)}).") from error
    if tokeniser is None:
        raise CannotAsk("--text needs a model that has a tokeniser (--hf); pass --ids, a file of token ids.")
    return torch.tensor(tokeniser(content)["input_ids"])


def _cut(ids: Tensor, request: Request) -> Tensor:
    count = min(request.sequences, len(ids) // request.length)
    if count < 1:
        raise CannotAsk(f"{len(ids)} tokens are fewer than one sequence of {request.length}; see --length.")
    return ids[: count * request.length].view(count, request.length)


def _random_ids(module: object, request: Request) -> Tensor:
    tables = [m for m in module.modules() if isinstance(m, nn.Embedding)] if isinstance(module, nn.Module) else []
    if not tables:
        raise AuditFailed("the model has no torch.nn.Embedding to draw token ids for; let the factory return a batch.")
    try:  # of transformers; else the first made, not that of positions
        own = module.get_input_embeddings()  # type: ignore[attr-defined]
    except (AttributeError, NotImplementedError):
        own = None
    classes = getattr(own, "num_embeddings", tables[0].num_embeddings)
    generator = torch.Generator().manual_seed(0)
    return torch.randint(classes, (request.sequences, request.length), generator=generator)


def _moved(batch: Any, home: torch.device | None) -> Any:
    if hasattr(batch, "to"):  # a tensor, or what a tokeniser returns
        return batch.to(home)
    if isinstance(batch, Mapping):
        return {key: _moved(value, home) for key, value in batch.items()}
    return type(batch)(_moved(value, home) for value in batch) if isinstance(batch, (list, tuple)) else batch


def _move(module: object, device: str | None) -> None:
    if device is None:
        return
    if not isinstance(module, nn.Module):
        raise CannotAsk("--device moves a torch module, and these maps name none; let the factory make them there.")
    try:
        module.to(device)
    except (RuntimeError, AssertionError) as error:
        raise CannotAsk(f"cannot move the model to {device} ({one_line(error)}).") from error

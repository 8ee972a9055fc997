"""Models from the hub or a folder, by the code that users run, and the check that what was loaded is what was stored.

Loading code has been known to initialise weights again after it read them, and versions of transformers break models
whose code lives beside their weights. So every tensor of the files is compared with the model's, a tensor that the
files do not hold is an error, and what fails names the version of transformers that works.
"""

import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

INSTALL = 'pip install "loopsight[hf]"'
# Measured on configurations of a few layers with torch 2.13; other versions may work.
WORKS_WITH = {
    "huginn_raven": "transformers==4.57.6",
    "ouro": "transformers==4.57.6",
    "hrm_text": "transformers>=5.9",
}
TOKENIZERS = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt")
OPTIONAL = {"_raise_exceptions_for_missing_entries": False}


def load_hf(name_or_path: str | Path, *, trust_remote_code: bool = False) -> tuple[nn.Module, Any | None]:
    """A language model in evaluation mode, in the dtype it was stored in, and its tokeniser, None if it has none.

    Args:
        name_or_path: on the hub, or a folder that `save_pretrained` wrote.
        trust_remote_code: run the model's own code from there. Never the default: it may do anything.

    Raises:
        ValueError: transformers is missing or of a version that cannot load it, nothing is stored there, its code
            would have to be trusted, or what was loaded differs from the safetensors files.
    """
    transformers = _transformers()
    name = str(name_or_path)
    try:
        config = transformers.AutoConfig.from_pretrained(name, trust_remote_code=trust_remote_code)
    except Exception as cause:
        raise _explained(name, cause, trust_remote_code) from cause
    architectures = config.architectures or []
    masked = not any(kind.endswith("CausalLM") for kind in architectures) and any(
        kind.endswith(("MaskedLM", "PreTraining")) for kind in architectures
    )
    loader = transformers.AutoModelForMaskedLM if masked else transformers.AutoModelForCausalLM
    try:
        model, info = loader.from_pretrained(
            name, trust_remote_code=trust_remote_code, dtype="auto", use_safetensors=True, output_loading_info=True
        )
    except Exception as cause:
        raise _explained(name, cause, trust_remote_code) from cause
    absent = sorted(info["missing_keys"])
    if absent:
        raise ValueError(f"{name} does not hold {absent[0]} ({len(absent)} such tensors): they would be random.")
    require_stored(model, stored_tensors(name))
    return model.eval(), _tokenizer(transformers, name, trust_remote_code)


def require_stored(model: nn.Module, stored: Iterator[tuple[str, Tensor]]) -> None:
    """Check that every stored tensor that the model has a parameter of the same name for equals it, bit for bit.

    Raises:
        ValueError: naming the first that differs, or saying that none was found.
    """
    own = model.state_dict()
    compared = 0
    for name, tensor in stored:
        if name in own and own[name].device.type != "meta":
            compared += 1
            here = own[name].detach().cpu()
            if not torch.equal(here, tensor.to(here.dtype)):
                raise ValueError(
                    f"{name} of the loaded {type(model).__name__} is not what its file holds: the weights were "
                    "changed or initialised again while loading; try another version of transformers."
                )
    if compared == 0:
        raise ValueError(f"no stored tensor has the name of one of {type(model).__name__}: nothing could be checked.")


def stored_tensors(name: str) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors of a model's safetensors files, one at a time."""
    safe_open = importlib.import_module("safetensors").safe_open
    cached_file = _transformers().utils.cached_file
    single = cached_file(name, "model.safetensors", **OPTIONAL)
    if single is None:
        index = cached_file(name, "model.safetensors.index.json")
        shards = sorted(set(json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"].values()))
    for file in [single] if single else [cached_file(name, shard) for shard in shards]:
        with safe_open(file, framework="pt") as tensors:
            for key in tensors.keys():
                yield key, tensors.get_tensor(key)


def _transformers() -> Any:
    try:
        importlib.import_module("safetensors")
        return importlib.import_module("transformers")
    except ImportError as error:
        raise ValueError(f"models of the hub need transformers and safetensors: {INSTALL}.") from error


def _explained(name: str, cause: Exception, trusted: bool) -> ValueError:
    """One sentence for whatever loading raised; the cause stays attached."""
    said = " ".join(str(cause).split()) or type(cause).__name__
    if not trusted and "trust_remote_code" in said:
        return ValueError(f"{name} needs its own code to be run: pass trust_remote_code=True if you trust its authors.")
    kind = _stored_kind(name)
    works = WORKS_WITH.get(kind or "")
    if works:
        return ValueError(
            f"transformers {_transformers().__version__} cannot load {name} ({kind}): install {works} ({said[:200]})."
        )
    return ValueError(f"{name} cannot be loaded: {said[:300]}")


def _stored_kind(name: str) -> str | None:
    """The model type in config.json, if the file can be had."""
    try:
        file = _transformers().utils.cached_file(name, "config.json", **OPTIONAL)
        return json.loads(Path(file).read_text(encoding="utf-8")).get("model_type") if file else None
    except (OSError, ValueError, AttributeError):
        return None


def _tokenizer(transformers: Any, name: str, trust_remote_code: bool) -> Any | None:
    """Only where one is stored: for some models transformers makes up one that knows its special tokens alone."""
    files = (transformers.utils.cached_file(name, file, **OPTIONAL) for file in TOKENIZERS)
    if all(file is None for file in files):
        return None
    return transformers.AutoTokenizer.from_pretrained(name, trust_remote_code=trust_remote_code)

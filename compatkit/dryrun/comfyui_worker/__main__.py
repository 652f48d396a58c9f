"""`python THIS_FOLDER DIR [MEMORY]`: reads requests as lines of JSON, answers each with one line.

The first line it writes says whether the checkout can be used: `{"ready": true, "version": …, "torch": …}` or
`{"ready": false, "why": …}`. Runs in the checkout's own interpreter where it has one: Python 3.9, torch, nothing else.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import threading
import time
import types
from pathlib import Path
from typing import Any, TextIO

_MOST_STAND_INS = 24
_FOUND_OUT = ("torch", "numpy", "einops", "safetensors", "yaml", "tqdm", "PIL")


def _own_channel() -> TextIO:
    """The real standard output; whatever else prints goes to standard error."""
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return channel


def _watch(most: int) -> None:
    """Ends this process when it holds more memory than allowed: the other side sees that it did."""
    try:
        import resource
    except ImportError:
        return
    unit = 1 if sys.platform == "darwin" else 1024

    def watch() -> None:
        while True:
            if resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit > most:
                os._exit(99)
            time.sleep(0.1)

    threading.Thread(target=watch, daemon=True).start()


def _own_modules() -> None:
    """Make this folder importable under its name, without the rest of the package it lies in."""
    here = Path(__file__).resolve().parent
    for name, folder in (("compatkit", here.parent.parent), ("compatkit.dryrun", here.parent)):
        module = types.ModuleType(name)
        module.__path__ = [str(folder)]
        sys.modules[name] = module


def _imported(directory: str) -> Any:
    """The runner over that checkout.

    Raises:
        RuntimeError: it cannot be used; the text says why.
    """
    sys.path[0] = directory
    sys.argv = ["main.py", "--cpu", "--use-pytorch-cross-attention"]
    try:
        import torch  # noqa: F401
    except Exception as error:
        raise RuntimeError(f"torch cannot be imported: {_said(error)}") from None
    _own_modules()
    from compatkit.dryrun.comfyui_worker import stand_ins

    stand_ins.install()
    for _ in range(_MOST_STAND_INS):
        try:
            importlib.import_module("comfy.options").enable_args_parsing()
            importlib.import_module("comfy.sample")
            importlib.import_module("comfy.sd")
            break
        except ModuleNotFoundError as error:
            missing = (error.name or "").split(".")[0]
            if not missing or missing in _FOUND_OUT or missing == "comfy":
                raise RuntimeError(_missing(missing, error)) from None
            stand_ins.stand_in_for(missing)
            for name in [n for n in sys.modules if n.split(".")[0] in ("comfy", missing)]:
                del sys.modules[name]
        except Exception as error:
            raise RuntimeError(f"its code cannot be imported: {_said(error)}") from None
    from compatkit.dryrun.comfyui_worker.runner import Runner

    try:
        return Runner(directory)
    except Exception as error:
        raise RuntimeError(f"its code has not the functions this version of compatkit calls: {_said(error)}") from None


def _missing(module: str, error: Exception) -> str:
    if module == "comfy" or not module:
        return f"there is no ComfyUI in it that can be imported: {_said(error)}"
    return f"its code needs the Python package {module}, which {sys.executable} has not"


def _said(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def main() -> None:
    """Answer requests until there are no more."""
    sys.dont_write_bytecode = True
    channel = _own_channel()
    directory = str(Path(sys.argv[1]).resolve())
    if len(sys.argv) > 2:
        _watch(int(sys.argv[2]))

    def answer(message: Any) -> None:
        channel.write(json.dumps(message) + "\n")
        channel.flush()

    try:
        runner = _imported(directory)
    except RuntimeError as error:
        answer({"ready": False, "why": str(error)})
        return
    import torch

    version = getattr(sys.modules.get("comfyui_version"), "__version__", None)
    answer({"ready": True, "version": version, "torch": torch.__version__, "python": sys.executable})
    for line in sys.stdin:
        request = json.loads(line)
        if request.get("do") == "part":
            runner.parts[request["id"]] = request
            continue
        try:
            answer({"id": request.get("id"), **runner.run(request)})
        except Exception as error:  # of this program, not of the set
            answer({"id": request.get("id"), "broken": _said(error)})


main()

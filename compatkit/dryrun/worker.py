"""The process that has torch: `python -m compatkit.dryrun.worker` reads requests, one JSON object a line, and answers.

    {"do": "environment"}                      -> {"torch": "2.13.0+cpu", "python": "3.12.3"}
    {"do": "forward", "component": {…}, …}     -> {"class": "…", "ok": true, "missing": [], …}
    {"do": "memory"}                           -> {"peak": 305000000}
    {"do": "chains", "chains": [{…}, …]}       -> {"results": [{"ok": true}, {"ok": false, "message": …}, …]}

An answer is one line. What does not work is an answer too: {"failed": "ImportError", "message": …}. Nothing else is
written to standard output: whatever a library prints goes to standard error.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any

#: Address space, bytes. What torch maps for itself is far below; a kernel that would fill memory fails instead.
ADDRESS_SPACE = 48 << 30


def environment(request: Mapping[str, Any]) -> dict[str, Any]:
    """Which torch this is."""
    import torch

    torch.empty(1)  # an installation whose libraries do not load fails here at the latest
    return {"torch": str(torch.__version__), "python": sys.version.split()[0]}


def chains(request: Mapping[str, Any]) -> dict[str, Any]:
    """Run the chains of operations of `ops`."""
    from compatkit.dryrun import ops

    return {"results": [ops.run_chain(chain) for chain in request["chains"]]}


def memory(request: Mapping[str, Any]) -> dict[str, Any]:
    """The most memory this process had, bytes; 0 where the system does not say."""
    try:
        import resource
    except ImportError:
        return {"peak": 0}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"peak": peak if sys.platform == "darwin" else peak * 1024}


def forward(request: Mapping[str, Any]) -> dict[str, Any]:
    """Make a component's class without weights, compare its tensors with the file's, and run it."""
    from pathlib import Path

    from compatkit.dryrun import build
    from compatkit.dryrun.classes import NoClass
    from compatkit.dryrun.forward import forward as run
    from compatkit.dryrun.handover import unpacked
    from compatkit.knowledge.store import load

    knowledge = load(tuple(Path(r) for r in request.get("rules") or ()))
    component = unpacked(request["component"])
    try:
        built = build.build(component, knowledge)
    except NoClass as e:
        return {"none": str(e)}
    except build.EnvironmentProblem as e:
        return {"environment": str(e)}
    known = {k: v for k, v in (request.get("replace") or {}).items() if k in built.spec.env}
    result = run(built, replace=known)
    version = getattr(build.load(built.spec.library), "__version__", "")
    return {
        "class": built.spec.name,
        "library": built.spec.library,
        "version": str(version),
        "tensors": len(built.plan) + len(built.missing),
        # torch itself fills in the counter of a batch norm that a file does not have.
        "missing": [n for n in built.missing if not n.endswith(".num_batches_tracked")],
        "wrong": list(built.wrong),
        "ok": result.ok,
        "op": result.op,
        "module": result.module,
        "message": result.message,
        "raised": result.raised,
        "line": result.line,
        "shape": list(result.shape),
        "seconds": result.seconds,
        "parameters": built.parameters,
        "operands": [{"shape": list(o.shape), "dtype": o.dtype, "name": o.name} for o in result.operands],
    }


#: What a request may ask. Values are called with the request; modules with torch are imported when they are needed.
ACTIONS: dict[str, Callable[[Mapping[str, Any]], dict[str, Any]]] = {
    "environment": environment,
    "chains": chains,
    "memory": memory,
    "forward": forward,
}


def answer(line: str) -> dict[str, Any]:
    """The answer to one request; an exception is part of it."""
    try:
        request = json.loads(line)
        return ACTIONS[request["do"]](request)
    except BaseException as e:
        if isinstance(e, KeyboardInterrupt):
            raise
        return {"failed": type(e).__name__, "message": " ".join(str(e).split())[:2000]}


def _bound() -> None:
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    except (ImportError, ValueError, OSError):
        return  # not on this system: time is still bounded by the caller


def main() -> None:
    """Answer until the input ends."""
    _bound()
    out = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    for line in sys.stdin:
        out.write(json.dumps(answer(line)) + "\n")
        out.flush()


if __name__ == "__main__":
    main()

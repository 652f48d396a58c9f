"""Sources named one by one: `SOURCE` or `ROLE=SOURCE`, each read into its components."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

from msgspec import Struct
from msgspec.structs import replace

from compatkit import adapters
from compatkit.headers import open_header
from compatkit.headers.small import read_small
from compatkit.identify.identify import identify
from compatkit.identify.schemes import Reader
from compatkit.knowledge.store import Knowledge
from compatkit.sources.folders import Folder
from compatkit.sources.naming import base_name, closest, shown
from compatkit.sources.network import Network, mapped
from compatkit.sources.open import is_remote, open_place, shown_name
from compatkit.stacks import folder
from compatkit.stacks.far import FarReader, FarScalars
from compatkit.vocabulary import Component, FileProblem, Header, HeaderError, Quantization, SourceError, Tensor

if TYPE_CHECKING:
    from compatkit.sources import Source

#: Roles a user may force.
ROLES = (
    "diffusion", "text_encoder", "vae", "lora", "controlnet", "ip_adapter", "style_model", "clip_vision", "mmproj",
    "upscaler", "embedding", "llm", "t2i_adapter", "model_patch", "motion_module",
)  # fmt: skip


class Request(Struct, frozen=True):
    """One source as the user named it: where, as which role, taken for which family; `times`: how often by hand."""

    source: str
    role: str | None = None
    assume: str | None = None
    times: int = 1


def parse_request(text: str) -> Request:
    """`vae=x.safetensors` -> role and source; a plain source has no role.

    Raises:
        SourceError: a kind of source that is not supported yet, or a word before `=` that is no role.
    """
    head, equals, rest = text.partition("=")
    role = None
    if equals and head in ROLES:
        role, text = head, rest
    elif equals and head.replace("_", "").isalnum() and not os.path.exists(text) and os.path.exists(rest):
        close = closest(head, ROLES)
        hint = f"; did you mean {close!r}?" if close else f" ({', '.join(ROLES[:4])}, …)"
        raise SourceError(f"{head!r} in {shown(text)} is not a role{hint}")
    _refuse_unsupported(text)
    return Request(text, role)


def _refuse_unsupported(source: str) -> None:
    if is_remote(source):
        return  # what is wrong with it was said
    lower = source.lower()
    if lower.endswith(".toml"):
        raise SourceError(f"{shown(source)}: a stack file stands for a whole set: `compatkit check` and `lock` take it")
    if lower.endswith(".json") and not lower.endswith(".index.json") and os.path.isfile(source):
        raise SourceError(
            f"{shown(source)}: no workflow, and a config says nothing by itself; name the model files, "
            "the folder it lies in, or a *.safetensors.index.json"
        )


def _once(texts: Sequence[str | Request]) -> list[Request]:
    """The requests, those for one file in one role as one."""
    out: dict[tuple[str, str | None, str | None], Request] = {}
    for text in texts:
        request = text if isinstance(text, Request) else parse_request(text)
        same = request.source if is_remote(request.source) else os.path.realpath(request.source)
        key = (same, request.role, request.assume)
        if key not in out:
            out[key] = request
        elif isinstance(text, str):  # the nodes of a workflow may load a file as often as they like
            out[key] = replace(out[key], times=out[key].times + 1)
    return list(out.values())


def requests(texts: Sequence[str | Request], assume: Mapping[str, str], knowledge: Knowledge) -> list[Request]:
    """All sources of a command, with what the user assumes of them.

    Raises:
        SourceError: an assumption names a file that is not among the sources, or a family nobody knows.
    """
    parsed = _once(texts)
    out = dict(enumerate(parsed))
    for r in parsed:
        if r.assume and not knowledge.has_family(r.assume):
            close = closest(r.assume, knowledge.members())
            hint = f"; did you mean {close!r}?" if close else "; `compatkit rules list` names them all"
            raise SourceError(f"{shown(r.source)}: assume: there is no family {r.assume!r}{hint}")
    for file, family in assume.items():
        if not knowledge.has_family(family):
            close = closest(family, knowledge.members())
            hint = f"; did you mean {close!r}?" if close else "; `compatkit rules list` names them all"
            raise SourceError(f"--assume: there is no family {family!r}{hint}")
        hits = [i for i, r in enumerate(parsed) if r.source == file] or [
            i for i, r in enumerate(parsed) if base_name(r.source) == file
        ]
        if not hits:
            raise SourceError(f"--assume: {shown(file)} is not among the sources")
        for i in hits:
            out[i] = replace(parsed[i], assume=family)
    return list(out.values())


def opened(
    request: Request, knowledge: Knowledge, *, headers_only: bool = False, network: Network | None = None
) -> list[Component]:
    """The components of one source. A file that is no readable model gives one of role "unknown" that says why.

    With `headers_only` nothing is read but headers: no marker that names a packing, no value that decides. A source
    elsewhere is read through `network`.

    Raises:
        SourceError: there is no such file, or it may not be read.
    """
    network = network or Network()
    place = open_place(request.source, network=network)
    if isinstance(place, Folder):
        return _folder(request, place, knowledge, headers_only, network)
    with place:
        first, *others = _file(request, place, knowledge, headers_only, network)
    if request.times > 1:
        message = f"{shown(request.source)} is named {request.times} times and counts once"
        fix = "Name the file that was meant, if another one was; a copy under another name counts by itself."
        twice = FileProblem("file/twice", message, fix, {"times": request.times}, "info")
        first = replace(first, problems=(*first.problems, twice))
    return [first, *others]


def _file(
    request: Request, source: Source, knowledge: Knowledge, headers_only: bool, network: Network
) -> list[Component]:
    frugal = source.workers > 1 and not network.full  # on a disk a look is cheap
    try:
        header = open_header(source, brief=frugal and not request.assume)
        if header.unread:
            from compatkit.identify.partly import from_metadata

            if component := from_metadata(header, knowledge, request.role):
                return [component]
            header = open_header(source)
        far = FarReader(header, source)
        read = None if headers_only else far if frugal else partial(read_small, header, source=source)
        # alphas may stand everywhere in the file: few reads on a disk, hundreds of requests elsewhere
        scalar = None if headers_only else FarScalars(header, source) if frugal else partial(_bytes, source)
        components = far.noted(_identified(header, knowledge, request.role, request.assume, read, scalar))
    except HeaderError as e:
        return [unreadable(request, e.problem, source.size)]
    if request.role and not request.assume and all(c.family is None for c in components):
        return _in_another_role(request, header, knowledge) or components
    return components


def _bytes(source: Source, tensor: Tensor) -> bytes:
    return source.read(tensor.offset, tensor.nbytes)


def _identified(
    header: Header,
    knowledge: Knowledge,
    role: str | None = None,
    assume: str | None = None,
    read: Reader | None = None,
    scalar: Callable[[Tensor], bytes] | None = None,
) -> list[Component]:
    """The models of a header. One whose names end as only an adapter's do is an adapter, whatever else it resembles."""
    share = adapters.share(header, knowledge) if assume is None and role in (None, adapters.ROLE) else 0.0
    if share >= adapters.SURE and (adapter := adapters.recognise(header, knowledge, scalar)):
        return [adapter]
    components = identify(header, knowledge, force_role=role, assume=assume, read=read)
    if share >= adapters.MAYBE and all(c.family is None for c in components):
        adapter = adapters.recognise(header, knowledge, scalar)
        return [adapter] if adapter else components
    return components


def _in_another_role(request: Request, header: Header, knowledge: Knowledge) -> list[Component]:
    """What the file is where it is nothing of the role the user gave it, with a problem that says so; else empty."""
    found = _identified(header, knowledge)
    first = found[0]
    if (
        (first.family is None and first.role != adapters.ROLE)
        or first.role == request.role
        or {first.role, request.role} == {"llm", "text_encoder"}
    ):
        return []
    given, own = str(request.role).replace("_", " "), first.role.replace("_", " ")
    problem = FileProblem(
        "file/wrong-role",
        f"{shown(request.source)} is given as {given}, but its tensors are {first.title}: {own}",
        f"Give it as {first.role}=…, and a {given} file as {request.role}=….",
        {"given": str(request.role), "role": first.role, "family": first.family},
    )
    return [replace(c, problems=(*c.problems, problem)) for c in found]


def _folder(
    request: Request, place: Folder, knowledge: Knowledge, headers_only: bool, network: Network
) -> list[Component]:
    """Every part of a diffusers folder, with what the folder's configs declare."""

    def read(part: folder.Part) -> list[Component]:
        if part.weights is None:
            return [unreadable(Request(place.where(part.name)), part.problems[-1])]
        inside = Request(place.where(part.weights), request.role, request.assume)
        with place.open(part.weights) as source:
            components = _file(inside, source, knowledge, headers_only, network)
        return [
            replace(
                component,
                declared=part.declared,
                problems=component.problems + part.problems,
                not_checked=component.not_checked + part.not_checked,
            )
            for component in components
        ]

    listed = folder.parts(place, full=network.full)
    out = [component for row in mapped(read, listed, place.workers) for component in row]
    if not out:
        raise SourceError(f"{shown(place.name)}: the folder's index names no part that is there")
    return out


def unreadable(request: Request, problem: FileProblem, size: int = 0) -> Component:
    """The stand-in for a source that could not be read."""
    if not size and not is_remote(request.source):
        try:
            size = os.stat(request.source).st_size
        except (OSError, ValueError):
            size = 0
    return Component(
        source=shown_name(request.source),
        format="unreadable",
        size=size,
        header_bytes=0,
        role=request.role or "unknown",
        family=None,
        also=(),
        layout="unknown",
        prefix="",
        quantization=Quantization("none", {}),
        parameters=0,
        key_groups={},
        loads_as={},
        facts={},
        evidence=(),
        problems=(problem,),
        reason=problem.message,
    )

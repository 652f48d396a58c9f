"""What can be wrong with a file, under stable ids, and how it is said.

Every message is one sentence that names the file, the place in it and the bytes; the fix says what to do next.
"""

from __future__ import annotations

from typing import Any

from compatkit.sources.naming import shown
from compatkit.vocabulary import FileProblem, HeaderError, Level

#: Every id the readers use, with its meaning. Ids never change; `explain` and the rules rely on them.
MEANINGS: dict[str, str] = {
    "file/empty": "The file has no bytes.",
    "file/truncated": "The file ends before the bytes it declares: a download or copy that stopped.",
    "file/corrupt": "The header contradicts itself or the file: bytes are damaged, or the writer was broken.",
    "file/unknown-dtype": "A tensor's type is not one this version knows, so its size cannot be checked.",
    "file/lfs-pointer": "A Git LFS or Xet pointer: the text that stands in a repository for the file meant.",
    "file/web-page": "An HTML or error page (login, not found) that was saved under the model's name.",
    "file/not-a-model": "Some other kind of file: an image, an archive, a config.",
    "file/pickle": "A pickle that torch.load refuses, at least with weights_only=True, or one without tensors.",
    "file/pickle-code": "A pickle that runs code when it is unpickled. Its opcodes were read, nothing was run.",
    "file/wrong-suffix": "The content is one format and the name's suffix says another: loaders that go by name fail.",
    "file/gguf-version": "A GGUF of a version that is not read (v1, newer than v3) or one of its predecessors.",
    "file/big-endian": "A GGUF written for big-endian machines.",
    "file/missing-shard": "A part of a model that is split over several files is not there.",
    "file/shard-mismatch": "The parts of a split model, or their index, disagree.",
    "file/trailing-data": "Bytes follow the last tensor that belong to none (harmless in GGUF).",
    "file/not-found": "There is no such file on the server or in the repository.",
    "file/gated": "The server wants a login, or a licence accepted, before it hands the file out.",
    "file/no-range": "The server cannot send a part of the file, or sends another part than asked for.",
    "file/unreachable": "The server could not be reached, did not answer in time, or broke off.",
    "file/offline": "The run may not use the network, and the header cache does not hold the file.",
    "file/variants": "A folder holds its weights in several variants; which one was read is said.",
    "file/unreadable": "The bytes could not be read: the disk failed, or the file changed while it was read.",
}

DOWNLOAD_AGAIN = "Download or copy the file again and compare its size and checksum with the source's."


def problem(rule: str, message: str, fix: str = "", level: Level = "error", **evidence: Any) -> FileProblem:
    """A `FileProblem` whose id is known to be on the list."""
    assert rule in MEANINGS, rule
    return FileProblem(rule, message, fix, evidence, level)


def refused(rule: str, message: str, fix: str = "", **evidence: Any) -> HeaderError:
    """The `HeaderError` to raise for a file that cannot be read at all."""
    return HeaderError(problem(rule, message, fix, **evidence))


def corrupt(name: str, what: str, **evidence: Any) -> HeaderError:
    """A `file/corrupt`: `what` completes the sentence "`name` is corrupt: …"."""
    return refused("file/corrupt", f"{shown(name)} is corrupt: {what}", DOWNLOAD_AGAIN, **evidence)


def truncated(name: str, actual: int, declared: int, what: str, exact: bool = True, **evidence: Any) -> HeaderError:
    """A `file/truncated` with both sizes in bytes.

    `exact` is false where the cut lies inside the header, so that `declared` is only a lower bound.
    """
    least = "" if exact else "at least "
    share = f" ({100 * actual / declared:.1f}%)" if exact else ""
    return refused(
        "file/truncated",
        f"{shown(name)} is cut short: it has {actual:,} bytes{share} of {least}{declared:,}; {what}",
        f"Finish or repeat the download: the whole file has {least}{declared:,} bytes.",
        size=actual,
        **{"declared" if exact else "declared_at_least": declared},
        **evidence,
    )

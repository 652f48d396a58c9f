"""Modules a checkout imports and a run without weights does not need: tokenizers always, others only where missing."""

from __future__ import annotations

import re
import sys
import types
from typing import Any

#: (first, last) token by the kind of tokenizer, as transformers has it; all others add none.
_ENDS: tuple[tuple[str, int | None, int | None], ...] = (
    ("CLIP", 49406, 49407),
    ("ByT5", None, 1),
    ("T5", None, 1),
    ("Bert", 101, 102),
    ("Llama", 128000, None),
)
_WORDS = re.compile(r"<\|?[^<>|]*\|?>|\w+|[^\w\s]")


def _ids(text: str) -> list[int]:
    """One id per word, small enough for any vocabulary."""
    return [3 + i % 64 for i, _ in enumerate(_WORDS.findall(text))]


class Encoding:
    """What a tokenizer of the `tokenizers` package returns."""

    def __init__(self, text: str) -> None:
        self.ids = _ids(text)
        self.attention_mask = [1] * len(self.ids)


class Tokenizer:
    """Counts words instead of looking them up: a run without weights needs the number of tokens, not which."""

    first: int | None = None
    last: int | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.first = 2 if kwargs.get("add_bos") else self.first
        self.last = 1 if kwargs.get("add_eos") else self.last

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Tokenizer:
        return cls()

    from_str = from_file = from_buffer = from_pretrained

    def _tokens(self, text: str) -> list[int]:
        return [*([] if self.first is None else [self.first]), *_ids(text), *([] if self.last is None else [self.last])]

    def __call__(self, text: Any, **kwargs: Any) -> dict[str, Any]:
        return {"input_ids": self._tokens(text) if isinstance(text, str) else [self._tokens(t) for t in text]}

    def encode(self, text: str, *args: Any, **kwargs: Any) -> list[int]:
        plain = kwargs.get("add_bos") is False or kwargs.get("add_special_tokens") is False
        return _ids(text) if plain else self._tokens(text)

    def get_vocab(self, *args: Any, **kwargs: Any) -> dict[str, int]:
        return {}

    def get_piece_size(self) -> int:
        return 0

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return 0 if name.endswith("_id") else Nothing(name)


class FastTokenizer(Tokenizer):
    """As in the `tokenizers` package: `encode` gives an object."""

    def encode(self, text: str, *args: Any, **kwargs: Any) -> Any:
        return Encoding(text)

    def token_to_id(self, token: str) -> int:
        return 3


class Nothing(types.ModuleType):
    """A module, class or function that is there in name only: it can be imported, subclassed and called."""

    __path__: Any = ()

    def __init__(self, name: str = "nothing", *args: Any, **kwargs: Any) -> None:
        super().__init__(name if isinstance(name, str) else "nothing")
        self.__file__ = f"<{name}: not installed>"

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {"__init__": lambda self, *a, **k: None}) if name[:1].isupper() else Nothing(name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return args[0] if len(args) == 1 and callable(args[0]) else Nothing()

    def __bool__(self) -> bool:
        return False

    def __iter__(self) -> Any:
        return iter(())

    def __mro_entries__(self, bases: Any) -> tuple[type, ...]:
        return (object,)


class _Transformers(Nothing):
    """The tokenizer classes of transformers; nothing else of it is needed, and it takes seconds to import."""

    def __getattr__(self, name: str) -> Any:
        if "Tokenizer" not in name:
            return super().__getattr__(name)
        for kind, first, last in _ENDS:
            if name.startswith(kind):
                return type(name, (Tokenizer,), {"first": first, "last": last})
        return type(name, (Tokenizer,), {})


class _Finder:
    """Gives every part of a package that stands in."""

    def __init__(self, names: set[str]) -> None:
        self.names = names

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name not in self.names and name.split(".")[0] not in self.names:
            return None
        import importlib.machinery

        return importlib.machinery.ModuleSpec(name, self, is_package=True)  # type: ignore[arg-type]

    @staticmethod
    def create_module(spec: Any) -> types.ModuleType:
        return create(spec.name)

    @staticmethod
    def exec_module(module: types.ModuleType) -> None:
        return None


class _Tokenizers(Nothing):
    Tokenizer = FastTokenizer


class _OwnTokenizer(Nothing):
    """ComfyUI's own reader of vocabularies: its files need not be there, nor the bytes of those in a model file."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("from_"):
            return Tokenizer.from_pretrained
        return _Transformers.__getattr__(self, name)  # type: ignore[arg-type]


class _SentencePiece(Nothing):
    SentencePieceProcessor = Tokenizer


class _Kitchen(Nothing):
    """Kernels for rotary positions and norms: what they are given comes back, in its shape."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith(("apply_rope", "rms_rope")) and not name.rstrip("_").endswith("1"):
            return lambda query, key, *args, **kwargs: (query, key)
        if name.startswith(("apply_rope", "rms_")):
            return lambda x, *args, **kwargs: x
        return super().__getattr__(name)


class _Psutil(Nothing):
    """Memory figures for a machine whose size does not matter here."""

    @staticmethod
    def virtual_memory() -> Any:
        return types.SimpleNamespace(total=1 << 36, available=1 << 36, free=1 << 36, used=0, percent=0.0)

    swap_memory = virtual_memory


_SPECIAL: dict[str, type[Nothing]] = {
    "transformers": _Transformers,
    "tokenizers": _Tokenizers,
    "sentencepiece": _SentencePiece,
    "comfy.text_encoders.bpe_tokenizer": _OwnTokenizer,
    "psutil": _Psutil,
    "comfy_kitchen": _Kitchen,
}
_finder = _Finder({"transformers", "tokenizers", "sentencepiece", "comfy.text_encoders.bpe_tokenizer"})


def create(name: str) -> Nothing:
    """What stands in for the module `name`."""
    return _SPECIAL.get(name, Nothing)(name)


def install() -> None:
    """Put the stand-ins for tokenizers in front of the real packages."""
    sys.meta_path.insert(0, _finder)


def stand_in_for(module: str) -> None:
    """From now on, `module` is there in name only."""
    _finder.names.add(module.split(".")[0])

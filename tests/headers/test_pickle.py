"""torch checkpoints and pickles: against files of torch.save, and against what hostile pickles try."""

from __future__ import annotations

import io
import json
import pickle
import random
import struct
import tracemalloc
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compatkit.headers import open_header
from compatkit.headers.picklenames import ALLOWED, MAKERS, verdict
from compatkit.headers.small import read_small
from compatkit.sources import LocalSource
from compatkit.vocabulary import FileProblem, Header, HeaderError
from tests.support.torchfiles import (
    STORAGES,
    UNTYPED,
    Call,
    Fake,
    Name,
    name,
    pickled,
    torch_legacy,
    torch_zip,
    write_torch,
    zipped,
)

PLAIN = {"a.weight": ("F16", (4, 3)), "a.bias": ("F16", (4,))}
SYSTEM = Call(name("posix", "system"), ("touch canary",))


def header_of(tmp_path: Path, content: bytes, file: str = "x.pt") -> Header:
    path = tmp_path / file
    path.write_bytes(content)
    return open_header(path)


def refuse(tmp_path: Path, content: bytes, file: str = "x.pt") -> FileProblem:
    with pytest.raises(HeaderError) as caught:
        header_of(tmp_path, content, file)
    problem = caught.value.problem
    assert problem.message.isprintable()
    json.dumps(dict(problem.evidence))
    return problem


def shapes(header: Header) -> dict[str, tuple[str, tuple[int, ...]]]:
    return {key: (t.dtype, t.shape) for key, t in header.tensors.items()}


# What torch writes


@pytest.mark.parametrize("legacy", [False, True])
def test_every_dtype(tmp_path: Path, legacy: bool) -> None:
    kinds = {**STORAGES, **UNTYPED}
    content = {dtype: Fake(dtype, (2, 3)) for dtype in kinds} | {"none": ("F32", (0, 4)), "scalar": ("I64", ())}
    header = open_header(write_torch(tmp_path / "x.pt", content, legacy=legacy))
    assert header.problems == ()
    assert (header.format, header.size) == ("pickle", (tmp_path / "x.pt").stat().st_size)
    for dtype, (_, size) in kinds.items():
        t = header.tensors[dtype]
        assert (t.dtype, t.shape, t.nbytes) == (dtype, (2, 3), 6 * size)
    assert header.tensors["none"][:3] == ("F32", (0, 4), 0)
    assert header.tensors["scalar"][:3] == ("I64", (), 8)
    assert 0 < header.header_bytes < header.size


@pytest.mark.parametrize("legacy", [False, True])
def test_bytes_stand_where_the_header_says(tmp_path: Path, legacy: bool) -> None:
    base = Fake("U8", (64,), data=bytes(range(64)))
    content = OrderedDict(
        base=base, view=Fake("U8", (2, 5), offset=7, of=base), tied=base, other=Fake("U8", (3,), data=b"abc")
    )
    header = open_header(write_torch(tmp_path / "x.ckpt", content, legacy=legacy))
    found = read_small(header, header.tensors)
    assert found == {"base": bytes(range(64)), "view": bytes(range(7, 17)), "tied": bytes(range(64)), "other": b"abc"}
    assert header.tensors["tied"].offset == header.tensors["base"].offset


def test_bytes_of_a_zip_that_torch_did_not_write(tmp_path: Path) -> None:
    data, _ = pickled({"a": Fake("U8", (3,))})
    for kind in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w", kind) as archive:
            archive.writestr("m/version", b"3\n")
            archive.writestr("m/data/0", b"aaaaaa")
            archive.writestr("m/data.pkl", data)
        header = header_of(tmp_path, out.getvalue())
        assert shapes(header) == {"a": ("U8", (3,))}
        found = read_small(header, ["a"])
        assert found == ({"a": b"aaa"} if kind == zipfile.ZIP_STORED else {})


def test_strides_are_said_and_such_bytes_not_placed(tmp_path: Path) -> None:
    content = {"t": Fake("F32", (3, 4), stride=(1, 3)), "one": Fake("F32", (1, 4), stride=(99, 1))}
    header = open_header(write_torch(tmp_path / "x.pt", content))
    assert header.metadata["pickle.strided"] == ["t"]
    assert header.tensors["t"].offset == 0 < header.tensors["one"].offset


def test_big_endian_bytes_are_not_placed(tmp_path: Path) -> None:
    data, _ = pickled({"a": Fake("F32", (3,))})
    members = [("m/data.pkl", data), ("m/byteorder", b"big"), ("m/data/0", bytes(12)), ("m/version", b"3\n")]
    header = header_of(tmp_path, zipped(members))
    assert header.metadata["pickle.byteorder"] == "big"
    assert header.tensors["a"].offset == 0


@pytest.mark.parametrize("file", ["x.ckpt", "x.pt", "x.PTH", "x.bin", "x", "4d7a2146"])
@pytest.mark.parametrize("legacy", [False, True])
def test_a_plain_checkpoint_is_no_problem(tmp_path: Path, file: str, legacy: bool) -> None:
    assert open_header(write_torch(tmp_path / file, PLAIN, legacy=legacy)).problems == ()


@pytest.mark.parametrize("file", ["x.safetensors", "x.sft", "x.gguf"])
@pytest.mark.parametrize("legacy", [False, True])
def test_under_a_wrong_suffix(tmp_path: Path, file: str, legacy: bool) -> None:
    header = open_header(write_torch(tmp_path / file, PLAIN, legacy=legacy))
    assert list(header.tensors) == list(PLAIN)
    assert [(p.rule, p.level) for p in header.problems] == [("file/wrong-suffix", "error")]
    assert "torch checkpoint inside" in header.problems[0].message


def test_only_the_pickle_and_the_list_of_contents_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = {f"w{i}": Fake("U8", (1 << 20,)) for i in range(50)}
    path = write_torch(tmp_path / "x.pt", content)
    reads: list[int] = []
    real = LocalSource.read

    def counted(self: LocalSource, offset: int, length: int) -> bytes:
        piece = real(self, offset, length)
        reads.append(len(piece))
        return piece

    monkeypatch.setattr(LocalSource, "read", counted)
    header = open_header(path)
    assert all(t.offset for t in header.tensors.values())
    assert len(reads) <= 5
    assert sum(reads) < 100_000


def test_shards(tmp_path: Path) -> None:
    write_torch(tmp_path / "m-00001-of-00002.bin", {"a": ("F32", (2,))})
    write_torch(tmp_path / "m-00002-of-00002.bin", {"b": ("F32", (3,))})
    header = open_header(tmp_path / "m-00001-of-00002.bin")
    assert shapes(header) == {"a": ("F32", (2,)), "b": ("F32", (3,))}
    index = tmp_path / "m.bin.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "m-00001-of-00002.bin", "b": "m-00002-of-00002.bin"}}))
    assert shapes(open_header(index)) == shapes(header)
    assert open_header(index).problems == ()


# What is the state dict


CONTENTS: dict[str, tuple[Any, str, list[str]]] = {
    "plain": (PLAIN, "", ["a.weight", "a.bias"]),
    "lightning": (
        {"epoch": 3, "global_step": 470000, "state_dict": OrderedDict(PLAIN), "optimizer_states": [{0: PLAIN}]},
        "state_dict",
        ["a.weight", "a.bias"],
    ),
    "upscaler": ({"params": {"x": ("F32", (1,))}, "params_ema": PLAIN}, "params_ema", ["a.weight", "a.bias"]),
    "trainer": ({"model": PLAIN, "optimizer": {"state": {}}, "epoch": 1}, "model", ["a.weight", "a.bias"]),
    "sharded trainer": ({"module": PLAIN, "ds_version": "0.9"}, "module", ["a.weight", "a.bias"]),
    "the only entry": ({"anything": PLAIN}, "anything", ["a.weight", "a.bias"]),
    "two deep": ({"model": {"state_dict": PLAIN}}, "model.state_dict", ["a.weight", "a.bias"]),
    "two parts": ({"image_proj": PLAIN, "ip_adapter": {"1.to_k_ip.weight": ("F16", (2, 2))}}, "", [
        "image_proj.a.weight", "image_proj.a.bias", "ip_adapter.1.to_k_ip.weight"]),
    "a name that is a container's": ({"model": ("F32", (1,)), "x": ("F32", (1,))}, "", ["model", "x"]),
    "embedding": (
        {"string_to_token": {"*": 265}, "string_to_param": {"*": ("F32", (8, 768))}, "name": "style", "step": 500},
        "", ["string_to_param.*"],
    ),
    "embedding of diffusers": ({"<cat-toy>": ("F32", (768,))}, "", ["<cat-toy>"]),
    "hypernetwork": (
        {768: [{"linear.0.weight": ("F32", (2, 2))}, {"linear.0.weight": ("F32", (2, 2))}], "step": 1},
        "", ["768.0.linear.0.weight", "768.1.linear.0.weight"],
    ),
    "list": ([PLAIN, PLAIN], "", ["0.a.weight", "0.a.bias", "1.a.weight", "1.a.bias"]),
    "alone": (Fake("F32", (3,)), "", ["tensor"]),
    "parameters": (OrderedDict(p=Fake("F32", (3,), parameter=True)), "", ["p"]),
}  # fmt: skip


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("case", CONTENTS)
def test_names_are_those_of_the_state_dict(tmp_path: Path, case: str, legacy: bool) -> None:
    content, container, names = CONTENTS[case]
    header = open_header(write_torch(tmp_path / "x.pt", content, legacy=legacy))
    assert list(header.tensors) == names
    assert header.metadata.get("pickle.container", "") == container
    assert header.metadata["pickle.kind"] == ("torch legacy" if legacy else "torch zip")
    assert header.problems == ()
    json.dumps(dict(header.metadata))


def test_plain_values_beside_the_weights_are_metadata(tmp_path: Path) -> None:
    content, _, _ = CONTENTS["embedding"]
    header = open_header(write_torch(tmp_path / "x.pt", content))
    assert (header.metadata["name"], header.metadata["step"]) == ("style", 500)


def module(
    kind: Name, parameters: Any = (), modules: Any = (), buffers: Any = (), unsaved: tuple[str, ...] = ()
) -> Call:
    state = {
        "training": True,
        "_parameters": OrderedDict(parameters),
        "_buffers": OrderedDict(buffers),
        "_non_persistent_buffers_set": list(unsaved),
        "_modules": OrderedDict(modules),
    }
    return kind.new(state)


def test_a_whole_module_has_the_names_of_its_state_dict(tmp_path: Path) -> None:
    linear = module(name("torch.nn.modules.linear", "Linear"), [("weight", ("F32", (2, 3))), ("bias", None)])
    norm = module(
        name("torch.nn.modules.batchnorm", "BatchNorm2d"),
        buffers=[("running_mean", ("F32", (2,))), ("scratch", ("F32", (9,)))],
        unsaved=("scratch",),
    )
    whole = module(name("torch.nn.modules.container", "Sequential"), modules=[("0", linear), ("1", norm)])
    header = open_header(write_torch(tmp_path / "x.pt", {"model": whole, "epoch": 1}))
    assert list(header.tensors) == ["0.weight", "1.running_mean"]
    assert [(p.rule, p.level) for p in header.problems] == [("file/pickle", "warning")]
    assert "torch.load(weights_only=True)" in header.problems[0].message
    embedding = module(
        name("torch.nn.modules.container", "ParameterDict"), [("*", Fake("F32", (2, 768), parameter=True))]
    )
    header = open_header(write_torch(tmp_path / "y.pt", {"string_to_param": embedding, "string_to_token": {"*": 265}}))
    assert list(header.tensors) == ["string_to_param.*"]


def test_numpy_scalars_are_passed_over_and_arrays_are_tensors(tmp_path: Path) -> None:
    code = name("numpy", "dtype")
    dtype = Call(code, ("f8", False, True))
    scalar = Call(name("numpy.core.multiarray", "scalar"), (dtype, Call(name("_codecs", "encode"), ("x", "latin1"))))
    header = open_header(write_torch(tmp_path / "x.ckpt", {"state_dict": PLAIN, "loss": scalar}))
    assert header.problems == ()
    assert list(header.tensors) == list(PLAIN)
    np = pytest.importorskip("numpy")
    for protocol in (3, 4, 5):
        content = pickle.dumps({"w": np.arange(6, dtype="f4").reshape(2, 3), "i": np.zeros(3, "i8")}, protocol)
        header = header_of(tmp_path, content, "x.pkl")
        assert shapes(header) == {"w": ("F32", (2, 3)), "i": ("I64", (3,))}
        assert read_small(header, ["w"])["w"] == np.arange(6, dtype="f4").tobytes()


# What loaders refuse


def test_a_lightning_checkpoint_is_no_problem(tmp_path: Path) -> None:
    callback = name("pytorch_lightning.callbacks.model_checkpoint", "ModelCheckpoint")
    header = open_header(
        write_torch(tmp_path / "x.ckpt", {"state_dict": PLAIN, "callbacks": {callback: {"best": None}}})
    )
    assert header.problems == ()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"model": PLAIN, "args": name("argparse", "Namespace").new({"lr": 1})}, "argparse.Namespace"),
        ({"model": PLAIN, "p": Call(name("pathlib", "PosixPath"), ("a", "b"))}, "pathlib.PosixPath"),
        ({"model": PLAIN, "c": name("omegaconf.dictconfig", "DictConfig").new({})}, "omegaconf.dictconfig.DictConfig"),
        (
            {"model": PLAIN, "g": Call(name("builtins", "getattr"), (name("torch.nn", "Linear"), "forward"))},
            "torch.nn.Linear",
        ),
    ],
)
def test_what_torch_refuses_to_load_safely_is_a_warning(tmp_path: Path, content: Any, words: str) -> None:
    header = open_header(write_torch(tmp_path / "x.pt", content))
    assert list(header.tensors) == list(PLAIN)
    assert [(p.rule, p.level) for p in header.problems] == [("file/pickle", "warning")]
    assert words in header.problems[0].message


def test_a_new_protocol_is_a_warning(tmp_path: Path) -> None:
    header = open_header(write_torch(tmp_path / "x.pt", PLAIN, protocol=4))
    assert list(header.tensors) == list(PLAIN)
    assert [(p.rule, p.level) for p in header.problems] == [("file/pickle", "warning")]
    assert "protocol 4" in header.problems[0].message


def test_a_pickle_without_tensors(tmp_path: Path) -> None:
    content = pickle.dumps({"a": 1, "b": [2]}, 4)
    assert refuse(tmp_path, content).rule == "file/pickle"
    assert "holds no tensors" in refuse(tmp_path, content).message


def test_torchscript_is_named(tmp_path: Path) -> None:
    kind = name("__torch__.models.___torch_mangle_3", "Net")
    data, storages = pickled(kind.new({"weight": Fake("F32", (2, 2))}))
    members = [
        ("m/data.pkl", data),
        ("m/code/net.py", b""),
        ("m/constants.pkl", b"\x80\x02)."),
        ("m/data/0", bytes(16)),
    ]
    header = header_of(tmp_path, zipped([*members, ("m/version", b"3\n")]))
    assert len(storages) == 1
    assert shapes(header) == {"weight": ("F32", (2, 2))}
    assert header.metadata["pickle.kind"] == "TorchScript"
    assert "TorchScript" in header.problems[0].message


# What is dangerous


EVIL: dict[str, tuple[Any, str]] = {
    "system": (SYSTEM, "posix.system('touch canary')"),
    "nt": (Call(name("nt", "system"), ("dir",)), "nt.system('dir')"),
    "eval": (Call(name("builtins", "eval"), ("1/0",)), "builtins.eval('1/0')"),
    "exec of Python 2": (Call(name("__builtin__", "exec"), ("1/0",)), "builtins.exec('1/0')"),
    "subprocess": (Call(name("subprocess", "Popen"), (["sh"],)), "subprocess.Popen([…])"),
    "runpy": (Call(name("runpy", "run_path"), ("x.py",)), "runpy.run_path('x.py')"),
    "webbrowser": (Call(name("webbrowser", "open"), ("http://x",)), "webbrowser.open('http://x')"),
    "importlib": (Call(name("importlib", "import_module"), ("x",)), "importlib.import_module('x')"),
    "pip": (Call(name("pip", "main"), (["install"],)), "pip.main([…])"),
    "torch.load": (Call(name("torch.serialization", "load"), ("x.pt",)), "torch.serialization.load('x.pt')"),
    "torch.hub": (Call(name("torch.hub", "load"), ("a/b", "c")), "torch.hub.load('a/b', 'c')"),
    "numpy's own": (
        Call(name("numpy.testing._private.utils", "runstring"), ("1/0", {})),
        "numpy.testing._private.utils.runstring('1/0', {…})",
    ),
    "attribute of a module": (Call(name("torch", "serialization.os.system"), ("x",)), "torch.serialization.os.system"),
    "class with a path": (Call(name("ultralytics.models", "Model"), ("http://x/y.pt",)), "ultralytics.models.Model("),
    "private attribute": (
        Call(name("builtins", "getattr"), (name("torch.nn", "Linear"), "__init__")),
        "builtins.getattr(",
    ),
    "result of a call": (
        Call(Call(name("builtins", "getattr"), (name("torch.nn", "Linear"), "forward")), ("x",)),
        "the result of",
    ),
    "only named": (name("os", "system"), "would import os.system"),
    "unknown class": (name("my_project.nodes", "Thing").new({"a": 1}), "my_project.nodes.Thing"),
    "set on a class": (
        Call(name("builtins", "setattr"), (name("torch.nn", "Linear"), "forward", 1)),
        "builtins.setattr(",
    ),
    "in a key": ({SYSTEM: 1}, "posix.system('touch canary')"),
}


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("case", EVIL)
def test_code_is_named_and_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str, legacy: bool) -> None:
    monkeypatch.chdir(tmp_path)
    evil, words = EVIL[case]
    header = open_header(write_torch(tmp_path / "x.ckpt", {"state_dict": PLAIN, "x": evil}, legacy=legacy))
    assert list(header.tensors) == list(PLAIN)
    assert [(p.rule, p.level) for p in header.problems] == [("file/pickle-code", "error")]
    assert words in header.problems[0].message
    assert header.problems[0].message.isprintable()
    json.dumps(dict(header.problems[0].evidence))
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("protocol", range(5))
@pytest.mark.parametrize("suffix", [".pt", ".bin", ".pkl", ".ckpt"])
def test_a_bare_bomb_of_any_protocol(tmp_path: Path, protocol: int, suffix: str) -> None:
    content, _ = pickled(Call(name("os", "system"), ("touch canary",)), protocol)
    problem = refuse(tmp_path, content, f"x{suffix}")
    assert problem.rule == "file/pickle-code"
    assert "os.system('touch canary')" in problem.message
    assert problem.fix


@pytest.mark.parametrize("rest", [b"", b"\xff", b"0000.", b"N", b"h\xfe."])
def test_a_bomb_goes_off_before_the_pickle_breaks(tmp_path: Path, rest: bytes) -> None:
    bomb = b"\x80\x02cos\nsystem\n(X\x04\x00\x00\x00evilttR"[:-4] + b"tR"
    assert refuse(tmp_path, bomb + rest).rule == "file/pickle-code"
    zip_file = torch_zip(PLAIN, raw=bomb + rest)
    assert refuse(tmp_path, zip_file).rule == "file/pickle-code"
    legacy = torch_legacy(PLAIN, raw=bomb + rest)
    assert refuse(tmp_path, legacy).rule == "file/pickle-code"
    assert refuse(tmp_path, zip_file[: len(bomb) + 90]).rule in ("file/pickle-code", "file/truncated")


@pytest.mark.parametrize(
    "opcodes",
    [
        b"(cos\nsystem\nX\x01\x00\x00\x00xo",  # OBJ
        b"(X\x01\x00\x00\x00xios\nsystem\n",  # INST
        b"cos\nsystem\n(X\x01\x00\x00\x00xt\x81",  # NEWOBJ
        b"cos\nsystem\n)}\x92",  # NEWOBJ_EX
        b"X\x02\x00\x00\x00osX\x06\x00\x00\x00system\x93)R",  # STACK_GLOBAL
        b"S'o\\x73'\nS'system'\n\x93)R",  # the same with an escape
        b"\x82\x01)R",  # EXT1
        b"}}\x93)R",  # a name that is only known when it runs
        b"ctorch.nn\nLinear\n}b",  # BUILD on a class
        b"ccopyreg\n__newobj__\n(cos\nsystem\nt\x52",
    ],
)
def test_every_way_to_call(tmp_path: Path, opcodes: bytes) -> None:
    for protocol in (2, 4):
        assert refuse(tmp_path, bytes([0x80, protocol]) + opcodes + b".").rule == "file/pickle-code"


def test_text_that_begins_like_a_pickle_is_text(tmp_path: Path) -> None:
    for text in (
        b"cannot find it\nask somebody\n" * 9,
        b"(see below)\nnothing here\n",
        b"]\n",
        b"}",
        b"config\nabc\n.",
    ):
        assert refuse(tmp_path, text).rule in ("file/not-a-model", "file/web-page")


def test_code_inside_a_storage_inside_a_pickle(tmp_path: Path) -> None:
    inner = torch_legacy(SYSTEM)
    outer = (
        b"\x80\x03}X\x01\x00\x00\x00actorch.storage\n_load_from_bytes\nB"
        + struct.pack("<I", len(inner))
        + inner
        + b"\x85Rs."
    )
    assert refuse(tmp_path, outer).rule == "file/pickle-code"


# What is broken


def test_a_zip_cut_short(tmp_path: Path) -> None:
    whole = torch_zip({"a": Fake("F32", (100, 100))})
    for length in (100, 300, 5000, len(whole) - 1, len(whole) - 22):
        problem = refuse(tmp_path, whole[:length])
        assert problem.rule == "file/truncated", length
        assert "at least" in problem.message
    assert refuse(tmp_path, whole[:5000]).evidence["declared_at_least"] >= 40_000


def test_a_legacy_file_cut_short(tmp_path: Path) -> None:
    whole = torch_legacy({"a": Fake("F32", (100, 100))})
    problem = refuse(tmp_path, whole[:-1])
    assert (problem.rule, problem.evidence["declared"]) == ("file/truncated", len(whole))
    for length in (20, 100, 300, 5000):
        assert refuse(tmp_path, whole[:length]).rule == "file/truncated", length
    header = header_of(tmp_path, whole + b"more")
    assert [(p.rule, p.level) for p in header.problems] == [("file/trailing-data", "info")]


def test_other_zips_stay_what_they_are(tmp_path: Path) -> None:
    assert refuse(tmp_path, zipped([("readme.txt", b"x")])).rule == "file/not-a-model"
    assert refuse(tmp_path, zipped([("a/b/data.pkl", b"x")])).rule == "file/not-a-model"
    assert refuse(tmp_path, zipped([("a.npy", b"x")])).message.count("NumPy") == 1


def test_a_zip_that_two_readers_read_differently_is_refused(tmp_path: Path) -> None:
    data, _ = pickled({})
    for second in ("m/data.pkl", "m/DATA.PKL", "n/data.pkl"):
        assert refuse(tmp_path, zipped([("m/data.pkl", data), (second, data)])).rule == "file/corrupt"


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ([("m/data/1", bytes(400))], "'m/data/0'"),
        ([("m/data/0", bytes(399))], "399 bytes, but 400 are needed"),
    ],
)
def test_storages_that_are_not_there(tmp_path: Path, members: list[tuple[str, bytes]], words: str) -> None:
    data, _ = pickled({"a": Fake("F32", (100,))})
    problem = refuse(tmp_path, zipped([("m/data.pkl", data), *members]))
    assert problem.rule == "file/corrupt"
    assert words in problem.message


@pytest.mark.parametrize(
    "fake",
    [
        Fake("F32", (100,), elements=99),
        Fake("F32", (10,), offset=91, elements=100),
        Fake("F32", (10, 10), stride=(100, 1), elements=100),
        Fake("F32", (2**62, 2**62), elements=1),
        Fake("F32", (-1,), elements=1),
    ],
)
def test_tensors_beyond_their_storage(tmp_path: Path, fake: Fake) -> None:
    assert refuse(tmp_path, torch_zip({"a": fake, "b": Fake("F32", (1,))})).rule == "file/corrupt"


def test_an_expanded_tensor_is_as_large_as_its_shape(tmp_path: Path) -> None:
    header = header_of(tmp_path, torch_zip({"a": Fake("F32", (1000, 1000), stride=(0, 0), elements=1)}))
    assert header.tensors["a"].nbytes == 4_000_000
    assert header.tensors["a"].offset == 0


# What only wants to do harm


def raw_zip(opcodes: bytes) -> bytes:
    return torch_zip(PLAIN, raw=b"\x80\x02" + opcodes)


HARMFUL = {
    "nested lists": b"]" * 500_000 + b"a" * 499_999 + b".",
    "nested tuples": b")" + b"\x85" * 1_000_000 + b".",
    "nested tuples as a key": b"})" + b"\x85" * 1_000_000 + b"Ns.",
    "nested dictionaries": b"}" + b"K\x01}" * 300_000 + b"s" * 300_000 + b".",
    "nested calls": b")" * 300_000 + b"ctorch\nSize\n" + b"R." + b"",
    "nested rebuilding": b"ctorch._tensor\n_rebuild_from_type_v2\nq\x00" + b"0h\x00N)" * 3 + b"." ,
    "doubling": b"K\x01" + b"2\x86" * 1000 + b".",
    "doubling in dictionaries": b"}q\x00" + b"0}q\x01K\x01h\x00sK\x02h\x00s0h\x01q\x00" * 5000 + b".",
    "copies of a list": b"](" + b"]" * 100_000 + b"eq\x00" + b"0ccollections\nOrderedDict\nh\x00\x85R" * 10_000 + b".",
    "a list in itself": b"]q\x00h\x00a.",
    "a dictionary in itself": b"}q\x00K\x01h\x00s.",
    "numbers that collide": b"}" + b"".join(
        b"\x8a\x0a" + (i * (2**61 - 1)).to_bytes(10, "little") + b"Ns" for i in range(1, 100_000)
    ) + b".",
    "a long number": b"\x8b" + struct.pack("<I", 200_000) + b"\x7f" * 200_000 + b".",
    "a long decimal": b"I" + b"9" * 200_000 + b"\n.",
    "a long text that is not there": b"X\xff\xff\xff\xff.",
    "a text of eight bytes' length": b"\x8d" + b"\xff" * 8 + b".",
    "bytes that are not there": b"\x8e" + b"\xff" * 8 + b".",
    "a frame that is not there": b"\x95" + b"\xff" * 8 + b"N.",
    "a memo far away": b"Nr\xff\xff\xff\xff.",
    "marks": b"(" * 1_000_000 + b".",
    "too many opcodes": b"N0" * 1_500_000 + b".",
    "an unknown buffer": b"\x97.",
    "nothing": b".",
    "below the mark": b"K\x01(0t.",
    "a list that wants pairs": b"}(K\x01u.",
    "a number for a shape": b"ctorch._utils\n_rebuild_tensor_v2\n(NNNNt\x52.",
    "wrong arguments": b"ctorch._utils\n_rebuild_tensor_v2\nNR.",
    "a storage without a size": b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000NNtQ.",
}  # fmt: skip


@pytest.mark.parametrize("case", HARMFUL)
def test_harm_is_bounded(tmp_path: Path, case: str) -> None:
    for content in (raw_zip(HARMFUL[case]), b"\x80\x02" + HARMFUL[case]):
        assert refuse(tmp_path, content).rule in ("file/corrupt", "file/pickle", "file/truncated", "file/pickle-code")


def test_memory_follows_the_file_and_not_its_numbers(tmp_path: Path) -> None:
    content = b"\x80\x04\x8e" + struct.pack("<Q", 1 << 40) + b"."
    huge = torch_zip({"a": Fake("F32", (1 << 30, 1 << 20), stride=(0, 0), elements=1)})
    end = len(torch_zip(PLAIN))
    liar = bytearray(torch_zip(PLAIN))
    liar[end - 22 - 20 - 56 + 24 : end - 22 - 20 - 56 + 56] = b"\xff" * 32
    for raw in (content, huge, bytes(liar)):
        (tmp_path / "x.pt").write_bytes(raw)
        tracemalloc.start()
        try:
            open_header(tmp_path / "x.pt")
        except HeaderError:
            pass
        finally:
            _, peak = tracemalloc.get_traced_memory()
            tracemalloc.stop()
        assert peak < 4_000_000


GOOD = [
    torch_zip({"state_dict": OrderedDict(PLAIN), "epoch": 1}),
    torch_legacy({"state_dict": OrderedDict(PLAIN), "epoch": 1}),
    torch_zip({"x": EVIL["system"][0], "y": Fake("F8_E4M3", (3, 3), parameter=True)}, protocol=4),
    pickled({"a": name("omegaconf", "X").new({"b": 1.5}), "c": [b"x" * 300, None, True, {1, 2}]}, 4)[0],
    pickled({"a": name("omegaconf", "X").new({"b": 1.5}), "c": [1 << 70, None, True, 2.5, "é"]}, 0)[0],
]


@given(st.sampled_from(GOOD), st.integers(0, 2**64), st.integers(1, 12))
def test_any_damage_makes_a_header_or_one_problem(
    tmp_path_factory: pytest.TempPathFactory, good: bytes, seed: int, hits: int
) -> None:
    dice = random.Random(seed)
    raw = bytearray(good)
    for _ in range(hits):
        at, how = dice.randrange(len(raw)), dice.random()
        if how < 0.6:
            raw[at] = dice.choice([dice.randrange(256), 0, 255, *b".(tR}]sbc\x81\x85\x93\x94Q"])
        elif how < 0.8:
            del raw[at : at + dice.choice([1, 2, 8, 64])]
        else:
            raw[at:at] = raw[dice.randrange(len(raw)) :][: dice.choice([1, 4, 40])]
        if not raw:
            return
    survive(tmp_path_factory, bytes(raw))


@given(st.binary(max_size=300))
def test_any_opcodes_make_a_header_or_one_problem(tmp_path_factory: pytest.TempPathFactory, opcodes: bytes) -> None:
    survive(tmp_path_factory, b"\x80\x02" + opcodes)
    survive(tmp_path_factory, torch_zip(PLAIN, raw=opcodes))


OPCODES = [bytes([b]) for b in b"(.012N}])tualebsdoRQ\x81\x85\x86\x87\x88\x8f\x90\x91\x92\x93\x94"] + [
    *(
        b"K\x01",
        b"h\x00",
        b"q\x00",
        b"X\x01\x00\x00\x00a",
        b"X\x07\x00\x00\x00storage",
        b"\x8c\x06system",
        b"\x8c\x02os",
    ),
    *(b"ctorch._utils\n_rebuild_tensor_v2\n", b"ctorch._utils\n_rebuild_parameter\n", b"ccollections\nOrderedDict\n"),
    *(b"ctorch\nFloatStorage\n", b"cos\nsystem\n", b"ctorch._tensor\n_rebuild_from_type_v2\n", b"ctorch\nSize\n"),
    *(b"ccopyreg\n_reconstructor\n", b"cbuiltins\ngetattr\n", b"ctorch.storage\n_load_from_bytes\n", b"C\x04abcd"),
    *(b"cnumpy.core.multiarray\n_reconstruct\n", b"cnumpy\ndtype\n", b"\x8c\x02f4", b"X\x0b\x00\x00\x00_parameters"),
]


@given(st.lists(st.sampled_from(OPCODES), max_size=60))
def test_any_program_makes_a_header_or_one_problem(
    tmp_path_factory: pytest.TempPathFactory, program: list[bytes]
) -> None:
    survive(tmp_path_factory, b"\x80\x04" + b"".join(program) + b".")


def survive(factory: pytest.TempPathFactory, raw: bytes) -> None:
    path = factory.getbasetemp() / "x.pt"
    path.write_bytes(raw)
    try:
        problems = open_header(path).problems
    except HeaderError as error:
        problems = (error.problem,)
    for problem in problems:
        assert problem.message.isprintable()
        json.dumps(dict(problem.evidence))


def test_verdicts() -> None:
    assert verdict("numpy.core.multiarray", "scalar") == "allowed"
    assert {verdict(*path.rsplit(".", 1)) for path in MAKERS - ALLOWED} == {"harmless"}
    for module_, name_ in (
        ("torch", "load"),
        ("torch.nn", "functional"),
        ("os", "Path"),
        ("torch.nn.x", "A.b"),
        ("torchx", "A"),
    ):
        assert verdict(module_, name_) == "code"


# Against torch itself, where it is installed


@pytest.fixture(scope="session")
def torch() -> Any:
    return pytest.importorskip("torch", reason="torch is not installed: its files cannot be made here")


def test_fixtures_are_torchs_own_bytes(tmp_path: Path, torch: Any) -> None:
    a, c = torch.zeros(3, 4), torch.zeros(4, 4).t()[1:]
    real = OrderedDict(a=a, b=torch.zeros(5, dtype=torch.bfloat16), c=c, tied=a)
    real["f8"], real["p"] = torch.zeros(4, dtype=torch.float8_e4m3fn), torch.nn.Parameter(torch.zeros(2))
    one = Fake("F32", (3, 4))
    fake = OrderedDict(
        a=one, b=Fake("BF16", (5,)), c=Fake("F32", (3, 4), stride=(1, 4), offset=1, elements=16), tied=one
    )
    fake["f8"], fake["p"] = Fake("F8_E4M3", (4,)), Fake("F32", (2,), parameter=True)
    torch.save({"state_dict": real, "epoch": 3}, tmp_path / "x.pt")
    with zipfile.ZipFile(tmp_path / "x.pt") as archive:
        identity = archive.read("x/.data/serialization_id")
        assert archive.read("x/data.pkl") == pickled({"state_dict": fake, "epoch": 3})[0]
    if torch.__version__.startswith("2.13."):
        assert (tmp_path / "x.pt").read_bytes() == torch_zip({"state_dict": fake, "epoch": 3}, "x", identity=identity)
    for key in ("f8", "c"):  # torch does not read its own legacy file with the former
        del real[key], fake[key]
    torch.save(real, tmp_path / "y.pt", _use_new_zipfile_serialization=False)
    (tmp_path / "z.pt").write_bytes(torch_legacy(fake))
    assert (tmp_path / "y.pt").stat().st_size == (tmp_path / "z.pt").stat().st_size
    loaded = torch.load(tmp_path / "z.pt", weights_only=True)
    assert {k: v.shape for k, v in loaded.items()} == {k: v.shape for k, v in real.items()}


@pytest.mark.parametrize("legacy", [False, True])
def test_headers_are_what_torch_saves(tmp_path: Path, torch: Any, legacy: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    base = torch.randint(0, 255, (7, 9), dtype=torch.uint8, generator=generator)
    saved = {
        "base": base,
        "row": base[3],
        "column": base[:, 2],
        "transposed": base.t(),
        "empty": base[:0],
        "tied": base,
    }
    saved |= {"expanded": base[0, 0].expand(4), "scalar": torch.tensor(3.0), "half": torch.ones(3).half()}
    torch.save(saved, tmp_path / "x.pt", _use_new_zipfile_serialization=not legacy)
    header = open_header(tmp_path / "x.pt")
    raw = (tmp_path / "x.pt").read_bytes()
    assert header.problems == ()
    assert list(header.tensors) == list(saved)
    for key, tensor in saved.items():
        t = header.tensors[key]
        assert t.shape == tuple(tensor.shape)
        assert t.nbytes == tensor.numel() * tensor.element_size()
        assert (t.offset == 0) == (not tensor.is_contiguous())
        if t.offset and tensor.numel():
            assert raw[t.offset : t.offset + t.nbytes] == tensor.view(-1).view(torch.uint8).numpy().tobytes()


def test_every_dtype_of_torch_is_known(tmp_path: Path, torch: Any) -> None:
    saved = {}
    for what in {v for v in vars(torch).values() if isinstance(v, torch.dtype)}:
        try:
            saved[str(what)] = torch.empty(4, dtype=what)
            torch.save(saved[str(what)], tmp_path / "one.pt")
            open_header(tmp_path / "one.pt")
        except HeaderError:
            raise
        except Exception:  # torch cannot make or save such a tensor
            saved.pop(str(what), None)
    torch.save(saved, tmp_path / "x.pt")
    header = open_header(tmp_path / "x.pt")
    assert len(saved) > 20
    for key, tensor in saved.items():
        assert header.tensors[key].nbytes == tensor.numel() * tensor.element_size(), key


def test_what_torch_allows_is_allowed_here(torch: Any) -> None:
    from torch._weights_only_unpickler import _get_allowed_globals

    assert set(_get_allowed_globals()) <= ALLOWED


def test_whole_modules_as_torch_saves_them(tmp_path: Path, torch: Any) -> None:
    nn = torch.nn
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ModuleList([nn.Linear(8, 4, bias=False)]))
    torch.save(net, tmp_path / "x.pt")
    header = open_header(tmp_path / "x.pt")
    assert {k: t.shape for k, t in header.tensors.items()} == {k: tuple(v.shape) for k, v in net.state_dict().items()}
    assert [(p.rule, p.level) for p in header.problems] == [("file/pickle", "warning")]
    traced = torch.jit.trace(nn.Linear(4, 2), torch.zeros(1, 4))
    traced.save(str(tmp_path / "y.pt"))
    header = open_header(tmp_path / "y.pt")
    assert {k: t.shape for k, t in header.tensors.items()} == {"weight": (2, 4), "bias": (2,)}
    assert header.metadata["pickle.kind"] == "TorchScript"
    for path in ("x.pt", "y.pt"):
        with pytest.raises(Exception, match="weights_only"):
            torch.load(tmp_path / path, weights_only=True)


def test_a_pickled_tensor_without_torch_save(tmp_path: Path, torch: Any) -> None:
    for protocol in (2, 3, 4):
        content = pickle.dumps({"w": torch.arange(4.0).half()}, protocol)
        header = header_of(tmp_path, content, "x.bin")
        assert shapes(header) == {"w": ("F16", (4,))}
        assert [(p.rule, p.level) for p in header.problems] == [("file/pickle", "error")]
        if protocol > 2:  # before, bytes are written as text
            assert read_small(header, ["w"])["w"] == torch.arange(4.0).half().numpy().tobytes()
        with pytest.raises(Exception, match=r"magic|Weights only|opcode"):
            torch.load(tmp_path / "x.bin", weights_only=True)


def test_a_new_protocol_as_torch_writes_it(tmp_path: Path, torch: Any) -> None:
    torch.save({"w": torch.zeros(3)}, tmp_path / "x.pt", pickle_protocol=4)
    assert [p.level for p in open_header(tmp_path / "x.pt").problems] == ["warning"]
    with pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "x.pt", weights_only=True)

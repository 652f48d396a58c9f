"""`smoke --comfyui`: against a server that behaves as ComfyUI does, and against ones that do not."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from compatkit.checks import judge
from compatkit.identify.identify import identify
from compatkit.identify.shapes import example_shapes
from compatkit.knowledge.store import load
from compatkit.render import document
from compatkit.render.schema import schema
from compatkit.smoke import comfyui
from compatkit.smoke.comfyui_client import Server
from compatkit.smoke.comfyui_graph import Builder, NoGraph
from compatkit.vocabulary import Component, Header, Report, SourceError, Stack, Tensor

SIDE = ["INT", {"default": 512, "min": 16, "step": 8}]
SIZES = {"width": SIDE, "height": SIDE}
COUNT = {"batch_size": ["INT", {"default": 1}]}
TYPES = ["stable_diffusion", "sd3", "lumina2", "wan", "flux2"]


def info(**files: list[str]) -> dict[str, Any]:
    """What /object_info lists; `files` by the input that chooses among them."""

    def node(**required: Any) -> dict[str, Any]:
        return {"input": {"required": required}}

    def choice(name: str) -> list[Any]:
        return [files.get(name, [])]

    return {
        "UNETLoader": node(unet_name=choice("unet_name"), weight_dtype=[["default", "fp8_e4m3fn"]]),
        "UnetLoaderGGUF": node(unet_name=choice("gguf_name")),
        "CheckpointLoaderSimple": node(ckpt_name=["COMBO", {"options": files.get("ckpt_name", [])}]),
        "CLIPLoader": node(clip_name=choice("clip_name"), type=[TYPES]),
        "DualCLIPLoader": node(clip_name1=choice("clip_name"), clip_name2=choice("clip_name"), type=[["sdxl", "flux"]]),
        "VAELoader": node(vae_name=choice("vae_name")),
        "LoraLoader": node(
            model=["MODEL"], clip=["CLIP"], lora_name=choice("lora_name"),
            strength_model=["FLOAT", {"default": 1.0}], strength_clip=["FLOAT", {"default": 1.0}],
        ),
        "CLIPTextEncode": node(text=["STRING", {}], clip=["CLIP"]),
        "EmptyLatentImage": node(**SIZES, **COUNT),
        "EmptySD3LatentImage": node(**SIZES, **COUNT),
        "EmptyHunyuanLatentVideo": node(**SIZES, length=["INT", {"default": 25}], **COUNT),
        "KSampler": node(
            model=["MODEL"], seed=["INT", {"default": 0}], steps=["INT", {"default": 20}],
            cfg=["FLOAT", {"default": 8.0}],
            sampler_name=[["euler", "ddim"]], scheduler=[["normal", "simple"]], positive=["CONDITIONING"],
            negative=["CONDITIONING"], latent_image=["LATENT"], denoise=["FLOAT", {"default": 1.0}],
            newest_option=["INT", {"default": 7}],
        ),
        "VAEDecode": node(samples=["LATENT"], vae=["VAE"]),
        "PreviewImage": node(images=["IMAGE"]),
    }  # fmt: skip


def component(family: str, name: str, format: str = "safetensors") -> Component:
    shapes = example_shapes(load().grammar(family), None)
    metadata = {"general.architecture": "lumina2"} if format == "gguf" else {}
    kind = "Q8_0" if format == "gguf" else "BF16"
    tensors = {n: Tensor(kind if len(s) > 1 else "F32", tuple(s), 2) for n, s in shapes.items()}
    return identify(Header(f"folder/{name}", format, 1 << 30, 100, tensors, metadata), load())[0]


@pytest.fixture(scope="module")
def stack() -> Stack:
    return Stack(
        (
            component("z_image_turbo", "dit.safetensors"),
            component("qwen3_4b", "qwen.safetensors"),
            component("flux1_vae", "ae.safetensors"),
        )
    )


RIGHT: dict[str, list[str]] = {
    "unet_name": ["other.safetensors", "sub\\dit.safetensors"],
    "clip_name": ["qwen.safetensors"],
    "vae_name": ["ae.safetensors", "pixel_space"],
}


def picture() -> bytes:
    """A PNG with the look of a photograph: smooth, of many tones, with a little grain."""
    np = pytest.importorskip("numpy")
    image = pytest.importorskip("PIL.Image")
    y, x = np.mgrid[0:128, 0:128] / 128
    rng = np.random.default_rng(1)
    spectrum = np.fft.rfft2(rng.standard_normal((3, 128, 128)))
    fy, fx = np.fft.fftfreq(128)[:, None], np.fft.rfftfreq(128)[None]
    soft = np.fft.irfft2(spectrum / (0.01 + np.hypot(fy, fx)) ** 1.4, (128, 128))
    soft = soft / np.abs(soft).max() * 0.3 + 0.5 + 0.15 * (x - y)
    out = io.BytesIO()
    image.fromarray((soft.clip(0, 1) * 255).astype("uint8").transpose(1, 2, 0)).save(out, "PNG")
    return out.getvalue()


@dataclass
class Fake:
    """A ComfyUI of one's own. `events` go over the websocket; `history` is what the run becomes in the end."""

    nodes: dict[str, Any] = field(default_factory=lambda: info(**RIGHT))
    events: list[Any] = field(default_factory=list)
    history: dict[str, Any] = field(default_factory=dict)
    image: bytes = b""
    reject: dict[str, Any] | None = None
    answer: Callable[[BaseHTTPRequestHandler], bool] | None = None
    websocket: bool = True
    busy: bool = False
    graphs: list[dict[str, Any]] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    def __enter__(self) -> Fake:
        fake = self
        self.submitted = threading.Event()

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, format: str, *args: Any) -> None:
                """Quiet."""

            def reply(self, value: Any, status: int = 200, kind: str = "application/json") -> None:
                body = value if isinstance(value, bytes) else json.dumps(value).encode()
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def do_GET(self) -> None:
                path = self.path.partition("?")[0]
                fake.asked.append(path)
                if fake.answer and fake.answer(self):
                    return
                if path == "/ws":
                    fake.speak(self)
                elif path == "/object_info":
                    self.reply(fake.nodes)
                elif path == "/system_stats":
                    self.reply({"system": {"comfyui_version": "0.33.0"}})
                elif path.startswith("/history/"):
                    self.reply({"p1": fake.history} if fake.history else {})
                elif path == "/queue":
                    self.reply({"queue_running": [[0, "p1", {}, {}, []]] if fake.busy else []})
                elif path == "/view":
                    self.reply(fake.image, kind="image/png")
                else:
                    self.reply(b"not found", 404, "text/plain")

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                fake.asked.append(self.path)
                if fake.answer and fake.answer(self):
                    return
                if self.path == "/prompt":
                    fake.graphs.append(body["prompt"])
                    if fake.reject is not None:
                        self.reply(fake.reject, 400)
                        return
                    self.reply({"prompt_id": "p1", "number": 1, "node_errors": {}})
                    fake.submitted.set()
                else:
                    self.reply(b"")

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_address[1]}"

    def speak(self, handler: Any) -> None:
        """The websocket: the handshake, then the events, one text frame each; bytes are a preview."""
        if not self.websocket:
            handler.reply(b"no", 404, "text/plain")
            return
        key = handler.headers["Sec-WebSocket-Key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
        handler.send_response(101)
        handler.send_header("Upgrade", "websocket")
        handler.send_header("Connection", "Upgrade")
        handler.send_header("Sec-WebSocket-Accept", base64.b64encode(hashlib.sha1(key.encode()).digest()).decode())
        handler.end_headers()
        self.submitted.wait(10)
        for event in self.events:
            if event == "drop":
                break
            data = event if isinstance(event, bytes) else json.dumps(event).encode()
            size = bytes([len(data)]) if len(data) < 126 else b"\x7e" + struct.pack(">H", len(data))
            handler.wfile.write((b"\x82" if isinstance(event, bytes) else b"\x81") + size + data)
            handler.wfile.flush()
        else:
            time.sleep(5)
        handler.close_connection = True


def event(kind: str, **data: Any) -> dict[str, Any]:
    return {"type": kind, "data": {"prompt_id": "p1", **data}}


def success() -> dict[str, Any]:
    images = [{"filename": "a.png", "subfolder": "", "type": "temp"}]
    return {
        "outputs": {"9": {"images": images}},
        "status": {"status_str": "success", "completed": True, "messages": []},
    }


def failure(node: str = "6") -> dict[str, Any]:
    return event(
        "execution_error", node_id=node, node_type="KSampler", exception_type="RuntimeError",
        exception_message="mat1 and mat2 shapes cannot be multiplied (18x2304 and 2560x3840)\n",
        traceback=['  File "/c/execution.py", line 5, in run\n', '  File "/c/comfy/ops.py", line 694, in forward\n'],
    )  # fmt: skip


def smoked(stack: Stack, address: str, folder: Path | None = None, seconds: float = 20.0) -> Report:
    outcome = comfyui.run(stack, load(), address, seconds)
    return comfyui.judged(judge(stack, load()), stack, outcome, load(), folder)


def rules(report: Report) -> list[str]:
    return [f.rule for f in report.findings if f.level != "info"]


# -- the graph


def graph(stack: Stack, nodes: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {n["class_type"]: n["inputs"] for n in Builder(stack, load(), nodes).build().nodes.values()}


def test_the_graph_has_the_loaders_the_type_the_latent_and_two_steps(stack: Stack) -> None:
    made = graph(stack, info(**RIGHT))
    assert made["UNETLoader"] == {"unet_name": "sub\\dit.safetensors", "weight_dtype": "default"}
    assert made["CLIPLoader"]["type"] == "lumina2"
    assert made["EmptySD3LatentImage"] == {"width": 256, "height": 256, "batch_size": 1}
    assert (made["KSampler"]["steps"], made["KSampler"]["cfg"], made["KSampler"]["newest_option"]) == (2, 1.0, 7)
    assert "EmptyLatentImage" not in made


def test_settings_of_the_run_go_into_the_graph(stack: Stack) -> None:
    asked = {"steps": "5", "cfg": "3.5", "sampler": "ddim", "width": "500", "clip_type": "flux2"}
    made = graph(Stack(stack.components, settings=asked), info(**RIGHT))
    assert made["KSampler"]["steps"] == 5
    assert (made["KSampler"]["cfg"], made["KSampler"]["sampler_name"]) == (3.5, "ddim")
    assert made["EmptySD3LatentImage"]["width"] == 504  # the node's own steps
    assert made["CLIPLoader"]["type"] == "flux2"


def test_a_gguf_goes_through_the_gguf_loader(stack: Stack) -> None:
    gguf = component("z_image_turbo", "dit.gguf", "gguf")
    made = graph(Stack((gguf, *stack.components[1:])), info(**RIGHT, gguf_name=["dit.gguf"]))
    assert made["UnetLoaderGGUF"]["unet_name"] == "dit.gguf"


def test_a_server_without_the_gguf_loader_is_said(stack: Stack) -> None:
    nodes = info(**RIGHT)
    del nodes["UnetLoaderGGUF"]
    gguf = component("z_image_turbo", "dit.gguf", "gguf")
    with pytest.raises(NoGraph, match=r"dit\.gguf.*has no node UnetLoaderGGUF"):
        Builder(Stack((gguf, *stack.components[1:])), load(), nodes).build()


def test_a_film_model_gets_one_frame(stack: Stack) -> None:
    film = component("wan21_t2v_14b", "film.safetensors")
    umt5, vae = component("umt5_xxl", "umt5.safetensors"), component("wan21_vae", "v.safetensors")
    nodes = info(unet_name=["film.safetensors"], clip_name=["umt5.safetensors"], vae_name=["v.safetensors"])
    made = graph(Stack((film, umt5, vae)), nodes)
    assert made["EmptyHunyuanLatentVideo"]["length"] == 1
    assert made["CLIPLoader"]["type"] == "wan"


def test_a_set_without_a_vae_is_not_run(stack: Stack) -> None:
    with Fake() as fake:
        report = smoked(Stack(stack.components[:2]), fake.url)
    assert report.verdict == "unknown"
    assert fake.graphs == []
    assert any("no VAE" in f.message for f in report.findings if f.rule == "smoke/comfyui-set")


# -- runs


def test_a_run_to_the_end_is_judged_by_its_picture(stack: Stack, tmp_path: Path) -> None:
    pytest.importorskip("websocket")
    events = [
        {"type": "status", "data": {}},
        b"\0\0\0\1preview",
        event("executing", node="1"),
        event("execution_success"),
    ]
    with Fake(events=events, history=success(), image=picture()) as fake:
        report = smoked(stack, fake.url, tmp_path)
    assert (report.verdict, rules(report)) == ("pass", [])
    assert report.smoke["comfyui"]["picture"]["verdict"] == "ok"
    assert (report.smoke["comfyui"]["version"], report.smoke["comfyui"]["dropped"]) == ("0.33.0", False)
    assert (tmp_path / "comfyui.png").read_bytes().startswith(b"\x89PNG")
    Draft202012Validator(schema()).validate(json.loads(document.as_json(document.check_document(report))))


@pytest.mark.parametrize("how", ["none", "drops"])
def test_without_a_websocket_the_history_is_asked(stack: Stack, how: str) -> None:
    events = ["drop"] if how == "drops" else []
    with Fake(events=events, websocket=how == "drops", history=success(), image=picture()) as fake:
        report = smoked(stack, fake.url)
    assert (report.verdict, rules(report)) == ("pass", [])
    assert report.smoke["comfyui"]["dropped"]


def test_a_black_picture_fails(stack: Stack) -> None:
    image = pytest.importorskip("PIL.Image")
    out = io.BytesIO()
    image.new("RGB", (64, 64)).save(out, "PNG")
    with Fake(websocket=False, history=success(), image=out.getvalue()) as fake:
        report = smoked(stack, fake.url)
    assert (report.verdict, rules(report)) == ("fail", ["smoke/picture"])


def test_what_is_no_picture_leaves_the_verdict_open(stack: Stack) -> None:
    pytest.importorskip("PIL.Image")
    with Fake(websocket=False, history=success(), image=b"<html>gone</html>") as fake:
        report = smoked(stack, fake.url)
    assert report.verdict == "unknown"
    assert any("is no picture" in n.why for n in report.not_checked)


@pytest.mark.parametrize("websocket", [True, False])
def test_an_error_comes_with_its_node_its_line_and_its_cause(stack: Stack, websocket: bool) -> None:
    if websocket:
        pytest.importorskip("websocket")
    said = failure()
    past = {"outputs": {}, "status": {"status_str": "error", "messages": [["execution_error", said["data"]]]}}
    with Fake(events=[said], websocket=websocket, history=past) as fake:
        report = smoked(stack, fake.url)
    found = next(f for f in report.findings if f.rule == "smoke/comfyui-error")
    assert report.verdict == "fail"
    assert "KSampler failed with RuntimeError: mat1 and mat2" in found.message
    assert found.evidence["line"] == "/c/comfy/ops.py:694"
    assert found.evidence["cause"].startswith("encoder/")
    assert found.predicts == {"comfyui": "mat1 and mat2 shapes cannot be multiplied (18x2304 and 2560x3840)"}


def test_an_error_of_a_loader_names_its_file(stack: Stack) -> None:
    nodes = Builder(stack, load(), info(**RIGHT)).build()
    loader = next(k for k, n in nodes.nodes.items() if n["class_type"] == "VAELoader")
    data = {
        "prompt_id": "p1",
        "node_id": loader,
        "node_type": "VAELoader",
        "exception_message": "invalid",
        "traceback": [],
    }
    past = {"outputs": {}, "status": {"status_str": "error", "messages": [["execution_error", data]]}}
    with Fake(websocket=False, history=past) as fake:
        report = smoked(stack, fake.url)
    found = next(f for f in report.findings if f.rule == "smoke/comfyui-error")
    assert (found.components, found.evidence["file"]) == ((2,), "ae.safetensors")


def test_a_file_the_server_does_not_list(stack: Stack) -> None:
    with Fake(nodes=info(**{**RIGHT, "vae_name": ["other.safetensors"]})) as fake:
        report = smoked(stack, fake.url)
    found = next(f for f in report.findings if f.rule == "smoke/comfyui-missing")
    assert (report.verdict, found.components, fake.graphs) == ("fail", (2,), [])
    assert "does not have ae.safetensors: VAELoader lists 1 files" in found.message
    assert "models/vae" in found.message


def test_node_errors_are_told_with_their_node_and_file(stack: Stack) -> None:
    problem = {"type": "value_not_in_list", "message": "Value not in list", "details": "type: 'lumina2' not in ['sd3']"}
    reject = {
        "error": {
            "type": "prompt_outputs_failed_validation",
            "message": "Prompt outputs failed validation",
            "details": "",
        },
        "node_errors": {"2": {"errors": [problem], "dependent_outputs": ["9"], "class_type": "CLIPLoader"}},
    }
    with Fake(reject=reject) as fake:
        report = smoked(stack, fake.url)
    found = next(f for f in report.findings if f.rule == "smoke/comfyui-rejected")
    assert (report.verdict, found.components) == ("fail", (1,))
    assert "CLIPLoader: Value not in list: type: 'lumina2'" in found.message


@pytest.mark.parametrize("websocket", [True, False])
def test_an_interrupted_run_says_nothing_of_the_set(stack: Stack, websocket: bool) -> None:
    if websocket:
        pytest.importorskip("websocket")
    said = event("execution_interrupted", node_id="6", node_type="KSampler")
    past = {"outputs": {}, "status": {"status_str": "error", "messages": [["execution_interrupted", said["data"]]]}}
    with Fake(events=[said], websocket=websocket, history=past) as fake:
        report = smoked(stack, fake.url)
    assert (report.verdict, rules(report)) == ("unknown", ["smoke/comfyui-stopped"])


def test_a_run_that_takes_too_long_is_taken_off_the_server(stack: Stack) -> None:
    with Fake(websocket=False, busy=True) as fake:
        start = time.monotonic()
        report = smoked(stack, fake.url, seconds=1.5)
        assert time.monotonic() - start < 20
    assert (report.verdict, rules(report)) == ("unknown", ["smoke/comfyui-stopped"])
    assert fake.asked[-1] == "/interrupt"


def test_a_run_of_others_is_not_interrupted(stack: Stack) -> None:
    with Fake(websocket=False, busy=False) as fake:
        smoked(stack, fake.url, seconds=1.0)
    assert "/queue" in fake.asked
    assert "/interrupt" not in fake.asked


# -- what is no ComfyUI


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def test_nobody_listens(stack: Stack) -> None:
    report = smoked(stack, f"http://127.0.0.1:{free_port()}")
    assert (report.verdict, rules(report)) == ("unknown", ["smoke/comfyui-server"])
    assert "connection refused" in report.findings[0].message


def says(body: bytes, status: int = 200, kind: str = "text/html") -> Callable[[Any], bool]:
    def answer(handler: Any) -> bool:
        handler.reply(body, status, kind)
        return True

    return answer


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (says(b"<!DOCTYPE html><html>router</html>"), "answers with a web page"),
        (says(b"<html>502</html>", 502), "HTTP 502"),
        (says(b'{"models": []}', 200, "application/json"), "no list of nodes"),
        (says(b"[1, 2]", 200, "application/json"), "no list of nodes"),
        (says(b"", 401), "asks for a login"),
    ],
    ids=["page", "gateway", "other-api", "list", "login"],
)
def test_a_server_of_another_kind(stack: Stack, answer: Callable[[Any], bool], expected: str) -> None:
    with Fake(answer=answer) as fake:
        report = smoked(stack, fake.url)
    [found] = [f for f in report.findings if f.rule == "smoke/comfyui-server"]
    assert expected in found.message
    assert report.verdict == "unknown"


@pytest.fixture
def silent() -> Iterator[str]:
    """A port that takes connections and never answers."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        s.listen()
        yield f"http://127.0.0.1:{s.getsockname()[1]}"


def test_a_server_that_never_answers_is_not_waited_for(silent: str) -> None:
    server = Server(silent, timeout=0.3)
    with pytest.raises(Exception, match="no answer within 0 s"):
        server.object_info()


@pytest.mark.parametrize("address", ["ftp://127.0.0.1", "http://", "http://host:port", "http://127.0.0.1:99999"])
def test_what_is_no_address(address: str) -> None:
    with pytest.raises(SourceError, match="address of a running server"):
        Server(address)


def test_a_password_in_the_address_is_not_shown() -> None:
    assert "secret" not in Server("http://me:secret@127.0.0.1:8188").shown

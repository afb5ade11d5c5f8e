"""Clients of an encoder: transformers, X-ARES, MTEB and ARCH, and what holds for all clients."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import timm
import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import pad

from amae_plugin import load_model
from amae_plugin.checkpoints import Checkpoint
from amae_plugin.cli.main import main
from amae_plugin.errors import UserError
from amae_plugin.interop import arch, hear, hf_code, mteb, xares
from amae_plugin.interop.s3prl import amae_local
from amae_plugin.models.registry import SYSTEMS

RATE = 16_000
LENGTHS = (5000, 30_000, 800)  # the model's input is 10,480 samples
CLASSES = ("bark", "meow", "moo")
# Settings that a system does not have are ignored.
SIZES = {
    "input_length": 64,
    "num_mel_bins": 64,
    "patch_size": (16, 16),
    "embed_dim": 32,
    "depth": 2,
    "num_heads": 2,
    "decoder_embed_dim": 16,
    "decoder_depth": 1,
    "decoder_num_heads": 2,
}
FRAMES = {"patch_size": (2, 64), "masking": "random"}
VARIANTS = {
    **{name: {"_name": name, **SIZES} for name in SYSTEMS},
    "ssast frames": {"_name": "amae_ssast", **SIZES, **FRAMES},
    "mae_ast frames": {"_name": "amae_mae_ast", **SIZES, **FRAMES},
}
AST = {"_name": "amae_ssast", **SIZES, "patch_stride": (10, 10)}  # which has no pretraining
KINDS = [*((name, None) for name in VARIANTS), ("amae_audio_mae", "bce"), ("mae_ast frames", "bce"), ("ast", "bce")]
"""Variants, and the loss of a classifier."""


@pytest.fixture(scope="module", autouse=True)
def _code_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Copies of the code in exported folders, which transformers imports from a folder of the user's."""
    folder = str(tmp_path_factory.mktemp("code"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", folder)
        patch.syspath_prepend(folder)
        yield


@pytest.fixture(scope="module")
def clips() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(length, generator=generator) - 0.5 for length in LENGTHS]


class Files:
    """A checkpoint and its exports, each made when it is asked for."""

    def __init__(self, checkpoint: Path):
        self.checkpoint = str(checkpoint)

    def export(self, form: str) -> Path:
        folder = Path(self.checkpoint).with_suffix(f".{form}")
        if not folder.exists():
            assert main(["export", self.checkpoint, str(folder), "--format", form]) == 0
        return folder

    def auto(self, kind: Any = transformers.AutoModel, **options: Any) -> Any:
        return kind.from_pretrained(self.export("hf"), trust_remote_code=True, **options)

    def inputs(self, clips: Sequence[Tensor], **options: Any) -> Mapping[str, Tensor]:
        extractor = self.auto(transformers.AutoFeatureExtractor)
        return extractor([clip.numpy() for clip in clips], sampling_rate=RATE, return_tensors="pt", **options)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, write_checkpoint: Callable[..., Path]) -> Callable[..., Files]:
    """Files of a variant's encoder, or of a classifier."""
    made: dict[str, Files] = {}
    folder = tmp_path_factory.mktemp("files")

    def find(variant: str, loss: str | None = None, pooling: str = "mean") -> Files:
        name = f"{variant}_{loss}_{pooling}".replace(" ", "_")
        if name not in made:
            classes, settings = CLASSES if loss else None, {**VARIANTS, "ast": AST}[variant]
            path = folder / f"{name}.pt"
            write_checkpoint(path, classes, loss=loss or "bce", encoder=settings, pooling=pooling)
            made[name] = Files(path)
        return made[name]

    return find


Client = Callable[[Sequence[Tensor]], list[Tensor]]
"""Function from a batch of clips to what a client makes of each, one vector a clip."""


def with_load_model(files: Files) -> Client:
    model = load_model(files.checkpoint, device="cpu", batch_size=3)

    def embed(clips: Sequence[Tensor]) -> list[Tensor]:
        steps = [steps.flatten() for steps, _ in model.embed_timestamps(list(clips), RATE)]
        return [torch.cat(each) for each in zip(model.embed(list(clips), RATE), steps)]

    return embed


def with_hear(files: Files) -> Client:
    model = hear.load_model(files.checkpoint)

    def embed(clips: Sequence[Tensor]) -> list[Tensor]:
        audio = torch.stack([clip.repeat(20)[:15_000] for clip in clips])  # HEAR's clips are all of a length
        steps, _ = hear.get_timestamp_embeddings(audio, model)
        return [torch.cat(each) for each in zip(hear.get_scene_embeddings(audio, model), steps.flatten(1))]

    return embed


def with_s3prl(files: Files) -> Client:
    expert = amae_local(files.checkpoint)

    @torch.no_grad()
    def embed(clips: Sequence[Tensor]) -> list[Tensor]:
        """Take the steps that s3prl takes of each clip: one for each multiple of the downsample rate that it begins."""
        states = torch.stack(expert(clips)["hidden_states"])
        steps = [-(-len(clip) // expert.get_downsample_rates("hidden_states")) for clip in clips]
        return [states[:, index, :count].flatten() for index, count in enumerate(steps)]

    return embed


def with_transformers(files: Files) -> Client:
    model = files.auto()

    @torch.no_grad()
    def embed(clips: Sequence[Tensor]) -> list[Tensor]:
        longer = {"padding": "max_length", "max_length": 300} if len(clips) > 1 else {}
        output = model(**files.inputs(clips, **longer))
        steps = zip(output.last_hidden_state, output.attention_mask.sum(dim=1))
        own = [states[:count].flatten() for states, count in steps]
        return [torch.cat(each) for each in zip(output.pooler_output, own)]

    return embed


def with_xares(files: Files) -> Client:
    encoder = xares.AmaeEncoder(files.checkpoint)

    @torch.no_grad()
    def embed(clips: Sequence[Tensor]) -> list[Tensor]:
        """Take the mean over steps, as X-ARES does; several clips get more padding than the longest needs."""
        longest = max(map(len, clips)) + (9000 if len(clips) > 1 else 0)
        return list(encoder(torch.stack([pad(clip, (0, longest - len(clip))) for clip in clips])).mean(dim=1))

    return embed


def with_mteb(files: Files) -> Client:
    encoder = mteb.AmaeEncoder(files.checkpoint, device="cpu")

    def embed(clips: Sequence[Tensor]) -> list[Tensor]:
        batch = {"audio": [{"array": clip.numpy(), "sampling_rate": RATE} for clip in clips]}
        return list(torch.from_numpy(encoder.encode([batch], task_metadata=None, hf_split="test", hf_subset="")))

    return embed


def with_arch(files: Files) -> Client:
    longer = arch.AmaeModel(files.checkpoint, device="cpu", max_seconds=2.5)

    def embed(clips: Sequence[Tensor]) -> list[Tensor]:
        """ARCH gives one clip at a time, but has all padded to one length."""
        found = []
        for clip in clips:
            longer.max_seconds = 2.5 if len(clips) > 1 else len(clip) / RATE
            steps = longer.get_sequence_embeddings(clip)[: longer.model.steps_in(len(clip))]
            found.append(torch.cat([longer.get_embeddings(clip), steps.flatten()]))
        return found

    return embed


def with_timm(files: Files) -> Client:
    model: Any = timm.create_model(f"local-dir:{files.export('timm')}", pretrained=True).eval()
    model_input = Checkpoint.read(files.checkpoint).input

    @torch.no_grad()
    def embed(clips: Sequence[Tensor]) -> list[Tensor]:
        source = torch.stack([model_input.spectrogram(clip) for clip in clips])
        return list(model.forward_features(source[:, None]).flatten(1))

    return embed


def with_onnx(files: Files) -> Client:
    session = onnxruntime.InferenceSession(files.export("onnx") / "model.onnx")
    model_input = Checkpoint.read(files.checkpoint).input

    def embed(clips: Sequence[Tensor]) -> list[Tensor]:
        source = torch.stack([model_input.spectrogram(clip) for clip in clips])
        return list(torch.from_numpy(session.run(None, {"log_mel": source.numpy()})[0]).flatten(1))

    return embed


ON_AUDIO = (with_load_model, with_hear, with_s3prl, with_transformers, with_xares, with_mteb, with_arch)
CASES = [
    *((client, *kind) for client in ON_AUDIO for kind in KINDS),
    (with_timm, "amae_audio_mae", None),
    (with_onnx, "amae_audio_mae", None),
]


@pytest.mark.parametrize(("client", "variant", "loss"), CASES, ids=lambda case: getattr(case, "__name__", case))
def test_an_embedding_depends_on_its_clip_alone(
    files: Callable[..., Files],
    clips: list[Tensor],
    client: Callable[[Files], Client],
    variant: str,
    loss: str | None,
) -> None:
    """Neither on the padding that longer clips cause, nor on what these are."""
    embed = client(files(variant, loss))
    for clip, together in zip(clips, embed(clips), strict=True):
        (alone,) = embed([clip])
        assert alone.shape == together.shape
        assert torch.cosine_similarity(alone, together, dim=0) > 0.9999
        torch.testing.assert_close(together, alone, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("variant", "loss"), KINDS)
def test_transformers_computes_what_load_model_does(
    files: Callable[..., Files], clips: list[Tensor], variant: str, loss: str | None
) -> None:
    its = files(variant, loss)
    ours, model = load_model(its.checkpoint, device="cpu"), its.auto()
    assert type(model).__module__.startswith("transformers_modules.")
    assert (model.config.hidden_size, model.config.num_hidden_layers) == (ours.embed_dim, 2)
    with torch.no_grad():
        output = model(**its.inputs(clips), output_hidden_states=True)
    exactly = {"rtol": 0, "atol": 1e-5}
    torch.testing.assert_close(output.pooler_output, ours.embed(clips, RATE), **exactly)
    for index, layers in enumerate(ours.extract_features(clips, RATE)):
        steps = layers.shape[1]
        found = torch.stack(output.hidden_states)[:, index]
        torch.testing.assert_close(found[:, :steps], layers, **exactly)
        assert not found[:, steps:].any()
        assert output.attention_mask[index].sum() == steps
    assert torch.equal(output.last_hidden_state, output.hidden_states[-1])


@pytest.mark.parametrize(
    ("variant", "pooling"), [("amae_audio_mae", "cls"), ("amae_mae_ast", "mean"), ("ast", "avgtok")]
)
@pytest.mark.parametrize("loss", ["cross_entropy", "bce"])
def test_the_pipeline_gives_the_probabilities_of_predict(
    files: Callable[..., Files], clips: list[Tensor], variant: str, pooling: str, loss: str
) -> None:
    """Of shorter and longer clips than the input, alone and in batches, as arrays and with another rate."""
    its = files(variant, loss, pooling)
    pipeline = transformers.pipeline("audio-classification", model=str(its.export("hf")), trust_remote_code=True)
    assert pipeline.model.config.id2label == dict(enumerate(CLASSES))
    assert pipeline.model.config.label2id == {name: index for index, name in enumerate(CLASSES)}
    expected = load_model(its.checkpoint, device="cpu").predict(clips, RATE, top_k=None)
    arrays = [clip.numpy() for clip in clips]
    given = [{"array": array, "sampling_rate": RATE} for array in arrays]
    for found in (pipeline(arrays, top_k=None), pipeline(given, batch_size=3, top_k=None)):
        for scores, predictions in zip(found, expected, strict=True):
            assert [score["label"] for score in scores] == [prediction.label for prediction in predictions]
            actual = [score["score"] for score in scores]
            assert actual == pytest.approx([prediction.probability for prediction in predictions], abs=1e-5)


def test_a_classifier_in_transformers_can_be_trained_further(files: Callable[..., Files], clips: list[Tensor]) -> None:
    its = files("amae_audio_mae", "cross_entropy")
    model = its.auto(transformers.AutoModelForAudioClassification).train()
    inputs, labels = its.inputs(clips), torch.tensor([0, 1, 2])
    output = model(**inputs, labels=labels)
    torch.testing.assert_close(output.loss, torch.nn.functional.cross_entropy(output.logits, labels))
    with torch.no_grad():
        layers = model(**inputs, output_hidden_states=True).hidden_states
        torch.testing.assert_close(layers, its.auto()(**inputs, output_hidden_states=True).hidden_states)
    output.loss.backward()
    assert all(parameter.grad is not None for parameter in model.amae.encoder.blocks.parameters())
    torch.optim.SGD(model.parameters(), lr=1e-3).step()
    assert model(**inputs, labels=labels).loss < output.loss
    several = files("amae_audio_mae", "bce").auto(transformers.AutoModelForAudioClassification)
    truths = torch.eye(3)[labels]
    output = several(**inputs, labels=truths)
    expected = torch.nn.functional.binary_cross_entropy_with_logits(output.logits, truths)
    torch.testing.assert_close(output.loss, expected)


@pytest.mark.parametrize("variant", ["amae_audio_mae", "mae_ast frames"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(files: Callable[..., Files], clips: list[Tensor], variant: str, dtype: torch.dtype) -> None:
    its = files(variant)
    expected = load_model(its.checkpoint, device="cpu").embed(clips, RATE)
    inputs: Any = its.inputs(clips)
    for model, given in (
        (its.auto(dtype=dtype), inputs),
        (its.auto().to(dtype), inputs.to(dtype)),
        (its.auto(dtype=dtype).float(), inputs),
    ):
        assert model.dtype in (dtype, torch.float32)
        weights = [part.weight for part in model.amae.encoder.blocks.modules() if isinstance(part, torch.nn.Linear)]
        assert {weight.dtype for weight in weights} == {model.dtype}
        with torch.no_grad():
            found = model(**given).pooler_output
        assert found.dtype == torch.float32
        assert torch.cosine_similarity(found, expected).min() > 0.999
    with torch.no_grad():
        logits = files(variant, "bce").auto(transformers.AutoModelForAudioClassification, dtype=dtype)(**inputs).logits
    assert logits.isfinite().all()


def test_a_folder_that_transformers_saved_is_loaded_again(
    files: Callable[..., Files], clips: list[Tensor], tmp_path: Path
) -> None:
    its = files("amae_m2d")
    model = its.auto()
    again = Files(tmp_path / "again.pt")
    folder = tmp_path / "again.hf"
    model.save_pretrained(folder)
    its.auto(transformers.AutoFeatureExtractor).save_pretrained(folder)
    assert {path.name for path in folder.iterdir()} == {path.name for path in its.export("hf").iterdir()} - {
        "README.md"
    }
    with torch.no_grad():
        expected, found = model(**its.inputs(clips)), again.auto()(**again.inputs(clips))
    assert torch.equal(found.pooler_output, expected.pooler_output)


def test_an_exported_folder_holds_what_it_needs_and_no_more(files: Callable[..., Files]) -> None:
    folder = files("amae_eat").export("hf")
    names = [name for name in load_file(folder / "model.safetensors") if not name.startswith("amae.model.encoder.")]
    assert not names  # neither teacher nor decoder
    config = json.loads((folder / "config.json").read_text())
    assert config["auto_map"]["AutoModel"] == "modeling_amae.AmaeModel"
    page = (folder / "README.md").read_text()
    assert "library_name: transformers" in page and "make_log_mel" not in page
    names_space: dict[str, Any] = {"waveforms": [np.zeros(RATE, np.float32)]}
    code = page.split("```python\n")[1].split("```")[0].replace(f'"{folder.name}"', repr(str(folder)))
    exec(code, names_space)
    assert names_space["output"].pooler_output.shape == (1, 32)


def test_the_code_in_a_folder_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    path = Path(hf_code.__path__[0]) / "configuration_amae.py"
    spec = importlib.util.spec_from_file_location("configuration_amae", path)
    assert spec is not None and spec.loader is not None
    monkeypatch.setitem(sys.modules, "amae_plugin.interop", None)  # type: ignore[arg-type]
    with pytest.raises(ImportError, match=r"package amae_plugin, which is not installed here.* pip install"):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


def test_formats_of_the_same_file_names_do_not_share_a_folder(
    files: Callable[..., Files], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "out"
    arguments = ["export", files("amae_audio_mae").checkpoint, str(out), "--format"]
    assert main([*arguments, "hf", "timm"]) == 2
    assert "hf and timm both write config.json: export each to a folder of its own" in capsys.readouterr().err
    assert main([*arguments, "hf"]) == main([*arguments, "timm"]) == 0
    assert sorted(path.name for path in out.iterdir()) == ["README.md", "config.json", "model.safetensors"]


def test_the_feature_extractor_takes_what_others_of_transformers_take(clips: list[Tensor]) -> None:
    # Its import takes seconds, in every process that collects tests.
    from amae_plugin.interop.hf_model import AmaeFeatureExtractor

    extractor = AmaeFeatureExtractor(feature_size=64)
    one, two = (clip.numpy() for clip in (clips[0], clips[2]))
    batch = extractor([one, two], sampling_rate=RATE, return_tensors="pt")
    assert batch["input_values"].shape == (2, 29, 64)
    assert batch["attention_mask"].sum(dim=1).tolist() == [29, 3]
    for single in (one, torch.from_numpy(one), one.tolist(), one[None], [one.tolist()]):
        found = extractor(single, sampling_rate=RATE, return_tensors="pt")
        torch.testing.assert_close(found["input_values"], batch["input_values"][:1])
    cut = extractor([one, two], return_tensors="np", truncation=True, max_length=10, padding="max_length")
    assert cut["input_values"].shape == (2, 10, 64)
    assert extractor(one, sampling_rate=2 * RATE, return_tensors="np")["input_values"].shape == (1, 14, 64)
    assert extractor(np.zeros(RATE, np.float32), return_tensors="np")["input_values"].shape == (1, 98, 64)  # silence
    with pytest.raises(UserError, match=r"raw_speech\[1\]: its samples .* full scale"):
        extractor([one, two * 32768], sampling_rate=RATE)
    with pytest.raises(UserError, match=r"raw_speech\[0\]: its sample rate is given as 'x'"):
        extractor(one, sampling_rate="x")
    with pytest.raises(UserError, match="raw_speech is empty"):
        extractor([])


def test_input_that_is_none_of_the_extractor_is_refused(files: Callable[..., Files]) -> None:
    model = files("amae_audio_mae").auto()
    with pytest.raises(ValueError, match=r"input_values must be \(clips, frames, 64\), not \(1, 5000\)"):
        model(torch.zeros(1, 5000))
    with pytest.raises(ValueError, match="attention_mask marks no frame of a clip"):
        model(torch.zeros(2, 50, 64), torch.tensor([[1] * 50, [0] * 50]))


def test_padding_may_also_precede_a_clip(files: Callable[..., Files], clips: list[Tensor]) -> None:
    its = files("mae_ast frames")
    model, extractor = its.auto(), its.auto(transformers.AutoFeatureExtractor, padding_side="left")
    inputs = extractor([clip.numpy() for clip in clips], sampling_rate=RATE, return_tensors="pt")
    assert inputs["attention_mask"][0, 0] == 0
    with torch.no_grad():
        torch.testing.assert_close(model(**inputs).pooler_output, model(**its.inputs(clips)).pooler_output)


@pytest.mark.parametrize("variant", ["amae_m2d", "mae_ast frames"])
def test_xares_checks_an_encoder_by_these_rules(
    files: Callable[..., Files], monkeypatch: pytest.MonkeyPatch, variant: str
) -> None:
    (name,) = [name for name in dir(xares) if name.endswith("Encoder")]  # it takes the only one
    monkeypatch.delenv("AMAE_CHECKPOINT", raising=False)
    with pytest.raises(UserError, match="set the environment variable AMAE_CHECKPOINT to its path"):
        getattr(xares, name)()
    monkeypatch.setenv("AMAE_CHECKPOINT", files(variant).checkpoint)
    encoder = getattr(xares, name)()
    audio = torch.randn(2, 50_000, generator=torch.Generator().manual_seed(0))
    found = encoder(audio)
    assert isinstance(encoder, torch.nn.Module) and encoder.sampling_rate == RATE
    assert found.shape == (2, found.shape[1], encoder.output_dim)
    assert abs(1000 * 50_000 / RATE - found.shape[1] * encoder.hop_size_in_ms) < encoder.hop_size_in_ms
    expected, _ = load_model(files(variant).checkpoint, device="cpu").embed_timestamps(audio[1], RATE)
    torch.testing.assert_close(found[1], expected, rtol=1e-4, atol=1e-4)
    assert encoder(torch.zeros(1, 50_000)).isfinite().all()


def test_mteb_gets_an_embedding_for_each_clip_of_its_batches(files: Callable[..., Files], clips: list[Tensor]) -> None:
    path = files("amae_audio_mae").checkpoint
    encoder = mteb.AmaeEncoder("amae_plugin/any", revision="1", device="cpu", path=path)
    rates = (RATE, 44_100, 8000)
    rows = [{"array": clip.numpy(), "sampling_rate": rate} for clip, rate in zip(clips, rates)]
    rows.append({"array": np.zeros((2, RATE)), "sampling_rate": RATE})  # two channels of silence
    task = {"task_metadata": None, "hf_split": "test", "hf_subset": "default", "prompt_type": None}
    found = encoder.encode([{"audio": rows[:2]}, {"audio": rows[2:]}], **task, batch_size=8)
    assert found.shape == (4, 32) and found.dtype == np.float32
    ours = load_model(path, device="cpu")
    expected = torch.stack([ours.embed(clip, rate) for clip, rate in zip(clips, rates)])
    torch.testing.assert_close(torch.from_numpy(found[:3]), expected, rtol=1e-4, atol=1e-4)
    cosines = torch.nn.functional.cosine_similarity(expected[:, None], expected[None], dim=2)
    torch.testing.assert_close(encoder.similarity(found[:3], found[:3]), cosines, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        encoder.similarity_pairwise(found[:3], found[[1, 0, 2]]),
        cosines[range(3), [1, 0, 2]],
        rtol=1e-4,
        atol=1e-4,
    )
    assert encoder.encode([], **task).shape == (0, 32)
    with pytest.raises(UserError, match=r"embeds audio alone, and batch 0 has text"):
        encoder.encode([{"text": ["a"]}], **task)


def test_arch_gets_embeddings_and_their_sizes(files: Callable[..., Files], clips: list[Tensor]) -> None:
    path = files("mae_ast frames").checkpoint
    model, ours = arch.AmaeModel(path, device="cpu", max_seconds=1.0), load_model(path, device="cpu")
    assert model.get_classification_embedding_size() == model.get_token_embedding_size() == 32
    assert model.get_sampling_rate() == RATE
    for clip in clips:
        steps, _ = ours.embed_timestamps(clip, RATE)
        torch.testing.assert_close(model.get_embeddings(clip), ours.embed(clip, RATE))
        found = model.get_sequence_embeddings(clip)
        assert found.shape == (49, 32)
        kept = min(49, len(steps))
        torch.testing.assert_close(found[:kept], steps[:kept])
        assert not found[kept:].any()
        tokens = model.get_token_embeddings(clip, frame_length_ms=10)
        assert tokens.shape == (len(clip) // 160, 32)
        torch.testing.assert_close(tokens[: 2 * kept : 2], steps[: len(tokens[: 2 * kept : 2])])
    assert torch.equal(
        arch.AmaeModel(path, device="cpu").get_sequence_embeddings(clips[0])[:, 0],
        ours.embed_timestamps(clips[0], RATE)[0][:, 0],
    )

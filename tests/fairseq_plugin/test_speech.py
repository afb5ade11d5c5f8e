"""Pretraining checkpoints as encoders of fairseq's speech models, by the calls of these and of their clients."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from fairseq import checkpoint_utils
from fairseq.data import Dictionary
from fairseq.models.wav2vec.wav2vec2_asr import Wav2Vec2CtcConfig, Wav2VecCtc, Wav2VecEncoder
from omegaconf import OmegaConf
from torch import Tensor, nn

from amae_plugin import load_model
from amae_plugin.checkpoints import Checkpoint
from amae_plugin.cli.main import main
from amae_plugin.errors import UserError
from amae_plugin.models.registry import SYSTEMS
from amae_plugin.models.settings import DROPOUTS

LENGTH = 64
SIZES = {
    **{"input_length": LENGTH, "embed_dim": 24, "depth": 2, "num_heads": 3, "clones": 2},
    **{"decoder_embed_dim": 16, "decoder_depth": 1, "decoder_num_heads": 2},
}
BANDS = {name: system.default_input.num_mel_bins for name, system in SYSTEMS.items()}
VARIANTS = {
    **{f"{name} patches": (name, (16, 16)) for name in SYSTEMS},
    **{f"{name} frames": (name, (2, BANDS[name])) for name in SYSTEMS},
}
SAMPLES = (3000, 9000, 30_000, 200)  # within the position table, beyond it, and less than an analysis window


class Written(NamedTuple):
    path: Path
    system: str
    bands: int
    steps: int
    """Frames of a time step."""


def write(path: Path, system: str, patch: tuple[int, int], **model: Any) -> Path:
    """A pretraining checkpoint, whose positions have a meaning even if they are learned."""
    torch.manual_seed(0)
    settings = {"_name": system, **SIZES, "num_mel_bins": BANDS[system], "patch_size": list(patch), **model}
    task = {
        "_name": "amae_pretraining",
        "data": "",
        "target_length": LENGTH,
        "num_mel_bins": BANDS[system],
        "mean": -6.0,
        "std": 4.0,
    }
    state = SYSTEMS[system].model(settings).state_dict()
    for name, tensor in state.items():
        if name.endswith("running_mean"):
            tensor.fill_(-6.0)
    Checkpoint(path, {"model": settings, "task": task}, state, updates=3).write()
    return path


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pretrained")
    return {name: write(folder / f"{name}.pt", *variant) for name, variant in VARIANTS.items()}


@pytest.fixture(params=VARIANTS)
def variant(request: pytest.FixtureRequest, checkpoints: dict[str, Path]) -> Written:
    system, patch = VARIANTS[request.param]
    return Written(checkpoints[request.param], system, BANDS[system] // patch[1], patch[0])


def recipe(path: Path, **settings: Any) -> Any:
    """The model section of a recipe for CTC."""
    given = {"w2v_path": str(path), "normalize": False, "data": str(path.parent), "ddp_backend": "legacy_ddp"}
    return OmegaConf.merge(OmegaConf.structured(Wav2Vec2CtcConfig), {**given, "mask_prob": 0.0, **settings})


def recogniser(path: Path, **settings: Any) -> Wav2VecEncoder:
    return Wav2VecEncoder(recipe(path, **settings), output_size=7)


def encoder(path: Path, **settings: Any) -> nn.Module:
    return recogniser(path, **settings).w2v_model


def sounds(*samples: int) -> list[Tensor]:
    return [torch.from_numpy(np.random.default_rng(n).normal(0, 0.1, n).astype(np.float32)) for n in samples]


def batch(clips: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Padded with noise, which must have no influence."""
    longest = max(map(len, clips))
    source = torch.stack([torch.cat([clip, torch.full((longest - len(clip),), 0.3)]) for clip in clips])
    return source, torch.arange(longest) >= torch.tensor([len(clip) for clip in clips])[:, None]


def assert_close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_clip_is_encoded_as_if_it_were_alone(variant: Written) -> None:
    model = encoder(variant.path).eval()
    clips = sounds(*SAMPLES)
    source, padding_mask = batch(clips)
    found = model.extract_features(source=source, padding_mask=padding_mask, mask=False)
    frames = model._input.front_end.frames_in(np.array(SAMPLES))
    steps = -(-frames // variant.steps)
    width = 24 * variant.bands
    assert found["x"].shape == (4, max(steps), width)
    assert model.cfg.encoder_embed_dim == width
    assert (~found["padding_mask"]).sum(dim=1).tolist() == steps.tolist()
    assert not found["x"][found["padding_mask"]].any()
    assert [len(result) for result in found["layer_results"]] == [3, 3]
    assert {result[0].shape for result in found["layer_results"]} == {(max(steps), 4, width)}
    shown = load_model(variant.path, device="cpu")
    for clip, own, count in zip(clips, found["x"], steps):
        alone = model.extract_features(source=clip[None], padding_mask=None, mask=False)
        assert alone["padding_mask"] is None
        assert_close(own[:count], alone["x"][0])
        if 400 <= len(clip) <= 9000:  # longer ones, `load_model` cuts into windows
            bands = own[:count].unflatten(1, (variant.bands, -1)).mean(dim=1)
            assert_close(bands, shown.extract_features(clip, 16_000, layer=-1).unflatten(1, (-1, 24)).mean(dim=1))


@torch.no_grad()
@pytest.mark.parametrize("name", VARIANTS)
def test_long_clips_are_seen_whole_or_in_windows(name: str, checkpoints: dict[str, Path]) -> None:
    model = encoder(checkpoints[name]).eval()
    (clip,) = sounds(30_000)
    changed = torch.cat([clip[:-3000], torch.zeros(3000)])
    first, other = (model.extract_features(c[None], None)["x"][0, 0] for c in (clip, changed))
    whole = model.encoder.positions.extends
    assert whole == ("ssast" not in name)
    assert torch.equal(first, other) != whole
    if not whole:
        steps = load_model(checkpoints[name], device="cpu").extract_features(clip, 16_000, layer=-1)
        found = model.extract_features(clip[None], None)["x"][0].unflatten(1, (-1, 24)).mean(dim=1)
        assert_close(found, steps)


def passes(model: nn.Module, **arguments: Any) -> tuple[Tensor, Tensor]:
    source, padding_mask = batch(sounds(9000, 9000, 5000, 9000))
    return tuple(model.extract_features(source, padding_mask, **arguments)["x"].detach() for _ in range(2))  # type: ignore


def test_only_the_encoder_remains_and_nothing_in_it_is_random_without_dropout(variant: Written) -> None:
    model = encoder(variant.path)
    assert {name.split(".")[0] for name in model.state_dict()} == {"encoder"}
    before = {name: tensor.clone() for name, tensor in model.named_buffers()}
    first, second = passes(model.train())
    assert torch.equal(first, second)
    assert_close(first, passes(model.eval())[0])
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.named_buffers())


@pytest.mark.parametrize("name", [*DROPOUTS, "drop_path"])
def test_dropouts_of_the_recipe_act_in_training_only(variant: Written, name: str) -> None:
    model = encoder(variant.path, **{name: 0.5})
    torch.manual_seed(1)
    first, second = passes(model.train())
    assert not torch.equal(first, second)
    first, second = passes(model.eval())
    assert torch.equal(first, second)
    torch.testing.assert_close(first, passes(encoder(variant.path).eval())[0])


def test_masks_of_the_recipe_hide_spans_of_time_and_channels(variant: Written) -> None:
    clip = sounds(30_000)[0][None]
    model = encoder(variant.path, mask_prob=0.5, mask_length=3, mask_channel_prob=0.5, mask_channel_length=4)
    seen: list[Tensor] = []
    model.encoder.patch_embed.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    embedded: list[Tensor] = []
    model.encoder.blocks[0].register_forward_pre_hook(lambda _, args: embedded.append(args[0]))
    torch.manual_seed(0)
    shown = model.extract_features(clip, None, mask=False)["x"]
    hidden = model.extract_features(clip, None, mask=True)["x"]
    assert hidden.shape == shown.shape
    assert not torch.equal(hidden, shown)
    columns = (seen[-1].unflatten(1, (-1, variant.bands)) == 0).flatten(2).all(dim=2)
    changed = columns & ~(seen[0].unflatten(1, (-1, variant.bands)) == 0).flatten(2).all(dim=2)
    starts = (changed[:, 1:] & ~changed[:, :-1]).sum() + changed[:, 0].sum()
    assert 0.1 < changed.float().mean() < 0.6
    assert changed.sum() >= 2 * starts
    only_channels = encoder(variant.path, mask_channel_prob=0.5, mask_channel_length=4)
    assert not torch.equal(only_channels.extract_features(clip, None, mask=True)["x"], shown)


def test_the_model_hides_as_the_recipe_says_in_training_only(checkpoints: dict[str, Path]) -> None:
    source, padding_mask = batch(sounds(9000, 8000))
    for apply_mask in (True, False):
        model = recogniser(checkpoints["amae_mae_ast frames"], apply_mask=apply_mask, mask_prob=0.5)
        trained, again = (model.train()(source, padding_mask)["encoder_out"] for _ in range(2))
        assert torch.equal(trained, again) != apply_mask
        assert_close(*(model.eval()(source, padding_mask)["encoder_out"] for _ in range(2)))


@pytest.mark.parametrize("factor", [0.0, 0.5])
def test_feature_grad_mult_scales_the_gradient_of_the_patch_embedding_alone(variant: Written, factor: float) -> None:
    found = {}
    for value in (1.0, factor):
        model = encoder(variant.path, feature_grad_mult=value)
        source, padding_mask = batch(sounds(9000, 5000))
        model.extract_features(source, padding_mask)["x"].square().sum().backward()
        found[value] = {name: parameter.grad for name, parameter in model.named_parameters()}
    for name, gradient in found[1.0].items():
        if "patch_embed" not in name or gradient is None:  # of pictures
            torch.testing.assert_close(found[factor][name], gradient)
        elif factor:
            torch.testing.assert_close(found[factor][name], factor * gradient)
        else:
            assert found[factor][name] is None


def test_frozen_updates_train_what_follows_the_encoder(checkpoints: dict[str, Path]) -> None:
    model = recogniser(checkpoints["amae_mae_ast patches"], freeze_finetune_updates=2)
    before = {name: tensor.clone() for name, tensor in model.w2v_model.state_dict().items()}
    for update, trained in ((0, False), (1, False), (2, True)):
        model.set_num_updates(update)
        model.zero_grad(set_to_none=True)
        model.train()(*batch(sounds(9000, 5000)))["encoder_out"].sum().backward()
        assert model.proj.weight.grad is not None
        assert any(p.grad is not None for p in model.w2v_model.parameters()) == trained
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.w2v_model.state_dict().items())


def test_half_precision(variant: Written) -> None:
    source, padding_mask = batch(sounds(9000, 5000))
    expected = encoder(variant.path).eval().extract_features(source, padding_mask)["x"]
    for kind in (torch.float16, torch.bfloat16):
        model = recogniser(variant.path).eval().to(kind)
        found = model.w2v_model.extract_features(source.half().to(kind), padding_mask)["x"]
        assert found.dtype == kind
        assert nn.functional.cosine_similarity(found.float(), expected, dim=-1)[~found.eq(0).all(-1)].min() > 0.97
        assert model(source.to(kind), padding_mask)["encoder_out"].dtype == kind


def without(path: Path, out: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    content = torch.load(path)
    change(content["cfg"])
    torch.save(content, out)
    return out


def test_a_checkpoint_of_an_earlier_release_works_and_can_be_completed(
    variant: Written, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    old = without(variant.path, tmp_path / "old.pt", lambda cfg: cfg["model"].pop("speech"))
    settings = {"dropout": 0.5, "mask_prob": 0.5}
    with caplog.at_level(logging.WARNING):
        found = passes(encoder(old, **settings).eval())[0]
    assert "amae convert OLD NEW adds the section" in caplog.text
    assert torch.equal(found, passes(encoder(variant.path).eval())[0])
    caplog.clear()
    new = tmp_path / "new.pt"
    assert main(["convert", str(old), str(new)]) == 0
    first, second = passes(encoder(new, **settings).train())
    assert not torch.equal(first, second)
    assert "earlier release" not in caplog.text


HISTORY = [{"criterion_name": "", "optimizer_name": "", "lr_scheduler_state": {}, "num_updates": 1}]


class Task:
    """What `Wav2VecCtc` asks of the task that trains it."""

    target_dictionary = Dictionary()


def fine_tuned(path: Path, out: Path) -> Path:
    """A checkpoint as fairseq's recipe writes it."""
    cfg = recipe(path)
    model = Wav2VecCtc.build_model(cfg, Task())
    (out.parent / "dict.ltr.txt").write_text("".join(f"{letter} 1\n" for letter in "abc"), encoding="utf-8")
    task = {"_name": "audio_finetuning", "data": str(out.parent), "labels": "ltr", "normalize": False}
    sections = {"model": {**OmegaConf.to_container(cfg, enum_to_str=True), "_name": "wav2vec_ctc"}, "task": task}
    state = {
        "model": model.state_dict(),
        "cfg": sections,
        "args": None,
        "task_state": {"target_dictionary": Dictionary()},
    }
    torch.save({**state, "optimizer_history": HISTORY, "extra_state": {}}, out)
    return out


def test_a_fine_tuned_checkpoint_needs_no_pretrained_one(variant: Written, tmp_path: Path) -> None:
    pretrained = tmp_path / "pretrained.pt"
    pretrained.write_bytes(variant.path.read_bytes())
    tuned = fine_tuned(pretrained, tmp_path / "tuned.pt")
    pretrained.unlink()
    (model,), _, _ = checkpoint_utils.load_model_ensemble_and_task([str(tuned)])
    source, padding_mask = batch(sounds(9000, 5000))
    found = model.eval().w2v_encoder.w2v_model.extract_features(source, padding_mask)["x"]
    assert_close(found, encoder(variant.path).eval().extract_features(source, padding_mask)["x"])


def test_what_is_no_pretrained_encoder_is_refused_in_a_sentence(
    checkpoints: dict[str, Path], tmp_path: Path, write_checkpoint: Callable[..., Path]
) -> None:
    pretrained = checkpoints["amae_audio_mae patches"]
    cases = {
        "is the checkpoint of a speech recogniser, which": fine_tuned(pretrained, tmp_path / "tuned.pt"),
        "is the checkpoint of a classifier, which": with_history(
            write_checkpoint(tmp_path / "classifier.pt", ["a", "b"])
        ),
        "does not say how a waveform becomes its input: its settings lack task.mean, task.std;": without(
            pretrained, tmp_path / "x.pt", lambda cfg: [cfg["task"].pop(name) for name in ("mean", "std")]
        ),
    }
    for sentence, path in cases.items():
        with pytest.raises(UserError, match=r"model\.w2v_path") as refused:
            recogniser(path)
        assert sentence in str(refused.value)
    for settings, sentence in (
        ({"dropout": 1.0}, r"model\.dropout must be at least 0 and below 1, not 1\.0"),
        ({"mask_selection": "uniform"}, r"model\.mask_selection must be static, not uniform"),
        ({"no_mask_overlap": True}, r"model\.no_mask_overlap must be false, not True"),
        ({"mask_length": 0}, r"model\.mask_length must be at least 1, not 0"),
    ):
        with pytest.raises(UserError, match=sentence):
            recogniser(pretrained, **settings)


def with_history(path: Path) -> Path:
    """fairseq reads the number of updates even where it trains nothing."""
    content = torch.load(path)
    torch.save({"args": None, "optimizer_history": HISTORY, **content}, path)
    return path


def test_what_a_recipe_asks_for_in_vain_is_said(checkpoints: dict[str, Path], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        encoder(checkpoints["amae_eat patches"], checkpoint_activations=True)
    assert "model.checkpoint_activations=True has no effect" in caplog.text
    assert "6.25 time steps a second are fewer than the letters of speech" in caplog.text
    assert "model.mask_length counts time steps: 1 would be the 0.2 s" in caplog.text
    caplog.clear()
    encoder(checkpoints["amae_mae_ast frames"])
    assert not [record for record in caplog.records if record.name.startswith("amae")]


def test_calls_of_espnets_wav2vec_encoder(variant: Written) -> None:
    (model,), _, _ = checkpoint_utils.load_model_ensemble_and_task(
        [str(variant.path)], arg_overrides={"data": str(variant.path.parent)}
    )
    inner = model.w2v_encoder.w2v_model
    before = {name: tensor.clone() for name, tensor in inner.state_dict().items()}
    assert inner.cfg.encoder_embed_dim == 24 * variant.bands
    source, masks = batch(sounds(9000, 5000))
    found = inner.train()(source, masks, mask=inner.training, features_only=True)
    assert found["x"].shape[:2] == found["padding_mask"].shape
    inner.load_state_dict(before)
    assert_close(inner.eval()(source, masks, mask=False, features_only=True)["x"], passes_alone(variant, source, masks))


def test_calls_of_espnets_hubert_encoder(variant: Written) -> None:
    overrides = {"dropout": 0.0, "attention_dropout": 0.0, "activation_dropout": 0.1, "encoder_layerdrop": 0.9}
    overrides |= {"mask_length": 10, "mask_prob": 0.75, "mask_selection": "static", "mask_other": 0}
    overrides |= {"mask_channel_length": 64, "mask_channel_prob": 0.5, "mask_channel_selection": "static"}
    overrides |= {"mask_channel_other": 0, "feature_grad_mult": 0.0, "data": str(variant.path.parent)}
    (model,), cfg, _ = checkpoint_utils.load_model_ensemble_and_task(
        [str(variant.path)], arg_overrides=overrides, strict=False
    )
    inner = model.hubert_encoder.hubert_model
    assert cfg.model.encoder_embed_dim == 24 * variant.bands
    assert inner.encoder.layerdrop == 0.9
    source, masks = batch(sounds(9000, 5000))
    found = inner.train()(source, padding_mask=masks, mask=True, features_only=True, output_layer=None)
    assert (~found["padding_mask"]).sum(dim=1).shape == (2,)
    found = inner.eval()(source, padding_mask=masks, mask=False, features_only=True, output_layer=None)
    assert_close(found["x"], passes_alone(variant, source, masks))


def test_calls_of_speechbrains_wav2vec(variant: Written) -> None:
    overrides = {"model": {"dropout": 0.25, "dropout_input": 0.25, "attention_dropout": 0.25, "layer_drop": 0.1}}
    (model,), cfg, _ = checkpoint_utils.load_model_ensemble_and_task([str(variant.path)], arg_overrides=overrides)
    assert not hasattr(cfg["task"], "normalize")
    model.train()
    assert model.encoder.blocks[0].dropout.p == model.encoder.patch_embed.dropout.p == 0.25
    for name in ("quantizer", "project_q", "target_glu", "final_proj"):
        setattr(model, name, None)
    source, masks = batch(sounds(9000, 5000))
    assert model.extract_features(source, padding_mask=masks, mask=False)["x"].requires_grad
    model.eval()
    assert_close(
        model.extract_features(source, padding_mask=masks, mask=False)["x"], passes_alone(variant, source, masks)
    )


def passes_alone(variant: Written, source: Tensor, masks: Tensor) -> Tensor:
    return encoder(variant.path).eval().extract_features(source, masks)["x"]


def test_layers_are_numbered_as_wav2vec_and_hubert_do(checkpoints: dict[str, Path]) -> None:
    model, (clip,) = encoder(checkpoints["amae_audio_mae patches"]).eval(), sounds(9000)
    found = model.extract_features(clip[None], None)
    second = found["layer_results"][1][0].transpose(0, 1)
    assert torch.equal(model.extract_features(clip[None], None, layer=1)["x"], second)
    assert torch.equal(model(clip[None], None, features_only=True, output_layer=2)["x"], second)
    assert not torch.equal(found["x"], second)  # the final norm follows

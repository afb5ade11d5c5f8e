"""Published checkpoints become checkpoints of this plugin that compute what the published code computes."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from fairseq import checkpoint_utils
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from safetensors.torch import save_file
from torch import Tensor, nn

import amae_plugin  # noqa: F401 - registers the models in fairseq
from amae_plugin.checkpoints import Checkpoint
from amae_plugin.cli.main import main
from amae_plugin.errors import UserError
from amae_plugin.inspection import describe, summary
from amae_plugin.interop.convert import FORMATS, convert, recognise
from amae_plugin.models.audio_mae import AudioMAE, AudioMAEConfig
from amae_plugin.models.base import Encoder
from amae_plugin.models.classifier import Classifier, ClassifierConfig
from amae_plugin.models.published import ConversionOptions, PublishedFile
from amae_plugin.models.registry import SYSTEMS
from amae_plugin.modules.embedding import LearnedPositions, sincos_2d

HEADS = ["--num-heads", "4"]


def save(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


def converted(source: Path, *options: str) -> tuple[Checkpoint, nn.Module]:
    """By the command; the checkpoint, and the model as fairseq loads it."""
    out = source.parent / "converted.pt"
    assert main(["convert", str(source), str(out), *options]) == 0
    (model,), _, _ = checkpoint_utils.load_model_ensemble_and_task([str(out)])
    return Checkpoint.read(out), model.eval()


def assert_same(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected.to(actual), rtol=1e-4, atol=1e-4)


def encoder_of(checkpoint: Checkpoint) -> Encoder:
    """As fine-tuning takes it over."""
    settings_ = {"encoder": checkpoint.encoder_settings, "num_classes": 1, "pooling": "cls"}
    classifier = Classifier(ClassifierConfig(**settings_)).eval()
    checkpoint.load_encoder(classifier)
    return classifier.encoder


def module(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"module.{name}": value for name, value in state.items()}


# --- Audio-MAE


@pytest.mark.parametrize("decoder", ["shifted", "global"])
def test_audio_mae(tmp_path: Path, golden: Callable, decoder: str, capsys: pytest.CaptureFixture) -> None:
    archive = golden(f"audio_mae_{decoder}")
    args = argparse.Namespace(model="mae_vit_base_patch16", norm_pix_loss=False, mask_ratio=0.75, lr=1e-3)
    source = save(tmp_path / "pretrained.pth", {"model": module(archive.state), "args": args, "epoch": 32})
    heads = ["--decoder-num-heads", "4"] if decoder == "global" else []
    checkpoint, model = converted(source, *HEADS, *heads)
    assert f"audio_mae: Audio-MAE, pretrained; {len(archive.state)} tensors used" in capsys.readouterr().out
    output = model(archive["spectrogram"].float()[:, 0], archive["mask"].bool())
    assert_same(output["prediction"][0], archive["prediction"][0])
    loss = (output["prediction"] - output["target"]).square().mean(-1)[output["mask"]].mean()
    assert loss.item() == pytest.approx(float(archive["loss_raw"]), rel=1e-4)
    assert torch.equal(model.encoder.positions.pos_embed, archive["state/pos_embed"])
    assert checkpoint.model_settings["mask_ratio"] == 0.75
    front_end = {name: checkpoint.config["task"][name] for name in ("mean", "std", "window_type", "normalization")}
    assert front_end == {"mean": -4.2677393, "std": 4.5689974, "window_type": "hanning", "normalization": "two_std"}
    assert checkpoint.untrained == ()


def test_audio_mae_without_decoder(golden: Callable) -> None:
    archive = golden("audio_mae_shifted")
    state = {n: value for n, value in archive.state.items() if not n.startswith(("decoder_", "mask_token"))}
    conversion = convert(PublishedFile(Path("x"), state), Path("y"), ConversionOptions(num_heads=4))
    assert conversion.used == len(state) and not conversion.missing
    assert len(conversion.checkpoint.untrained) == 280
    assert all(name.startswith("decoder.") for name in conversion.checkpoint.untrained)
    assert "x (audio_mae), which lacks decoder (280 tensors): untrained here" in summary(
        describe(conversion.checkpoint)
    )
    encoder = encoder_of(conversion.checkpoint)
    source = archive["spectrogram"].float()[:, 0]
    visible = archive["mask"].bool().logical_not().nonzero()[:, 1].view(2, -1)
    latent = encoder(*encoder.patches(source), visible)
    by_position = archive["ids_restore"].argsort(1)[:, : visible.shape[1]].argsort(1)
    expected = archive["latent"][:, 1:].gather(1, by_position[..., None].expand(-1, -1, latent.shape[-1]))
    assert_same(latent[:, 1:], expected)


def test_audio_mae_fine_tuned(tmp_path: Path, golden: Callable) -> None:
    archive = golden("audio_mae_classifier")
    (tmp_path / "labels.txt").write_text("\n".join("abcdefg") + "\n")
    source = save(tmp_path / "finetuned.pth", {"model": archive.state})
    checkpoint, model = converted(
        source, *HEADS, "--labels", str(tmp_path / "labels.txt"), "--mean", "-6.6", "--std", "5.3", "--multi-label"
    )
    assert_same(model(archive["spectrogram"].float()[:, 0])["logits"], archive["logits"])
    assert checkpoint.classes == tuple("abcdefg")
    assert (checkpoint.config["task"]["mean"], checkpoint.config["task"]["std"]) == (-6.6, 5.3)
    assert checkpoint.probabilities is torch.sigmoid
    numbered, _ = converted(source, *HEADS)
    assert numbered.classes == tuple("0123456")
    assert numbered.config["task"]["multi_label"] is False


def test_the_classes_of_audioset_are_several_a_clip(golden: Callable) -> None:
    state = {**golden("audio_mae_classifier").state, "head.weight": torch.randn(527, 48), "head.bias": torch.zeros(527)}
    checkpoint = convert(PublishedFile(Path("x"), state), Path("y"), ConversionOptions(num_heads=4)).checkpoint
    assert checkpoint.config["task"]["multi_label"] and checkpoint.config["criterion"]["loss"] == "bce"


# --- MAE-AST


@pytest.mark.parametrize("tokens", ["patch", "frame"])
@pytest.mark.parametrize("as_namespace", [False, True])
def test_mae_ast(tmp_path: Path, golden: Callable, tokens: str, as_namespace: bool) -> None:
    archive = golden(f"mae_ast_{tokens}")
    cfg = archive.mae_ast_cfg()
    if as_namespace:
        cfg = {name: argparse.Namespace(**section) for name, section in cfg.items()}
    state = {**archive.state, "enc_sine_pos_embed.pe": torch.zeros(1, 9, 48)}
    content = {"args": None, "cfg": cfg, "model": state, "optimizer_history": [{"num_updates": 9}], "extra_state": {}}
    checkpoint, model = converted(save(tmp_path / "checkpoint.pt", content))
    mask = torch.zeros(2, 128, dtype=torch.bool).scatter(1, archive["masked"], True)
    source = archive["spectrogram"].float()
    assert_same(model.extract_features(source[:1])[0], archive["features_eval_after_one_batch"])
    settings_ = checkpoint.model_settings
    chosen = {name: settings_[name] for name in ("masking", "mask_ratio", "layerdrop", "num_heads", "patch_size")}
    kernel = [archive.number("kernel_time"), archive.number("kernel_freq")]
    assert chosen == {"masking": "chunk", "mask_ratio": 0.7, "layerdrop": 0.1, "num_heads": 4, "patch_size": kernel}
    nothing_dropped = dict.fromkeys(("dropout", "attention_dropout", "dropout_input", "layerdrop"), 0.0)
    trained = SYSTEMS["amae_mae_ast"].model({**settings_, **nothing_dropped})  # as the golden losses were recorded
    trained.load_state_dict(model.state_dict())
    output = trained.train()(source, mask)
    assert_same(output["prediction"][0][output["mask"][0]], archive["reconstruction"][0])
    task = checkpoint.config["task"]
    assert [task[name] for name in ("window_type", "normalization")] == ["povey", "model"]


def test_mae_ast_without_its_settings_needs_a_patch_size(golden: Callable) -> None:
    archive = golden("mae_ast_frame")
    file = PublishedFile(Path("m.pt"), archive.state)
    with pytest.raises(UserError, match=r"m\.pt, as mae_ast: a token has 256 values.*--patch-size 16 16 for patches"):
        convert(file, Path("y"), ConversionOptions(num_heads=4))
    with pytest.raises(UserError, match=r"m\.pt: the model normalises its input itself"):
        convert(file, Path("y"), ConversionOptions(num_heads=4, patch_size=(2, 128)), front_end={"mean": -4.0})
    told = convert(file, Path("y"), ConversionOptions(num_heads=4, patch_size=(2, 128), target_length=256)).checkpoint
    source = archive["spectrogram"].float()[:1]
    assert_same(told.model().extract_features(source)[0], archive["features_eval_after_one_batch"])


def test_mae_ast_of_another_function_is_refused(golden: Callable) -> None:
    archive = golden("mae_ast_patch")
    file = PublishedFile(Path("m.pt"), archive.state, archive.mae_ast_cfg(layer_norm_first=True))
    with pytest.raises(UserError, match=r"its cfg\.model\.layer_norm_first is True"):
        convert(file, Path("y"), ConversionOptions())


def test_mae_ast_trained_with_one_objective_has_one_head(golden: Callable) -> None:
    archive = golden("mae_ast_patch")
    cfg = archive.mae_ast_cfg()
    cfg["criterion"]["classification_weight"] = 0
    conversion = convert(PublishedFile(Path("m.pt"), archive.state, cfg), Path("y"), ConversionOptions())
    assert conversion.without_effect["final_proj_classification.weight"] == "its loss has weight 0"
    assert not any("classification" in name for name in conversion.checkpoint.state)


# --- SSAST and AST


@pytest.mark.parametrize("tokens", ["patch", "frame"])
@pytest.mark.parametrize("prefix", ["module.", ""])
def test_ssast(tmp_path: Path, golden: Callable, tokens: str, prefix: str, capsys: pytest.CaptureFixture) -> None:
    archive = golden(f"ssast_{tokens}")
    state = {name.replace("module.", prefix): value for name, value in archive.state.items()}
    state[f"{prefix}v.head.weight"] = torch.zeros(1000, 192)
    _, model = converted(save(tmp_path / "best.pth", state))
    assert "not used (DeiT's head for images, which no output depends on): v.head.weight" in capsys.readouterr().out
    grid = 128 // archive.number("fshape"), 256 // archive.number("tshape")  # band by band, as published
    mask = torch.zeros(2, 128, dtype=torch.bool).scatter_(1, archive["mask_ids"], True)
    mask = mask.unflatten(1, grid).transpose(1, 2).flatten(1)
    output = model(archive["spectrogram"].float(), mask)
    losses = {name: loss.sum() / mask.sum() for name, loss in model.token_losses(output).items()}
    assert losses["info_nce"].item() == pytest.approx(float(archive["loss_info_nce"]), rel=1e-4)
    assert losses["reconstruction"].item() == pytest.approx(float(archive["loss_mse"]), rel=1e-4)


@pytest.mark.parametrize(("pooling", "official"), [("avgtok", "avgtok"), ("avgcls", "cls")])
@pytest.mark.parametrize(
    ("tokens", "form"),
    [
        ("patch", "128_10_10"),
        ("patch", "256_16_16"),
        ("patch", "400_16_16"),
        ("frame", "128_128_1"),
        ("frame", "256_128_2"),
        ("frame", "400_128_2"),
    ],
)
def test_ssast_fine_tuned(
    tmp_path: Path, golden: Callable, tokens: str, form: str, pooling: str, official: str
) -> None:
    """Length and stride are told by nothing but the number of positions."""
    archive = golden(f"ssast_{tokens}")
    frames, *stride = map(int, form.split("_"))
    patch = archive.number("fshape"), archive.number("tshape")
    pretrained, finetuned = (
        [(size - p) // s + 1 for size, p, s in zip((128, length), patch, strides)]
        for length, strides in ((256, patch), (frames, stride))
    )
    state = {name.removeprefix("module."): value for name, value in archive.state.items()}
    v = {name: value for name, value in state.items() if name.startswith("v.")}
    positions = LearnedPositions(tuple(finetuned), 192, 2)
    v["v.pos_embed"] = positions.resize(v["v.pos_embed"], tuple(pretrained), positions.grid)
    head = {
        "mlp_head.0.weight": torch.ones(192),
        "mlp_head.0.bias": torch.zeros(192),
        "mlp_head.1.weight": archive["finetune/head_weight"].float(),
        "mlp_head.1.bias": torch.zeros(5),
    }
    source = save(tmp_path / "ast.pth", module({**v, **head}))
    options = [] if pooling == "avgcls" else ["--pooling", pooling]
    checkpoint, model = converted(source, *options)
    assert checkpoint.config["task"]["target_length"] == frames
    spectrogram = torch.cat([archive["spectrogram"].float()] * 2, dim=1)[:, :frames]
    assert_same(model(spectrogram)["logits"], archive[f"finetune/{form}/logits_{official}"])


def ast_state(positions: int) -> dict[str, Tensor]:
    block = timm.create_model("deit_tiny_distilled_patch16_224", depth=1).state_dict()
    block["patch_embed.proj.weight"] = block["patch_embed.proj.weight"].sum(1, keepdim=True)
    block["pos_embed"] = torch.zeros(1, positions + 2, 192)
    head = {"mlp_head.0.weight": torch.ones(192), "mlp_head.0.bias": torch.zeros(192)}
    return {
        **{f"v.{name}": value for name, value in block.items()},
        **head,
        "mlp_head.1.weight": torch.zeros(3, 192),
        "mlp_head.1.bias": torch.zeros(3),
    }


@pytest.mark.parametrize(
    ("positions", "options", "expected"),
    [
        (1212, {}, (1024, [10, 10])),  # the published AST
        (600, {}, (512, [10, 10])),
        (512, {}, (1024, [16, 16])),
        (192, {}, (384, [16, 16])),  # 12 x 16 overlapping patches would be of no round length
        (1212, {"target_length": 1020}, (1020, [10, 10])),
        (600, {"patch_stride": (16, 16)}, (1200, [16, 16])),
        (1212, {"patch_stride": (10, 10), "target_length": 1018}, (1018, [10, 10])),
    ],
)
def test_length_and_stride_of_an_ast(positions: int, options: dict[str, Any], expected: tuple[int, list[int]]) -> None:
    checkpoint = convert(
        PublishedFile(Path("x"), ast_state(positions)), Path("y"), ConversionOptions(**options)
    ).checkpoint
    encoder = checkpoint.encoder_settings
    assert (encoder["input_length"], encoder["patch_stride"]) == expected
    assert checkpoint.config["task"]["target_length"] == expected[0]


@pytest.mark.parametrize(
    ("positions", "options"), [(7, {}), (1212, {"target_length": 512}), (1212, {"patch_stride": (16, 16)})]
)
def test_positions_that_nothing_fits(positions: int, options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=rf"as ast: {positions} positions are not those of 128 bands"):
        convert(PublishedFile(Path("x"), ast_state(positions)), Path("y"), ConversionOptions(**options))


# --- Image models


def image_model(name: str, image: int = 64, **changes: Any) -> nn.Module:
    torch.manual_seed(1)
    model = timm.create_model(name, img_size=image, embed_dim=64, depth=2, num_heads=1, **changes).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1)
    return model


def as_grey_image(source: Tensor) -> Tensor:
    return source[:, None].expand(-1, 3, -1, -1)


@pytest.mark.parametrize("name", ["deit_tiny_distilled_patch16_224", "vit_tiny_patch16_224"])
def test_a_vit_becomes_an_ssast(tmp_path: Path, name: str) -> None:
    image = image_model(name)
    save_file(image.state_dict(), tmp_path / "model.safetensors")
    size = ["--target-length", "64", "--num-mel-bins", "64"]
    checkpoint, model = converted(tmp_path / "model.safetensors", *size)
    source = torch.randn(2, 64, 64)
    assert {name.split(".")[0] for name in checkpoint.untrained} >= {"mask_token", "reconstruction_head"}
    if "distilled" in name:
        expected = image.forward_features(as_grey_image(source.transpose(1, 2)))
        first, rest = expected.tensor_split([2], dim=1)  # tokens of an image run row by row
        expected = torch.cat([first, rest.unflatten(1, (4, 4)).transpose(1, 2).flatten(1, 2)], dim=1)
        assert_same(model.extract_features(source)[0], expected)
    else:
        assert "encoder.dist_token" in checkpoint.untrained


@pytest.mark.parametrize("with_decoder", [False, True])
def test_an_image_mae_becomes_an_audio_mae(with_decoder: bool) -> None:
    image = image_model("vit_tiny_patch16_224", num_classes=0)
    image.pos_embed.data[:, 1:] = sincos_2d((4, 4), 64)
    image.pos_embed.data[:, :1] = 0
    state = image.state_dict()
    decoder = {"mask_token": torch.zeros(1, 1, 8), "decoder_pred.weight": torch.zeros(768, 8)} if with_decoder else {}
    file = PublishedFile(Path("mae.pth"), {**state, **decoder})
    assert recognise(file).name == "image_mae"
    if with_decoder:
        conversion = convert(file, Path("y"), ConversionOptions())
        table = encoder_of(conversion.checkpoint).positions.pos_embed
        assert torch.equal(table[0, 1:], sincos_2d((64, 8), 64))
    else:
        conversion = convert(file, Path("y"), ConversionOptions(target_length=64, num_mel_bins=64))
        encoder, source = encoder_of(conversion.checkpoint), torch.randn(2, 64, 64)
        assert_same(encoder(*encoder.patches(source)), image.forward_features(as_grey_image(source)))
    assert conversion.without_effect == dict.fromkeys(decoder, "the decoder draws patches of images")
    assert all(name.startswith("decoder.") for name in conversion.checkpoint.untrained)
    assert conversion.checkpoint.model_settings["_name"] == "amae_audio_mae"


def test_learned_positions_of_an_image_are_interpolated_for_an_audio_mae() -> None:
    state = image_model("vit_tiny_patch16_224").state_dict()
    file = PublishedFile(Path("vit.pth"), state)
    assert recognise(file).name == "image_vit"
    conversion = convert(file, Path("y"), ConversionOptions(target_length=128), kind="image_mae")
    table = encoder_of(conversion.checkpoint).positions.pos_embed
    assert torch.equal(table[:, :1], state["pos_embed"][:, :1])
    corners = table[0, 1:].view(8, 8, 64)[[0, 0, -1, -1], [0, -1, 0, -1]]
    expected = state["pos_embed"][0, 1:].view(4, 4, 64)[[0, 0, -1, -1], [0, -1, 0, -1]]
    assert (corners - expected).abs().mean() < 0.05 < (corners - expected.flip(0)).abs().mean()
    assert conversion.without_effect == dict.fromkeys(("head.weight", "head.bias"), "the head classifies images")


def test_a_conversion_gives_the_same_every_time() -> None:
    file = PublishedFile(Path("vit.pth"), image_model("vit_tiny_patch16_224").state_dict())
    first, second = (convert(file, Path("y"), ConversionOptions()).checkpoint.state for _ in range(2))
    assert all(torch.equal(value, second[name]) for name, value in first.items())


# --- Any of them


@settings(max_examples=15)
@given(
    heads=st.integers(1, 3),
    head_width=st.sampled_from([8, 12, 64]),
    hidden=st.integers(5, 60),
    depth=st.integers(1, 2),
    decoder=st.sampled_from(["shifted", "hybrid", "global"]),
    decoder_heads=st.sampled_from([1, 2, 4]),
    patch=st.sampled_from([(16, 16), (8, 16), (4, 32)]),
    columns=st.integers(1, 4),
)
def test_an_audio_mae_of_any_size(
    heads: int,
    head_width: int,
    hidden: int,
    depth: int,
    decoder: str,
    decoder_heads: int,
    patch: tuple[int, int],
    columns: int,
) -> None:
    """Sizes are read back from the weights, to the same function; heads that are 64 wide need not be told."""
    torch.manual_seed(0)
    width = heads * head_width
    ratio = next(r for r in (hidden / width, hidden / width + 1e-9) if int(width * r) == hidden)
    if int(16 * ratio) == 0:
        ratio = 1.0
    config = AudioMAEConfig(
        input_length=patch[0] * columns,
        patch_size=patch,
        embed_dim=width,
        depth=depth,
        num_heads=heads,
        mlp_ratio=ratio,
        decoder=decoder,
        decoder_embed_dim=16,
        decoder_depth=2,
        decoder_num_heads=decoder_heads,
        decoder_global_blocks=1,
    )
    model = AudioMAE(config).eval()
    names = {"encoder.positions.pos_embed": "pos_embed", "decoder.positions.pos_embed": "decoder_pos_embed"}
    state = {}
    for name, value in model.state_dict().items():
        rest = name.removeprefix("encoder.").replace("decoder.mask_token", "mask_token").replace("decoder.", "decoder_")
        state[names.get(name, rest)] = value
    options = ConversionOptions(num_heads=None if head_width == 64 else heads, decoder_num_heads=decoder_heads)
    found = convert(PublishedFile(Path("x"), state), Path("y"), options).checkpoint.model()
    source, seed = torch.randn(1, config.input_length, 128), torch.tensor([1])
    expected, actual = model(source, seed=seed), found(source, seed=seed)
    assert torch.equal(expected["prediction"], actual["prediction"])


def test_missing_and_surplus_tensors_are_errors_unless_part_is_enough(
    tmp_path: Path, golden: Callable, capsys: pytest.CaptureFixture
) -> None:
    state = golden("audio_mae_classifier").state
    del state["blocks.1.attn.proj.bias"]
    state = {**state, "teacher.weight": torch.zeros(2), "head.bias": torch.zeros(9)}
    source = save(tmp_path / "x.pth", {"model": state})
    command = ["convert", str(source), str(tmp_path / "out.pt"), *HEADS]
    assert main(command) == 2
    said = capsys.readouterr().err
    assert "missing, by the names of this package: encoder.blocks.1.attn.proj.bias, head.bias\n" in said
    assert "without a place, or of another size: head.bias, teacher.weight\n" in said
    assert not (tmp_path / "out.pt").exists()
    assert main([*command, "--partial"]) == 0
    said = capsys.readouterr().out
    assert "left out, as they have no place: head.bias, teacher.weight" in said
    assert "missing, so initialised: encoder.blocks.1.attn.proj.bias, head.bias" in said
    assert Checkpoint.read(tmp_path / "out.pt").untrained == ("encoder.blocks.1.attn.proj.bias", "head.bias")


def test_a_part_of_an_attention_cannot_be_initialised(golden: Callable) -> None:
    archive = golden("mae_ast_patch")
    state = archive.state
    del state["encoder.layers.1.self_attn.k_proj.bias"]
    file = PublishedFile(Path("m.pt"), state, archive.mae_ast_cfg())
    with pytest.raises(UserError, match=r"m\.pt, as mae_ast: .*but not encoder\.layers\.1\.self_attn\.k_proj\.bias"):
        convert(file, Path("y"), ConversionOptions(), partial=True)


@settings(max_examples=60)
@given(
    archive=st.sampled_from(["audio_mae_classifier", "audio_mae_global", "eat", "mae_ast_patch", "ssast_frame"]),
    index=st.integers(0, 500),
    shape=st.lists(st.integers(0, 6), max_size=4),
)
def test_a_tensor_of_another_shape_is_an_error_in_words(
    golden: Callable, archive: str, index: int, shape: list[int]
) -> None:
    state = golden(archive).state
    name = list(state)[index % len(state)]
    changed = {**state, name: torch.zeros(shape)}
    options = ConversionOptions(num_heads=4, patch_size=(16, 16))
    try:
        convert(PublishedFile(Path("x.pth"), changed), Path("y"), options)
    except UserError as error:
        assert str(error).startswith("x.pth")
    else:
        assert list(state[name].shape) == shape or name.startswith(("layer_norm.", "encoder_mask_emb"))


def test_two_names_of_one_weight_are_an_error(golden: Callable) -> None:
    state = {**golden("audio_mae_classifier").state, "encoder.cls_token": torch.zeros(1, 1, 48)}
    with pytest.raises(UserError, match=r"cls_token and encoder\.cls_token are the same weight"):
        convert(PublishedFile(Path("x.pth"), state), Path("y"), ConversionOptions(num_heads=4))


def test_options_that_mean_nothing_are_said_and_wrong_ones_refused(golden: Callable) -> None:
    file = PublishedFile(Path("x.pth"), golden("audio_mae_classifier").state)
    conversion = convert(file, Path("y"), ConversionOptions(num_heads=4, decoder_num_heads=4, patch_size=(16, 16)))
    assert conversion.notes == (
        "--decoder-num-heads has no effect on audio_mae_finetuned",
        "--patch-size has no effect on audio_mae_finetuned",
    )
    file = PublishedFile(Path("x.pth"), golden("audio_mae_shifted").state)
    assert convert(file, Path("y"), ConversionOptions(num_heads=4, decoder_num_heads=16)).notes == ()
    with pytest.raises(UserError, match="the decoder has 16 attention heads, not --decoder-num-heads 4"):
        convert(file, Path("y"), ConversionOptions(num_heads=4, decoder_num_heads=4))


@pytest.mark.parametrize("width", [48, 512])
def test_heads_are_64_wide_unless_said(width: int) -> None:
    model = AudioMAE(
        AudioMAEConfig(
            input_length=16,
            embed_dim=64,
            depth=1,
            num_heads=1,
            decoder="global",
            decoder_embed_dim=width,
            decoder_depth=1,
        )
    )
    state = {name.replace("decoder.", "decoder_").removeprefix("encoder."): v for name, v in model.state_dict().items()}
    state = {
        name.replace("positions.", "").replace("decoder_mask_token", "mask_token"): value
        for name, value in state.items()
    }
    file = PublishedFile(Path("x.pth"), state)
    if width == 48:
        with pytest.raises(
            UserError, match=r"x\.pth, as audio_mae: .*a width of 48 is not a multiple of 64.*--decoder-num-heads"
        ):
            convert(file, Path("y"), ConversionOptions())
    else:  # the published decoder
        assert convert(file, Path("y"), ConversionOptions()).checkpoint.model_settings["decoder_num_heads"] == 16


def test_files_that_cannot_be_converted(tmp_path: Path, golden: Callable, capsys: pytest.CaptureFixture) -> None:
    contents: dict[str, tuple[Any, list[str], str]] = {
        "list.pt": ([1], [], "holds a list, not a state dict"),
        "bare.pt": ({"epoch": 1, "model": None}, [], "no state dict, neither as the whole file nor as its entry model"),
        "other.pt": (
            {"conv.weight": torch.zeros(1)},
            [],
            r"no known kind of checkpoint has its tensors \(conv.weight, ...\)",
        ),
        "kind.pt": (
            {"conv.weight": torch.zeros(1)},
            ["--kind", "ast"],
            "not of kind ast: it has no tensor v.patch_embed",
        ),
        "own.pt": ({"cfg": {"model": {"_name": "amae_ssast"}}, "model": {"a": torch.zeros(1)}}, [], "plugin already"),
        "labels.pt": (
            {"model": golden("audio_mae_classifier").state},
            [*HEADS, "--labels", str(tmp_path / "labels.txt")],
            "has 7 classes, but --labels names 1",
        ),
        "length.pt": (
            {"model": golden("audio_mae_classifier").state},
            [*HEADS, "--target-length", "512"],
            "those of 1024 frames, which contradicts --target-length 512",
        ),
        "bands.pt": (
            {"model": golden("audio_mae_classifier").state},
            [*HEADS, "--num-mel-bins", "48"],
            "512 positions are not those of 48 bands in patches of 16, 3 to a time step",
        ),
        "window.pt": (
            {"model": golden("m2d").state},
            [*HEADS, "--decoder-num-heads", "4", "--window-type", "povey"],
            "window_type is 'povey', must be one of hann",
        ),
    }
    (tmp_path / "labels.txt").write_text("one\n")
    for name, (content, options, message) in contents.items():
        source = save(tmp_path / name, content)
        assert main(["convert", str(source), str(tmp_path / "out.pt"), *options]) == 2
        said = capsys.readouterr().err
        assert said.startswith(f"amae: {source}") and re.search(message, said), said
    assert not (tmp_path / "out.pt").exists()


def test_the_result_never_replaces_the_source(tmp_path: Path, golden: Callable, capsys: pytest.CaptureFixture) -> None:
    source = save(tmp_path / "x.pt", {"model": golden("audio_mae_classifier").state})
    before = source.read_bytes()
    (tmp_path / "link.pt").symlink_to(source)
    assert main(["convert", str(source), str(tmp_path / "link.pt"), *HEADS]) == 2
    assert "is SOURCE itself" in capsys.readouterr().err
    assert main(["convert", str(source), str(tmp_path / "x.pt" / "out.pt"), *HEADS]) == 2
    assert "cannot write the checkpoint" in capsys.readouterr().err
    assert source.read_bytes() == before


def test_what_trust_does_is_said_and_done(tmp_path: Path, golden: Callable, capsys: pytest.CaptureFixture) -> None:
    archive = golden("mae_ast_patch")
    cfg = OmegaConf.create(archive.mae_ast_cfg())
    source = save(tmp_path / "m.pt", {"cfg": cfg, "model": archive.state})
    command = ["convert", str(source), str(tmp_path / "out.pt")]
    assert main(command) == 2
    said = capsys.readouterr().err
    assert "omegaconf.dictconfig.DictConfig" in said and "--trust reads it all the same, and runs" in said
    assert main([*command, "--trust"]) == 0
    assert Checkpoint.read(tmp_path / "out.pt").model_settings["num_heads"] == 4


def test_every_kind_is_told_in_the_help(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        main(["convert", "--help"])
    said = capsys.readouterr().out
    assert all(kind.title in said for kind in FORMATS.values())

"""The classifier is the published function, and what it does at random is as configured."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from archives import load_published
from torch import Tensor, nn

from amae_plugin.errors import UserError
from amae_plugin.models.classifier import Classifier, ClassifierConfig
from amae_plugin.modules.blocks import drop_path_scales, drop_paths
from amae_plugin.modules.embedding import sincos_2d
from amae_plugin.modules.masking import TimeFrequencyMasking

GOLDEN = {
    name: torch.from_numpy(value)
    for name, value in np.load(Path(__file__).parents[2] / "golden" / "audio_mae_classifier.npz").items()
}
STATE = {name.removeprefix("state/"): value.float() for name, value in GOLDEN.items() if name.startswith("state/")}
SOURCE = GOLDEN["spectrogram"].float()[:, 0]
ENCODER = {
    "_name": "amae_audio_mae",
    "input_length": 128,
    "embed_dim": 32,
    "depth": 3,
    "num_heads": 2,
}
SSAST_ENCODER = {**ENCODER, "_name": "amae_ssast", "patch_stride": [10, 10]}


def published(**config: object) -> Classifier:
    return load_published(STATE, config, num_heads=int(GOLDEN["num_heads"]))  # type: ignore[return-value]


def build(**config: object) -> Classifier:
    torch.manual_seed(0)
    model = Classifier(ClassifierConfig(**{"encoder": ENCODER, "num_classes": 5, **config}))
    nn.init.normal_(model.head.weight)  # the published initialisation predicts nearly nothing
    return model


def spectrograms(clips: int = 4, frames: int = 128) -> Tensor:
    return torch.randn(clips, frames, 128, generator=torch.Generator().manual_seed(1))


def test_logits_are_the_published_ones() -> None:
    torch.testing.assert_close(published()(SOURCE)["logits"], GOLDEN["logits"], rtol=1e-4, atol=1e-4)


def test_masked_logits_are_the_published_ones() -> None:
    noise = iter([GOLDEN["noise_time"], GOLDEN["noise_freq"]])
    masking = TimeFrequencyMasking(float(GOLDEN["mask_t_prob"]), float(GOLDEN["mask_f_prob"]))
    mask = masking(lambda count: next(noise), (64, 8))
    assert (~mask).sum(1).tolist() == [int(64 * 0.7) * int(8 * 0.7)] * 2
    logits = published()(SOURCE, mask)["logits"]
    torch.testing.assert_close(logits, GOLDEN["logits_masked"], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(logits, GOLDEN["logits"], atol=1e-3)


def test_weights_that_are_missing_are_an_error() -> None:
    with pytest.raises(UserError, match=r"fc_norm\.bias"):
        load_published({name: value for name, value in STATE.items() if name != "fc_norm.bias"}, num_heads=4)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_pooling(pooling: str) -> None:
    model = build(pooling=pooling).eval()
    source = spectrograms()
    patches, grid = model.encoder.patches(source)
    tokens = model.encoder(patches, grid)  # in mean pooling the encoder's own norm is left out
    pooled = model.fc_norm(tokens[:, 1:].mean(1)) if pooling == "mean" else tokens[:, 0]
    output = model(source)
    torch.testing.assert_close(output["features"], pooled)
    torch.testing.assert_close(output["logits"], model.head(pooled))
    assert isinstance(model.encoder.norm, nn.Identity) == (pooling == "mean")


@pytest.mark.parametrize("encoder", [ENCODER, SSAST_ENCODER], ids=["audio_mae", "ssast"])
@pytest.mark.parametrize("pooling", ["avgtok", "avgcls"])
def test_pooling_of_ast_keeps_the_encoders_norm_and_has_one_of_its_own(
    pooling: str, encoder: dict[str, object]
) -> None:
    model = build(pooling=pooling, encoder=encoder).eval()
    nn.init.normal_(model.encoder.norm.weight)
    source = spectrograms()
    tokens = model.encoder(*model.encoder.patches(source))
    prefix = {"amae_audio_mae": 1, "amae_ssast": 2}[encoder["_name"]]
    pooled = tokens[:, prefix:].mean(1) if pooling == "avgtok" else tokens[:, :prefix].mean(1)
    torch.testing.assert_close(model(source)["features"], model.fc_norm(pooled))
    assert {name for name, _ in model.named_parameters()} >= {"encoder.norm.weight", "fc_norm.weight"}


def test_time_and_frequency_are_hidden_in_an_encoder_whose_patches_overlap() -> None:
    seen = []
    model = build(
        encoder=SSAST_ENCODER, pooling="avgtok", drop_path=0.5, mask_ratio_time=0.5, mask_ratio_frequency=0.25
    ).train()
    model.encoder.register_forward_pre_hook(lambda module, args: seen.append(args[2]))
    model(spectrograms(), seed=torch.arange(4))["logits"].sum().backward()
    assert seen[0].shape == (4, 6 * 9)  # of 12 x 12 overlapping patches
    for clip in seen[0]:
        assert len(set((clip // 12).tolist())) == 6
        assert len(set((clip % 12).tolist())) == 9
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_nothing_is_random_in_evaluation() -> None:
    model = build(drop_path=0.5).eval()
    source = spectrograms()
    assert torch.equal(model(source)["logits"], model(source, seed=torch.arange(4))["logits"])


def test_in_training_what_is_random_depends_on_the_clips_seed_alone() -> None:
    model = build(drop_path=0.5).train()
    source, seed = spectrograms(), torch.tensor([5, 6, 7, 8])
    together = model(source, seed=seed)["logits"]
    torch.testing.assert_close(model(source[2:3], seed=seed[2:3])["logits"], together[2:3])
    assert not torch.allclose(model(source, seed=seed + 1)["logits"], together)
    assert not torch.equal(model(source)["logits"], model(source)["logits"])


def test_in_training_time_and_frequency_are_hidden() -> None:
    seen = []
    model = build(drop_path=0.0, mask_ratio_time=0.5, mask_ratio_frequency=0.25).train()
    model.encoder.register_forward_pre_hook(lambda module, args: seen.append(args[2]))
    model(spectrograms(), seed=torch.arange(4))
    model.eval()
    model(spectrograms(), seed=torch.arange(4))
    visible, unmasked = seen
    assert unmasked is None
    assert visible.shape == (4, 4 * 6)  # of 8 x 8
    for clip in visible:
        assert len(set((clip // 8).tolist())) == 4
        assert len(set((clip % 8).tolist())) == 6
    assert len({tuple(clip.tolist()) for clip in visible}) == 4


def test_without_mask_and_drop_path_training_computes_what_evaluation_does() -> None:
    model = build(drop_path=0.0, mask_ratio_time=0.0, mask_ratio_frequency=0.0)
    source = spectrograms()
    torch.testing.assert_close(model.train()(source)["logits"], model.eval()(source)["logits"])


def test_drop_path_skips_whole_branches_and_keeps_the_mean() -> None:
    scales = drop_path_scales(torch.rand(20_000, 5, 2, generator=torch.Generator().manual_seed(0)), 0.4)
    kept = 1 - torch.tensor([0.0, 0.1, 0.2, 0.3, 0.4])
    for block in range(5):
        torch.testing.assert_close(
            scales[:, block].unique(), torch.tensor([0.0, 1 / kept[block]])[-1 if not block else 0 :]
        )
    torch.testing.assert_close(scales.mean(0), torch.ones(5, 2), atol=0.03, rtol=0)
    model = build(drop_path=0.0)
    block, x = model.encoder.blocks[1], torch.randn(3, 9, 32)
    block.drop_path1.scale = torch.tensor([0.0, 1.0, 2.0])[:, None, None]
    block.drop_path2.scale = torch.tensor([0.0, 1.0, 0.0])[:, None, None]
    both = block(x)
    block.drop_path1.scale = block.drop_path2.scale = None
    assert torch.equal(both[0], x[0])
    torch.testing.assert_close(both[1], block(x)[1])
    torch.testing.assert_close(both[2], x[2] + 2 * block.attn(block.norm1(x))[2])
    with drop_paths(model.encoder.blocks, torch.full((3, 3, 2), 0.75), 0.5):  # above what the last block keeps
        assert [float(b.drop_path2.scale[0]) for b in model.encoder.blocks] == [1.0, 0.0, 0.0]
    assert all(b.drop_path1.scale is None for b in model.encoder.blocks)
    with pytest.raises(ValueError, match="below 1"):
        build(drop_path=1.0)


@pytest.mark.parametrize("frames", [16, 64, 256, 1024])
def test_clips_of_any_length_get_positions_of_their_own_grid(frames: int) -> None:
    model = build().eval()
    output = model(spectrograms(2, frames))
    assert output["logits"].shape == (2, 5)
    table = model.encoder.positions((frames // 16, 8))
    torch.testing.assert_close(table[0, 1:], sincos_2d((frames // 16, 8), 32))


def test_learned_positions_are_interpolated() -> None:
    model = build().eval()
    model.encoder.positions.pos_embed.normal_(generator=torch.Generator().manual_seed(2))
    own, longer = model.encoder.positions((8, 8)), model.encoder.positions((16, 8))
    assert longer.shape == (1, 1 + 16 * 8, 32)
    # Between neighbours of the same band, and nowhere near the sine-cosine table.
    middle = longer[0, 1:].view(16, 8, 32)[1:3].mean(0)
    torch.testing.assert_close(middle, own[0, 1:].view(8, 8, 32)[:2].mean(0), atol=0.5, rtol=0)


def test_length_that_the_patch_does_not_divide() -> None:
    with pytest.raises(ValueError, match="multiples of the patch"):
        build()(spectrograms(2, 100))
    with pytest.raises(ValueError, match="mask must be"):
        build()(spectrograms(2), torch.zeros(2, 3, dtype=torch.bool))


def test_frozen_encoder_gets_no_gradient_and_computes_as_in_evaluation() -> None:
    model = build(frozen=True, batch_norm=True, drop_path=0.5, pooling="cls").train()
    source = spectrograms()
    output = model(source)
    output["logits"].sum().backward()
    assert all(parameter.grad is None for parameter in model.encoder.parameters())
    assert model.head.weight.grad is not None
    assert {name for name, p in model.named_parameters() if p.requires_grad} == {"head.weight", "head.bias"}
    assert not model.encoder.training
    assert model.batch_norm.training
    # Batch norm, without weights: every feature has mean 0 and variance 1 over the batch.
    torch.testing.assert_close(output["features"].mean(0), torch.zeros(32), atol=1e-5, rtol=0)
    torch.testing.assert_close(output["features"].var(0, unbiased=False), torch.ones(32), atol=1e-2, rtol=0)


def test_batch_of_one_clip_passes_batch_norm_as_in_evaluation() -> None:
    model = build(batch_norm=True, drop_path=0.0, mask_ratio_time=0.0, mask_ratio_frequency=0.0).train()
    model(spectrograms())
    alone = model(spectrograms()[:1])["features"]
    torch.testing.assert_close(alone, model.eval()(spectrograms()[:1])["features"])


@pytest.mark.parametrize(("settings", "std"), [({}, 2e-5), ({"head_std": 0.02}, 0.02)])
def test_head_starts_small(settings: dict[str, float], std: float) -> None:
    config = ClassifierConfig(encoder={**ENCODER, "embed_dim": 512}, num_classes=500, **settings)  # type: ignore[arg-type]
    head = Classifier(config).head
    assert head.weight.std().item() == pytest.approx(std, rel=0.02)
    assert not head.bias.any()


def test_layer_index_parameters() -> None:
    model = build(pooling="cls")
    depths = {name: model.layer_index(name) for name, _ in model.named_parameters()}
    assert depths["encoder.cls_token"] == depths["encoder.patch_embed.proj.weight"] == 0
    assert depths["encoder.blocks.0.attn.qkv.weight"] == 1
    assert depths["encoder.blocks.2.mlp.fc2.bias"] == 3
    assert depths["encoder.norm.weight"] == depths["head.weight"] == depths["head.bias"] == 4
    assert build().layer_index("fc_norm.weight") == 4


def test_the_class_token_of_an_encoder_that_ends_with_a_block_is_normalised() -> None:
    encoder = {**ENCODER, "_name": "amae_eat"}
    model = build(pooling="cls", encoder=encoder, head_std=0.02)
    output = model.eval()(torch.randn(2, 64, 32))
    assert isinstance(model.fc_norm, nn.LayerNorm) and model.fc_norm.eps == 1e-6
    torch.testing.assert_close(output["features"].mean(1), torch.zeros(2), atol=1e-5, rtol=0)
    assert isinstance(build(pooling="cls").fc_norm, nn.Identity)
    # As published, the decay of the learning rate is that of the blocks.
    depths = {name: model.layer_index(name) for name, _ in model.named_parameters()}
    assert {depth for name, depth in depths.items() if ".blocks." not in name} == {4}
    assert [depths[f"encoder.blocks.{index}.norm1.bias"] for index in range(3)] == [1, 2, 3]


@pytest.mark.parametrize(
    ("config", "error", "message"),
    [
        ({"pooling": "max"}, ValueError, "must be one of mean, cls"),
        ({"num_classes": 0}, ValueError, "needs classes"),
        ({"encoder": None}, UserError, "_name=None is no pretraining system; there are: amae_audio_mae"),
        ({"mask_ratio_time": 1.0}, ValueError, "mask_ratio_time must be at least 0 and below 1"),
    ],
)
def test_wrong_configurations(config: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        build(**config)


def test_compiled_blocks_compute_the_same() -> None:
    model = build(drop_path=0.5).train()
    source, seed = spectrograms(), torch.arange(4)
    expected = model(source, seed=seed)["logits"]
    model.compile_blocks()
    torch.testing.assert_close(model(source, seed=seed)["logits"], expected)


MAE_AST_ENCODER = {
    "_name": "amae_mae_ast",
    "embed_dim": 32,
    "depth": 3,
    "num_heads": 2,
    **dict.fromkeys(("dropout", "attention_dropout", "dropout_input", "layerdrop"), 0.0),
}


@pytest.mark.parametrize("training", [False, True])
def test_padding_has_no_influence_where_the_encoder_masks_it(training: bool) -> None:
    model = build(encoder=MAE_AST_ENCODER, drop_path=0.0).train(training)
    model.encoder.input_norm.eval()  # in training its statistics are those of the whole batch
    source, padding = spectrograms(3), torch.arange(128) >= torch.tensor([128, 70, 16])[:, None]
    changed = source + 5 * padding[..., None]
    seed = torch.arange(3)
    logits = model(source, seed=seed, padding_mask=padding)["logits"]
    torch.testing.assert_close(model(changed, seed=seed, padding_mask=padding)["logits"], logits)
    assert not torch.allclose(model(changed, seed=seed)["logits"], logits, atol=1e-3)


def test_a_clip_alone_has_the_logits_that_it_has_in_a_batch_with_padding() -> None:
    model = build(encoder=MAE_AST_ENCODER).eval()
    source, padding = spectrograms(2), torch.arange(128) >= torch.tensor([128, 64])[:, None]
    torch.testing.assert_close(
        model(source, padding_mask=padding)["logits"][1:], model(source[1:, :64])["logits"], rtol=1e-4, atol=1e-5
    )


def test_padding_is_a_part_of_the_clip_to_other_encoders() -> None:
    model, source = build().eval(), spectrograms()
    padding = torch.arange(128) >= torch.tensor([128, 70, 16, 1])[:, None]
    assert torch.equal(model(source, padding_mask=padding)["logits"], model(source)["logits"])

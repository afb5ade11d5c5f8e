"""What only CAV-MAE does: two modalities, alone and together, their objectives, and branches that share blocks."""

from __future__ import annotations

import copy
import json
import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from omegaconf import OmegaConf
from torch import Tensor, distributed

from amae_plugin.cli.main import main
from amae_plugin.errors import UserError
from amae_plugin.fairseq_plugin.pretraining import AmaePretraining, AmaePretrainingConfig
from amae_plugin.models.base import summed_losses
from amae_plugin.models.cav_mae import CAVMAE, SYSTEM, CAVMAEConfig
from amae_plugin.models.classifier import Classifier
from amae_plugin.models.registry import SYSTEMS
from amae_plugin.modules.embedding import patchify_image, unpatchify_image

SIZES = {
    "input_length": 64,
    "num_mel_bins": 32,
    "patch_size": (8, 8),
    "image_size": 32,
    "image_patch_size": 8,
    "embed_dim": 24,
    "depth": 3,
    "shared_depth": 1,
    "num_heads": 3,
    "decoder_embed_dim": 16,
    "decoder_depth": 1,
    "decoder_num_heads": 2,
}
BOTH = ("audio", "image")
SEED = torch.tensor([5, 6, 7])


def noise(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def sounds(clips: int = 3, frames: int = 64) -> Tensor:
    return noise(clips, frames, 32)


def pictures(clips: int = 3, side: int = 32) -> Tensor:
    return noise(clips, 3, side, side, seed=2)


def build(**changes: object) -> CAVMAE:
    torch.manual_seed(0)
    return CAVMAE(CAVMAEConfig.from_settings({**SIZES, **changes})).eval()


def classifier(*modalities: str, pooling: str = "avgtok", **changes: object) -> Classifier:
    torch.manual_seed(0)
    encoder = {"_name": "amae_cav_mae", **SIZES, "modalities": list(modalities)}
    settings = {"encoder": encoder, "num_classes": 5, "pooling": pooling, "head_std": 0.3, **changes}
    return Classifier.from_settings(settings).eval()


def assert_close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def test_patches_of_a_picture_hold_its_pixels_row_by_row() -> None:
    image = pictures(2)
    patches, grid = patchify_image(image, 8)
    assert grid == (4, 4) and patches.shape == (2, 16, 192)
    assert torch.equal(patches[1, 6].view(8, 8, 3), image[1, :, 8:16, 16:24].permute(1, 2, 0))
    assert torch.equal(unpatchify_image(patches, grid, 8), image)
    wide, grid = patchify_image(noise(1, 3, 8, 24), 8)
    assert grid == (1, 3) and wide.shape == (1, 3, 192)
    branch = build().encoder.image
    as_convolution = branch.patch_embed.proj(image).flatten(2).transpose(1, 2)
    assert_close(branch.patch_embed(patches), as_convolution)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ((3, 3, 30, 32), "pictures of 30 x 32 pixels cannot be cut into patches of 8 x 8"),
        ((3, 3, 32), r"\(clips, colours, height, width\), not \(3, 3, 32\)"),
        ((3, 1, 32, 32), "3 colours, red, green and blue, not 1"),
    ],
)
def test_pictures_of_the_wrong_shape_are_refused(image: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()(sounds(), torch.zeros(image))


def test_masks_of_a_picture_come_from_its_clip_alone() -> None:
    model = build()
    output = model(sounds(), pictures(), seed=SEED)
    assert ((~output["image_mask"]).sum(1) == 4).all() and len(output["image_mask"].unique(dim=0)) == 3
    shorter = model(sounds(3, 40)[1:], pictures()[1:], seed=SEED[1:])  # other clips, another length
    assert torch.equal(shorter["image_mask"], output["image_mask"][1:])
    given = output["image_mask"].flip(0)
    assert torch.equal(model(sounds(), pictures(), image_mask=given)["image_mask"], given)
    with pytest.raises(ValueError, match=r"\(3, 16\), not \(3, 15\)"):
        model(sounds(), pictures(), image_mask=given[:, 1:])
    with pytest.raises(ValueError, match="same number of tokens visible"):
        model(sounds(), pictures(), image_mask=given & (torch.arange(16) > torch.arange(3)[:, None] * 5))


def test_hidden_patches_have_no_influence_and_each_modality_sees_the_other() -> None:
    model, source, image = build(), sounds(), pictures()
    one = model(source, image, seed=SEED)
    patches, grid = patchify_image(image, 8)
    hidden = unpatchify_image(torch.where(one["image_mask"][..., None], 9.0, patches), grid, 8)
    for changed, same in ((hidden, True), (image.flip(0), False)):
        other = model(source, changed, seed=SEED)
        for name in ("prediction", "image_prediction"):
            assert torch.equal(other[name], one[name]) == same
    assert not torch.equal(model(source.flip(0), image, seed=SEED)["image_prediction"], one["image_prediction"])
    drawn = model.reconstruct_image(image, one["image_prediction"], one["image_mask"])
    kept = ~one["image_mask"]
    assert_close(patchify_image(drawn, 8)[0][kept], patches[kept])
    assert_close(model.reconstruct_image(hidden, one["image_prediction"], one["image_mask"]), drawn)


def test_a_picture_of_normalised_patches_gets_the_level_and_spread_of_its_neighbours() -> None:
    model, image = build(), 3 + 0.2 * pictures()
    output = model(image=image, source=sounds(), seed=SEED)
    drawn = model.reconstruct_image(image, output["image_target"], output["image_mask"])
    assert (drawn - image).abs().mean() < 0.1  # the targets themselves, of mean 0 and variance 1


def test_without_a_picture_a_model_of_both_is_an_autoencoder_of_the_sound() -> None:
    model = build().train()
    output = model(sounds(), seed=SEED)
    losses = summed_losses(model, output, output["mask"])
    assert losses.keys() == {"loss", "reconstruction"} and losses["loss"] == losses["reconstruction"]
    losses["loss"].backward()  # every parameter has a gradient, which DistributedDataParallel waits for
    idle = {name for name, parameter in model.named_parameters() if not parameter.grad.any()}
    assert {"encoder.image.norm.weight", "decoder.image.pred.weight", "encoder.norm.weight"} <= idle
    assert not {name for name in idle if name.startswith(("encoder.joint", "decoder.blocks"))}
    with pytest.raises(ValueError, match="takes sounds alone, but is given pictures"):
        build(modalities=("audio",))(sounds(), pictures())


@pytest.mark.parametrize("norm_pix_loss", [True, False])
def test_losses_are_means_over_hidden_patches_and_clips(norm_pix_loss: bool) -> None:
    model = build(norm_pix_loss=norm_pix_loss, contrastive_weight=0.5)
    output = model(sounds(), pictures(), seed=SEED)
    means = {name: value / output["mask"].sum() for name, value in summed_losses(model, output, output["mask"]).items()}
    target, mask = output["image_target"], output["image_mask"]
    errors = (output["image_prediction"] - target).square().mean(-1)
    assert_close(means["image_reconstruction"], errors[mask].mean())
    assert_close(target.std(-1).mean(), torch.tensor(1.0)) if norm_pix_loss else None
    assert norm_pix_loss or torch.equal(target, patchify_image(pictures(), 8)[0])
    expected = means["reconstruction"] + means["image_reconstruction"] + 0.5 * means["contrastive"]
    assert_close(means["loss"], expected)


@pytest.mark.parametrize("direction", ["image_to_sound", "sound_to_image", "both"])
def test_the_contrastive_objective_has_a_temperature_and_a_direction(direction: str) -> None:
    model = build(contrastive_direction=direction, contrastive_temperature=0.2)
    output = model(sounds(), pictures(), seed=SEED)
    heard, seen = (F.normalize(output[name], dim=-1) for name in ("embedding", "image_embedding"))
    scores = (heard @ seen.T / 0.2).double()
    over_sounds, over_images = (-scores.log_softmax(dim).diagonal() for dim in (0, 1))
    expected = {"image_to_sound": over_sounds, "sound_to_image": over_images, "both": (over_sounds + over_images) / 2}
    assert_close(model.token_losses(output)["contrastive"].double(), expected[direction])


def _contrast(rank: int, folder: str, embeddings: dict[str, Tensor]) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", f"file://{folder}/rendezvous", rank=rank, world_size=2)
    model = build(contrastive_direction="both", contrastive_all_ranks=True)
    own = slice(0, 3) if rank == 0 else slice(3, 5)
    heard, seen = (values[own].clone().requires_grad_() for values in embeddings.values())
    losses = model._contrast(heard, seen)
    losses.sum().backward()
    torch.save((losses.detach(), heard.grad, seen.grad), f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


def test_the_contrastive_objective_over_all_ranks_is_that_of_one_process_with_all_clips(tmp_path: Path) -> None:
    embeddings = {"heard": noise(5, 24), "seen": noise(5, 24, seed=3)}
    spawn = multiprocessing.get_context("spawn")  # autograd refuses to work in a fork of what has used it
    processes = [spawn.Process(target=_contrast, args=(rank, str(tmp_path), embeddings)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    heard, seen = (values.requires_grad_() for values in embeddings.values())
    model = build(contrastive_direction="both", contrastive_all_ranks=True)  # without other processes: the local clips
    losses = model._contrast(heard, seen)
    losses.sum().backward()
    parts = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for expected, found in zip((losses.detach(), heard.grad, seen.grad), zip(*parts)):
        assert_close(torch.cat(found), expected)


def test_shared_blocks_are_one_set_of_weights_with_three_sets_of_norms() -> None:
    model = copy.deepcopy(build(shared_depth=2))
    names = [name for name, _ in model.encoder.named_parameters()]
    assert sum(name.endswith("mlp.fc1.weight") for name in names) == 1 + 1 + 2
    for layer in (1, 2):
        norms = {f"{branch}blocks.{layer}.norm1.weight" for branch in ("", "image.", "joint.")}
        assert norms <= set(names)
    assert list(model.encoder.state_dict()) == list(dict.fromkeys(model.encoder.state_dict()))
    before = model(sounds(), pictures(), seed=SEED)
    with torch.no_grad():
        model.encoder.blocks[2].mlp.fc2.bias += 1
    after = model(sounds(), pictures(), seed=SEED)
    assert not any(torch.equal(after[name], before[name]) for name in ("prediction", "embedding", "image_embedding"))
    # The contrastive objective knows the last one alone, so pretraining never reaches the norms of the others.
    summed_losses(model, after, after["mask"])["loss"].backward()
    idle = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    assert idle == {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert {name.rsplit(".", 2)[0] for name in idle} == {"encoder.blocks.1", "encoder.image.blocks.1"}


def test_compiled_blocks_are_those_of_all_branches() -> None:
    model = build()
    assert len(model.blocks) == 3 + 3 + 1 + 1  # the sound's, the picture's, the joint norms', the decoder's
    assert len(set(map(id, model.blocks))) == len(model.blocks)


@pytest.mark.parametrize(
    ("modalities", "idle"),
    [
        (("audio",), ()),
        (("image",), ("patch_embed.", "modality_token", "norm.", "blocks.0.", "blocks.1.", "blocks.2.norm")),
        (BOTH, ("norm.", "image.norm.", "blocks.2.norm", "image.blocks.2.norm")),
    ],
)
def test_fine_tuning_trains_what_its_modalities_use(modalities: tuple[str, ...], idle: tuple[str, ...]) -> None:
    model = classifier(*modalities).train()
    model(sounds(), image=pictures(), seed=SEED)["logits"].square().sum().backward()
    trained = {name for name, parameter in model.encoder.named_parameters() if parameter.grad is not None}
    names = {name for name, _ in model.encoder.named_parameters()}
    assert names - trained == {name for name in names if name.startswith(idle)}
    # Distributed training waits for the gradients of all others.
    assert {name for name, parameter in model.encoder.named_parameters() if parameter.requires_grad} == trained


def test_a_layer_of_two_blocks_has_one_learning_rate_and_one_stochastic_depth() -> None:
    model = classifier(*BOTH, drop_path=0.5).train()
    layers = {name.removeprefix("encoder."): model.layer_index(name) for name, _ in model.named_parameters()}
    assert {layers[name] for name in layers if "patch_embed" in name or "token" in name} == {0}
    for layer in range(3):
        of_layer = {index for name, index in layers.items() if f"blocks.{layer}." in name}
        assert of_layer == {layer + 1}
    last = ("norm.weight", "image.norm.weight", "joint.norm.weight", "fc_norm.weight", "head.weight")
    assert {layers[name] for name in last} == {4}
    seen: dict[str, list[Tensor]] = {}
    hooks = [
        path.register_forward_hook(lambda path, args, output, name=name: seen.setdefault(name, []).append(path.scale))
        for name, path in model.named_modules()
        if name.endswith(("drop_path1", "drop_path2"))
    ]
    model(sounds(3), image=pictures(3), seed=SEED)
    assert len(hooks) == len(seen) == 2 * (3 + 2)
    for layer in range(2):
        for path in ("drop_path1", "drop_path2"):
            heard, pictured = (seen[f"encoder.{branch}blocks.{layer}.{path}"] for branch in ("", "image."))
            assert torch.equal(heard[0], pictured[0]) and heard[0].shape == (3, 1, 1)
    assert all(path.scale is None for path in model.modules() if hasattr(path, "scale"))


@pytest.mark.parametrize(
    ("modalities", "given", "message"),
    [
        (("audio",), ("image",), "the clips have no sound, and this encoder takes nothing else|nothing.*audio$"),
        (("image",), ("audio",), "nothing that this encoder takes, which is image"),
        (BOTH, (), "neither a sound nor a picture"),
    ],
)
def test_clips_without_what_a_classifier_takes_are_refused(
    modalities: tuple[str, ...], given: tuple[str, ...], message: str
) -> None:
    source, image = (values if name in given else None for name, values in zip(BOTH, (sounds(), pictures())))
    with pytest.raises(ValueError, match=message):
        classifier(*modalities)(source, image=image)


def test_an_encoder_of_sounds_takes_no_pictures() -> None:
    model = SYSTEMS["amae_audio_mae"].model({**SIZES, "decoder": "global"}).eval()
    with pytest.raises(ValueError, match="takes no pictures"):
        model.image_features(pictures())
    with pytest.raises(ValueError, match="the clips have no sound"):
        model.encoder.views(None, None, image=pictures())
    with pytest.raises(ValueError, match=r"model\.encoder\.modalities has image, but Audio-MAE takes audio"):
        SYSTEMS["amae_audio_mae"].encoder({**SIZES, "modalities": ["audio", "image"]})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"modalities": []}, "model.modalities is empty, must be one or both of audio, image"),
        ({"modalities": ["audio", "video"]}, "model.modalities is audio, video, must be"),
        ({"modalities": "audio"}, "model.modalities is 'audio', must be a list of names"),
        ({"modalities": ["image"]}, "pretraining needs audio, alone or with image"),
        ({"shared_depth": 0}, "model.shared_depth must be 1 to model.depth, 3, not 0"),
        ({"shared_depth": 4}, "model.shared_depth must be 1 to model.depth, 3, not 4"),
        ({"image_size": 0}, "model.image_size must be at least 1, not 0"),
        ({"image_size": 30}, "model.image_patch_size=8 does not divide model.image_size=30"),
        ({"image_mask_ratio": 1.0}, "model.image_mask_ratio must be at least 0 and below 1, not 1.0"),
        ({"contrastive_weight": -1.0}, "model.contrastive_weight must be at least 0, not -1.0"),
        ({"contrastive_temperature": 0.0}, "model.contrastive_temperature must be above 0, not 0.0"),
        ({"contrastive_direction": "up"}, "'up', must be one of image_to_sound, sound_to_image, both"),
    ],
)
def test_settings_that_make_no_model_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(**changes)


def test_poolings_that_leave_out_the_norms_of_an_encoder_of_pictures_are_refused() -> None:
    for modalities in (BOTH, ("image",)):
        with pytest.raises(
            ValueError, match=r"model\.pooling is mean, but an encoder that takes pictures needs avgtok"
        ):
            classifier(*modalities, pooling="mean")
    assert classifier("audio", pooling="mean")(sounds())["logits"].shape == (3, 5)
    assert classifier(*BOTH, pooling="token_mean")(sounds(), image=pictures())["logits"].shape == (3, 5)


def test_a_section_of_a_downstream_encoder_says_more_than_sounds_or_means_them() -> None:
    section = {"_name": "amae_cav_mae", **SIZES}
    assert (
        SYSTEM.encoder(section).modalities == SYSTEM.encoder({**section, "modalities": None}).modalities == ("audio",)
    )
    assert SYSTEM.encoder({**section, "modalities": ["image", "audio"]}).modalities == BOTH
    assert SYSTEM.model(section).encoder.modalities == BOTH
    assert SYSTEM.input(section).image.size == 32
    assert SYSTEM.input({**section, "modalities": ["audio"]}).image is None


def image_mae() -> dict[str, Tensor]:
    """The weights of an image MAE of these sizes, under its names."""
    encoder = build(seed=3).encoder
    own = {name: value for name, value in encoder.state_dict().items() if not name.startswith(("image", "joint"))}
    state = {name: torch.randn_like(value) for name, value in own.items() if "." in name and "positions" not in name}
    state["patch_embed.proj.weight"] = torch.randn(24, 3, 8, 8)
    return {**state, "cls_token": torch.randn(1, 1, 24), "pos_embed": torch.randn(1, 17, 24)}


@pytest.mark.parametrize("modalities", [BOTH, ("audio",), ("image",)])
def test_all_branches_start_from_an_image_mae(modalities: tuple[str, ...]) -> None:
    encoder, state = classifier(*modalities).encoder, image_mae()
    tokens = {name: value.clone() for name, value in encoder.state_dict().items() if "token" in name}
    SYSTEM.load_image_weights(encoder, state)
    kernel = state.pop("patch_embed.proj.weight")
    assert_close(encoder.patch_embed.proj.weight, kernel.sum(1, keepdim=True).transpose(2, 3))
    for name, value in state.items():
        if name in ("cls_token", "pos_embed"):
            continue
        assert torch.equal(encoder.get_parameter(name), value)
        for branch in (encoder.image, encoder.joint):
            if branch is not None and name in dict(branch.named_parameters()):
                assert torch.equal(branch.get_parameter(name), value)
    if encoder.image is not None:
        assert torch.equal(encoder.image.patch_embed.proj.weight, kernel)
    assert all(torch.equal(encoder.get_parameter(name), value) for name, value in tokens.items())
    assert encoder.positions.is_sincos


def test_pretraining_starts_from_an_image_mae_or_says_why_not(tmp_path: Path) -> None:
    fixed = {"data": str(tmp_path), "target_length": 64, "best_checkpoint_metric": "loss", "seed": 1}
    fixed |= {"maximize_best_checkpoint_metric": False, "bf16": False, "fp16": False, "max_update": 0}
    config = OmegaConf.merge(OmegaConf.structured(AmaePretrainingConfig), {**fixed, "valid_subset": "valid"})
    path = tmp_path / "mae.pth"
    weights = image_mae()
    torch.save({"model": weights}, path)
    settings = {"_name": "amae_cav_mae", **SIZES, "imagenet": str(path), "compile": False}
    made = AmaePretraining.setup_task(config).build_model(OmegaConf.create(settings))
    assert torch.equal(made.encoder.image.blocks[0].mlp.fc1.weight, weights["blocks.0.mlp.fc1.weight"])
    with pytest.raises(UserError, match=f"model.imagenet={path}: no ViT/DeiT of the encoder's sizes"):
        AmaePretraining.setup_task(config).build_model(OmegaConf.create({**settings, "embed_dim": 48}))


def test_inspect_tells_what_is_seen(
    write_checkpoint: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    encoder = {"_name": "amae_cav_mae", **SIZES, "num_mel_bins": 64, "patch_size": [8, 8]}
    path = write_checkpoint(tmp_path / "pairs.pt", None, encoder=encoder)
    assert main(["inspect", str(path), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["modalities"], facts["shared_depth"], facts["depth"]) == (["audio", "image"], 1, 3)
    assert (facts["image"]["size"], facts["image"]["patch_size"], facts["image"]["grid"]) == (32, 8, [4, 4])
    assert main(["inspect", str(path)]) == 0
    shown = capsys.readouterr().out
    assert "depth 3, shared_depth 1, num_heads 3" in shown
    assert "32 x 32 pixels, patches of 8 x 8, 4 x 4 (rows x columns)" in shown
    path = write_checkpoint(tmp_path / "sounds.pt", None, encoder={**encoder, "modalities": ["audio"]})
    assert main(["inspect", str(path), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["modalities"], facts["image"]) == (["audio"], None)

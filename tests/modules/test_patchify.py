import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from amae_plugin.modules.embedding import PatchEmbed, grid_size, patchify, unpatchify

sizes = st.integers(1, 5)


@given(grid=st.tuples(sizes, sizes), patch=st.tuples(sizes, sizes))
def test_unpatchify_inverts_patchify(grid, patch):
    spectrogram = torch.randn(2, grid[0] * patch[0], grid[1] * patch[1])
    patches = patchify(spectrogram, patch)
    assert patches.shape == (2, grid[0] * grid[1], patch[0] * patch[1])
    assert torch.equal(unpatchify(patches, grid, patch), spectrogram)


@given(grid=st.tuples(sizes, sizes), patch=st.tuples(sizes, sizes), data=st.data())
def test_tokens_are_time_major_and_values_frame_by_frame(grid, patch, data):
    spectrogram = torch.arange(grid[0] * patch[0] * grid[1] * patch[1]).view(1, grid[0] * patch[0], -1)
    row, column = data.draw(st.integers(0, grid[0] - 1)), data.draw(st.integers(0, grid[1] - 1))
    token = patchify(spectrogram, patch)[0, row * grid[1] + column]
    tile = spectrogram[0, row * patch[0] : (row + 1) * patch[0], column * patch[1] : (column + 1) * patch[1]]
    assert token.tolist() == tile.flatten().tolist()


@pytest.mark.parametrize(("frames", "bands"), [(100, 128), (1024, 100), (0, 128), (1024, 0)])
def test_a_spectrogram_that_patches_do_not_divide_is_refused(frames, bands):
    with pytest.raises(ValueError, match=f"{frames} frames x {bands} bands cannot be cut into patches of 16 frames"):
        grid_size(frames, bands, (16, 16))
    assert grid_size(1024, 128, (16, 16)) == (64, 8)


@pytest.mark.parametrize("patch", [(16, 16), (2, 8), (8, 2)])
def test_patch_embed_is_the_convolution_whose_weight_it_stores(patch):
    torch.manual_seed(0)
    embed = PatchEmbed(patch, 12)
    spectrogram = torch.randn(2, 48, 32)
    expected = embed.proj(spectrogram[:, None]).flatten(2).transpose(1, 2)
    torch.testing.assert_close(embed(patchify(spectrogram, patch)), expected, rtol=1e-5, atol=1e-5)


@given(
    patch=st.tuples(sizes, sizes), stride=st.tuples(sizes, sizes), extra=st.tuples(st.integers(0, 9), st.integers(0, 9))
)
def test_overlapping_patches_are_those_of_a_convolution_with_that_stride(patch, stride, extra):
    assume(stride != patch)
    frames, bands = patch[0] + extra[0], patch[1] + extra[1]
    spectrogram = torch.randn(2, frames, bands)
    patches = patchify(spectrogram, patch, stride)
    rows, columns = grid_size(frames, bands, patch, stride)
    assert patches.shape == (2, rows * columns, patch[0] * patch[1])
    expected = torch.nn.functional.unfold(spectrogram[:, None], patch, stride=stride).transpose(1, 2)
    assert torch.equal(patches, expected)


@given(grid=st.tuples(sizes, sizes), patch=st.tuples(sizes, sizes))
def test_patches_a_patch_apart_do_not_overlap(grid, patch):
    spectrogram = torch.randn(2, grid[0] * patch[0], grid[1] * patch[1])
    assert torch.equal(patchify(spectrogram, patch, patch), patchify(spectrogram, patch))
    rows = spectrogram.unfold(1, patch[0], patch[0]).unfold(2, patch[1], patch[1])
    assert torch.equal(patchify(spectrogram, patch), rows.reshape(2, grid[0] * grid[1], -1))


@pytest.mark.parametrize(("frames", "bands", "stride"), [(15, 128, (10, 10)), (64, 15, (10, 10)), (64, 128, (0, 10))])
def test_a_spectrogram_without_a_whole_patch_is_refused(frames, bands, stride):
    with pytest.raises(ValueError, match=f"{frames} frames x {bands} bands has no patches of 16 frames"):
        grid_size(frames, bands, (16, 16), stride)
    assert grid_size(1024, 128, (16, 16), (10, 10)) == (101, 12)

"""Settings of small encoders of every system, whose input is 64 frames of 64 bands."""

from __future__ import annotations

SIZES = {"input_length": 64, "num_mel_bins": 64, "embed_dim": 32, "depth": 3, "num_heads": 2}
PATCHES = {**SIZES, "patch_size": [16, 16]}
FRAMES = {**SIZES, "patch_size": [2, 64]}
DECODER = {"decoder_embed_dim": 16, "decoder_depth": 1, "decoder_num_heads": 2}
ENCODERS = {
    "audio_mae": {"_name": "amae_audio_mae", **PATCHES, **DECODER},
    "ssast": {"_name": "amae_ssast", **PATCHES},
    "ssast_frames": {"_name": "amae_ssast", **FRAMES, "masking": "random"},
    "mae_ast": {"_name": "amae_mae_ast", **PATCHES, **DECODER},
    "mae_ast_frames": {"_name": "amae_mae_ast", **FRAMES, **DECODER, "masking": "random"},
    "eat": {"_name": "amae_eat", **PATCHES},
}
AST = {**ENCODERS["ssast"], "patch_stride": [10, 10]}
INPUT_SAMPLES = 400 + 63 * 160  # fill the models' input exactly

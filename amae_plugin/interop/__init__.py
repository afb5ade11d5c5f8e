"""Other people's weights and tools: published checkpoints in; timm, ONNX, HEAR and s3prl out."""

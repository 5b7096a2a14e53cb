"""The command that makes a chat template take `proposals`, for set-ups that use no plugin."""

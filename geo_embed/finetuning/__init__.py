"""Stage 3, images to run: `finetune`."""

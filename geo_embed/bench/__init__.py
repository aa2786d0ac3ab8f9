"""Speed and quality: ratios against baselines measured in the same run, with the theoretical limit beside them."""

"""Where a detector fails: pairs of mammograms with and without one lesion."""

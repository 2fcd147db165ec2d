"""Linear maps that mix the channels of each irrep."""

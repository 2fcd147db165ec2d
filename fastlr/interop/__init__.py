"""fastlr inside other programs: one file a neighbour."""

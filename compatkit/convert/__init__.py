"""Adapters in other names: the same change of a model, spelled as another convention spells it."""

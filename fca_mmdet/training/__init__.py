"""Training with mmdet's own commands: looked at before it begins, resumed exactly, scored fast. Nothing of FCA is in it but the search."""

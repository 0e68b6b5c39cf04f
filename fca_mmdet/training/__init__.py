"""Train with mmdet's own commands: check the data first, resume exactly, evaluate fast. Only the search is specific to FCA."""

"""What measures, compares and draws; no training or deployed model needs it."""

"""A user's own pictures and masks: found, paired, read and understood, before there is a config (`jseg init`)."""

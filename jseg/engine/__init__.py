"""What is done with a model: train, evaluate, predict,
and what they share (optimizers, schedules, checkpoints, logs).
"""

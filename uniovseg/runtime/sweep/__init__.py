"""Sweeps on Ray Tune: `uniovseg.runtime.sweep.job.sweep`. A trial is a training run, or the score of one scale set, and nothing else."""

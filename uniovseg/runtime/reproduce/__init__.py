"""The paper's tables, run with our code: `uniovseg.runtime.reproduce.job.reproduce`."""

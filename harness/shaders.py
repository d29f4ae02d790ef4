"""`latentvk shaders`: the development loop of the kernels; its commands are in harness/shaders_*.py."""

HELP = "check, compile, time and watch the kernels while writing them"

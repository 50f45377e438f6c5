"""The golden comparison: an older revision and the working tree do the same, and whatever people can see of it must agree.

`python -m tests.golden --base REV` (make golden). `driver` runs inside a tree and asks its command line and its compiled
packages; `runs` starts pipelines and reads what they leave behind; `facts` makes both comparable; `compare` finds the
differences and holds them against `meant.yaml`, which names those that are meant.
"""

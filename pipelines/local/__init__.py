"""Run a pipeline on this machine, with `kfp.local` and the components that a cluster would run.

Two processes. The outer one, `run`, shows what happens, and is what an exit handler is on a cluster: it ends the inner one's
whole process group on a signal, and closes the MLflow runs however things went. The inner one (`work`, `python -m
pipelines.local request.json`) checks the settings and hands the pipeline to KFP, whose tasks are processes of their own: forked
by `warm`, or started by KFP.
"""

"""The DAGs, and the ways to run them: here with `kfp.local`, or compiled for a cluster."""

"""`python -m pipelines.cli`: the command `rco`."""

from pipelines.cli.main import main

if __name__ == "__main__":
    main()

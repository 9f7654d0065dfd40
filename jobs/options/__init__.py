"""The options of the jobs, apart from the jobs, which need torch: `--help` and a misspelt option answer at once."""

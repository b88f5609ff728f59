"""What has the same architecture in both libraries: one file for each group of families."""

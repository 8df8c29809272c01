"""The embedded data set: 223 smartphone recordings with 4 annotated actions (see README.md beside this file)."""

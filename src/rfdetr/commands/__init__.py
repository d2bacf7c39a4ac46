"""The commands of `rfdetr`, a few in each module: a function that adds the options, and one that runs."""

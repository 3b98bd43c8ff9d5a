"""Who runs the tasks of a build."""
